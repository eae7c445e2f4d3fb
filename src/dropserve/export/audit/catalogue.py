"""Every check by name, in the order in which it runs."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

from .control import data_dependent_control_flow
from .elsewhere import random_state_elsewhere, variable_lengths
from .exported import exported_program
from .forwards import finite_outputs, forward_runs, outputs_are_batched
from .gradients import gradient_mode
from .graphs import (
    onnx_random_operators,
    onnx_random_operators_optimised,
    onnx_repeated_runs,
    torchscript_mode_switch,
    torchscript_random_operators,
)
from .history import call_history, clock_independence, repeated_forwards
from .masks import dropout_sites, every_site_acts, identity_masks, mean_of_samples, samples_differ
from .memory import initialised_memory
from .modes import modules_in_eval
from .oracle import training_dropout
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
    Check("random-state-elsewhere", "eager", random_state_elsewhere),
    Check("repeated-forwards", "eager", repeated_forwards, needs=_OUTPUTS),
    Check("call-history", "eager", call_history, needs=_OUTPUTS),
    Check("clock-independence", "eager", clock_independence, needs=_OUTPUTS),
    Check("initialised-memory", "eager", initialised_memory, needs=_OUTPUTS),
    Check("gradient-mode", "eager", gradient_mode, needs=_OUTPUTS),
    Check("weights-unchanged", "eager", weights_unchanged),
    Check("input-unchanged", "eager", input_unchanged),
    Check("finite-outputs", "eager", finite_outputs, needs=_OUTPUTS),
    Check("row-independence", "eager", row_independence, needs=_OUTPUTS),
    Check("batch-sizes", "eager", batch_sizes, needs=_OUTPUTS),
    Check("variable-lengths", "eager", variable_lengths, needs=_OUTPUTS),
    Check("data-dependent-control-flow", "eager", data_dependent_control_flow, needs=_DRAWS),
    Check("saved-weights-complete", "eager", saved_weights_complete, needs=_OUTPUTS),
)

_SOUND = ("forward-runs", "outputs-are-batched", "random-operators", "repeated-forwards")
_SITES = (*_SOUND, "dropout-sites")

GRAPH: tuple[Check, ...] = (
    Check("exported-program-random-operators", "graph", exported_program),
    Check("onnx-random-operators", "graph", onnx_random_operators),
    Check("onnx-random-operators-optimised", "graph", onnx_random_operators_optimised),
    Check("onnx-repeated-runs", "graph", onnx_repeated_runs),
    Check("torchscript-random-operators", "graph", torchscript_random_operators),
    Check("torchscript-mode-switch", "graph", torchscript_mode_switch),
)

CONVERSE: tuple[Check, ...] = (
    Check("dropout-sites", "converse", dropout_sites, needs=_SOUND),
    Check("identity-masks", "converse", identity_masks, needs=_SITES),
    Check("every-site-acts", "converse", every_site_acts, needs=_SITES),
    Check("samples-differ", "converse", samples_differ, needs=(*_SITES, "every-site-acts")),
    Check("mean-of-samples", "converse", mean_of_samples, needs=_SITES),
    Check("matches-training-dropout", "converse", training_dropout, needs=_SITES),
)

CHECKS: tuple[Check, ...] = (*EAGER, *GRAPH, *CONVERSE)
"""All checks."""

NAMES: tuple[str, ...] = tuple(check.name for check in CHECKS)
"""Their names: what ``waive`` in ``export/checks.toml`` may hold."""
