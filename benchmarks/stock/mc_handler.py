"""Monte Carlo dropout on stock TorchServe, as tutorials write it: dropout on, a loop of T eager passes."""

import torch
from torch import nn
from ts.torch_handler.base_handler import BaseHandler

SAMPLES = 50


class MonteCarloHandler(BaseHandler):
    """Mean and standard deviation of class probabilities over T passes."""

    def initialize(self, context):
        """Load as usual, then switch dropout on alone."""
        super().initialize(context)
        for module in self.model.modules():
            if isinstance(module, nn.Dropout):
                module.train()

    def preprocess(self, data):
        """Rows of all requests (one request a batch by default)."""
        bodies = [row.get("data") or row.get("body") for row in data]
        rows = [instance for body in bodies for instance in body["instances"]]
        return torch.tensor(rows, dtype=torch.float32, device=self.device)

    def inference(self, data):
        """T passes, one after another."""
        with torch.inference_mode():
            return torch.stack([self.model(data).softmax(-1) for _ in range(SAMPLES)])

    def postprocess(self, data):
        """One answer a request."""
        mean, std = data.mean(0).tolist(), data.std(0).tolist()
        return [{"predictions": [{"mean": m, "std": s}]} for m, s in zip(mean, std, strict=True)]
