"""The store: whole or not at all, and never a flipped byte."""

from __future__ import annotations

import hashlib
import multiprocessing
import os
import signal
import subprocess
import sys
import textwrap
from itertools import chain
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from dropserve.errors import CorruptStoreError, NotInStoreError, PublishError, UsageError
from dropserve.manifest import FORMAT, RunManifest, SourceRecord, VersionManifest
from dropserve.signature import Signature, TensorSpec
from dropserve.store import Store, check_name

SIGNATURE = Signature(
    inputs=(TensorSpec(name="input", shape=(3,)),), outputs=(TensorSpec(name="output", shape=(2,)),)
)
SOURCE = SourceRecord(spec="/x/net.py:Net", sha256="0" * 64, copy_file="source/net.py")


def version_manifest(number: int, name: str = "m") -> VersionManifest:
    return VersionManifest(name=name, task="raw", signature=SIGNATURE, source=SOURCE, version=number, run="r")


def publish(store: Store, content: bytes = b"graph") -> int:
    with store.staging("m", VersionManifest) as staging:
        (staging.folder / "model.onnx").write_bytes(content)
        (staging.folder / "extra").mkdir()
        (staging.folder / "extra" / "notes.txt").write_text("hello")
        return store.publish(staging, version_manifest(staging.number)).manifest.version


def test_versions_count_up_and_the_newest_is_the_default(tmp_path: Path) -> None:
    store = Store(tmp_path)
    assert [publish(store) for _ in range(11)] == list(range(1, 12))
    assert store.version("m").manifest.version == 11
    assert store.version("m", 2).manifest.version == 2
    assert set(store.version("m").manifest.files) == {"model.onnx", "extra/notes.txt"}


def test_runs_and_versions_do_not_mix(tmp_path: Path) -> None:
    store = Store(tmp_path)
    with store.staging("m", RunManifest) as staging:
        (staging.folder / "weights").write_bytes(b"w")
        manifest = RunManifest(name="m", task="raw", signature=SIGNATURE, source=SOURCE, id=staging.id)
        store.publish(staging, manifest)
    assert store.versions("m") == []
    assert store.runs("m") == [store.run("m").manifest.id]
    assert store.names() == ["m"]


@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_any_flipped_byte_in_any_file_is_refused_by_name(data: st.DataObject, tmp_path_factory) -> None:
    store = Store(tmp_path_factory.mktemp("store"))
    publish(store, b"some graph")
    folder = store.root / "m" / "1"
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    victim = data.draw(st.sampled_from(files))
    content = bytearray(victim.read_bytes())
    at = data.draw(st.integers(0, len(content) - 1))
    content[at] ^= 1 << data.draw(st.integers(0, 7))
    victim.chmod(0o644)
    victim.write_bytes(content)
    with pytest.raises(
        CorruptStoreError, match=r"manifest\.json" if "manifest" in victim.name else victim.name
    ):
        store.version("m")


def test_a_missing_and_an_unlisted_file_are_refused_by_name(tmp_path: Path) -> None:
    store = Store(tmp_path)
    publish(store)
    (tmp_path / "m" / "1" / "planted.py").write_text("import os")
    with pytest.raises(CorruptStoreError, match=r"planted\.py is not listed"):
        store.version("m")
    (tmp_path / "m" / "1" / "planted.py").unlink()
    (tmp_path / "m" / "1" / "model.onnx").unlink()
    with pytest.raises(CorruptStoreError, match=r"model\.onnx is missing"):
        store.version("m")


def test_a_failure_while_filling_publishes_nothing(tmp_path: Path) -> None:
    store = Store(tmp_path)

    def fail() -> None:
        with store.staging("m", VersionManifest) as staging:
            (staging.folder / "half").write_text("half")
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fail()
    assert store.versions("m") == []
    assert not list((tmp_path / "m").glob(".staging-*"))


def test_a_full_disk_says_so_and_publishes_nothing(tmp_path: Path) -> None:
    store = Store(tmp_path)

    def write() -> None:
        with store.staging("m", VersionManifest) as staging, Path("/dev/full").open("wb") as full:
            (staging.folder / "model.onnx").write_bytes(b"graph")
            full.write(b"x" * 100_000)  # a real ENOSPC from the kernel

    with pytest.raises(PublishError, match="No space left on device"):
        write()
    assert store.versions("m") == []
    assert not list((tmp_path / "m").glob(".staging-*"))


def _publish_ten(root: str) -> list[int]:
    return [publish(Store(Path(root)), os.urandom(10_000)) for _ in range(10)]


