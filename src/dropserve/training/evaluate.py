"""How good a model is, measured on the very module that is exported: raw features in, raw units out."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray

from dropserve.model import ServedModel
from dropserve.training.table import FloatArray, Table
from dropserve.uncertainty.scores import Scores

_ROWS = 1024  # a pass


def predict(model: ServedModel, features: FloatArray) -> NDArray[np.float64]:
    """What the model answers to raw rows, in eval mode: logits or values, ``[N, outputs]``."""
    with torch.inference_mode():
        parts = [model(torch.from_numpy(features[at : at + _ROWS])) for at in range(0, len(features), _ROWS)]
        return torch.cat(parts).double().reshape(len(features), -1).numpy()


def evaluate(model: ServedModel, table: Table, rows: NDArray[np.int64], part: str) -> dict[str, float]:
    """Metrics over some rows of a table.

    Args:
        model: in eval mode, on the CPU.
        table: raw features and targets.
        rows: which rows.
        part: prefix of the metrics' names, ``validation`` or ``test``.

    Returns:
        classification: ``accuracy``, ``loss`` (cross entropy in nats), ``brier`` (0 to 2), and ``ece`` and
        ``ece_mass`` (calibration error, 15 bins of equal width or of equal mass); regression: ``rmse`` and
        ``mae`` in the target's unit, and ``r2`` (of two rows or more); with a heteroscedastic head
        ``loss`` too (Gaussian, nats per unit).
    """
    from sklearn import metrics  # noqa: PLC0415  # a second to import

    output, target = predict(model, table.features[rows]), table.target[rows]
    if table.labels:
        shifted = output - output.max(axis=1, keepdims=True)
        log_probability = shifted - np.log(np.exp(shifted).sum(axis=1, keepdims=True))
        scores = Scores.of(np.exp(log_probability), target)
        found = {
            "accuracy": scores.accuracy,
            # of the logits: a probability too small for a float has a finite loss
            "loss": -log_probability[np.arange(len(target)), target].mean(),
            "brier": scores.brier,
            "ece": scores.ece,
            "ece_mass": scores.ece_mass,
        }
    else:
        found = {
            "rmse": metrics.root_mean_squared_error(target, output[:, 0]),
            "mae": metrics.mean_absolute_error(target, output[:, 0]),
        }
        if len(target) > 1:  # of one row there is no variance to explain
            found["r2"] = metrics.r2_score(target, output[:, 0])
        if output.shape[1] == 2:
            residual, log_variance = target - output[:, 0], output[:, 1]
            losses = np.square(residual) / np.exp(log_variance) + log_variance + np.log(2 * np.pi)
            found["loss"] = losses.mean() / 2
    return {f"{part}_{name}": float(value) for name, value in found.items()}
