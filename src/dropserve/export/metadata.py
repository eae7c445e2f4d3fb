"""What an ONNX file says of itself, for whoever opens it without a model store.

The entries stand in the file's ``metadata_props``: strings, JSON but for plain words. A version's manifest
holds the hash of each file, so no file can hold the hash of that manifest; it holds what the manifest says
(``dropserve.description``), and the hash of the run's manifest, which pins weights, source and data.
"""

from __future__ import annotations

import json
from collections.abc import Collection
from typing import Any

import onnx

from dropserve.dropout import masks
from dropserve.dropout.engine import Settings
from dropserve.manifest import VersionManifest

from .artefacts import HEAD, MASKED, MODEL, TRUNK, Artefacts
from .nearest import NEAREST

FORMAT = "1"
PREFIX = "dropserve."
_DESCRIBED = (
    "format", "name", "version", "run", "created", "task", "labels", "signature", "preprocessing", "images",
    "sites", "precision", "metrics", "built_with",
)  # fmt: skip
_INSIDE = ("inputs", "target")  # scalings, which stand in the graph

_ROWS = (
    "Run it on T x B rows, sample-major (row t * B + b is sample t of row b): tile each {what} T times, and "
    "repeat each mask [T, ...] so that all B rows of a sample share it."
)
_USE = {
    MODEL: "The deterministic model: inputs [rows, ...] to outputs; dropout is off.",
    TRUNK: "What no mask reaches of the Monte Carlo model: run it once on the B rows, then run head.onnx.",
    HEAD: "The Monte Carlo model behind the first mask. "
    + _ROWS.format(what="output of trunk.onnx (or input, where there is no trunk.onnx)"),
    MASKED: "The Monte Carlo model. " + _ROWS.format(what="input"),
    NEAREST: "How unlike the training rows a row is: inputs [rows, ...] to a score or to distances.",
}
PARTS = (MODEL, TRUNK, HEAD, MASKED)
_ANSWER = (
    "Take the softmax of each sample for a classifier, then statistics over the T samples in float64. The "
    "mean is the answer; variances divide by T for balanced masks and by T - 1 for iid ones. Where "
    "preprocessing says heteroscedastic, an output is a value and the log variance of its noise."
)


def embed(
    artefacts: Artefacts, manifest: VersionManifest, run_sha256: str, parts: Collection[str] = PARTS
) -> None:
    """Write what is known of a model into each of its ONNX files; their graphs stay as they are.

    What :func:`without_notes` takes out is gone then.

    Args:
        artefacts: the graphs.
        manifest: of the version to be; what follows from the files need not stand in it yet.
        run_sha256: of the run's ``manifest.json``.
        parts: into which files, of those that there are.
    """
    content = manifest.model_dump(mode="json")
    content["preprocessing"] = {k: v for k, v in content["preprocessing"].items() if k not in _INSIDE}
    for part, path in artefacts.paths.items():
        if part not in parts:
            continue
        model = onnx.load(path, load_external_data=False)
        entries = {
            "format": FORMAT,
            "part": part,
            "use": _USE[part],
            "description": _json({key: content[key] for key in _DESCRIBED}),
            "run_manifest_sha256": run_sha256,
        }
        if part in {HEAD, MASKED, TRUNK}:
            entries["masks"] = _json(recipe(manifest))
            entries["answer"] = _ANSWER
        own = {PREFIX + key: value for key, value in entries.items()}
        kept = {p.key: p.value for p in model.metadata_props if not p.key.startswith(PREFIX)}
        del model.metadata_props[:]
        onnx.helper.set_model_props(model, kept | own)
        without_notes(model)
        model.doc_string = f"{manifest.name} {manifest.version}: {_USE[part]}"
        path.write_bytes(model.SerializeToString())


def without_notes(model: onnx.ModelProto) -> None:
    """Take out what the exporter noted at each node: lines of the user's source, paths of somebody's disk."""
    graph = model.graph
    for noted in (graph, *graph.node, *graph.value_info, *graph.initializer, *graph.input, *graph.output):
        del noted.metadata_props[:]


def recipe(manifest: VersionManifest) -> dict[str, Any]:
    """How to draw the masks of a version with numpy alone."""
    defaults = Settings()
    return {
        "defaults": {"samples": defaults.samples, "seed": defaults.seed, "scheme": defaults.scheme},
        "block": masks.common_block([site.p for site in manifest.sites]),
        "iid_block": masks.BLOCK,
        "stream": masks.STREAM,
        "alpha": masks.ALPHA,
        "inputs": {
            name: {
                "site": site.name,
                "role": role,
                "p": site.p,
                "shape": site.model_dump(mode="json")["shape"],
            }
            for site in manifest.sites
            for role, name in (("scale", site.scale), ("shift", site.shift))
            if name is not None
        },
        "steps": [" ".join(step.split()) for step in _STEPS.strip().split("\n\n")],
    }


_STEPS = """
For each site, key = numpy.array([seed, s], uint64), where s is the little-endian integer of
hashlib.blake2b(site.encode("utf-8"), digest_size=8).digest().

Samples come in blocks of `block`. For block i = 0, 1, ...: counter = numpy.array([0, 0, stream[scheme], i],
uint64); generator = numpy.random.Philox(key=key, counter=counter), which is Philox 4x64-10.

words(rows, units): n = rows * units; raw = generator.random_raw(ceil(n / 2)); each 64-bit number gives two
32-bit words, low half first; take the first n of them as [rows, units]. units is the product of the shape (an
axis that varies counts with its maximum).

iid: keep = words(block, units) >= round(p * 2**32), [block, units].

balanced: w = words(block + 1, units); whole, part = divmod(block * (1 - p) + 1e-9, 1); part = max(0, part -
1e-9); left = whole + (w[block] < round(part * 2**32)), for each unit. Then for r = 0, ..., block - 1: keep[r]
= ((w[r] * (block - r)) >> 32) < left, in integers of 64 bits, and left = left - keep[r].

Join the blocks, take the first T samples, and shape them [T, *shape]. Of an axis that varies, take as many
entries as the request has, from the first.

A site without shift: scale = keep * float32(1 / (1 - p)). A site with shift (alpha dropout): a = 1 / sqrt((1
- p) * (1 + p * alpha**2)) and b = -a * p * alpha; scale = keep * float32(a); shift = float32(b) where kept,
float32(a * alpha + b) where dropped.

Scale 1 and shift 0 everywhere give the deterministic model.
"""


def _json(value: object) -> str:
    return json.dumps(value, separators=(",", ":"), ensure_ascii=False)
