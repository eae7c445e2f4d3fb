"""Bisection: when a graph and the eager model disagree, the first place where they part.

Each node of an ONNX graph is handed what torch itself has computed, so that every node is judged alone:
the first in the order of the graph whose own result differs is the place, however small the difference is
there and however large it has become in the outputs. torch's values come from the operators that the
exporter has seen, whose names the graph's tensors carry, and with them module, file and line. If the graph
agrees as it is written, the same is done with what onnxruntime has made of it. TorchScript files are laid
beside a trace on the inputs that fail.

All of it runs after a failure alone, and decides nothing: the verdict is parity's.
"""

from .bisector import Bisector, Failure
from .finding import Finding

__all__ = ["Bisector", "Failure", "Finding"]
