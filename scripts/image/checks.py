"""What is held against an image before it gets its name: from inside, as a stranger, without a GPU or a network."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from scripts.core.console import Console, human_bytes
from scripts.core.errors import ImageError
from scripts.core.paths import ROOT
from scripts.image.engine import Engine, Layer, Program
from scripts.image.layers import LARGEST

CHECKS = ROOT / "runtime" / "checks"
STRANGER = "12345:12345"
ENTRY = "/opt/wheelsmith/entrypoint.sh"


@dataclass(frozen=True)
class Result:
    """What one check found."""

    check: str
    ok: bool
    said: str


@dataclass(frozen=True)
class Installed:
    """A package of an image."""

    name: str
    version: str
    size: int
    """Bytes of its files."""
    architecture: str = ""
    """Debian's name of it; "" for Python packages."""
    licences: tuple[str, ...] = ()
    """As the package says: an SPDX expression, classifiers, names of Debian's copyright file."""
    sha256: str = ""
    """Of a Debian package's file; of a Python package's RECORD, which has the hash of each of its files."""


@dataclass(frozen=True)
class Facts:
    """What an image is and holds, as runtime/checks/facts.py tells."""

    python: tuple[int, int]
    glibc: str
    machine: str
    headers: bool
    python_packages: tuple[Installed, ...]
    debian_packages: tuple[Installed, ...]
    setuid: tuple[str, ...]
    writable: tuple[str, ...]
    caches: tuple[str, ...]
    secrets: tuple[str, ...]
    compiler_files: tuple[str, ...]
    """Static archives and headers of torch."""


def read_facts(engine: Engine, image: str) -> Facts:
    """Return an image's facts. Raises ImageError when it has no Python that can tell them."""
    code, text = engine.run(image, Program(["python3", "-"], CHECKS / "facts.py", user="0"))
    start = text.find("{")
    try:
        data = json.loads(text[start:]) if code == 0 and start >= 0 else None
    except ValueError:
        data = None
    if data is None:
        raise ImageError(
            f"{image} has no Python that runs",
            why=(text.strip().splitlines() or [f"python3 ended with {code}"])[-1][:300],
            fix="choose a --base with Python 3.10 or later, such as python:3.12-slim-bookworm, or --base debootstrap",
        )
    return _facts(data)


def _facts(data: dict[str, Any]) -> Facts:
    return Facts(
        python=(data["python"][0], data["python"][1]),
        glibc=data["glibc"],
        machine=data["machine"],
        headers=data["headers"],
        python_packages=tuple(
            Installed(name, version, int(size), "", tuple(licences), sha256)
            for name, version, size, licences, sha256 in data["python_packages"]
        ),
        debian_packages=tuple(
            Installed(name, version, int(size or 0) * 1024, architecture, tuple(licences), sha256)
            for name, version, architecture, size, licences, sha256 in data["debian_packages"]
        ),
        **{key: tuple(data[key]) for key in ("setuid", "writable", "caches", "secrets", "compiler_files")},
    )


def check_image(
    engine: Engine, image: str, *, base: Facts, console: Console, jit: bool = False
) -> tuple[Facts, list[Result]]:
    """Run all checks in an image; return its facts and what each check found. `jit`: compilers need their headers."""
    facts = read_facts(engine, image)
    results = [
        _none("no setuid files beyond the base's", set(facts.setuid) - set(base.setuid)),
        _none("no directories of root that others may write", set(facts.writable)),
        _none("no compiler, package or download caches", set(facts.caches) - set(base.caches)),
        _none("no secrets in files or variables", set(facts.secrets) - set(base.secrets)),
        _none("no static archives or headers that only compilers need", set(() if jit else facts.compiler_files)),
        layers_fit(engine.layers(image)),
        Result("Python.h is there for Triton", facts.headers, f"Python {facts.python[0]}.{facts.python[1]}"),
    ]
    for title, user, read_only in (("as its own user", "10001:0", False), ("read-only, as uid 12345", STRANGER, True)):
        console.note(f"checking inside {title}")
        results += inside(engine, image, title=title, user=user, read_only=read_only)
    for result in results:
        if not result.ok:
            console.warn(f"{result.check}: {result.said.strip()}")
    return facts, results


def layers_fit(layers: Sequence[Layer]) -> Result:
    """Tell whether each layer is below what registries and pulls cope with."""
    largest = max((layer.size for layer in layers), default=0)
    return Result(f"each layer is below {human_bytes(LARGEST)}", largest < LARGEST, f"largest {human_bytes(largest)}")


def _none(title: str, found: set[str]) -> Result:
    return Result(title, not found, ", ".join(sorted(found)[:5]) or "none")


def inside(engine: Engine, image: str, *, title: str, user: str, read_only: bool) -> list[Result]:
    """Run runtime/checks/inside.py in the image and return what it told."""
    start = ["sh", "-c", "cat > /tmp/inside.py && exec python3 /tmp/inside.py"]
    program = Program([ENTRY, *start], CHECKS / "inside.py", user, read_only, limit=900)
    code, text = engine.run(image, program)
    results = []
    for line in text.splitlines():
        if line.startswith('{"check"'):
            item = json.loads(line)
            results.append(Result(f"{item['check']} ({title})", bool(item["ok"]), str(item["said"])))
    if code or not results:
        tail = "\n".join(text.strip().splitlines()[-8:])
        results.append(Result(f"the checks run to their end ({title})", ok=False, said=f"exit code {code}: {tail}"))
    return results


def stopped_cleanly(results: Sequence[Result]) -> None:
    """Raise ImageError when a check failed."""
    wrong = [result for result in results if not result.ok]
    if wrong:
        raise ImageError(
            f"{len(wrong)} of {len(results)} checks of the image failed",
            why=f"{wrong[0].check}: {wrong[0].said.strip()[:600]}",
            fix="the image is not tagged; the checks are in runtime/checks and docs/runtime-image.md",
        )
