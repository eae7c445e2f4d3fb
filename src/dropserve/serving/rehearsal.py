"""Load what is about to be served, while what is served still runs."""

from __future__ import annotations

import json

from dropserve.errors import ServerError
from dropserve.serving.deployment import MODEL_CONFIG, Deployment
from dropserve.serving.loaded import LOAD_FAILED, load_endpoint


def rehearse(deployment: Deployment) -> None:
    """Have every endpoint of a deployment load its model and answer its example row, in this process.

    Raises:
        ServerError: as the worker would have said it.
    """
    for endpoint in deployment.endpoints:
        folder = deployment.folder / "models" / endpoint.name
        options = json.loads((folder / MODEL_CONFIG).read_bytes()).get("handler") or {}
        try:
            load_endpoint(folder, endpoint.name, options)
        except Exception as error:
            raise ServerError(f"{LOAD_FAILED} {endpoint.name}: {error}. What ran before goes on.") from error
