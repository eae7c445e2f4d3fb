"""Is every module in eval mode, before and after a forward."""

from __future__ import annotations

import inspect

from torch import nn

from .observe import training_modules
from .outcome import Examination, Outcome, failed, passed
from .places import Place, is_user_file
from .watch import changing_places


def modules_in_eval(exam: Examination) -> Outcome:
    """``.training`` of every registered module is off once the model is in eval mode."""
    left = exam.observation.training
    if not left:
        count = sum(1 for _ in exam.probe.module.modules())
        return passed(
            f"{count} of {count} modules in eval mode before and after {exam.observation.looked} forwards"
        )
    first = next(iter(left))
    names = ", ".join(name or "the model itself" for name in list(left)[:5])
    more = f" and {len(left) - 5} more" if len(left) > 5 else ""
    count = sum(1 for _ in exam.probe.module.modules())
    rebel = overriding_train(exam.probe.module, left[first])
    place = _place(exam, first, left[first], rebel)
    if rebel is not None:
        reason = (
            f"; {type(rebel).__name__} overrides train() or eval(), so eval() of the model does not reach it"
        )
        remedy = "let train(mode) call super().train(mode), and change only what must stay in eval mode"
    elif first == "":
        reason, remedy = "", "call eval() on the model before it is exported"
    else:
        reason, remedy = "", f"call eval() on the whole model last, and never {first}.train() in forward"
    return failed(f"{len(left)} of {count} modules in train mode: {names}{more}{reason}", remedy, place)


def overriding_train(model: nn.Module, wanted: nn.Module) -> nn.Module | None:
    """The module on the way to another whose ``train`` or ``eval`` is not torch's own, if any."""
    names = {id(module): name for name, module in model.named_modules()}
    parts = names[id(wanted)].split(".")
    on_the_way = (".".join(parts[:depth]) for depth in range(len(parts), -1, -1))
    return next((m for name in on_the_way if overridden(m := model.get_submodule(name))), None)


def overridden(module: nn.Module) -> list[str]:
    """Which of ``train`` and ``eval`` a module does not take from torch."""
    return [
        method
        for method in ("train", "eval")
        if is_user_file(_file(getattr(type(module), method))) or method in vars(module)
    ]


def _place(exam: Examination, name: str, module: nn.Module, rebel: nn.Module | None) -> Place:
    if rebel is not None:
        path = exam.probe.placer.name(rebel)
        method = getattr(rebel, overridden(rebel)[0])
        function = inspect.unwrap(getattr(method, "__func__", method))
        return Place(path, type(rebel).__name__, _file(function), function.__code__.co_firstlineno, (), rebel)
    probe = exam.unused()
    switched = changing_places(probe, exam.inputs, lambda: tuple(training_modules(probe.module)))
    if switched:
        return switched[0]
    running = () if exam.observation.error else exam.trace.operations
    called = (operation.place for operation in running if operation.place.module is module)
    return next(called, Place(name, type(module).__name__))


def _file(function: object) -> str:
    code = getattr(inspect.unwrap(getattr(function, "__func__", function)), "__code__", None)  # type: ignore[arg-type]
    return str(code.co_filename) if code is not None else ""
