"""Lower precisions of the ONNX graphs: how they are made, and what they cost."""

from .independence import row_quanta
from .judge import NAMES, judge
from .lower import lower
from .rows import Held

__all__ = ["NAMES", "Held", "judge", "lower", "row_quanta"]
