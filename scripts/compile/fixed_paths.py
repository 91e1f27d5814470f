"""One set of paths on every machine: compilers see the build tree, torch, CUDA and the headers under /tmp/wheelsmith.

An object of nvcc depends on the absolute paths of its sources and headers, and so do its keys in caches. Two checkouts,
homes or machines share objects only when these are the same. namespace.py makes them so, where the system lets it.
"""

from __future__ import annotations

import os
import shlex
import sys
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path

from scripts.core.files import write_atomic, write_json
from scripts.core.process import capture
from scripts.toolchain.layered import LINK
from scripts.toolchain.provide import Toolchain

ROOT = Path("/tmp/wheelsmith")  # noqa: S108  (only a mount point: what is mounted there, nobody else sees)
NAMESPACE = Path(__file__).parent / "standalone" / "namespace.py"
LAYOUT = 1  # raise when names or contents below the root change


@dataclass(frozen=True)
class FixedPaths:
    """Directories and the names under which compilers see them. Without directories all paths are the real ones."""

    spec: Path | None = None
    """The file that namespace.py reads."""
    binds: Mapping[str, Path] = field(default_factory=dict)

    @property
    def enter(self) -> tuple[str | Path, ...]:
        """The command prefix that runs a command under the fixed paths; empty where the paths are the real ones."""
        return (sys.executable, "-S", "-E", NAMESPACE, self.spec) if self.spec else ()

    def inside(self, path: Path) -> Path:
        """Return the path under which compilers see a file or directory."""
        for name, real in self.binds.items():
            if path == real or real in path.parents:
                return ROOT / name / path.relative_to(real)
        return path

    def variables(self, environment: Mapping[str, str]) -> dict[str, str]:
        """Return environment variables with all paths in them, PATH's too, as compilers see them."""
        return {name: os.pathsep.join(map(self._word, text.split(os.pathsep))) for name, text in environment.items()}

    def _word(self, text: str) -> str:
        return str(self.inside(Path(text))) if text.startswith("/") else text

    def write(self, script: Path) -> None:
        """Write the specification, and a script with which a user repeats a command under these paths."""
        if self.spec is None:
            return
        binds = {name: str(path) for name, path in self.binds.items()}
        write_json(self.spec, {"root": str(ROOT), "binds": binds})
        write_atomic(script, f'#!/bin/sh\nexec {shlex.join(map(str, self.enter))} "$@"\n'.encode())
        script.chmod(0o755)

    def repeat(self, script: Path, command: str) -> str:
        """Return a shell command that repeats another one under these paths."""
        return f"{script} sh -c {shlex.quote(command)}" if self.spec else command


def tree_paths(tree: Path, toolchain: Toolchain, dependencies: Mapping[str, Path]) -> FixedPaths:
    """Return the places of a build under the names that stable_names.py writes into objects without a namespace."""
    binds = {"build": tree, "environment": toolchain.environment, "cuda": toolchain.cuda_home}
    binds["python"] = toolchain.python_include
    if toolchain.torch_link:
        binds[LINK] = toolchain.torch_link  # beside the environment, as layered.py has it
    binds.update(sorted(dependencies.items()))
    return FixedPaths(tree / "paths.json", binds)


@cache
def refusal() -> str:
    """Return "" when mount namespaces can be had here, else what the system says to them. Tried once."""
    with tempfile.TemporaryDirectory(prefix="wheelsmith-") as folder:
        trial = FixedPaths(Path(folder) / "spec.json", {"trial": Path(folder)})
        trial.write(Path(folder) / "enter")
        command = [*trial.enter, "test", "-x", trial.inside(Path(folder) / "enter")]
        code, text = capture(command, timeout=20)
    return "" if code == 0 else text.strip().removeprefix("namespace: ") or f"exit code {code}"
