"""The host without Java: one ASGI application on uvicorn, and a process for each endpoint that takes long."""
