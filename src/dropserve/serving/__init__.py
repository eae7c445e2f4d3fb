"""Serving: one predictor, one protocol codec, and the hosts around them."""
