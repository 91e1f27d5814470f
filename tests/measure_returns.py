"""Count how often the wheel job turns back: walk it from its command as one reads it, calls in source order.

    python -m tests.measure_returns [FOLDER]

Every function of ours is walked once, when it is first called. A return is a call out of a module into another one that
the walk has been in before; methods of Cache and Console count as calls of their modules. Then how many of these
modules import core.cache, and the settings that travel: arguments called cache, console, indexes, offline or
environment that one function hands another.
"""

from __future__ import annotations

import ast
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
START = ("scripts.commands.wheel", "main")
LIST = {"cache", "console", "indexes", "offline", "environment"}
METHODS = {"cache": "scripts.core.cache", "console": "scripts.core.console"}


class Walk:
    """One walk: the modules it has been in, and what it counted."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.seen: set[tuple[str, str]] = set()
        self.met: set[str] = set()
        self.returns: Counter[str] = Counter()
        self.handed: Counter[str] = Counter()
        self._trees: dict[str, ast.Module | None] = {}

    def tree(self, module: str) -> ast.Module | None:
        """Return a module of ours, None for any other."""
        if module not in self._trees:
            path = self.root / (module.replace(".", "/") + ".py")
            self._trees[module] = ast.parse(path.read_text()) if path.is_file() else None
        return self._trees[module]

    def imported(self, module: str) -> set[str]:
        """Return the modules that a module of ours takes names from."""
        tree = self.tree(module)
        nodes = ast.walk(tree) if tree else ()
        return {str(node.module) for node in nodes if isinstance(node, ast.ImportFrom)}

    def enter(self, module: str, name: str) -> None:
        """Walk a function or class, and all that it calls."""
        tree = self.tree(module)
        if tree is None or (module, name) in self.seen:
            return
        self.seen.add((module, name))
        self.met.add(module)
        found = next((node for node in tree.body if getattr(node, "name", "") == name), None)
        if isinstance(found, (ast.FunctionDef, ast.ClassDef)):
            known = dict(self._names(tree, module))
            for call in _calls(found):
                self._call(call, module, known)

    def _names(self, tree: ast.Module, module: str) -> Iterator[tuple[str, tuple[str, str]]]:
        for node in ast.walk(tree):
            if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("scripts."):
                yield from ((alias.asname or alias.name, (str(node.module), alias.name)) for alias in node.names)
        for item in tree.body:
            if isinstance(item, (ast.FunctionDef, ast.ClassDef)):
                yield item.name, (module, item.name)

    def _call(self, call: ast.Call, module: str, known: dict[str, tuple[str, str]]) -> None:
        target: tuple[str, str] | None = None
        if isinstance(call.func, ast.Name):
            target = known.get(call.func.id)
        elif isinstance(call.func, ast.Attribute):
            owner = _last(call.func.value)
            target = (METHODS[owner], "") if owner in METHODS else None
        if target is None:
            return
        if target[0] != module:
            self.returns[target[0]] += target[0] in self.met
            self.met.add(target[0])
        if target[1]:
            words = [_last(value) for value in call.args]
            words += [word.arg or "" if _last(word.value) else "" for word in call.keywords]
            self.handed.update(word for word in words if word in LIST)
            self.enter(*target)


def _last(node: ast.expr) -> str:
    return node.id if isinstance(node, ast.Name) else node.attr if isinstance(node, ast.Attribute) else ""


def _calls(node: ast.AST) -> Iterator[ast.Call]:
    """Yield calls in the order of the source; functions passed by name are calls of theirs' owners."""
    yield from sorted(
        (item for item in ast.walk(node) if isinstance(item, ast.Call)), key=lambda item: (item.lineno, item.col_offset)
    )


def main() -> None:
    """Print the counts of a tree: this one, or that of another folder."""
    walk = Walk(Path(sys.argv[1]) if len(sys.argv) > 1 else ROOT)
    walk.enter(*START)
    lines = [f"{len(walk.seen)} functions in {len(walk.met)} modules; {walk.returns.total()} returns"]
    lines += [f"{count:6} to {name}" for name, count in walk.returns.most_common(8)]
    users = [module for module in walk.met if "scripts.core.cache" in walk.imported(module)]
    lines += [f"{len(users)} of the modules import core.cache"]
    lines += [f"{walk.handed.total()} settings handed on: {dict(walk.handed.most_common())}"]
    sys.stdout.write("\n".join(lines) + "\n")


if __name__ == "__main__":
    main()
