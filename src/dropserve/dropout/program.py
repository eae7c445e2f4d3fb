"""Masked programs: the deterministic model with every dropout replaced by "times my mask"."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from dropserve.dropout.axes import ROWS
from dropserve.dropout.calls import DropoutCall
from dropserve.dropout.examples import example_rows
from dropserve.dropout.masks import draw
from dropserve.dropout.mode import DropoutMode, no_fused_attention
from dropserve.dropout.outputs import close, flatten_outputs
from dropserve.dropout.record import random_state_kept
from dropserve.dropout.sites import Plan, find_plan
from dropserve.errors import BatchAxisError, DropserveError, UnmaskableError
from dropserve.signature import Site, TensorSpec

__all__ = ["MaskedProgram", "flatten_outputs", "masked_program"]

PARITY = 1e-5  # of the output's scale


class MaskedProgram(nn.Module):
    """A model whose dropout masks are inputs: ``forward(*inputs, *masks) -> outputs``.

    It has no randomness and no notion of samples: Monte Carlo is more rows. Each mask is [N, *shape], in
    the order of ``mask_names``; scale 1 and shift 0 give the deterministic model. It traces and exports
    with N, and the variable axes of its inputs, dynamic. It never writes into what it is given: inputs that
    the model or an in-place dropout writes into are copied first.

    Attributes:
        sites: the dropout sites, in the order in which they run.
        inputs: the model's own inputs.
        input_names: their names.
        mask_names: names of the masks, which follow the inputs.
        output_names: names of the outputs.
    """

    def __init__(
        self,
        plan: Plan,
        inputs: Sequence[TensorSpec],
        output_names: Sequence[str],
        examples: Mapping[str, Tensor] | None = None,
    ) -> None:
        super().__init__()
        self._examples = examples
        self._written: frozenset[int] = frozenset()  # places of the inputs that a run writes into
        self.model = plan.model
        self._plan = plan
        self.sites: tuple[Site, ...] = plan.sites
        self.inputs = tuple(inputs)
        self.input_names = tuple(spec.name for spec in inputs)
        self._mask_specs = tuple(
            TensorSpec(name=name, shape=site.shape)
            for site in plan.sites
            for name in (site.scale, site.shift)
            if name is not None
        )
        self._shifts = frozenset(site.shift for site in plan.sites)
        self.mask_names = tuple(spec.name for spec in self._mask_specs)
        self.output_names = tuple(output_names)
        self.training = False

    def train(self, mode: bool = True) -> MaskedProgram:  # noqa: ARG002  # torch's signature
        """Do nothing: a masked program has one mode, and which parts of it are in train mode is fixed."""
        return self

    def forward(self, *tensors: Tensor) -> tuple[Tensor, ...]:
        """Run the model under masks.

        Args:
            tensors: the inputs [N, ...] and then the masks [N, *shape].

        Returns:
            The outputs in the order of ``output_names``, [N, ...] each.

        Raises:
            UnmaskableError: if the model takes another way than when its sites were found.
        """
        count = len(self.input_names)
        if len(tensors) != count + len(self.mask_names):
            raise UnmaskableError(
                f"expected {count} inputs {list(self.input_names)} and {len(self.mask_names)} masks "
                f"{list(self.mask_names)}, got {len(tensors)} tensors"
            )
        replay = _Replay(self._plan, dict(zip(self.mask_names, tensors[count:], strict=True)))
        rows = list(tensors[:count])
        for place in self._written:
            rows[place] = rows[place].clone()
        with no_fused_attention(), replay:
            value = self.model(*rows)
        replay.check_complete()
        outputs = flatten_outputs(value)
        return tuple(outputs[name] for name in self.output_names)

    def copy_written(self, rows: Sequence[Tensor]) -> None:
        """Find out which inputs a run on such rows writes into; they are copied from now on."""
        given = [tensor.clone() for tensor in rows]
        versions = [tensor._version for tensor in given]
        self(*given, *self.identity_masks(len(rows[0])))
        self._written = frozenset(
            place
            for place, (tensor, version) in enumerate(zip(given, versions, strict=True))
            if tensor._version != version
        )

    def identity_masks(self, rows: int, lengths: Mapping[str, int] | None = None) -> tuple[Tensor, ...]:
        """Masks [rows, *shape] that change nothing.

        Args:
            rows: N.
            lengths: of the variable axes, by name; their maximum where not given.
        """
        masks: list[Tensor] = []
        for spec in self._mask_specs:
            fill = torch.zeros if spec.name in self._shifts else torch.ones
            masks.append(fill((rows, *spec.sized(dict(lengths or {})))))
        return tuple(masks)

    def sample_masks(self, rows: int, samples: int, *, seed: int = 0) -> tuple[Tensor, ...]:
        """Drawn masks for ``samples * rows`` rows, sample-major, variable axes at their maximum."""
        drawn = draw(self.sites, samples, seed=seed)
        return tuple(torch.tensor(drawn[name]).repeat_interleave(rows, dim=0) for name in self.mask_names)

    def example(self, rows: int = 3) -> tuple[Tensor, ...]:
        """Arguments of ``forward`` for tracing: inputs and identity masks, variable axes at their maximum."""
        return (*example_rows(self.inputs, rows, self._examples), *self.identity_masks(rows))


class _Replay(DropoutMode):
    def __init__(self, plan: Plan, masks: Mapping[str, Tensor]) -> None:
        super().__init__()
        self._plan = plan
        self._masks = masks
        self._calls = 0

    def on_dropout(self, call: DropoutCall) -> Tensor:
        order = self._plan.order
        index = order[self._calls] if self._calls < len(order) else None
        self._calls += 1
        if index is None:
            return call.input
        site, layout = self._plan.sites[index], self._plan.layouts[index]
        if site.kind != call.kind:
            self._calls = -1
            self.check_complete()
        scale = layout.arranged(self._masks[site.scale], call.input)
        shift = None if site.shift is None else layout.arranged(self._masks[site.shift], call.input)
        return call.masked(scale, shift)

    def check_complete(self) -> None:
        if self._calls != len(self._plan.order):
            raise UnmaskableError(
                "the model called other dropouts than when its sites were found: its path depends on the "
                "data. Call the same dropouts for every input."
            )


def masked_program(
    module: nn.Module, inputs: Sequence[TensorSpec], examples: Mapping[str, Tensor] | None = None
) -> MaskedProgram:
    """Make the masked program of a model and prove it on a few rows.

    The user's module is not modified. Proven are: identity masks give the eval-mode model; a row under its
    mask gives the same alone and among others; outputs have the rows on axis 0.

    Args:
        module: any module that takes the inputs, batch on axis 0.
        inputs: the inputs in the order of ``forward``.
        examples: real rows by input name, if drawn numbers would not do.

    Returns:
        The program; without any mask if the model has no dropout.

    Raises:
        UnmaskableError: if something random is no dropout, or cannot be replaced by a mask.
        BatchAxisError: if the axis of the rows cannot be told for a site or an output.
    """
    plan = find_plan(module, inputs, examples)
    rows = example_rows(inputs, ROWS, examples)
    with random_state_kept(), torch.no_grad():
        before = torch.default_generator.get_state()
        expected = flatten_outputs(_eval_output(plan, rows))
        still = torch.equal(before, torch.default_generator.get_state())
        program = MaskedProgram(plan, inputs, list(expected), examples)
        program.copy_written(rows)
        _check_rows(program, rows, expected)
        if still:  # a model that is random in eval mode has no one answer to agree with; the audit says so
            _check_identity(program, rows, expected)
    return program


def _eval_output(plan: Plan, rows: Sequence[Tensor]) -> Any:  # what the model returns
    parts = [plan.model.get_submodule(name) for name in plan.training]
    for part in parts:
        part.training = False
    try:
        return plan.model(*(tensor.clone() for tensor in rows))
    finally:
        for part in parts:
            part.training = True


def _check_identity(program: MaskedProgram, rows: Sequence[Tensor], expected: Mapping[str, Tensor]) -> None:
    found = program(*rows, *program.identity_masks(ROWS))
    for name, tensor in zip(program.output_names, found, strict=True):
        if not close(expected[name], tensor, PARITY):
            worst = float((expected[name].double() - tensor.double()).abs().max())
            raise UnmaskableError(
                f"output {name!r} under identity masks differs from the eval-mode model by {worst:.3g}: an "
                "explicit form does not compute what the model does. Please report the model's layers."
            )


def _check_rows(program: MaskedProgram, rows: Sequence[Tensor], expected: Mapping[str, Tensor]) -> None:
    for name, tensor in expected.items():
        if tensor.dim() == 0 or tensor.size(0) != ROWS:
            raise BatchAxisError(
                f"output {name!r} has shape {list(tensor.shape)} for {ROWS} rows; expected the rows on axis 0"
            )
    if not program.sites:
        return
    masks = program.sample_masks(1, ROWS)  # another sample for each row
    together = program(*rows, *masks)
    for row in range(ROWS):
        try:
            alone = program(*(tensor[row : row + 1] for tensor in (*rows, *masks)))
        except DropserveError:
            raise
        except Exception as error:
            raise BatchAxisError(
                f"the model runs on {ROWS} rows and fails on one alone: {type(error).__name__}: {error}. A "
                "row must not need others; BatchNorm needs its running statistics."
            ) from error
        for name, a, b in zip(program.output_names, together, alone, strict=True):
            if not close(a[row : row + 1], b, PARITY):
                raise BatchAxisError(
                    f"output {name!r}: a row gives another answer alone than among others, under the same "
                    "masks. Rows influence each other, or a dropout's rows lie on another axis than found; "
                    "keep rows apart, on one axis of their own."
                )
