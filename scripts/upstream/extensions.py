"""The extensions of a vLLM source: what setup.py has CMake build on a machine with CUDA. Nothing of it is run."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Extension:
    """An extension of setup.py that CUDA builds have."""

    name: str
    """Name of the CMake target: `_moe_C`."""
    optional: bool
    """Whether it may vanish without an error when it does not build."""
    cuda: str = ""
    """First CUDA that builds it, "" for any."""


# What upstream's setup.py asks, and the answer on a machine with CUDA that builds all from source.
_ANSWERS = {
    "_is_cuda": True,
    "_build_custom_ops": True,
    "_is_hip": False,
    "_is_cpu": False,
    "_is_tpu": False,
    "_is_xpu": False,
    "_is_neuron": False,
    "_is_hpu": False,
    "_no_device": False,
    "USE_PRECOMPILED_EXTENSIONS": False,
    "VLLM_USE_PRECOMPILED": False,
}


def read_extensions(text: str) -> Iterator[Extension]:
    """Yield the extensions of setup.py, each once."""
    seen = set()
    for call, conditions in _guarded_calls(ast.parse(text).body, ()):
        if not isinstance(call.func, ast.Name) or call.func.id != "CMakeExtension":
            continue
        if not all(_holds(condition) for condition in conditions):
            continue
        options = {word.arg: ast.literal_eval(word.value) for word in call.keywords}
        name = str(options["name"]).rsplit(".", 1)[-1]
        if name in seen:
            continue
        seen.add(name)
        shown = " and ".join(ast.unparse(condition) for condition in conditions)
        cuda = re.findall(r"get_nvcc_cuda_version\(\) >= Version\('([\d.]+)'\)", shown)
        yield Extension(name, bool(options.get("optional", False)), cuda[-1] if cuda else "")


def _holds(test: ast.expr) -> bool:
    """Return whether a condition can hold on a machine with CUDA; what is not known is taken to hold."""
    if isinstance(test, ast.BoolOp):
        parts = [_holds(value) for value in test.values]
        return all(parts) if isinstance(test.op, ast.And) else any(parts)
    if isinstance(test, ast.UnaryOp) and isinstance(test.op, ast.Not):
        known = _answer(test.operand)
        return not known if known is not None else True
    known = _answer(test)
    return True if known is None else known


def _answer(test: ast.expr) -> bool | None:
    """Return the answer to a plain question, or to questions joined by `and` and `or`; None when it is not known."""
    if isinstance(test, ast.BoolOp):
        parts = [_answer(value) for value in test.values]
        deciding = isinstance(test.op, ast.Or)
        if deciding in parts:
            return deciding
        return None if None in parts else not deciding
    word = test.func if isinstance(test, ast.Call) else test
    name = word.id if isinstance(word, ast.Name) else word.attr if isinstance(word, ast.Attribute) else ""
    return _ANSWERS.get(name)


def _guarded_calls(
    body: Sequence[ast.stmt], conditions: tuple[ast.expr, ...]
) -> Iterator[tuple[ast.Call, tuple[ast.expr, ...]]]:
    """Yield the calls of module-level statements with the conditions of the ifs around them."""
    for statement in body:
        if isinstance(statement, ast.If):
            yield from _guarded_calls(statement.body, (*conditions, statement.test))
            otherwise = ast.UnaryOp(ast.Not(), statement.test)
            yield from _guarded_calls(statement.orelse, (*conditions, otherwise))
        elif isinstance(statement, ast.Expr):
            for node in ast.walk(statement):
                if isinstance(node, ast.Call):
                    yield node, conditions
