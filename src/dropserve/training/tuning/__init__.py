"""Dropout rates, learning rate and weight decay by evidence: Optuna proposes, stacks of trials train."""
