"""The host without Java: one process that answers, and one more for each endpoint that takes long."""
