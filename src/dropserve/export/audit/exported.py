"""Random operators in the program that ``torch.export`` sees, where eager dispatch might not go."""

from __future__ import annotations

import torch

from dropserve.export.artefacts import NamedOutputs
from dropserve.export.quiet import cause, quiet

from .operators import is_random, uses_batch_statistics
from .outcome import Examination, Outcome, failed, passed, skipped
from .written import module_of, written_place


def exported_program(exam: Examination) -> Outcome:
    """The torch.export program holds no random operator whose flag is on, and no batch statistics."""
    with quiet(), torch.no_grad():
        try:
            model = NamedOutputs(exam.probe.module)
            model.training = exam.probe.module.training  # of the wrapper alone: the model stays as it is
            program = torch.export.export(model, tuple(exam.inputs.values()))
        except Exception as error:  # noqa: BLE001  # whatever an exporter raises means that it gave up
            return skipped(f"torch.export cannot follow the model: {cause(error)}")
    graphs = (part.graph for part in program.graph_module.modules() if isinstance(part, torch.fx.GraphModule))
    nodes = [node for graph in graphs for node in graph.nodes if hasattr(node.target, "_schema")]
    for node in nodes:
        random = is_random(node.target, node.args, node.kwargs)
        if random or uses_batch_statistics(node.target, node.args, node.kwargs):
            path, kind = module_of(node.meta.get("nn_module_stack", {}))
            return failed(
                f"{node.target} with arguments {node.args[1:]} is among {len(nodes)} operators"
                + ("" if random else ": it normalises by the statistics of the batch"),
                "turn it off in eval mode: training=self.training, or `if self.training:` around it",
                written_place(node.meta.get("stack_trace") or "", path, kind),
            )
    return passed(f"none among {len(nodes)} operators of the exported program")