def test_exports_at_once_get_different_numbers_and_are_all_whole(tmp_path: Path) -> None:
    context = multiprocessing.get_context("spawn")
    with context.Pool(3) as pool:
        numbers = pool.map(_publish_ten, [str(tmp_path)] * 3)
    assert sorted(chain.from_iterable(numbers)) == list(range(1, 31))
    store = Store(tmp_path)
    assert [store.version("m", n).manifest.version for n in store.versions("m")] == list(range(1, 31))


def test_a_killed_export_leaves_nothing_that_anyone_reads(tmp_path: Path) -> None:
    code = f"""
        import os, signal
        from pathlib import Path
        from dropserve.manifest import VersionManifest
        from dropserve.store import Store
        with Store(Path({str(tmp_path)!r})).staging("m", VersionManifest) as staging:
            (staging.folder / "model.onnx").write_text("half")
            os.kill(os.getpid(), signal.SIGKILL)
    """
    done = subprocess.run([sys.executable, "-c", textwrap.dedent(code)], check=False)
    assert done.returncode == -signal.SIGKILL
    store = Store(tmp_path)
    assert list((tmp_path / "m").glob(".staging-*")), "the kill came too late to test anything"
    assert store.versions("m") == []
    with pytest.raises(NotInStoreError, match="no version"):
        store.version("m")
    assert publish(store) == 1
    assert not list((tmp_path / "m").glob(".staging-*"))


def test_an_unknown_model_or_version_says_what_there_is(tmp_path: Path) -> None:
    store = Store(tmp_path)
    with pytest.raises(NotInStoreError, match="dropserve export"):
        store.version("m")
    publish(store)
    with pytest.raises(NotInStoreError, match="no version 7; it has 1"):
        store.version("m", 7)


def write_guarded(folder: Path, text: str) -> None:
    """A manifest that agrees with the hash beside it."""
    for name, content in {
        "manifest.json": text,
        "manifest.sha256": f"{hashlib.sha256(text.encode()).hexdigest()}  manifest.json\n",
    }.items():
        (folder / name).chmod(0o644)
        (folder / name).write_text(content)


def test_an_unknown_format_number_says_what_to_do(tmp_path: Path) -> None:
    store = Store(tmp_path)
    publish(store)
    folder = tmp_path / "m" / "1"
    text = (folder / "manifest.json").read_text()
    write_guarded(folder, text.replace(f'"format": {FORMAT}', '"format": 99'))
    with pytest.raises(CorruptStoreError, match=r"manifest format 99.*Upgrade dropserve"):
        store.version("m")


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("[]", "one is a list"),
        ("null", "one is a NoneType"),
        ("7", "one is a int"),
        ("[" * 100_000, "nested too deep"),
        ('{"format": [1]}', r"manifest format \[1\]"),
        ('{"format": true}', "manifest format True"),
        ('{"format": {}}', r"manifest format \{\}"),
        ("{}", "manifest format None"),
        ("", "Expecting value"),
    ],
)
def test_a_manifest_of_another_shape_is_refused_in_words(tmp_path: Path, text: str, told: str) -> None:
    store = Store(tmp_path)
    publish(store)
    write_guarded(tmp_path / "m" / "1", text)
    with pytest.raises(CorruptStoreError, match=told):
        store.version("m")


def test_a_folder_that_is_called_like_no_number_is_no_version(tmp_path: Path) -> None:
    store = Store(tmp_path)
    publish(store)
    for name in ("²", "0", "01", "٣", "9" * 40):
        (tmp_path / "m" / name).mkdir()
    assert store.versions("m") == [1]
    assert publish(store) == 2


def test_a_manifest_in_the_folder_of_another_is_refused_with_both_names(tmp_path: Path) -> None:
    store = Store(tmp_path)
    publish(store)
    (tmp_path / "m" / "1").rename(tmp_path / "m" / "4")
    with pytest.raises(CorruptStoreError, match=r"describes version 1 of model 'm', .* folder of 4 of 'm'"):
        store.version("m")
    (tmp_path / "m" / "4").rename(tmp_path / "m" / "1")
    (tmp_path / "m").rename(tmp_path / "other")
    with pytest.raises(CorruptStoreError, match=r"of model 'm', .* folder of 1 of 'other'"):
        store.version("other")


@pytest.mark.parametrize(
    "name", ["", "Digits", "a/b", "../x", "digits-mc", "runs", "a" * 65, "-a", "a b", "é"]
)
def test_names_that_do_not_fit_a_path_or_an_endpoint_are_refused(name: str) -> None:
    with pytest.raises(UsageError, match="model name"):
        check_name(name)
