"""Call the model under audit, safely: a failure of the user's code is a finding, not a crash."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import nn

from dropserve.dropout.outputs import flatten_outputs
from dropserve.errors import DropserveError
from dropserve.export.subject import Subject

from .places import Place, Placer, traceback_stack

Tensors = dict[str, torch.Tensor]


class ForwardError(Exception):
    """The user's forward raised.

    Attributes:
        place: the user's line that raised.
        error: what it raised.
    """

    def __init__(self, place: Place, error: BaseException) -> None:
        self.place, self.error = place, error
        first = (str(error).strip().splitlines() or [""])[0]
        super().__init__(f"{type(error).__name__}: {first}"[:300])


class OutputError(Exception):
    """The forward returned something that is not tensors."""


class Probe:
    """The model, called the way the exporters will: without gradients.

    Args:
        subject: the model and its inputs.
        module: another module to call in place of the subject's, such as a fresh copy.
    """

    def __init__(self, subject: Subject, module: nn.Module | None = None) -> None:
        self.subject = subject
        self.module = subject.module if module is None else module
        self.placer = Placer(self.module)

    def raw(
        self,
        inputs: Mapping[str, torch.Tensor],
        *,
        grad: bool = False,
        copy: bool = True,
        inference: bool = False,
    ) -> Any:
        """Call the model; whatever it returns.

        Args:
            inputs: a batch.
            grad: with gradients on.
            copy: call it with copies.
            inference: under ``torch.inference_mode``.

        Raises:
            ForwardError: if it raises anything short of an interrupt.
        """
        tensors = [value.clone() if copy else value for value in inputs.values()]
        with torch.inference_mode() if inference else torch.set_grad_enabled(grad):
            try:
                return self.module(*tensors)
            except (Exception, SystemExit) as error:
                place = self.placer.place(traceback_stack(error.__traceback__))
                raise ForwardError(place, error) from error

    def __call__(
        self,
        inputs: Mapping[str, torch.Tensor],
        *,
        grad: bool = False,
        copy: bool = True,
        inference: bool = False,
    ) -> Tensors:
        """Call the model; its outputs by name.

        Raises:
            ForwardError: if it raises.
            OutputError: if it returns anything but tensors, tuples, lists and dicts of them.
        """
        return flatten(self.raw(inputs, grad=grad, copy=copy, inference=inference))


def flatten(value: Any) -> Tensors:
    """Outputs by name, detached.

    Raises:
        OutputError: if there is no tensor in it, or something else than tensors.
    """
    try:
        outputs = flatten_outputs(value)
    except DropserveError as error:
        raise OutputError(str(error)) from error
    return {name: tensor.detach() for name, tensor in outputs.items()}
