"""The codec of a table of people, and how to ask it."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest
from hypothesis import strategies as st

from dropserve.columns import Column
from dropserve.errors import RequestError
from dropserve.manifest import Preprocessing, SourceRecord, VersionManifest
from dropserve.serving.protocol import Codec
from dropserve.signature import Signature, TensorSpec

AGE = Column(name="age", fill=41.5)
JOB = Column(name="job", categories=("clerk", "nurse", "teacher"))
GRADE = Column(name="grade", categories=("1", "2", "3"), other=True, fill=1)
PAY = Column(name="pay")
COLUMNS = (AGE, JOB, GRADE, PAY)
HEADER = "Inference-Header-Content-Length"
NAMES = '"age", "job", "grade", "pay"'
GOOD = {"age": 3, "job": "clerk", "grade": "1", "pay": 5}


def manifest(*columns: Column) -> VersionManifest:
    spec = TensorSpec(name="input", shape=(len(columns),))
    return VersionManifest(
        name="staff",
        version=1,
        run="r",
        task="raw",
        signature=Signature(inputs=(spec,), outputs=(TensorSpec(name="output", shape=(2,)),)),
        source=SourceRecord(spec="/x/net.py:Net", sha256="0" * 64, copy_file="source/net.py"),
        preprocessing=Preprocessing(columns={"input": columns}),
    )


def codec(*columns: Column) -> Codec:
    return Codec(manifest(*columns), monte_carlo=False)


STAFF = codec(*COLUMNS)
PLAIN = codec(Column(name="a"), Column(name="b"))


def ask(document: Any, binary: bytes = b"", to: Codec = STAFF) -> np.ndarray:
    text = document if isinstance(document, bytes) else json.dumps(document).encode()
    headers = {HEADER: str(len(text))} if binary else {}
    return np.asarray(to.decode(text + binary, headers).query.inputs["input"])


def refused(document: Any, binary: bytes = b"", to: Codec = STAFF) -> str:
    with pytest.raises(RequestError) as caught:
        ask(document, binary, to)
    assert caught.value.status == 400
    return str(caught.value)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=9),
    lambda inner: (
        st.lists(inner, max_size=5) | st.dictionaries(st.sampled_from(list(GOOD)), inner, max_size=5)
    ),
    max_leaves=15,
)


def tensors(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    kinds = {"age": "FP32", "job": "BYTES", "grade": "BYTES", "pay": "FP64"}
    return [
        {"name": name, "shape": [len(rows)], "datatype": kind, "data": [row[name] for row in rows]}
        for name, kind in kinds.items()
    ]
