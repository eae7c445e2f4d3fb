"""The host for more than one machine: replicas of the ASGI application, kept and found by Ray Serve."""
