"""What pydantic found wrong, said in the words of a recipe: key, value received, what is allowed."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Mapping, Sequence
from types import UnionType
from typing import Annotated, Any, Union, get_args, get_origin

from pydantic import BaseModel, ValidationError
from pydantic.fields import FieldInfo
from pydantic_core import ErrorDetails


def describe(error: ValidationError, model: type[BaseModel]) -> list[str]:
    """One line for each problem.

    Args:
        error: what validating ``model`` raised.
        model: the outermost model; its fields' ``description`` says what is allowed.
    """
    return [_line(detail, model) for detail in error.errors(include_url=False, include_context=True)]


def did_you_mean(word: str, known: Iterable[str]) -> str:
    """`` (did you mean 'epochs'?)``, or nothing if no known word is near."""
    near = difflib.get_close_matches(word, list(known), n=1)
    return f" (did you mean {near[0]!r}?)" if near else ""


def shown(value: object) -> str:
    """A value as a recipe would write it, cut to a readable length."""
    text = str(value).lower() if isinstance(value, bool) else repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."


def _line(detail: ErrorDetails, model: type[BaseModel]) -> str:
    keys, owner, field = _walk(detail["loc"], model, detail["type"] == "extra_forbidden")
    key, value = ".".join(keys), detail["input"]
    context = detail.get("ctx", {})
    match detail["type"]:
        case "extra_forbidden":
            known = [_key(name, info) for name, info in owner.model_fields.items()]
            hint = did_you_mean(keys[-1], known)
            return f"{key}: unknown key, value {shown(value)}{hint}; allowed here: {', '.join(known)}"
        case "missing":
            return f"{key}: missing; write {_allowed(field)}"
        case "union_tag_not_found":
            return f"{key}.source: missing; allowed: {_tags(field)}"
        case "union_tag_invalid":
            tag = str(context.get("tag"))
            hint = did_you_mean(tag, _tag_list(field))
            return f"{key}.source: got {shown(tag)}{hint}; allowed: {_tags(field)}"
        case "value_error":
            return f"{key}: {context.get('error', detail['msg'])}"
        case _:
            hint = did_you_mean(value, _choices(field)) if isinstance(value, str) else ""
            return f"{key}: got {shown(value)}{hint}; allowed: {_allowed(field)}"


def _walk(
    location: Sequence[int | str], model: type[BaseModel], unknown: bool
) -> tuple[list[str], type[BaseModel], FieldInfo | None]:
    """Follow an error's location: the keys as written, the model that holds the last, and its field."""
    keys: list[str] = []
    field: FieldInfo | None = None
    inner: list[type[BaseModel]] = []
    variants: dict[str, type[BaseModel]] = {}
    named: list[type[BaseModel]] = []
    for place, step in enumerate(map(str, location)):
        if step in variants:  # the tag of a union is no key of the recipe
            model, variants = variants[step], {}
            continue
        keys.append(step)
        if named:  # a name of the user's choice, in a free table of tables
            model, named = named[0], []
            continue
        if unknown and place == len(location) - 1:
            return keys, model, None
        if field is not None and not inner and not _named_models(field.annotation):
            break  # inside a list or a free table: one step in, and the field says what is allowed
        found = next((i for n, i in model.model_fields.items() if _key(n, i) == step), None)
        if found is None:
            break
        field = found
        inner, named = _models(found.annotation), _named_models(found.annotation)
        if len(inner) == 1:
            model = inner[0]
        variants = {tag: each for each in inner for tag in _source_tags(each)}
    return keys, model, field


def _key(name: str, info: FieldInfo) -> str:
    return info.alias or name


def _models(annotation: object) -> list[type[BaseModel]]:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return [annotation]
    if get_origin(annotation) in {Union, UnionType, Annotated}:
        return [model for arg in get_args(annotation) for model in _models(arg)]
    return []


def _named_models(annotation: object) -> list[type[BaseModel]]:
    """Of a table whose keys are free and whose values are tables."""
    return _models(get_args(annotation)[1]) if get_origin(annotation) is dict else []


def _source_tags(model: type[BaseModel]) -> tuple[str, ...]:
    info = model.model_fields.get("source")
    return get_args(info.annotation) if info else ()


def _tag_list(field: FieldInfo | None) -> list[str]:
    return [tag for model in _models(field.annotation) for tag in _source_tags(model)] if field else []


def _tags(field: FieldInfo | None) -> str:
    return ", ".join(_tag_list(field))


def _choices(field: FieldInfo | None) -> list[str]:
    return [c for c in get_args(field.annotation) if isinstance(c, str)] if field else []


def _allowed(field: FieldInfo | None) -> str:
    return (field.description if field else None) or "another value"


def with_overrides(content: Mapping[str, Any], overrides: Mapping[str, Any]) -> dict[str, Any]:
    """A copy of a recipe's content with ``table.key`` replaced, or a key of a table within a table.

    Tables that are missing are made; what stands in the place of one is left for the checks to report.
    """
    result = dict(content)
    for path, value in overrides.items():
        *tables, key = path.split(".")
        inner = result
        for name in tables:
            table = inner.get(name, {})
            if not isinstance(table, dict):
                break
            inner[name] = dict(table)
            inner = inner[name]
        else:
            inner[key] = value
    return result
