"""From ``file.py:Class`` to a module ready to be trained or exported (needs torch)."""

from __future__ import annotations

import hashlib
import importlib
import importlib.util
import inspect
import json
import math
import sys
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any, TypeVar

import torch
from torch import nn

from dropserve.encoding import encoder, filler
from dropserve.errors import ModelSourceError, SourceChangedError, UsageError
from dropserve.manifest import Preprocessing, RunManifest, Scaling
from dropserve.signature import TensorSpec, parse_input
from dropserve.store import Stored

WEIGHTS = "weights.safetensors"

_Model = TypeVar("_Model", bound=nn.Module)


@dataclass(frozen=True)
class ModelClass:
    """A model's class and the file that defines it.

    Attributes:
        spec: ``file.py:Class`` with an absolute path, or ``module:Class``.
        cls: the class.
        file: the file that defines it.
        source: what the file held when the class was loaded; an edit during training changes nothing.
    """

    spec: str
    cls: type[nn.Module]
    file: Path
    source: bytes

    @property
    def sha256(self) -> str:
        """Hash of the source."""
        return hashlib.sha256(self.source).hexdigest()

    def build(self, arguments: Mapping[str, Any]) -> nn.Module:
        """Call the constructor.

        Raises:
            ModelSourceError: if it refuses the arguments, fails, or puts the model on another device than the
            CPU.
        """
        try:
            model = self.cls(**arguments)
        except Exception as error:
            given = ", ".join(f"{key}={value!r}" for key, value in arguments.items())
            raise ModelSourceError(
                f"{self.spec}({given}) failed: {type(error).__name__}: {error}. "
                f"Its constructor is {self.cls.__name__}{inspect.signature(self.cls)}."
            ) from error
        require_cpu(model, "name no device in its constructor; training.device of a recipe moves it")
        return model


def load_class(spec: str, base: Path | None = None) -> ModelClass:
    """Find a model class.

    Args:
        spec: ``path/to/file.py:Class`` or ``package.module:Class``.
        base: folder that a relative file path is relative to; the working directory by default.

    Raises:
        ModelSourceError: if the file, module or class does not exist, fails to import, or is no
            ``nn.Module``.
    """
    place, _, name = spec.rpartition(":")
    if not place or not name.isidentifier():
        raise ModelSourceError(
            f"model {spec!r}: write file.py:Class or package.module:Class, such as my_net.py:Net"
        )
    if place.endswith(".py"):
        path = ((base or Path.cwd()) / place).resolve()
        module, spec = _import_file(path, spec), f"{path}:{name}"
    else:
        module = _import_module(place, spec)
    cls = getattr(module, name, None)
    if not (inspect.isclass(cls) and issubclass(cls, nn.Module)):
        found = [k for k, v in vars(module).items() if inspect.isclass(v) and issubclass(v, nn.Module)]
        raise ModelSourceError(
            f"model {spec!r}: {place} defines no nn.Module called {name}; it has: "
            f"{', '.join(found) or 'none'}"
        )
    file = Path(inspect.getfile(cls))
    return ModelClass(spec, cls, file, file.read_bytes())


def _import_module(place: str, spec: str) -> ModuleType:
    try:
        return importlib.import_module(place)
    except Exception as error:
        raise ModelSourceError(
            f"model {spec!r}: importing {place} failed: {type(error).__name__}: {error}"
        ) from error


def _import_file(path: Path, spec: str) -> ModuleType:
    if not path.is_file():
        raise ModelSourceError(f"model {spec!r}: there is no file {path}")
    # Named by content: two files with one name, or one file edited in between, never meet in sys.modules.
    digest = hashlib.sha256(str(path).encode() + path.read_bytes()).hexdigest()[:12]
    name = f"_dropserve_model_{path.stem}_{digest}"
    if name in sys.modules:
        return sys.modules[name]
    module_spec = importlib.util.spec_from_file_location(name, path)
    if module_spec is None or module_spec.loader is None:
        raise ModelSourceError(f"model {spec!r}: {path} cannot be imported")
    module = importlib.util.module_from_spec(module_spec)
    sys.modules[name] = module
    sys.path.insert(0, str(path.parent))  # a model file may import its neighbours
    try:
        module_spec.loader.exec_module(module)
    except Exception as error:
        del sys.modules[name]
        raise ModelSourceError(
            f"model {spec!r}: importing {path} failed: {type(error).__name__}: {error}"
        ) from error
    finally:
        sys.path.remove(str(path.parent))
    return module


def parse_arguments(pairs: Sequence[str]) -> dict[str, Any]:
    """Read ``NAME=VALUE`` pairs; a value is JSON (``64``, ``0.5``, ``true``, ``[1,2]``), else a text.

    Raises:
        UsageError: if a pair has no name or no equals sign.
    """
    arguments: dict[str, Any] = {}
    for pair in pairs:
        name, equals, text = pair.partition("=")
        if not equals or not name.isidentifier():
            raise UsageError(f"--arg {pair!r}: write NAME=VALUE, such as hidden=64")
        try:
            arguments[name] = json.loads(text)
        except ValueError:
            arguments[name] = text
    return arguments


