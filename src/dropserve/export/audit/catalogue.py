"""Every check by name, in the order in which it runs."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

from .control import data_dependent_control_flow
from .forwards import finite_outputs, forward_runs, outputs_are_batched
from .history import call_history, clock_independence, gradient_mode, repeated_forwards
from .modes import modules_in_eval
from .outcome import Examination, Outcome
from .randomness import (
    numpy_random_state,
    private_random_state,
    python_random_state,
    random_operators,
    torch_random_state,
)
from .rebuilt import saved_weights_complete
from .rows import batch_sizes, row_independence
from .state import input_unchanged, weights_unchanged

Stage = Literal["eager", "graph", "converse"]


@dataclass(frozen=True)
class Check:
    """One check.

    Attributes:
        name: what a waiver and a report call it.
        stage: ``eager`` looks at the module, ``graph`` at the exported files, ``converse`` at the masks.
        run: decides.
        needs: the checks that must not have failed for this one to mean anything.
    """

    name: str
    stage: Stage
    run: Callable[[Examination], Outcome]
    needs: tuple[str, ...] = ("forward-runs",)

    @property
    def meaning(self) -> str:
        """What it asserts, in a sentence."""
        return (self.run.__doc__ or "").strip().splitlines()[0]


_OUTPUTS = ("forward-runs", "outputs-are-batched")
_DRAWS = (*_OUTPUTS, "torch-random-state", "random-operators")

EAGER: tuple[Check, ...] = (
    Check("forward-runs", "eager", forward_runs, needs=()),
    Check("outputs-are-batched", "eager", outputs_are_batched),
    Check("modules-in-eval", "eager", modules_in_eval, needs=()),
    Check("torch-random-state", "eager", torch_random_state, needs=()),
    Check("numpy-random-state", "eager", numpy_random_state, needs=()),
    Check("python-random-state", "eager", python_random_state, needs=()),
    Check("private-random-state", "eager", private_random_state, needs=()),
    Check("random-operators", "eager", random_operators),
    Check("repeated-forwards", "eager", repeated_forwards, needs=_OUTPUTS),
    Check("call-history", "eager", call_history, needs=_OUTPUTS),
    Check("clock-independence", "eager", clock_independence, needs=_OUTPUTS),
    Check("gradient-mode", "eager", gradient_mode, needs=_OUTPUTS),
    Check("weights-unchanged", "eager", weights_unchanged),
    Check("input-unchanged", "eager", input_unchanged),
    Check("finite-outputs", "eager", finite_outputs, needs=_OUTPUTS),
    Check("row-independence", "eager", row_independence, needs=_OUTPUTS),
    Check("batch-sizes", "eager", batch_sizes, needs=_OUTPUTS),
    Check("data-dependent-control-flow", "eager", data_dependent_control_flow, needs=_DRAWS),
    Check("saved-weights-complete", "eager", saved_weights_complete, needs=_OUTPUTS),
)

CHECKS: tuple[Check, ...] = EAGER
"""All checks."""

NAMES: tuple[str, ...] = tuple(check.name for check in CHECKS)
"""Their names: what ``waive`` in ``export/checks.toml`` may hold."""
