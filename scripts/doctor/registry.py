"""What a check of `doctor` is given and what it answers; the list of all checks.

A check is a function from a Subject to a Result, registered under the id of the catalogue's entry for what it prevents.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from enum import Enum
from functools import cached_property
from pathlib import Path

from packaging.requirements import InvalidRequirement, Requirement

from scripts.core.errors import DoctorError, WheelsmithError
from scripts.core.machine import Machine
from scripts.cuda.archs import Arch
from scripts.cuda.drivers import Target
from scripts.downloads.access import Access
from scripts.failures.catalogue import catalogue
from scripts.recipe.costs import CostBook, cost_book
from scripts.recipe.expected import Need, largest_unit
from scripts.recipe.measured import own_costs
from scripts.recipe.model import Recipe
from scripts.toolchain.installed_torch import InstalledTorch


class Verdict(str, Enum):
    """What a check found."""

    OK = "ok"
    WARNING = "warning"
    BLOCKED = "blocked"
    UNKNOWN = "not known here"
    SKIPPED = "skipped"


@dataclass(frozen=True)
class Result:
    """A check's answer."""

    verdict: Verdict
    measured: str
    fix: str = ""
    """A command to paste or a sentence; the catalogue's when empty."""


@dataclass(frozen=True)
class Row:
    """A check's answer under its id."""

    id: str
    verdict: Verdict
    measured: str
    fix: str = ""


@dataclass(frozen=True)
class Subject:
    """What is to be built, where, and with which environment."""

    recipe: Recipe
    archs: tuple[Arch, ...]
    jobs: int
    machine: Machine
    access: Access
    wheelhouse: Path
    targets: tuple[Target, ...] = ()
    python: Path | None = None
    """Interpreter of an environment that is to be built in or served from without wheelsmith's own."""
    torch: InstalledTorch | None = None
    """The installed torch that is compiled against, in place of the lock file's."""
    system: Path = field(default=Path("/"))
    """Root of /proc, /sys, /etc and /dev."""

    @property
    def cache(self) -> Path:
        """Root of the cache."""
        return self.access.cache.root

    @property
    def environment(self) -> Mapping[str, str]:
        """The user's environment variables."""
        return self.access.environment

    @property
    def tmp(self) -> Path:
        """Where compilers put intermediate files."""
        return Path(self.environment.get("TMPDIR") or "/tmp")  # noqa: S108  (the compilers' own default)

    @property
    def path(self) -> list[Path]:
        """The folders on PATH."""
        return [Path(part) for part in self.environment.get("PATH", os.defpath).split(os.pathsep) if part]

    @cached_property
    def locked(self) -> dict[str, str]:
        """Versions that the recipe's lock file installs here, by name; an installed torch in place of its torch."""
        found = {}
        for line in self.recipe.lock_file.read_text(encoding="utf-8").splitlines():
            text = line.split(" \\")[0].strip()
            if "==" in text and not text.startswith(("#", "--")):
                try:
                    item = Requirement(text)
                except InvalidRequirement:
                    continue
                if item.marker is None or item.marker.evaluate():
                    found[item.name.lower().replace("_", "-")] = str(item.specifier).removeprefix("==")
        if self.torch:
            found["torch"] = self.torch.name
        return found

    @cached_property
    def costs(self) -> CostBook:
        """What units take, here and where the recipe's were measured. Raises UsageError for a damaged cost file."""
        return cost_book(self.recipe, own_costs(self.cache, self.recipe))

    @cached_property
    def need(self) -> Need:
        """What the largest unit that is to be compiled takes. Raises UsageError for a damaged cost file."""
        return largest_unit(self.recipe, self.archs, self.costs)

    def which(self, name: str) -> Path | None:
        """Return a program on PATH."""
        return next((folder / name for folder in self.path if os.access(folder / name, os.X_OK)), None)

    def text(self, name: str) -> str:
        """Return a file of the system (`proc/version`), "" when it cannot be read."""
        try:
            return (self.system / name).read_text(encoding="utf-8", errors="replace")
        except OSError:
            return ""


Function = Callable[[Subject], Result]


@dataclass(frozen=True)
class Check:
    """A registered check."""

    id: str
    function: Function
    network: bool


CHECKS: dict[str, Check] = {}


def check(name: str, *, network: bool = False) -> Callable[[Function], Function]:
    """Register a check under an id of the catalogue; `network` ones are not run offline."""

    def register(function: Function) -> Function:
        if name in CHECKS or name not in catalogue():
            raise ValueError(f"check {name!r} is registered twice, or not in failures.toml")
        CHECKS[name] = Check(name, function, network)
        return function

    return register


def ok(measured: str) -> Result:
    """Return that nothing is wrong."""
    return Result(Verdict.OK, measured)


def warning(measured: str, fix: str = "") -> Result:
    """Return that something should be known and does not stop the build."""
    return Result(Verdict.WARNING, measured, fix)


def blocked(measured: str, fix: str = "") -> Result:
    """Return that the build would fail."""
    return Result(Verdict.BLOCKED, measured, fix)


def unknown(measured: str) -> Result:
    """Return that it cannot be told here."""
    return Result(Verdict.UNKNOWN, measured)


def run_checks(subject: Subject, *, skip: frozenset[str] = frozenset()) -> tuple[Row, ...]:
    """Run all checks at once; a check that fails itself is `not known here`. Order: that of registration."""
    with ThreadPoolExecutor(max_workers=16) as pool:
        return tuple(pool.map(lambda item: run_one(item, subject, skip=skip), CHECKS.values()))


def run_one(item: Check, subject: Subject, *, skip: frozenset[str] = frozenset()) -> Row:
    """Run one check. Errors of wheelsmith block; others make the check `not known here`."""
    if item.id in skip:
        return Row(item.id, Verdict.SKIPPED, "skipped by --skip")
    if item.network and subject.access.offline:
        return Row(item.id, Verdict.UNKNOWN, "--offline: no host is asked")
    try:
        result = item.function(subject)
    except WheelsmithError as error:
        why = f" ({error.why})" if error.why else ""
        return Row(item.id, Verdict.BLOCKED, f"{error.what}{why}", "; or: ".join(error.fix))
    except Exception as error:  # noqa: BLE001  (a check must not stop the others)
        return Row(item.id, Verdict.UNKNOWN, f"the check itself failed: {type(error).__name__}: {error}")
    needs_fix = result.verdict in {Verdict.WARNING, Verdict.BLOCKED}
    return Row(item.id, result.verdict, result.measured, (result.fix or catalogue()[item.id].fix) if needs_fix else "")


def require(rows: tuple[Row, ...], recipe: Recipe) -> None:
    """Raise DoctorError that names everything that blocks the build."""
    stopping = [row for row in rows if row.verdict is Verdict.BLOCKED]
    if not stopping:
        return
    fixes = list(dict.fromkeys(row.fix for row in stopping))
    other = [] if recipe.name == "quickstart" else ["build what needs less: nox -s wheel -- --recipe quickstart"]
    raise DoctorError(
        f"{recipe.name} cannot be built here yet: {len(stopping)} thing(s) stand in the way",
        why="\n       ".join(f"{row.measured} [{row.id}]" for row in stopping),
        fix=[*fixes, *other, "see all checks: nox -s doctor; pass one over: --skip ID"],
        docs="docs/doctor.md",
    )
