"""Runs in the environment of the clients: asks in every way, one JSON line for each exchange.

python ask.py URL MODEL ROWS.npy
"""

import asyncio
import json
import sys

import numpy as np
import tritonclient.http as triton
import tritonclient.http.aio as triton_async
from kserve import InferenceRESTClient, InferInput, InferRequest, RESTConfig

URL, MODEL, ROWS = sys.argv[1], sys.argv[2], np.load(sys.argv[3])
DOUBT = f"{MODEL}-mc"
SETTINGS = {"mc_samples": 50, "mc_seed": 0}


def tell(client, how, probabilities=None, *, doubt=False, sound=True):
    """One line for the judge."""
    numbers = None if probabilities is None else np.asarray(probabilities, np.float64).tolist()
    line = {"client": client, "how": how, "probabilities": numbers, "doubt": doubt, "sound": bool(sound)}
    print(json.dumps(line), flush=True)


def triton_input(module, *, binary):
    """The rows as tritonclient packs them."""
    tensor = module.InferInput("input", list(ROWS.shape), "FP32")
    tensor.set_data_from_numpy(ROWS, binary_data=binary)
    return tensor


def ask_triton():
    """The blocking client: binary and JSON, all outputs and chosen ones, errors."""
    client = triton.InferenceServerClient(URL.partition("//")[2])
    for binary in (True, False):
        form = "binary" if binary else "JSON"
        tensor = triton_input(triton, binary=binary)
        answer = client.infer(MODEL, [tensor], request_id="q-7")
        same_id = answer.get_response()["id"] == "q-7"
        labels = answer.as_numpy("label")
        best = [str(k).encode() for k in answer.as_numpy("probabilities").argmax(axis=1)]
        sound = same_id and list(labels) == best
        tell("tritonclient", f"{form} in, all outputs", answer.as_numpy("probabilities"), sound=sound)
        for wanted in (True, False):
            outputs = [triton.InferRequestedOutput("probabilities", binary_data=wanted)]
            answer = client.infer(MODEL, [tensor], outputs=outputs)
            sound = len(answer.get_response()["outputs"]) == 1
            how = f"{form} in, {'binary' if wanted else 'JSON'} out"
            tell("tritonclient", how, answer.as_numpy("probabilities"), sound=sound)
        answer = client.infer(DOUBT, [tensor], parameters=SETTINGS)
        echoed = answer.get_response()["parameters"]
        entropy = answer.as_numpy("predictive_entropy")
        sound = echoed["mc_samples"] == SETTINGS["mc_samples"] and (entropy > 0).all()
        how = f"{form} in, Monte Carlo"
        tell("tritonclient", how, answer.as_numpy("probabilities"), doubt=True, sound=sound)
    narrow = triton.InferInput("input", [1, 3], "FP32")
    narrow.set_data_from_numpy(ROWS[:1, :3])
    try:
        client.infer(MODEL, [narrow])
        tell("tritonclient", "a wrong shape", sound=False)
    except triton.InferenceServerException as error:
        sound = "expected [rows, 64]" in error.message() and error.status() == "400"
        tell("tritonclient", "a wrong shape is told in words", sound=sound)


async def ask_triton_async():
    """The asyncio client, many at once."""
    async with triton_async.InferenceServerClient(URL.partition("//")[2]) as client:
        asked = (client.infer(DOUBT, [triton_input(triton_async, binary=True)]) for _ in range(8))
        answers = [answer.as_numpy("probabilities") for answer in await asyncio.gather(*asked)]
        sound = all((answer == answers[0]).all() for answer in answers)
        tell("tritonclient.aio", "8 at once, Monte Carlo", answers[0], doubt=True, sound=sound)


async def ask_kserve():
    """KServe's client over V1, and over V2 as JSON and as binary."""
    client = InferenceRESTClient(RESTConfig(protocol="v1"))
    answer = await client.infer(URL, {"instances": ROWS.tolist()}, model_name=MODEL)
    found = [list(row["probabilities"].values()) for row in answer["predictions"]]
    tell("InferenceRESTClient", "V1", found)
    document = {"instances": ROWS.tolist(), "parameters": SETTINGS}
    answer = await client.infer(URL, document, model_name=DOUBT)
    found = [list(row["probabilities"].values()) for row in answer["predictions"]]
    tell("InferenceRESTClient", "V1, Monte Carlo", found, doubt=True)
    client = InferenceRESTClient(RESTConfig(protocol="v2"))
    for binary in (False, True):
        tensor = InferInput("input", list(ROWS.shape), "FP32")
        tensor.set_data_from_numpy(ROWS, binary_data=binary)
        for model, doubt in ((MODEL, False), (DOUBT, True)):
            request = InferRequest(
                model_name=model, infer_inputs=[tensor], parameters=SETTINGS if doubt else None
            )
            answer = await client.infer(URL, request, model_name=model)
            found = next(o for o in answer.outputs if o.name == "probabilities").as_numpy()
            how = f"V2 {'binary' if binary else 'JSON'}{', Monte Carlo' if doubt else ''}"
            tell("InferenceRESTClient", how, found, doubt=doubt)


ask_triton()
asyncio.run(ask_triton_async())
asyncio.run(ask_kserve())
