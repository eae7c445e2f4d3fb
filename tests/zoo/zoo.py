"""The zoo: models that must be refused, with the place of their fault, and models that must not be."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import nn

from dropserve.export.settings import ExportSettings
from dropserve.export.subject import Subject
from dropserve.model import load_class
from dropserve.signature import TensorSpec, parse_input

HERE = Path(__file__).parent
MARKER = "# PLACE"
SETTINGS = ExportSettings()


@dataclass(frozen=True)
class Animal:
    """One model of the zoo.

    Attributes:
        name: its class.
        file: where it is written.
        build: makes it, in eval mode.
        inputs: what it takes.
        check: the check that must refuse it; empty for a correct model.
        places: ``file:line`` of the lines that may be named as the fault's place.
        formats: what it can be exported to; a few sound models cannot be TorchScript.
    """

    name: str
    file: Path
    build: Callable[[], nn.Module]
    inputs: tuple[TensorSpec, ...]
    check: str
    places: tuple[str, ...]
    formats: tuple[str, ...]

    def subject(self) -> Subject:
        torch.manual_seed(len(self.name))
        return Subject(self.name, self.build().eval(), self.inputs)

    def settings(self) -> ExportSettings:
        return ExportSettings.model_validate({"formats": self.formats})


def broken() -> list[Animal]:
    return _animals("broken")


def correct() -> list[Animal]:
    return _animals("correct")


def _animals(kind: str) -> list[Animal]:
    found: list[Animal] = []
    for file in sorted((HERE / kind).glob("*.py")):
        lines = file.read_text(encoding="utf-8").splitlines()
        names = [line[6:].split("(")[0] for line in lines if line.startswith("class ") and line[6] != "_"]
        for name in names:
            cls = load_class(f"{file}:{name}").cls
            if not hasattr(cls, "INPUTS"):  # a helper of the next one
                continue
            arguments = [*inspect.signature(cls.forward).parameters][1:]
            if arguments == ["input"]:  # nn.Sequential's own
                arguments = ["x"]
            texts = zip(arguments, cls.INPUTS, strict=True)
            inputs = tuple(parse_input(text, name=argument) for argument, text in texts)
            check, places = getattr(cls, "CHECK", ""), _places(file, lines, cls)
            formats = getattr(cls, "FORMATS", ("onnx", "torchscript"))
            found.append(Animal(name, file, cls, inputs, check, places, formats))
    return found


def _places(file: Path, lines: list[str], cls: type) -> tuple[str, ...]:
    """Marked lines of the class and of the helpers right above it (private, or without inputs)."""
    start = inspect.getsourcelines(cls)[1] - 1
    end = start + len(inspect.getsourcelines(cls)[0])
    while True:
        above = [i for i in range(start) if lines[i].startswith("class ")]
        if not above or any("INPUTS =" in line for line in lines[above[-1] : start]):
            break
        start = above[-1]
    return tuple(f"{file.name}:{i + 1}" for i in range(start, end) if MARKER in lines[i])
