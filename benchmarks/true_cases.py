"""The small inputs that once fooled dropserve, each run as a user would run it, and what it gives now.

python benchmarks/true_cases.py [--json PATH] [--cases DIR]

``--cases`` is a folder with ``data/`` and ``models/``, one folder or file for each case. A case passes if the
commands on it give what its ``expect.md`` (or the head of its file) calls right: the right answer, or a
refusal in words with exit status 1 or 2 and no traceback.
"""

from __future__ import annotations

import argparse
import base64
import io
import json
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
from fresh_clone import free_port
from PIL import Image

HERE = Path(__file__).parent
DROPSERVE = Path(sys.executable).with_name("dropserve")


class Wrong(Exception):  # noqa: N818  # it is a finding, not an error of this script
    """What a case gave in place of what is right."""


@dataclass(frozen=True)
class Ran:
    """A finished command."""

    line: str
    code: int
    text: str

    def passed(self) -> Ran:
        """It ended well."""
        if self.code:
            raise Wrong(f"{self.line}: exit status {self.code}: {self.text[-400:]}")
        return self

    def refused(self, *words: str) -> Ran:
        """It was refused in words that hold each of these."""
        if self.code not in (1, 2) or "Traceback" in self.text:
            raise Wrong(f"{self.line}: exit status {self.code}, expected a refusal: {self.text[-400:]}")
        if missing := [word for word in words if word.lower() not in self.text.lower()]:
            raise Wrong(f"{self.line}: refused without saying {missing}: {self.text[-600:]}")
        return self


class Folder:
    """A copy of one case in which commands run."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def run(self, *words: str) -> Ran:
        """Run ``dropserve`` with these words."""
        return self._run([str(DROPSERVE), *words], f"dropserve {' '.join(words)}")

    def python(self, code: str) -> Ran:
        """Run a line of Python."""
        return self._run([sys.executable, "-c", code], f"python -c {code!r}").passed()

    def _run(self, command: list[str], line: str) -> Ran:
        done = subprocess.run(
            command, cwd=self.path, capture_output=True, text=True, check=False, timeout=600
        )
        return Ran(line, done.returncode, " ".join((done.stdout + done.stderr).split()))

    def metrics(self, name: str) -> dict[str, float]:
        """The metrics of a model's one run."""
        (manifest,) = (self.path / "model_store" / name / "runs").glob("*/manifest.json")
        return json.loads(manifest.read_text("utf-8"))["metrics"]

    def ask(self, name: str, instances: list[Any]) -> list[Any]:
        """Serve a model without Java, ask it, and stop it."""
        port = free_port()
        self.run("serve", name, "--engine", "asgi", "--port", str(port)).passed()
        try:
            reply = httpx.post(
                f"http://127.0.0.1:{port}/predictions/{name}", json={"instances": instances}, timeout=30
            )
            if reply.status_code != httpx.codes.OK:
                raise Wrong(f"{name}: {reply.status_code} {reply.text[:300]}")
            return reply.json()["predictions"]
        finally:
            self.run("stop").passed()


def padded_encoder(folder: Folder) -> None:
    """Torch's nested path answers otherwise than any graph: refused, with the remedy."""
    folder.python("import pool, torch; torch.save(pool.PoolEncoder().eval().state_dict(), 'w.pt')")
    line = ("import", "pool.py:PoolEncoder", "--weights", "w.pt", "--input", "7:int64", "--name", "pool")
    folder.run(*line).passed()
    folder.run("export", "pool").refused("enable_nested_tensor=False", "pool.py")


def int8_weights(folder: Folder) -> None:
    """Codes are not weights."""
    folder.python(
        "import int8_weights as m, torch; "
        "torch.save({k: (v * 100).round().to(torch.int8) for k, v in m.Net().state_dict().items()}, 'w.pt')"
    )
    line = ("import", "int8_weights.py:Net", "--weights", "w.pt", "--input", "8", "--name", "int8")
    folder.run(*line).refused("net.0.weight", "int8", "float32")


def sdpa_all_masked(folder: Folder) -> None:
    """Attention that may look nowhere answers 0 everywhere."""
    inputs = ("--input", "L<=8,16", "--input", "L<=8:int64")
    folder.run("audit", "sdpa_all_masked.py:Net", *inputs).passed()


def eval_returns_none(folder: Folder) -> None:
    """A train() that forgets to return works; a training loop of that name is named."""
    folder.python("import net, torch; torch.save(net.FrozenNet().state_dict(), 'w.pt')")
    folder.run("audit", "net.py:FrozenNet", "--input", "4", "--eager").passed()
    folder.run("import", "net.py:FrozenNet", "--weights", "w.pt", "--input", "4", "--name", "f").passed()
    folder.run("train", "r.toml").passed()
    folder.run("audit", "loop.py:Loop", "--input", "4", "--eager").refused("train()", "loop.py")


