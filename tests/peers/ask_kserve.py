"""Ask a server with KServe's InferenceRESTClient: rows as JSON on stdin, the server's address as argument.

Runs where kserve is installed, and needs nothing of dropserve. Prints what each case gave, as JSON.
"""

from __future__ import annotations

import asyncio
import json
import sys
from collections.abc import Awaitable
from typing import Any

import httpx
import numpy as np
from kserve import InferenceRESTClient, InferInput, InferRequest, RESTConfig

URL = sys.argv[1]
ROWS = np.array(json.load(sys.stdin), np.float32)
SETTINGS = {"mc_samples": 20, "mc_seed": 3}


def request(model: str, *, binary: bool, rows: np.ndarray = ROWS, **parameters: Any) -> InferRequest:
    tensor = InferInput("input", list(rows.shape), "FP32")
    tensor.set_data_from_numpy(rows, binary_data=binary)
    return InferRequest(model, [tensor], request_id="seven", parameters=parameters)


async def v2(client: InferenceRESTClient, model: str, data: InferRequest) -> dict[str, Any]:
    response = await client.infer(URL, data, model_name=model)
    values = {output.name: output.as_numpy() for output in response.outputs}
    texts = {
        name: [x.decode() if isinstance(x, bytes) else x for x in array.tolist()]
        for name, array in values.items()
    }
    parameters = dict(response.parameters or {})
    return {"values": texts, "id": response.id, "model": response.model_name, "parameters": parameters}


async def attempt(asked: Awaitable[Any]) -> Any:
    try:
        return await asked
    except httpx.HTTPStatusError as error:
        return {"error": str(error), "status": error.response.status_code}


async def main() -> None:
    rows = ROWS.astype(float).round(3).tolist()
    first = InferenceRESTClient(RESTConfig(protocol="v1"))
    second = InferenceRESTClient(RESTConfig(protocol="v2"))
    everything = {"binary_data_output": True}
    async with first, second:
        cases: dict[str, Awaitable[Any]] = {
            "v1": first.infer(URL, {"instances": rows}, model_name="mlp"),
            "v1 mc": first.infer(URL, {"instances": rows, "parameters": SETTINGS}, model_name="mlp-mc"),
            "v1 wrong shape": first.infer(URL, {"instances": [[1, 2]]}, model_name="mlp"),
            "v2 json": v2(second, "mlp", request("mlp", binary=False)),
            "v2 binary": v2(second, "mlp", request("mlp", binary=True, **everything)),
            "v2 binary in, json out": v2(second, "mlp", request("mlp", binary=True)),
            "v2 mc": v2(second, "mlp-mc", request("mlp-mc", binary=False, **SETTINGS)),
            "v2 mc binary": v2(second, "mlp-mc", request("mlp-mc", binary=True, **SETTINGS, **everything)),
            "v2 wrong shape": v2(second, "mlp", request("mlp", binary=True, rows=ROWS[:, :4])),
            "unknown model": v2(second, "nobody", request("nobody", binary=True)),
            "live": second.is_server_live(URL),
            "ready": second.is_server_ready(URL),
            "model ready": second.is_model_ready(URL, "mlp"),
        }
        found = {name: await attempt(case) for name, case in cases.items()}
    json.dump(found, sys.stdout)


if __name__ == "__main__":
    asyncio.run(main())
