"""dropserve: from a dropout-regularised PyTorch model to an endpoint that can be trusted."""
