"""Run a masked program on a few rows, with the masks of one site or of all."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from numpy.typing import NDArray

from dropserve.dropout.masks import draw
from dropserve.dropout.program import MaskedProgram
from dropserve.signature import Site

from .differ import compare
from .outcome import Examination
from .probe import Tensors

ROWS = 3
_NUMBERS = 2**24  # of all masks of a check together: 64 MiB
_SELU_ALPHA, _SELU_SCALE = 1.6732632423543772, 1.0507009873554805
_CLEAR = 0.5  # a rate at which one draw shows what a mask does, whatever the site's own rate


def affordable(sites: Sequence[Site]) -> int:
    """How many samples of all sites fit into the memory that a check may take; 2 at least."""
    return max(2, _NUMBERS // max(1, sum(site.units for site in sites)))


class MaskedRows:
    """A masked program on a few rows.

    Attributes:
        program: the program.
        inputs: the rows.
        plain: the answer that the masks are compared with.
    """

    def __init__(self, program: MaskedProgram, inputs: Tensors) -> None:
        self.program, self.inputs = program, inputs
        self.plain = self.run(program.identity_masks(ROWS))

    @classmethod
    def of(cls, exam: Examination) -> MaskedRows:
        """The masked program of the model under audit; its plain answer is the eager model's."""
        if exam.program is None:
            raise RuntimeError("a check of masks needs sites: let it need dropout-sites")
        inputs = exam.subject.batch(ROWS, seed=4)
        runner = cls(exam.program, inputs)
        runner.plain = exam.probe(inputs)
        return runner

    def run(self, masks: Sequence[torch.Tensor]) -> Tensors:
        """The outputs under masks [rows, *shape]."""
        with torch.no_grad():
            outputs = self.program(*(tensor.clone() for tensor in self.inputs.values()), *masks)
        return dict(zip(self.program.output_names, outputs, strict=True))

    def masks(
        self, drawn: Mapping[str, NDArray[Any]], sample: int, *, only: Site | None = None
    ) -> tuple[torch.Tensor, ...]:
        """Sample ``sample`` for every row; with ``only``, every other site at identity."""
        wanted = None if only is None else {only.scale, only.shift}
        return tuple(
            torch.tensor(drawn[name][sample]).expand_as(still) if wanted is None or name in wanted else still
            for name, still in zip(self.program.mask_names, self.program.identity_masks(ROWS), strict=True)
        )

    def mean_masks(self, site: Site) -> tuple[torch.Tensor, ...]:
        """The mean of a site's masks, every other one at identity; alpha dropout's shift has mean 0."""
        kept = 1 - site.p
        saturated = _SELU_ALPHA * _SELU_SCALE
        scale = (kept + saturated**2 * kept * site.p) ** -0.5 * kept
        still = zip(self.program.mask_names, self.program.identity_masks(ROWS), strict=True)
        return tuple(torch.full_like(mask, scale) if name == site.scale else mask for name, mask in still)

    def effect(self, site: Site) -> float:
        """The greatest change, as a share of the output's scale, when this site alone drops half of it."""
        drawn = draw([site], 2, seed=13, rate=_CLEAR)
        runs = (self.run(self.masks(drawn, sample, only=site)) for sample in range(2))
        return max(compare(self.plain, run).relative for run in runs)

    def affine(self, site: Site, tolerance: float) -> bool:
        """Whether the output at the middle of two masks is the middle of the outputs."""
        drawn = draw([site], 2, seed=14, rate=_CLEAR)
        one, two = (self.masks(drawn, sample, only=site) for sample in range(2))
        middle = self.run([(a + b) / 2 for a, b in zip(one, two, strict=True)])
        ends = self.run(one), self.run(two)
        halfway = {
            name: (ends[0][name] + ends[1][name]) / 2 for name in middle if middle[name].is_floating_point()
        }
        return bool(halfway) and compare(halfway, {name: middle[name] for name in halfway}).within(tolerance)

    def perturbed(self) -> MaskedRows:
        """The same program with noise on every weight."""
        program = copy.deepcopy(self.program)
        generator = torch.Generator().manual_seed(15)
        with torch.no_grad():
            for weight in program.parameters():
                if weight.is_floating_point():
                    weight.add_(0.1 * torch.randn(weight.shape, generator=generator))
        return MaskedRows(program, self.inputs)
