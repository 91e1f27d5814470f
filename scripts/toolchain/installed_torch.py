"""A torch that is installed already: what it says of itself, which files it consists of, and what is wrong with it.

Nothing of its environment is changed: the interpreter is asked once, and the files are only looked at. Its place may be
a virtual environment, an NGC image's `dist-packages`, or a source checkout; what counts is what `import torch` finds.
"""

from __future__ import annotations

import csv
import io
import json
import os
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from pydantic import TypeAdapter

from scripts.core.errors import ToolchainError
from scripts.core.files import digest
from scripts.core.process import capture

DOCS = "docs/installed-torch.md"
INSTALLED = "installed"  # the word for the first torch on PATH
_CANDIDATES = ("python3", "python")
_HAS_TORCH = "import importlib.util, sys; sys.exit(importlib.util.find_spec('torch') is None)"
# Standard library only, any Python 3.8 and later. The current folder is no place to import from.
_ASK = """
import json, os, sys, sysconfig, warnings
sys.path = [part for part in sys.path if part and os.path.abspath(part) != os.getcwd()]
warnings.simplefilter("ignore")
from importlib.metadata import PackageNotFoundError, distribution, distributions
import torch
root = os.path.dirname(os.path.dirname(os.path.abspath(torch.__file__)))
try:
    found = distribution("torch")
    version, record = found.version, found.read_text("RECORD") or ""
    if os.path.realpath(str(found.locate_file(""))) != os.path.realpath(root):
        record = ""
except PackageNotFoundError:
    version, record = "", ""
own = {os.path.realpath(sysconfig.get_paths()[name]) for name in ("stdlib", "platstdlib")}
own |= {os.path.join(part, "lib-dynload") for part in own}
path = [part for part in sys.path if os.path.isdir(part) and os.path.realpath(part) not in own]
names = {d.metadata["Name"]: d.version for d in distributions() if d.metadata["Name"]}
print("FACTS " + json.dumps({
    "version": torch.__version__, "distribution": version, "record": record, "root": root, "path": path,
    "cuda": torch.version.cuda or "", "archs": (torch._C._cuda_getArchFlags() or "").split(),
    "cxx11_abi": bool(getattr(torch._C, "_GLIBCXX_USE_CXX11_ABI", True)), "packages": names,
    "python_version": list(sys.version_info[:3]), "python_include": sysconfig.get_paths()["include"],
    "python_base": sys.base_prefix, "platform": sysconfig.get_platform(),
}))
"""


@dataclass(frozen=True)
class InstalledTorch:
    """A torch and the interpreter that imports it."""

    python: Path
    version: str
    """`torch.__version__`: `2.11.0+cu130`."""
    distribution: str
    """The version that installers know, which `Requires-Dist` is compared with: `2.11.0`; "" where there is none."""
    record: str
    """Text of its RECORD, "" when it has none (a source checkout)."""
    root: Path
    """The folder that holds the package `torch`."""
    path: tuple[Path, ...]
    """Folders from which the interpreter imports, without the standard library's."""
    cuda: str
    """CUDA that it was built with: `13.0`; "" for none."""
    archs: tuple[str, ...]
    """Targets of its own kernels: `sm_90`, `compute_120`."""
    cxx11_abi: bool
    packages: Mapping[str, str]
    """Distributions beside it, name to version."""
    python_version: tuple[int, ...]
    python_include: Path
    python_base: str
    platform: str
    library_path: str = ""
    """LD_LIBRARY_PATH with which it was imported."""

    @property
    def name(self) -> str:
        """The version that a wheel must ask for: the distribution's, else what torch says."""
        return self.distribution or self.version

    @property
    def include(self) -> Path:
        """Its headers."""
        return self.root / "torch" / "include"

    @cached_property
    def changed(self) -> tuple[str, ...]:
        """Files of headers, libraries and CMake's package that are not of RECORD's size or are gone."""
        found = []
        for name, size in _recorded(self.record):
            try:
                if (self.root / name).stat().st_size != size:
                    found.append(name)
            except OSError:
                found.append(name)
        return tuple(sorted(found))

    @cached_property
    def key(self) -> str:
        """A digest of its files: RECORD and what differs from it, else sizes and times of all that compilers read."""
        if self.record:
            files = [_stamp(self.root / name) for name in self.changed]
            return digest([self.record, self.version, str(self.root), files])
        package = self.root / "torch"
        below = (path for part in _READ for path in (package / part).rglob("*") if path.is_file())
        files = [_stamp(path) for path in sorted([package / "version.py", *below])]
        return digest([self.version, str(self.root), files])

    @property
    def libraries(self) -> tuple[Path, ...]:
        """Folders with libraries that come with it beside its own: NVIDIA's wheels, wherever they are installed."""
        return tuple(folder for part in self.path for folder in sorted(part.glob("nvidia/*/lib")))


_READ = ("include", "lib", "share")
_READER = TypeAdapter(InstalledTorch)


def _recorded(record: str) -> Iterator[tuple[str, int]]:
    for row in csv.reader(io.StringIO(record)):
        if len(row) == 3 and row[2].isdigit() and row[0].startswith(tuple(f"torch/{part}/" for part in _READ)):
            yield row[0], int(row[2])


def _stamp(path: Path) -> list[str | int]:
    try:
        about = path.stat()
    except OSError:
        return [str(path)]
    return [str(path), about.st_size, about.st_mtime_ns]


def find_torch(choice: str, environment: Mapping[str, str]) -> InstalledTorch:
    """Return the torch of `choice`: an interpreter's path, or "installed" for the first on PATH that has one.

    Raises ToolchainError when there is none, or it cannot be imported.
    """
    python = _first_with_torch(environment) if choice == INSTALLED else Path(choice)
    code, text = capture([python, "-c", _ASK], environment=environment, timeout=300)
    line = next((line for line in reversed(text.splitlines()) if line.startswith("FACTS ")), "")
    if code or not line:
        said = text.strip().splitlines()
        raise ToolchainError(
            f"{python} cannot import torch",
            why=said[-1] if said else f"it ended with {code}",
            fix=[
                "name the interpreter whose torch you use: --torch /opt/venv/bin/python",
                f"see what it says: {python} -c 'import torch'",
            ],
            detail="\n".join(said[-8:-1]),
            docs=DOCS,
        )
    facts = json.loads(line.removeprefix("FACTS "))
    return _READER.validate_python({**facts, "python": python, "library_path": environment.get("LD_LIBRARY_PATH", "")})


def _first_with_torch(environment: Mapping[str, str]) -> Path:
    """Return the first interpreter on PATH that finds a torch; wheelsmith's own environment is passed over."""
    looked = []
    for folder in environment.get("PATH", os.defpath).split(os.pathsep):
        for name in _CANDIDATES:
            python = Path(folder) / name
            if not folder or not os.access(python, os.X_OK) or Path(folder) == Path(sys.prefix) / "bin":
                continue
            looked.append(str(python))
            if capture([python, "-c", _HAS_TORCH], environment=environment, timeout=60)[0] == 0:
                return python
    raise ToolchainError(
        "no Python on PATH has a torch",
        why=f"looked at: {', '.join(looked) or 'nothing: there is no python3 on PATH'}",
        fix=[
            "activate its environment, or name its interpreter: --torch /opt/venv/bin/python",
            "leave --torch out: wheelsmith then installs the torch that the recipe pins, apart from yours",
        ],
        docs=DOCS,
    )
