"""The load benchmark measures a server started here, names who is left out, and refuses wrong answers."""

from __future__ import annotations

import json
import os
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import httpx
import psutil
import pytest
import serving_load
import started
from peers.catalogue import PEERS, Peer
from served import Subject, prepare
from serving_load import Options

from dropserve.serving.runtime import free_ports

HERE = Path(__file__).parent
PYTHON = Path(sys.executable).parent
TINY = Peer(
    name="tiny",
    label="Tiny",
    about="the smallest server",
    application=HERE / "tiny",
    command=("{bin}/python", "app.py", "{port}"),
    path="/",
    ask=lambda row: {"row": row},
    read=lambda document: document["probabilities"],
    bin=PYTHON,
)
pytestmark = pytest.mark.slow


def manner(name: str) -> Peer:
    return replace(TINY, name=name, label=name.capitalize(), command=(*TINY.command, name))


@pytest.fixture(scope="module")
def subject(tmp_path_factory: pytest.TempPathFactory) -> Subject:
    return prepare(tmp_path_factory.mktemp("subject"))


def run(tmp_path: Path, subject: Subject, *peers: Peer) -> tuple[int, dict[str, Any], Path]:
    names = tuple(peer.name for peer in peers)
    target, page = tmp_path / "figures.json", tmp_path / "page.md"
    options = Options(0.5, 2, (1, 4), only=names, json=target, page=page)
    (tmp_path / "scratch").mkdir()
    status = serving_load.run(options, tmp_path / "scratch", subject, peers)
    left = [p for p in psutil.process_iter() if _within(p, tmp_path)]
    assert not left
    return status, json.loads(target.read_text())["figures"], page


def _within(process: psutil.Process, folder: Path) -> bool:
    """Whether a process runs in a folder."""
    try:
        return process.status() != psutil.STATUS_ZOMBIE and Path(process.cwd()).is_relative_to(folder)
    except (psutil.Error, OSError):
        return False


def test_a_server_is_measured_and_described(tmp_path: Path, subject: Subject) -> None:
    status, figures, page = run(tmp_path, subject, TINY)
    assert status == 0
    assert figures["answers_wrong"] == figures["errors"] == 0
    assert figures["answers_checked"] > 50
    for connections in (1, 4):
        assert figures[f"tiny_rate_{connections}"] > 10
        assert 0 < figures[f"tiny_p50_ms_{connections}"] <= figures[f"tiny_p99_ms_{connections}"]
        # What it computes costs something, and a second of two cores is all there is.
        assert figures[f"tiny_cpu_us_{connections}"] > 10
        assert (
            figures[f"tiny_cpu_us_{connections}"] * figures[f"tiny_rate_{connections}"] < 1e6 * os.cpu_count()
        )
    assert "did not take part" in figures["not_run"]["plain_over_stock_4"]
    text = page.read_text("utf-8")
    assert f"| Tiny | {figures['tiny_rate_4']:.0f} |" in text
    assert "| Tiny | the smallest server |" in text
    assert page.with_suffix(".svg").read_text("utf-8").count("<svg") == 1


def test_one_wrong_answer_fails_the_run(
    tmp_path: Path, subject: Subject, capsys: pytest.CaptureFixture[str]
) -> None:
    """One number of one question in 64 is off by a thousandth."""
    status, figures, page = run(tmp_path, subject, TINY, manner("wrong"))
    assert status == 1
    assert figures["answers_wrong"] > 0
    assert not page.exists()
    assert "WRONG wrong, question 0: " in (said := capsys.readouterr().out)
    assert "where the direct computation gives" in said
    assert "WRONG tiny" not in said


def test_a_server_that_refuses_fails_the_run(
    tmp_path: Path, subject: Subject, capsys: pytest.CaptureFixture[str]
) -> None:
    status, figures, page = run(tmp_path, subject, manner("refusing"))
    assert status == 1
    assert set(json.loads(figures["errors_by_kind"])) == {"refusing: 503"}
    assert not page.exists()
    assert "WRONG refusing: " in capsys.readouterr().out


def test_who_is_not_installed_is_named(
    tmp_path: Path, subject: Subject, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("peers.catalogue.ENVIRONMENTS", tmp_path / "nowhere")
    status, figures, _ = run(tmp_path, subject, TINY, PEERS[-1])
    assert status == 0
    assert figures["left_out"] == [f"{PEERS[-1].label} is not installed; install it with: make peers"]
    assert figures["left_out"][0] in " ".join(capsys.readouterr().out.split())


def test_other_pins_count_as_not_installed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("peers.catalogue.ENVIRONMENTS", tmp_path)
    peer = PEERS[0]
    installed = tmp_path / peer.application.name / "requirements.txt"
    installed.parent.mkdir()
    installed.write_text("numpy==1.0\n")
    assert "installed from other pins" in peer.missing
    installed.write_bytes((peer.application / "requirements.txt").read_bytes())
    assert peer.missing == ""


def test_a_server_that_ends_gives_its_last_words(tmp_path: Path) -> None:
    command = [str(PYTHON / "python"), "-c", "raise SystemExit('no model here')"]
    (port,) = free_ports(1)
    with (
        started.server(command, tmp_path) as server,
        pytest.raises(RuntimeError, match="no model here"),
    ):
        server.await_answer(f"http://127.0.0.1:{port}/", {})


def test_a_frozen_server_does_nothing_until_it_is_thawed(tmp_path: Path, subject: Subject) -> None:
    folder, (port,) = tmp_path / "tiny", free_ports(1)
    TINY.place(folder, subject.version.path("model.onnx"))
    url, question = f"http://127.0.0.1:{port}/", {"row": subject.rows[0].tolist()}
    with started.server([str(PYTHON / "python"), "app.py", str(port)], folder) as server:
        server.await_answer(url, question)
        server.family.freeze()
        with pytest.raises(httpx.TimeoutException):
            httpx.post(url, json=question, timeout=0.5)
        server.family.thaw()
        assert httpx.post(url, json=question, timeout=10).status_code == 200
        server.family.freeze()  # and its end is not in the way
        family = server.family.members()
        assert len(family) == 2
    assert not any(process.is_running() and process.status() != psutil.STATUS_ZOMBIE for process in family)
