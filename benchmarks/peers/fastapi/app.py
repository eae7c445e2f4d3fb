"""An ONNX model behind FastAPI, typed by pydantic on both sides, by both kinds of route that FastAPI has."""

import numpy as np
import onnxruntime as ort
from fastapi import FastAPI
from pydantic import BaseModel

options = ort.SessionOptions()
options.intra_op_num_threads = 1
session = ort.InferenceSession("model.onnx", options, providers=["CPUExecutionProvider"])
app = FastAPI()


class Question(BaseModel):
    """Rows of 64 numbers."""

    instances: list[list[float]]


class Answer(BaseModel):
    """Class probabilities of each row."""

    predictions: list[list[float]]


def answer(question: Question) -> Answer:
    """Run the graph."""
    (logits,) = session.run(None, {"input": np.array(question.instances, np.float32)})
    exponentials = np.exp(logits - logits.max(axis=-1, keepdims=True))
    return Answer(predictions=(exponentials / exponentials.sum(axis=-1, keepdims=True)).tolist())


@app.post("/predict")
def predict(question: Question) -> Answer:
    """In FastAPI's thread pool, so that the event loop is never blocked."""
    return answer(question)


@app.post("/predict-in-loop")
async def predict_in_loop(question: Question) -> Answer:
    """In the event loop, which waits meanwhile: nothing else is answered, and no thread is woken."""
    return answer(question)
