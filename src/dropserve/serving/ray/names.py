"""Names that Ray's processes and ours agree on; this module imports nothing."""

from __future__ import annotations

APPLICATION = "dropserve"  # of the application, and of its ingress deployment
BOOKS = "books"
BUILDER = "dropserve.serving.ray.app:build"
CALLBACK = "dropserve.serving.ray.door:middlewares"
DEPLOYMENT = (
    "DROPSERVE_DEPLOYMENT"  # the folder of the deployment, where `dropserve serve` has started this Ray
)
LEAVE, LEFT = "leave", "left"  # files in it: the doors shall close; they are closed
ROUTED = "DROPSERVE_RAY_APPLICATION"  # the application's name, where it is another one
