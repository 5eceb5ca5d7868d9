"""Docstrings of the scientific code: there, with the errors that are raised and the shapes of arrays."""

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from garda.core import errors

GARDA = Path(__file__).parents[1] / "garda"
FILES = [file for room in ("data", "models", "evaluation", "handover") for file in sorted((GARDA / room).rglob("*.py"))]
ERRORS = {name for name, kind in vars(errors).items() if isinstance(kind, type) and issubclass(kind, errors.GardaError)}
ARRAY = re.compile(r"\b(Tensor|ndarray|NDArray)\b")
SHAPE = re.compile(r"\((\d|[A-Z]\w*|[dn]|size|\.\.\.),[^()]*\)|\b([Ss]calar|one number)\b")  # such as (B, C, H, W)

Function = ast.FunctionDef | ast.AsyncFunctionDef


def public(body: list[ast.stmt], words: str = "", within: str = "") -> Iterator[tuple[str, Function, str]]:
    """Name, definition and words of each public function and method; a method's words are its class's too."""
    for node in body:
        if not isinstance(node, Function | ast.ClassDef) or node.name.startswith("_"):
            continue
        said = f"{words}\n{ast.get_docstring(node) or ''}"
        if isinstance(node, ast.ClassDef):
            yield from public(node.body, said, f"{node.name}.")
        else:
            yield f"{within}{node.name}", node, said


def raised(function: Function) -> set[str]:
    """The errors of garda that a function raises itself."""
    calls = (node.exc for node in ast.walk(function) if isinstance(node, ast.Raise) and isinstance(node.exc, ast.Call))
    return {call.func.id for call in calls if isinstance(call.func, ast.Name)} & ERRORS


def holds_arrays(function: Function) -> bool:
    given = function.args
    kinds = [part.annotation for part in (*given.posonlyargs, *given.args, *given.kwonlyargs)]
    return any(kind is not None and ARRAY.search(ast.unparse(kind)) for kind in (*kinds, function.returns))


def wanting(tree: ast.Module) -> Iterator[str]:
    """What is missing, a line each."""
    for name, function, words in public(tree.body):
        own = ast.get_docstring(function) or ""
        if not own:
            yield f"{name}: no docstring"
        named = own.partition("Raises:")[2]
        yield from (f"{name}: raises {kind}" for kind in sorted(raised(function)) if kind not in named)
        if holds_arrays(function) and not SHAPE.search(words):
            yield f"{name}: no shape"


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.relative_to(GARDA).as_posix())
def test_docstrings_say_what_is_raised_and_which_shape_arrays_have(file):
    assert [*wanting(ast.parse(file.read_text(encoding="utf-8")))] == []


def test_what_is_wanting_is_found():
    function = 'def f(x: Tensor):\n    """A."""\n    raise DataError(1)\n'
    code = function + 'class A:\n    """(B, C)."""\n    def g(x: Tensor): ...'
    assert [*wanting(ast.parse(code))] == ["f: raises DataError", "f: no shape", "A.g: no docstring"]
