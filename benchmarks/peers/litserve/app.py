"""An ONNX model behind LitServe."""

import sys

import litserve as ls
import numpy as np
import onnxruntime as ort


class OnnxAPI(ls.LitAPI):
    """One row a request; LitServe stacks the rows of a batch and takes the answer apart again."""

    def setup(self, device):  # noqa: ARG002  # what LitServe calls
        """Load the graph, once in each worker."""
        options = ort.SessionOptions()
        options.intra_op_num_threads = 1
        self.session = ort.InferenceSession("model.onnx", options, providers=["CPUExecutionProvider"])

    def decode_request(self, request):
        """A row."""
        return np.array(request["input"], np.float32)

    def predict(self, rows):
        """Class probabilities of a batch of rows."""
        (logits,) = self.session.run(None, {"input": rows})
        exponentials = np.exp(logits - logits.max(axis=-1, keepdims=True))
        return exponentials / exponentials.sum(axis=-1, keepdims=True)

    def encode_response(self, output):
        """One answer."""
        return {"output": output.tolist()}


if __name__ == "__main__":
    api = OnnxAPI(max_batch_size=32, batch_timeout=0.001)
    server = ls.LitServer(api, accelerator="cpu", workers_per_device=1, fast_queue=True)
    server.run(
        host="127.0.0.1",
        port=int(sys.argv[1]),
        num_api_servers=1,
        generate_client_file=False,
        log_level="warning",
        access_log=False,
    )