def name_inputs(shapes: Sequence[str], cls: type[nn.Module]) -> tuple[TensorSpec, ...]:
    """Read the inputs of a model: a single one is called ``input``, several as ``forward`` calls them.

    Args:
        shapes: as :func:`dropserve.signature.parse_input` reads them, in the order of ``forward``.
        cls: the model's class.

    Raises:
        UsageError: if a shape cannot be read.
    """
    names = ["input"]
    if len(shapes) != 1:
        names = [p.name for p in inspect.signature(cls.forward).parameters.values() if p.kind in _NAMED][1:]
        names += [f"input_{place}" for place in range(len(names), len(shapes))]
    return tuple(parse_input(shape, name=name) for name, shape in zip(names, shapes, strict=False))


_NAMED = {inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD}


class ServedModel(nn.Module):
    """The user's model with its preprocessing, as it is exported: raw features in, raw units out.

    Missing values are filled in, numbers scaled, codes of categories made one-hot. Classification returns
    logits; the host applies softmax in float64.

    Args:
        model: the user's module.
        preprocessing: columns of inputs, scaling of inputs and target.
        inputs: names of the inputs in the order of ``forward``, with their shapes per row.
    """

    def __init__(
        self, model: nn.Module, preprocessing: Preprocessing, inputs: Mapping[str, tuple[int, ...]]
    ) -> None:
        super().__init__()
        self.model = model
        self._input_names = tuple(inputs)
        self._scaled = frozenset(preprocessing.inputs)
        columns = [preprocessing.columns.get(name, ()) for name in inputs]
        self.fillers = nn.ModuleList(filler(each) for each in columns)
        self.encoders = nn.ModuleList(encoder(each) for each in columns)
        for name, scaling in preprocessing.inputs.items():
            self._register(f"{name}_", scaling, inputs[name])
        self._unscale = preprocessing.target is not None
        if preprocessing.target is not None:
            self._register("target_", _target(preprocessing), (-1,))

    def _register(self, prefix: str, scaling: Scaling, shape: tuple[int, ...]) -> None:
        mean, scale = torch.tensor(scaling.mean), torch.tensor(scaling.scale)
        self.register_buffer(f"{prefix}mean", mean.reshape(shape))
        self.register_buffer(f"{prefix}scale", scale.reshape(shape))

    def forward(self, *inputs: torch.Tensor) -> Any:  # whatever the user's model returns
        """Prepare the rows, call the model, and put regression outputs back in their unit."""
        output = self.model(*(self._prepare(place, x) for place, x in enumerate(inputs)))
        if not self._unscale:
            return output
        return output * self.get_buffer("target_scale") + self.get_buffer("target_mean")

    def _prepare(self, place: int, x: torch.Tensor) -> torch.Tensor:
        name, x = self._input_names[place], self.fillers[place](x)
        if name in self._scaled:
            x = (x - getattr(self, f"{name}_mean")) / getattr(self, f"{name}_scale")
        return self.encoders[place](x)


def _target(preprocessing: Preprocessing) -> Scaling:
    """What puts the model's outputs in the unit of the target; a log variance moves by log scale squared."""
    target = preprocessing.target or Scaling(mean=(0.0,), scale=(1.0,))
    if not preprocessing.heteroscedastic:
        return target
    (mean,), (scale,) = target.mean, target.scale
    return Scaling(mean=(mean, 2 * math.log(scale)), scale=(scale, 1.0))


def require_python(model: nn.Module) -> None:
    """Refuse a model that is TorchScript already, wholly or in part: no exporter sees what that computes.

    Raises:
        ModelSourceError: naming the parts.
    """
    parts = [name for name, module in model.named_modules() if isinstance(module, torch.jit.ScriptModule)]
    outermost = [name for name in parts if not any(name.startswith(f"{other}.") for other in parts)]
    if not parts:
        return
    named = ", ".join(outermost[:5]) if "" not in parts else "the whole model"
    raise ModelSourceError(
        f"{type(model).__name__}: {named} is TorchScript, made by torch.jit.script or torch.jit.trace; "
        "expected modules of Python, as neither masks nor exporters can follow TorchScript. Build that part "
        "from its class; its weights fit as they are, since their names stay the same."
    )


def require_cpu(model: nn.Module, remedy: str) -> None:
    """Refuse a model that is not on the CPU, where it is looked at, checked and exported.

    Args:
        model: any module.
        remedy: what to do, for the message.

    Raises:
        ModelSourceError: naming a tensor of it, and its device.
    """
    for name, tensor in (*model.named_parameters(), *model.named_buffers()):
        if tensor.device.type != "cpu":
            raise ModelSourceError(
                f"{type(model).__name__}: {name} is on {tensor.device}; expected a model on the CPU: {remedy}"
            )


