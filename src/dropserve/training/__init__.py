"""Training: recipe, data, advice, fit."""
