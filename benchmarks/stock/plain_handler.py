"""Stock TorchServe, as its examples write a handler: BaseHandler, an eager model, JSON in and out."""

import torch
from ts.torch_handler.base_handler import BaseHandler


class PlainHandler(BaseHandler):
    """Class probabilities of each row."""

    def preprocess(self, data):
        """Rows of all requests (one request a batch by default)."""
        bodies = [row.get("data") or row.get("body") for row in data]
        rows = [instance for body in bodies for instance in body["instances"]]
        return torch.tensor(rows, dtype=torch.float32, device=self.device)

    def postprocess(self, data):
        """One answer a request."""
        return [{"predictions": [row]} for row in data.softmax(-1).tolist()]
