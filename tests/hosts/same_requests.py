"""Requests that every host must answer with the same bytes."""

from __future__ import annotations

import random

from attacks import dump, tensor
from siege import good_requests
from wire import Request


def requests() -> list[Request]:
    """V1 and V2, JSON and binary, plain and Monte Carlo; every setting; other models; refusals."""
    found = list(good_requests())
    draw = random.Random(3)
    for scheme in ("balanced", "iid"):
        for samples in (2, 37, 200):
            rows = [[draw.gauss(0, 2) for _ in range(6)] for _ in range(draw.randint(1, 9))]
            settings = {"mc_samples": samples, "mc_seed": draw.randrange(2**53), "mc_scheme": scheme}
            document = {"instances": rows, "parameters": settings | {"mc_tolerance": 20, "mc_coverage": 500}}
            found.append(Request("settings", "/predictions/mlp-mc", dump(document)))
            document = {"inputs": [tensor(shape=[len(rows), 6], data=rows)], "parameters": settings}
            found.append(Request("settings", "/v2/models/mlp-mc/infer", dump(document)))
    found.append(Request("words", "/predictions/words", dump({"instances": list(range(7))})))
    row = {"age": None, "job": "nurse", "grade": "7", "pay": 2.5}
    found.append(Request("staff", "/predictions/staff", dump({"instances": [row, list(row.values())]})))
    kinds = {"age": "FP32", "job": "BYTES", "grade": "BYTES", "pay": "FP64"}
    columns = [
        {"name": name, "shape": [1], "datatype": kind, "data": [row[name]]} for name, kind in kinds.items()
    ]
    found.append(Request("staff", "/v2/models/staff/infer", dump({"inputs": columns})))
    found.append(Request("refused", "/predictions/staff", dump({"instances": [row | {"job": "smith"}]})))
    found.append(Request("photos", "/predictions/photos", dump({"instances": [[7] * 48]})))
    found.append(Request("many", "/predictions/mlp", dump({"instances": [[i / 7] * 6 for i in range(3000)]})))
    wrong = ({"instances": [[1]]}, {"instances": [[1e308] * 6]}, {"inputs": [tensor(shape=[6])]})
    return found + [Request("refused", "/predictions/mlp", dump(document)) for document in wrong]