def set_mode(model: _Model, *, training: bool = False) -> _Model:
    """Put a model in eval or train mode and return it, whatever its own ``train()`` returns.

    Raises:
        ModelSourceError: if an overridden ``train()`` or ``eval()`` fails; the message says where it is.
    """
    method = "train" if training else "eval"
    try:
        getattr(model, method)()
    except Exception as error:
        raise ModelSourceError(
            f"{type(model).__name__}.{method}() failed: {type(error).__name__}: {error}. {_overriders(model)}"
        ) from error
    return model


def require_eval(model: nn.Module) -> None:
    """Refuse a model that an overridden ``train()`` or ``eval()`` leaves in train mode after ``eval()``.

    Raises:
        ModelSourceError: naming the method and its place.
    """
    left = [name or "the model itself" for name, part in model.named_modules() if part.training]
    if left and (named := _overriders(model)):
        shown = ", ".join(left[:5]) + (f" and {len(left) - 5} more" if left[5:] else "")
        raise ModelSourceError(f"{type(model).__name__}: in train mode after eval(): {shown}. {named}")


def _overriders(model: nn.Module) -> str:
    """Which modules define ``train`` or ``eval`` themselves, where, and what is expected of them."""
    found: dict[str, None] = {}
    for part in model.modules():
        for method in ("train", "eval"):
            own = getattr(part, method)
            function = inspect.unwrap(getattr(own, "__func__", own))
            code = getattr(function, "__code__", None)
            if code is not None and getattr(nn.Module, method) is not function:
                place = f"{code.co_filename}:{code.co_firstlineno}"
                found[f"{type(part).__name__} defines {method}() itself ({place})"] = None
    if not found:
        return ""
    return (
        f"{'; '.join(found)}: torch calls train(mode) to switch modes. Let train(self, mode=True) call "
        "super().train(mode) and return self; give a training loop another name, such as fit()"
    )


def non_finite(state: Mapping[str, torch.Tensor], parameters: Collection[str]) -> list[str]:
    """What is wrong with the numbers of a state, one line a tensor.

    Args:
        state: tensors by name.
        parameters: which of them are weights. The others are buffers, where infinity may be meant (a mask
            of attention); NaN is wrong in both.

    Returns:
        Such as ``fc.weight: 3 of 48 numbers are NaN``.
    """
    lines: list[str] = []
    for name, tensor in state.items():
        if not (tensor.is_floating_point() or tensor.is_complex()):
            continue
        counts = {"NaN": int(tensor.isnan().sum())}
        if name in parameters:
            counts["infinite"] = int(tensor.isinf().sum())
        lines += [f"{name}: {n} of {tensor.numel()} numbers are {kind}" for kind, n in counts.items() if n]
    return lines


def parameter_names(model: nn.Module) -> frozenset[str]:
    """Names of the parameters in the state of a model, each name of a tied one."""
    return frozenset(name for name, _ in model.named_parameters(remove_duplicate=False))


def build_served(run: Stored[RunManifest]) -> ServedModel:
    """Build the model of a run again, in eval mode, with its trained weights.

    Raises:
        SourceChangedError: if the model's source differs from the one that was trained.
        ModelSourceError: if it cannot be imported or built, or the weights do not fit.
    """
    from safetensors import SafetensorError  # noqa: PLC0415  # export hosts only
    from safetensors.torch import load_file  # noqa: PLC0415

    manifest = run.manifest
    source = manifest.source
    place, _, name = source.spec.rpartition(":")
    if place.endswith(".py") and not Path(place).is_file():
        loaded = load_class(f"{run.path(source.copy_file)}:{name}")
    else:
        loaded = load_class(source.spec)
    if loaded.sha256 != source.sha256:
        raise SourceChangedError(
            f"{loaded.file} has changed since run {manifest.id} of {manifest.name!r} was trained "
            f"(the run keeps a copy: {run.path(source.copy_file)}). Restore it, or train again."
        )
    model = loaded.build(source.arguments)
    shapes = {spec.name: spec.sized() for spec in manifest.signature.inputs}
    try:
        state = load_file(run.path(WEIGHTS))
        model.load_state_dict(state)
    except RuntimeError as error:
        raise ModelSourceError(f"the weights of run {manifest.id} do not fit: {error}") from error
    except SafetensorError as error:
        raise ModelSourceError(
            f"the weights of run {manifest.id} ({run.path(WEIGHTS)}) are not whole: {error}. Make it again."
        ) from error
    if wrong := non_finite(state, parameter_names(model)):
        raise ModelSourceError(
            f"the weights of run {manifest.id} cannot be used: {'; '.join(wrong[:8])}"
            f"{f'; and {len(wrong) - 8} more' if wrong[8:] else ''}. Train again, or import whole weights."
        )
    return set_mode(ServedModel(model, manifest.preprocessing, shapes))
