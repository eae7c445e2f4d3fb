"""From JSON values to arrays, with an error that says which number of which instance is wrong."""

from __future__ import annotations

from typing import Any, NoReturn

import numpy as np

from dropserve.errors import RequestError
from dropserve.serving.query import Array
from dropserve.signature import Axis, Shape, Signature, TensorSpec

_WORDS: dict[type, str] = {
    bool: "a boolean",
    dict: "an object",
    float: "a number",
    int: "a number",
    list: "a list",
    str: "a string",
    type(None): "null",
}
_WHOLE: frozenset[type] = frozenset({int})
NUMBERS: frozenset[type] = frozenset({float, int})
_ALLOWED: dict[str, frozenset[type]] = {"b": frozenset({bool}), "f": NUMBERS}

SURELY_SMALL = 60_000.0**2  # a sum of squares: each number fits into any floating dtype, float16 too


def read_instances(instances: Any, signature: Signature) -> dict[str, Array]:
    """Turn the ``instances`` of a V1 request into the arrays of a batch.

    An instance is one row: the nested list of its input, or an object with each input by name (the only
    form for a model with several inputs).

    Args:
        instances: what stood in the JSON.
        signature: the model's inputs.

    Returns:
        For the name of each input, [B, ...] in the dtype of the signature.

    Raises:
        RequestError: for anything else; the message names the instance and says what was expected.
    """
    if not isinstance(instances, list):
        _refuse("type", f'"instances" is {describe(instances)}; expected {describe_request(signature)}')
    if not instances:
        _refuse("empty", f'"instances" is empty; expected {describe_request(signature)}')
    names = [spec.name for spec in signature.inputs]
    columns: dict[str, list[Any]] = {name: [] for name in names}
    for row, instance in enumerate(instances):
        if isinstance(instance, dict):
            _take_object(instance, row, columns)
        elif len(names) > 1:
            _refuse(
                "type",
                f"instance {row} is {describe(instance)}; this model has {len(names)} inputs, so each "
                f"instance is an object with the keys {', '.join(names)}",
            )
        else:
            columns[names[0]].append(instance)
    lengths: dict[str, int] = {}
    several = len(names) > 1
    return {s.name: read_rows(columns[s.name], s, lengths, named=several) for s in signature.inputs}


def _take_object(instance: dict[str, Any], row: int, columns: dict[str, list[Any]]) -> None:
    names = list(columns)
    if missing := [name for name in names if name not in instance]:
        _refuse(
            "input_name",
            f"instance {row} lacks the input {quote(missing[0])}; expected the keys {', '.join(names)}",
        )
    if unknown := [name for name in instance if name not in columns]:
        _refuse(
            "input_name",
            f"instance {row} has an unknown input {quote(unknown[0])}; expected the keys {', '.join(names)}",
        )
    for name, column in columns.items():
        column.append(instance[name])


def read_rows(
    rows: list[Any], spec: TensorSpec, lengths: dict[str, int] | None = None, *, named: bool = False
) -> Array:
    """Turn the rows of one input into an array.

    Args:
        rows: one nested list a row.
        spec: the input.
        lengths: what is known of the variable axes; what the first row shows is added.
        named: whether messages name the input.

    Raises:
        RequestError: if a row has another shape, or holds what is no number of that dtype.
    """
    reader = _Reader(spec, {} if lengths is None else lengths, named=named)
    flat: list[Any] = []
    for index, row in enumerate(rows):
        reader.read(row, spec.shape, index, (), flat)
    shape = (len(rows), *spec.sized(reader.lengths))
    return reader.convert(flat).reshape(shape)


