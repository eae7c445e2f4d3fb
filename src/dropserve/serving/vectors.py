"""Usual rows, read at once: each a list of as many numbers as the model takes."""

from __future__ import annotations

from typing import Any

import numpy as np

from dropserve.serving.instances import NUMBERS, SURELY_SMALL
from dropserve.serving.query import Array
from dropserve.signature import Axis, Signature


class Vectors:
    """Reads the ``instances`` of a model of one vector of floating-point numbers.

    Args:
        signature: the model's.
    """

    def __init__(self, signature: Signature) -> None:
        spec, *others = signature.inputs
        self._name, self._dtype = spec.name, spec.numpy_dtype
        length = spec.shape[0] if len(spec.shape) == 1 and not others else None
        self._length = None if isinstance(length, Axis) or self._dtype.kind != "f" else length

    def read(self, instances: Any) -> dict[str, Array] | None:
        """As :func:`dropserve.serving.instances.read_instances`; None for whatever is not usual.

        That one reads it then, or says what is wrong with it.
        """
        if self._length is None or type(instances) is not list or not instances:
            return None
        for row in instances:
            if type(row) is not list or len(row) != self._length or not NUMBERS.issuperset(map(type, row)):
                return None
        try:
            exact = np.array(instances, np.float64)
        except OverflowError:  # an integer of more than 308 digits
            return None
        flat = exact.ravel()
        return {self._name: exact.astype(self._dtype)} if flat.dot(flat) < SURELY_SMALL else None
