"""Ask a server with NVIDIA's tritonclient: rows as JSON on stdin, the server's address as argument.

Runs where tritonclient is installed, and needs nothing of dropserve. Prints what each case gave, as JSON.
"""

from __future__ import annotations

import asyncio
import json
import sys
from collections.abc import Callable
from typing import Any

import numpy as np
import tritonclient.http as client
from tritonclient.http import aio
from tritonclient.utils import InferenceServerException

ADDRESS = sys.argv[1].removeprefix("http://")
ROWS = np.array(json.load(sys.stdin), np.float32)
SETTINGS = {"mc_samples": 20, "mc_seed": 3}


def inputs(*, binary: bool, rows: np.ndarray = ROWS, datatype: str = "FP32") -> list[client.InferInput]:
    tensor = client.InferInput("input", list(rows.shape), datatype)
    tensor.set_data_from_numpy(rows, binary_data=binary)
    return [tensor]


def outputs(*names: str, binary: bool) -> list[client.InferRequestedOutput]:
    return [client.InferRequestedOutput(name, binary_data=binary) for name in names]


def read(result: client.InferResult) -> dict[str, Any]:
    response = result.get_response()
    found = {entry["name"]: result.as_numpy(entry["name"]) for entry in response["outputs"]}
    values = {
        # Texts from binary tensors come as bytes, those from JSON as str.
        name: [x.decode() if isinstance(x, bytes) else x for x in array.tolist()]
        for name, array in found.items()
    }
    kinds = {name: str(array.dtype) for name, array in found.items()}
    rest = {key: value for key, value in response.items() if key != "outputs"}
    return {"values": values, "dtypes": kinds, "response": rest}


def attempt(ask: Callable[[], Any]) -> Any:
    try:
        return ask()
    except InferenceServerException as error:
        return {"error": error.message(), "status": error.status()}


async def asynchronous() -> dict[str, Any]:
    async with aio.InferenceServerClient(ADDRESS) as server:
        both = await asyncio.gather(
            server.infer("mlp", inputs(binary=True)),
            server.infer("mlp-mc", inputs(binary=False), parameters=SETTINGS, request_id="seven"),
        )
        try:
            await server.infer("mlp", inputs(binary=True, rows=ROWS[:, :4]))
        except InferenceServerException as error:
            wrong = {"error": error.message(), "status": error.status()}
    return {"aio binary": read(both[0]), "aio mc": read(both[1]), "aio wrong shape": wrong}


def main() -> None:
    named = ("probabilities", "label")
    with client.InferenceServerClient(ADDRESS, concurrency=4) as server:
        ask = server.infer
        cases: dict[str, Callable[[], Any]] = {
            "binary": lambda: read(ask("mlp", inputs(binary=True))),
            "json": lambda: read(ask("mlp", inputs(binary=False), outputs=outputs(*named, binary=False))),
            "binary, outputs named": lambda: read(
                ask(
                    "mlp", inputs(binary=True), outputs=outputs("probabilities", binary=True), request_id="é7"
                )
            ),
            "binary in, json out": lambda: read(
                ask("mlp", inputs(binary=True), outputs=outputs(*named, binary=False))
            ),
            "mc": lambda: read(ask("mlp-mc", inputs(binary=True), parameters=SETTINGS, request_id="seven")),
            "mc json": lambda: read(
                ask(
                    "mlp-mc",
                    inputs(binary=False),
                    outputs=outputs("probabilities", "standard_deviation", binary=False),
                    parameters=SETTINGS,
                )
            ),
            "wrong shape": lambda: read(ask("mlp", inputs(binary=True, rows=ROWS[:, :4]))),
            "wrong datatype": lambda: read(
                ask("mlp", inputs(binary=True, rows=ROWS.astype(np.float64), datatype="FP64"))
            ),
            "unknown output": lambda: read(
                ask("mlp", inputs(binary=True), outputs=outputs("x", binary=True))
            ),
            "unknown model": lambda: read(ask("nobody", inputs(binary=True))),
            "compressed": lambda: read(ask("mlp", inputs(binary=True), request_compression_algorithm="gzip")),
            "with a version": lambda: read(ask("mlp", inputs(binary=True), model_version="1")),
            "metadata": lambda: server.get_model_metadata("mlp"),
            "live": server.is_server_live,
            "ready": server.is_server_ready,
            "model ready": lambda: server.is_model_ready("mlp"),
        }
        found = {name: attempt(case) for name, case in cases.items()}
        waiting = [server.async_infer("mlp", inputs(binary=True)) for _ in range(4)]
        found["async_infer"] = [read(answer.get_result()) for answer in waiting]
    found |= asyncio.run(asynchronous())
    json.dump(found, sys.stdout)


if __name__ == "__main__":
    main()