class _Reader:
    """Reads the rows of one input; ``path`` is where in a row it stands."""

    def __init__(self, spec: TensorSpec, lengths: dict[str, int], *, named: bool) -> None:
        self.lengths = lengths
        self._spec = spec
        self._name = f" of input {spec.name}" if named else ""
        kind = spec.numpy_dtype.kind
        self._kind = kind
        self._allowed = _ALLOWED.get(kind, _WHOLE)
        self._word = {"b": "a boolean", "f": "a number"}.get(kind, f"a whole number ({spec.dtype})")

    def read(self, value: Any, shape: Shape, row: int, path: tuple[int, ...], flat: list[Any]) -> None:
        """Append the numbers of one row, or of a part of it, to ``flat``."""
        if not shape:
            value = self._element(value)
            if type(value) not in self._allowed:
                self._refuse_element(value, row, path)
            flat.append(value)
            return
        if not isinstance(value, list):
            _refuse(
                "type", f"{self._at(row, path)} is {describe(value)}; expected a list of {self._form(shape)}"
            )
        self._check_length(len(value), shape, row, path)
        if len(shape) > 1:
            for index, part in enumerate(value):
                self.read(part, shape[1:], row, (*path, index), flat)
            return
        if not self._allowed.issuperset(map(type, value)):
            value = [self._element(element) for element in value]
        if not self._allowed.issuperset(map(type, value)):
            index = next(i for i, element in enumerate(value) if type(element) not in self._allowed)
            self._refuse_element(value[index], row, (*path, index))
        flat += value

    def _element(self, value: Any) -> Any:
        return whole(value) if self._kind in "iu" else value

    def convert(self, flat: list[Any]) -> Array:
        """One row after another, in the dtype of the input; refuses what it cannot hold."""
        dtype = self._spec.numpy_dtype
        if self._kind == "b":
            return np.array(flat, dtype)
        if self._kind == "f":
            return self._convert_floats(flat, dtype)
        bounds = np.iinfo(dtype.name)
        for index, number in enumerate(flat):
            if not bounds.min <= number <= bounds.max:
                self._refuse_range(flat, index)
        return np.array(flat, dtype)

    def _convert_floats(self, flat: list[Any], dtype: np.dtype[np.generic]) -> Array:
        try:
            exact = np.array(flat, np.float64)
        except OverflowError:  # an integer of more than 308 digits
            exact = np.array([float("inf") if abs(x) > 1e308 else x for x in flat], np.float64)
        if exact.dot(exact) < SURELY_SMALL:  # nearly always, and half the price of looking at each number
            return exact.astype(dtype)
        with np.errstate(over="ignore"):
            values = exact.astype(dtype)
        if not np.isfinite(values).all():
            self._refuse_range(flat, int(np.argmin(np.isfinite(values))))
        return values

    def _refuse_range(self, flat: list[Any], index: int) -> NoReturn:
        sizes = self._spec.sized(self.lengths)
        row, *path = (int(i) for i in np.unravel_index(index, (len(flat), *sizes)))
        number = flat[index]
        if isinstance(number, float) and not np.isfinite(number):
            expected = "a finite number (NaN and Infinity are not JSON)"
        elif self._kind == "f":
            expected = f"a number within the range of {self._spec.dtype}"
        else:
            bounds = np.iinfo(self._spec.numpy_dtype.name)
            expected = f"a whole number from {bounds.min} to {bounds.max}"
        _refuse("range", f"{self._at(row, tuple(path))} is {_short(number)}; expected {expected}")

    def _refuse_element(self, value: Any, row: int, path: tuple[int, ...]) -> NoReturn:
        came = describe(value)
        if isinstance(value, list):
            came = f"a list; the nesting is deeper than {self._form(self._spec.shape)}"
        _refuse("type", f"{self._at(row, path)} is {came}; expected {self._word}")

    def _check_length(self, length: int, shape: Shape, row: int, path: tuple[int, ...]) -> None:
        axis = shape[0]
        if isinstance(axis, Axis):
            if not 1 <= length <= axis.maximum:
                _refuse(
                    "shape",
                    f"{self._at(row, path)} has length {length}; expected 1 to {axis.maximum} ({axis.name})",
                )
            known = self.lengths.setdefault(axis.name, length)
            if length != known:
                _refuse(
                    "shape",
                    f"{self._at(row, path)} has length {length}; expected {known}, as in the first instance: "
                    f"rows of one request share the length {axis.name}",
                )
        elif length != axis:
            what = "numbers" if len(shape) == 1 else "lists"
            _refuse("shape", f"{self._at(row, path)} has {length} {what}; expected {self._form(shape)}")

    def _at(self, row: int, path: tuple[int, ...]) -> str:
        place = "".join(f"[{index}]" for index in path)
        return f"instance {row}{self._name}{', element ' + place if place else ''}"

    def _form(self, shape: Shape) -> str:
        noun = {"b": "booleans", "f": "numbers"}.get(self._kind, "whole numbers")
        sizes = [f"up to {axis.maximum}" if isinstance(axis, Axis) else str(axis) for axis in shape]
        return f"{' x '.join(sizes)} {noun}" if sizes else self._word


