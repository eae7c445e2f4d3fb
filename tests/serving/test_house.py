"""Rules of the house, read from the code: nobody's private parts, and nobody's attributes replaced."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

SOURCE = Path(__file__).parents[2] / "src" / "dropserve"
THEIRS = (
    "uvicorn",
    "httptools",
    "starlette",
    "ray",
    "onnxruntime",
    "torch",
    "ts",
    "uvloop",
    "asyncio",
    "h11",
)
GUARDED = ("uvicorn", "httptools", "starlette", "ray")
MAY_REPLACE = SOURCE / "serving" / "wire.py"  # TorchServe's batch reader: pinned, checked, falls back
LEFT = {
    "Front", "Desk", "Lane", "Inline", "Away", "Linger", "Door", "Books", "Direct", "Figures",
    "Answering", "Message", "Take", "Draft", "Launch", "Engine",
}  # fmt: skip


def trees() -> Iterator[tuple[Path, ast.Module]]:
    for path in sorted(SOURCE.rglob("*.py")):
        yield path, ast.parse(path.read_text("utf-8"))


def imported(node: ast.AST) -> Iterator[tuple[str, str]]:
    """Module and name of each import, whether by a statement or by a call."""
    if isinstance(node, ast.Import):
        for alias in node.names:
            yield alias.name, alias.asname or alias.name.partition(".")[0]
    elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
        for alias in node.names:
            yield f"{node.module}.{alias.name}", alias.asname or alias.name
    elif isinstance(node, ast.Call) and node.args and isinstance(node.args[0], ast.Constant):
        name = node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", "")
        if name in {"import_module", "__import__"}:
            yield str(node.args[0].value), ""


def test_nothing_private_of_the_web_libraries_is_imported() -> None:
    found = [
        f"{path.relative_to(SOURCE)}: {name}"
        for path, tree in trees()
        for node in ast.walk(tree)
        for name, _ in imported(node)
        if name.partition(".")[0] in GUARDED and any(part.startswith("_") for part in name.split("."))
    ]
    assert found == []


def test_no_class_of_theirs_is_subclassed() -> None:
    """Of uvicorn, httptools and Ray: what such a class calls and holds is nobody's promise."""
    found: list[str] = []
    for path, tree in trees():
        names = {own: name for node in ast.walk(tree) for name, own in imported(node)}
        for node in ast.walk(tree):
            for base in node.bases if isinstance(node, ast.ClassDef) else ():
                root = ast.unparse(base).partition(".")[0]
                if names.get(root, "").partition(".")[0] in {"uvicorn", "httptools", "ray"}:
                    found.append(f"{path.relative_to(SOURCE)}: {ast.unparse(base)}")
    assert found == []


def test_no_attribute_of_another_package_is_replaced() -> None:
    found: list[str] = []
    for path, tree in trees():
        names = {own: name for node in ast.walk(tree) for name, own in imported(node) if own}
        foreign = {own for own, name in names.items() if name.partition(".")[0] in THEIRS}
        for node in ast.walk(tree):
            targets = node.targets if isinstance(node, ast.Assign) else ()
            targets = (node.target,) if isinstance(node, ast.AugAssign | ast.AnnAssign) else targets
            changed = [each.value for each in targets if isinstance(each, ast.Attribute)]
            if isinstance(node, ast.Call) and getattr(node.func, "id", "") == "setattr":
                changed.append(node.args[0])
            found += [
                f"{path.relative_to(SOURCE)}: {ast.unparse(node)[:80]}"
                for value in changed
                if ast.unparse(value).partition(".")[0] in foreign and path != MAY_REPLACE
                if not ast.unparse(value).startswith("torch.backends.")  # settings, as torch documents them
            ]
    assert found == []


def test_the_serving_code_speaks_the_terms_of_its_field() -> None:
    found = [
        f"{path.relative_to(SOURCE)}: {node.name}"
        for path, tree in trees()
        if "serving" in path.parts
        for node in ast.walk(tree)
        if isinstance(node, ast.ClassDef) and node.name in LEFT
    ]
    assert found == []
