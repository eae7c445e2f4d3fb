"""Ask a server from Python: ``Client().predict("digits", rows, mc=True)``.

Needs httpx alone; no torch, no onnxruntime.
"""

from dropserve.client.asking import default_url
from dropserve.client.clients import AsyncClient, Client
from dropserve.client.results import Answer, Prediction, Uncertainty
from dropserve.client.tensors import Tensors

__all__ = ["Answer", "AsyncClient", "Client", "Prediction", "Tensors", "Uncertainty", "default_url"]