def describe_request(signature: Signature) -> str:
    """The form of ``instances`` in words, for messages."""
    forms = {spec.name: _row_form(spec) for spec in signature.inputs}
    if len(forms) == 1:
        return f"a list of instances, each {next(iter(forms.values()))}"
    keys = ", ".join(f"{name}: {form}" for name, form in forms.items())
    return f"a list of instances, each an object {{{keys}}}"


def _row_form(spec: TensorSpec) -> str:
    sizes = [f"up to {axis.maximum}" if isinstance(axis, Axis) else str(axis) for axis in spec.shape]
    noun = {"b": "boolean", "f": "number"}.get(spec.numpy_dtype.kind, "whole number")
    if not sizes:
        return f"one {noun}"
    return f"a list of {' x '.join(sizes)} {noun}s"


def describe(value: Any) -> str:
    """A JSON value in words, short enough for a message."""
    word = _WORDS.get(type(value), type(value).__name__)
    if isinstance(value, str):
        return f"{word} ({quote(value)})"
    if isinstance(value, bool):
        return f"{word} ({str(value).lower()})"
    if isinstance(value, int | float):
        return f"{word} ({_short(value)})"
    return word


def whole(value: Any) -> Any:
    """A whole number as an int: JSON has one kind of number, and some writers give 50 as 50.0."""
    return int(value) if isinstance(value, float) and value.is_integer() else value


def quote(text: str) -> str:
    """A text of the request within quotes, cut to 40 characters, fit for JSON whatever it holds."""
    cut = text if len(text) <= 40 else text[:37] + "..."
    return '"' + cut.encode("utf-8", "replace").decode() + '"'


def _short(number: float) -> str:
    if isinstance(number, int) and abs(number) >= 10**20:
        return f"an integer of more than {20 if abs(number) < 10**300 else 300} digits"
    return f"{number}"


def _refuse(reason: str, message: str) -> NoReturn:
    raise RequestError(message, reason=reason)


class Vectors:
    """Reads usual rows at once: ``instances`` of a model of one vector of floating-point numbers.

    Args:
        signature: the model's.
    """

    def __init__(self, signature: Signature) -> None:
        spec, *others = signature.inputs
        self._name, self._dtype = spec.name, spec.numpy_dtype
        length = spec.shape[0] if len(spec.shape) == 1 and not others else None
        self._length = None if isinstance(length, Axis) or self._dtype.kind != "f" else length

    def read(self, instances: Any) -> dict[str, Array] | None:
        """As :func:`read_instances`; None for whatever is not usual.

        That one reads it then, or says what is wrong with it.
        """
        if self._length is None or type(instances) is not list or not instances:
            return None
        for row in instances:
            if type(row) is not list or len(row) != self._length or not NUMBERS.issuperset(map(type, row)):
                return None
        try:
            exact = np.array(instances, np.float64)
        except OverflowError:  # an integer of more than 308 digits
            return None
        flat = exact.ravel()
        return {self._name: exact.astype(self._dtype)} if flat.dot(flat) < SURELY_SMALL else None
