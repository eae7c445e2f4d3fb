"""Batches read in pieces, against TorchServe's own code, which reads them field by field."""

from __future__ import annotations

import importlib.util
import struct
from collections.abc import Iterator
from types import ModuleType

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dropserve.serving import wire

torchserve = importlib.import_module(wire.MODULE)


def own_copy() -> ModuleType:
    """TorchServe's module once more, whoever has changed the imported one."""
    spec = importlib.util.find_spec(wire.MODULE)
    copy = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(copy)
    return copy


own_code = own_copy()._retrieve_inference_msg
texts = st.text(max_size=20)
headers = st.lists(st.tuples(texts, texts), max_size=8)
parameters = st.lists(st.tuples(texts, texts, st.binary(max_size=3000)), max_size=3)
batches = st.lists(st.tuples(texts, headers, parameters), max_size=6)
END = struct.pack("!i", -1)


def field(content: str | bytes) -> bytes:
    data = content if isinstance(content, bytes) else content.encode()
    return struct.pack("!i", len(data)) + data


def encoded(batch: list) -> bytes:
    """As Java writes a batch behind its command byte."""
    message = b""
    for identity, fields, values in batch:
        message += field(identity)
        message += b"".join(field(part) for pair in fields for part in pair) + END
        message += b"".join(field(part) for triple in values for part in triple) + END
    return message + END


class Connection:
    """A socket from which bytes come in pieces of these sizes, again and again."""

    def __init__(self, data: bytes, sizes: list[int]) -> None:
        self.data, self.sizes, self.calls = data, sizes, 0

    def recv(self, most: int) -> bytes:
        size = min(most, self.sizes[self.calls % len(self.sizes)])
        self.calls += 1
        piece, self.data = self.data[:size], self.data[size:]
        return piece


@pytest.fixture
def _undecoded(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Bodies stay bytes, as our servers configure it; and TorchServe's code is put back."""
    monkeypatch.setenv("TS_DECODE_INPUT_REQUEST", "false")
    monkeypatch.setattr(torchserve, "_retrieve_inference_msg", own_code)
    return


@pytest.mark.usefixtures("_undecoded")
class TestAgainstTorchServe:
    @given(batch=batches, sizes=st.lists(st.integers(1, 5000), min_size=1, max_size=8))
    def test_gives_what_its_own_code_gives(self, batch: list, sizes: list[int]) -> None:
        message = encoded(batch)
        found = wire.read_batch(Connection(message, sizes))
        assert found == own_code(Connection(message, [1 << 20]))
        assert [request["requestId"].decode() for request in found] == [identity for identity, _, _ in batch]

    def test_a_long_body_takes_few_calls(self) -> None:
        body = bytes(6_553_500)
        connection = Connection(encoded([("id", [], [("body", "", body)])]), [1 << 16])
        (request,) = wire.read_batch(connection)
        assert request["parameters"][0]["value"] == body
        assert connection.calls <= 102

    def test_a_usual_batch_takes_one_call(self) -> None:
        usual = [("host", "127.0.0.1:8080"), ("content-type", "application/json")] * 4
        connection = Connection(encoded([("id", usual, [("body", "", b"{}")])] * 12), [1 << 20])
        assert len(wire.read_batch(connection)) == 12
        assert connection.calls == 1

    def test_more_than_a_batch_is_refused(self) -> None:
        with pytest.raises(RuntimeError, match="3 bytes follow a batch"):
            wire.read_batch(Connection(encoded([]) + b"abc", [100]))

    def test_a_frontend_that_is_gone_ends_the_worker(self) -> None:
        message = encoded([("id", [], [("body", "", b"1234")])])
        with pytest.raises(SystemExit) as ended:
            wire.read_batch(Connection(message[:-9], [100]))
        assert ended.value.code == 0

    def test_the_version_that_is_known_is_read_so(self) -> None:
        assert wire.read_in_pieces()
        assert torchserve._retrieve_inference_msg is wire.read_batch

    def test_another_version_reads_by_itself_and_says_so(
        self, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
    ) -> None:
        monkeypatch.setattr(wire, "version", lambda _: "0.13.0")
        assert not wire.read_in_pieces()
        assert torchserve._retrieve_inference_msg is own_code
        assert "torchserve 0.13.0: expected 0.12.0" in caplog.text
