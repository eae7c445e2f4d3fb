"""An ONNX model behind MLServer: a custom runtime."""

import numpy as np
import onnxruntime as ort
from mlserver import MLModel
from mlserver.codecs import NumpyCodec
from mlserver.types import InferenceRequest, InferenceResponse
from mlserver.utils import get_model_uri


class OnnxModel(MLModel):
    """Rows of 64 numbers to class probabilities."""

    async def load(self) -> bool:
        """Load the graph that model-settings.json names."""
        options = ort.SessionOptions()
        options.intra_op_num_threads = 1
        uri = await get_model_uri(self._settings)
        self.session = ort.InferenceSession(uri, options, providers=["CPUExecutionProvider"])
        return True

    async def predict(self, payload: InferenceRequest) -> InferenceResponse:
        """Run the graph."""
        rows = self.decode(payload.inputs[0], default_codec=NumpyCodec)
        (logits,) = self.session.run(None, {"input": rows})
        exponentials = np.exp(logits - logits.max(axis=-1, keepdims=True))
        probabilities = exponentials / exponentials.sum(axis=-1, keepdims=True)
        output = NumpyCodec.encode_output("probabilities", probabilities)
        return InferenceResponse(model_name=self.name, model_version=self.version, outputs=[output])
