"""An ONNX model behind BentoML."""

import bentoml
import numpy as np
import onnxruntime as ort


@bentoml.service(workers=1)
class Classifier:
    """Rows of 64 numbers to class probabilities."""

    def __init__(self) -> None:
        """Load the graph, once in each worker."""
        options = ort.SessionOptions()
        options.intra_op_num_threads = 1
        self.session = ort.InferenceSession("model.onnx", options, providers=["CPUExecutionProvider"])

    @bentoml.api
    def predict(self, rows: np.ndarray) -> np.ndarray:
        """Run the graph on the rows of one request."""
        return self.probabilities(rows)

    @bentoml.api(batchable=True, max_batch_size=32, max_latency_ms=1000)
    def predict_batch(self, rows: np.ndarray) -> np.ndarray:
        """Run the graph on the rows of all requests of a batch."""
        return self.probabilities(rows)

    def probabilities(self, rows: np.ndarray) -> np.ndarray:
        """Run the graph."""
        (logits,) = self.session.run(None, {"input": rows.astype(np.float32)})
        exponentials = np.exp(logits - logits.max(axis=-1, keepdims=True))
        return exponentials / exponentials.sum(axis=-1, keepdims=True)