def inplace_first(folder: Folder) -> None:
    """Dropout in place on the rows themselves can be sampled."""
    ran = folder.run("audit", "head.py:Head", "--input", "8", "--eager").passed()
    if "cannot be offered" in ran.text:
        raise Wrong(f"{ran.line}: {ran.text[-400:]}")


def category_skew(folder: Folder) -> None:
    """The file's own texts mean the same in a request."""
    folder.run("train", "shops.toml").passed()
    folder.run("export", "shops").passed()
    rows = [
        {"country": country, "size": 50, "zone": zone}
        for country, zone in ((None, "A"), ("NA", "A"), ("EU", "A"), ("EU", " A"))
    ]
    missing, written, plain, spaced = (row["value"] for row in folder.ask("shops", rows))
    if missing != written or plain != spaced:
        raise Wrong(f"null {missing}, NA {written}; A {plain}, ' A' {spaced}")


def float32_collapse(folder: Folder) -> None:
    """Times stay apart; or the column is refused with the counts."""
    for name, right in (("times", _learned_times), ("target", _learned), ("seconds", _learned)):
        ran = folder.run("train", f"{name}.toml")
        if ran.code:
            ran.refused("values become", "32 bits")
        else:
            right(folder, name)


def _learned_times(folder: Folder, name: str) -> None:
    accuracy = folder.metrics(name)["test_accuracy"]
    if accuracy < 0.9:  # the class is a function of the time alone
        raise Wrong(f"{name}: test accuracy {accuracy}")


def _learned(folder: Folder, name: str) -> None:
    metrics = folder.metrics(name)
    if not metrics["test_rmse"] > 0:
        raise Wrong(f"{name}: {metrics}")


def transparent_icons(folder: Folder) -> None:
    """The picture is in alpha alone: it is told apart, and means what it looks like on white."""
    folder.run("train", "icons.toml").passed()
    accuracy = folder.metrics("icons")["validation_accuracy"]
    if accuracy < 0.7:  # 8 x 8 pixels and 50 images: scikit-learn on the same pixels reaches .88
        raise Wrong(f"validation accuracy {accuracy}")
    folder.run("export", "icons").passed()
    icon = folder.path / "icons" / "circle" / "3.png"
    with Image.open(icon) as image:
        flat = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image.convert("RGBA"))
    white = io.BytesIO()
    flat.convert("RGB").save(white, "PNG")
    sent = [{"b64": base64.b64encode(content).decode()} for content in (icon.read_bytes(), white.getvalue())]
    transparent, opaque = folder.ask("icons", sent)
    if transparent != opaque:
        raise Wrong(f"transparent {transparent}, on white {opaque}")


def csv_traps(folder: Folder) -> None:
    """Each is refused with what to do, or works."""
    folder.run("train", "idx.toml").refused("has no name", "index", "features = ")
    folder.run("train", "semi_comma.toml").refused("delimiter", ";")
    folder.run("train", "semi_comma_delimiter.toml").refused("decimal comma")
    folder.run("train", "nullbool.toml").passed()


CASES: dict[str, Callable[[Folder], None]] = {
    "models/padded-encoder": padded_encoder,
    "models/int8_weights.py": int8_weights,
    "models/sdpa_all_masked.py": sdpa_all_masked,
    "models/eval-returns-none": eval_returns_none,
    "models/inplace-first": inplace_first,
    "data/category-skew": category_skew,
    "data/float32-collapse": float32_collapse,
    "data/transparent-icons": transparent_icons,
    "data/csv-traps": csv_traps,
}


def copied(source: Path, target: Path) -> Folder:
    """A writable copy of a case."""
    if source.is_dir():
        shutil.copytree(source, target, copy_function=shutil.copyfile)
    else:
        target.mkdir()
        shutil.copyfile(source, target / source.name)
    for path in (target, *target.rglob("*")):
        path.chmod(0o755 if path.is_dir() else 0o644)
    return Folder(target)


def main() -> int:
    """Run every case, print what it gave, and write the figures."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--cases", type=Path, default=HERE.parents[1] / "shared" / "cases")
    given = parser.parse_args()
    figures: dict[str, Any] = {"cases": 0, "wrong": 0}
    if not given.cases.is_dir():
        figures["not_run"] = f"no folder of cases at {given.cases.name}; name it with --cases"
    for name, check in CASES.items() if given.cases.is_dir() else ():
        with tempfile.TemporaryDirectory() as scratch:
            key = re.sub(r"\W", "_", Path(name).stem)
            try:
                check(copied(given.cases / name, Path(scratch) / key))
                verdict = "right"
            except Wrong as found:
                verdict = str(found)
                figures["wrong"] += 1
            figures["cases"] += 1
            figures[key] = verdict
            print(f"{name}: {verdict}", flush=True)
    if given.json:
        given.json.write_text(json.dumps({"figures": figures}), encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
