"""The ONNX graphs of a model once more, in a lower precision."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import onnx

from dropserve.errors import DropserveError, ExportError
from dropserve.export.artefacts import HEAD, MASKED, MODEL, TRUNK, Artefacts
from dropserve.export.comparison import Array
from dropserve.export.external import files_of, weight_bytes
from dropserve.export.onnx import OnnxProgram, write_onnx
from dropserve.export.quiet import cause
from dropserve.export.settings import SINGLE_FILE, ExportSettings

from .fold import folded
from .half import to_fp16
from .integers import to_int8
from .join import joined
from .rows import Held, batches, cut, head_feeds, variants

_SLOWER = (
    "onnxruntime's CPU provider has no fp16 arithmetic on most processors: it converts to float32 around "
    "each operator, so that fp16 halves the files and is somewhat slower there than fp32"
)


def lower(reference: Artefacts, held: Held, folder: Path, settings: ExportSettings) -> Artefacts:
    """Write ``model.onnx``, ``trunk.onnx`` and ``head.onnx`` in the precision of the settings.

    Args:
        reference: the float32 graphs, proven.
        held: rows for the scales of int8.
        folder: where the files go.
        settings: ``precision``, and whether the masked graph is wanted in one piece.

    Returns:
        The new graphs, with the same sites and signature and no others beside them.

    Raises:
        ExportError: if a graph cannot be converted; the message says what to do.
    """
    precision = settings.precision
    if precision == "int8":
        held.require_for_int8()
    paths: dict[str, Path] = {}
    counts: list[str] = []
    for part in (MODEL, TRUNK, HEAD):
        if part not in reference.paths:
            continue
        source = onnx.load(reference.paths[part])
        if weight_bytes(source) > SINGLE_FILE:
            raise ExportError(
                f"{part} has weights of more than 2 GiB, and {precision} is made in one piece: export with "
                "--precision fp32"
            )
        try:
            model, count = _converted(source, part, reference, held, paths, settings)
            paths[part] = folder / part
            write_onnx(model, paths[part], settings.single_file_bytes)
        except (DropserveError, OSError):
            raise
        except Exception as error:
            raise ExportError(
                f"{part} cannot be converted to {precision}: {cause(error)}. Export with --precision fp32."
            ) from error
        before, after = (
            sum(file.stat().st_size for file in files_of(p[part])) for p in (reference.paths, paths)
        )
        counts.append(
            f"{part} {before / 1024:.0f} -> {after / 1024:.0f} KiB ({count} operator{'s' * (count != 1)})"
        )
    if "masked-onnx" in settings.formats and reference.sites:
        paths[MASKED] = folder / MASKED
        trunk = onnx.load(paths[TRUNK]) if TRUNK in paths else None
        write_onnx(joined(trunk, onnx.load(paths[HEAD])), paths[MASKED], settings.single_file_bytes)
    notes = [f"{precision}: {', '.join(counts)}", *([_SLOWER] if precision == "fp16" else [])]
    return replace(reference, folder=folder, paths=paths, notes=(*reference.notes, *notes))


def _converted(
    source: onnx.ModelProto,
    part: str,
    reference: Artefacts,
    held: Held,
    paths: dict[str, Path],
    settings: ExportSettings,
) -> tuple[onnx.ModelProto, int]:
    masks = [spec.name for spec in reference.masks]
    model = folded(source)
    if settings.precision == "fp16":
        return to_fp16(model, masks)
    taken = [value.name for value in model.graph.input]
    # The head gets what it will really get: from the trunk that was just written.
    trunk = OnnxProgram(paths[TRUNK]) if part == HEAD and TRUNK in paths else None

    def feeds() -> Iterator[dict[str, Array]]:
        for lengths in variants(reference.signature, held.scaling):
            rows = cut(reference.signature, held.scaling, lengths)
            for fed in head_feeds(reference, rows, trunk) if part == HEAD else batches(rows):
                yield {name: fed[name] for name in taken}

    return to_int8(model, masks, feeds())
