"""Our way, in caches of its own: cold, again with nothing changed, with the tree deleted, with an arch added.

Each part is one `python -m scripts.commands.wheel`, as `nox -s wheel` runs it (nox itself takes another
0.5 s). Its cache starts without build trees and compiled objects, but shares downloads, unpacked sources and the
toolchain with the user's own.
"""

from __future__ import annotations

import shutil
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from scripts.bench.runs import Ledger, Taken, busy, run_part, unit_facts
from scripts.compile.compiler_cache import finished_events
from scripts.compile.units import read_units
from scripts.core.cache import CACHEDIR_TAG
from scripts.core.console import Console
from scripts.core.errors import BenchError
from scripts.core.files import digest, remove_tree
from scripts.core.paths import ROOT
from scripts.cuda.archs import Arch, arch_list
from scripts.downloads.access import Access
from scripts.recipe.model import Recipe
from scripts.sources.patch import Patch
from scripts.toolchain.provide import Toolchain

COLD, NOOP, WARM, BASE, ADDED, ALONE = "cold", "noop", "warm", "base", "add-arch", "alone"
PARTS = (COLD, NOOP, WARM, BASE, ADDED, ALONE)
SHARED = ("dependencies", "digests", "downloads", "git", "git-trees", "locks", "redist", "sources", "toolchains", "uv")
_NEEDS = {NOOP: COLD, WARM: COLD, ADDED: BASE}
_HOMES = {COLD: "ours", NOOP: "ours", WARM: "ours", BASE: "base", ADDED: "added", ALONE: "alone"}
_RESUMES = {COLD, BASE, ALONE}  # interrupted ones go on; the others are measured from their beginning


@dataclass(frozen=True)
class Ours:
    """Our builds of a benchmark."""

    path: Path
    recipe: Recipe
    archs: tuple[Arch, ...]
    jobs: int
    access: Access
    """The user's cache and environment."""
    torch: Path | None = None
    """The interpreter of an installed torch to compile against."""

    @property
    def ledger(self) -> Ledger:
        """What they took."""
        return Ledger(self.path / "taken.json")

    def home(self, part: str) -> Path:
        """Return the folder of a part: its cache and its wheelhouse."""
        return self.path / _HOMES[part]

    def archs_of(self, part: str) -> tuple[Arch, ...]:
        """Return what a part compiles for: the list, the list without its last arch, or that one alone."""
        return {BASE: self.archs[:-1], ALONE: self.archs[-1:]}.get(part, self.archs)

    def forget(self, part: str) -> None:
        """Have a part measured anew, and those that build on it."""
        for name in PARTS:
            if name == part or _NEEDS.get(name) == part:
                self.ledger.forget(name)

    def tree(self, part: str) -> Path | None:
        """Return the build tree of a part; None when there is none."""
        found = [path for path in self.home(part).glob("cache/builds/*") if (path / "configured.json").exists()]
        return max(found, key=lambda path: path.stat().st_mtime, default=None)

    def wheel(self, part: str) -> Path | None:
        """Return the wheel of a part; None when there is none."""
        return next(iter(sorted((self.home(part) / "wheelhouse").glob("*.whl"))), None)


def plan_ours(
    recipe: Recipe, patches: Sequence[Patch], toolchain: Toolchain, archs: Sequence[Arch], *, jobs: int, access: Access
) -> Ours:
    """Return our builds for these inputs, not yet run."""
    key = digest([recipe.digest, [item.sha256 for item in patches], toolchain.key, arch_list(archs)])
    torch = toolchain.torch.python if toolchain.torch else None
    return Ours(access.cache.place("bench", f"ours-{key}-{jobs}"), recipe, tuple(archs), jobs, access, torch)


def run_ours(ours: Ours, part: str, console: Console) -> Taken | None:
    """Run a part, or return what it took when it ran already; None where it makes no sense. Raises BenchError."""
    ledger = ours.ledger
    if part in ledger.done:
        return ledger.done[part]
    if part in {BASE, ADDED, ALONE} and len(ours.archs) < 2:
        console.note(f"{part}: not measured, there is only one arch")
        return None
    needed = _NEEDS.get(part)
    if needed and needed not in ledger.done:
        raise BenchError(
            f"{part} builds on {needed}, which has not run", fix=f"nox -s bench -- --only {needed} {part} ..."
        )
    if part not in ledger.begun or part not in _RESUMES:
        ledger.forget(part)
        _PREPARE[part](ours)
    tree = ours.tree(part)
    begin = (tree / "events.jsonl").stat().st_size if tree and part == NOOP else 0
    console.stage(part, f"{ours.recipe.name} for {arch_list(ours.archs_of(part))}; log: {ours.path / 'ours.log'}")
    taken = run_part(
        part,
        _command(ours, part),
        ledger,
        log=ours.path / "ours.log",
        cwd=ROOT,
        environment=_environment(ours, part),
        fix=f"read {ours.path / 'ours.log'}; what was finished is kept",
    )
    taken = replace(taken, facts=_facts(ours, part, begin))
    ledger.finish(part, taken)
    return taken


def _command(ours: Ours, part: str) -> list[str | Path]:
    file = ours.recipe.folder / f"{ours.recipe.name}.toml"
    words: list[str | Path] = ["--recipe", file, "--arch", arch_list(ours.archs_of(part)), "--jobs", str(ours.jobs)]
    words += ["--torch", ours.torch] if ours.torch else []
    words += ["--offline"] if ours.access.offline else []
    return [sys.executable, "-m", "scripts.commands.wheel", *words, "--wheelhouse", ours.home(part) / "wheelhouse"]


def _environment(ours: Ours, part: str) -> Mapping[str, str]:
    """Return the user's environment with the part's cache, and without a shared compiler cache: it might be full."""
    kept = {k: v for k, v in ours.access.environment.items() if not k.startswith(("SCCACHE_", "CCACHE_"))}
    return {**kept, "WHEELSMITH_CACHE": str(ours.home(part) / "cache"), "PYTHONPATH": str(ROOT)}


def _fresh(part: str) -> Callable[[Ours], None]:
    """Return what makes a part's home anew: a cache that has what can be downloaded, and nothing compiled."""

    def prepare(ours: Ours) -> None:
        home = ours.home(part)
        remove_tree(home)
        cache = home / "cache"
        cache.mkdir(parents=True)
        shutil.copyfile(ours.access.cache.root / CACHEDIR_TAG, cache / CACHEDIR_TAG)
        for name in SHARED:
            (ours.access.cache.root / name).mkdir(exist_ok=True)
            (cache / name).symlink_to(ours.access.cache.root / name)

    return prepare


def _without_tree(ours: Ours) -> None:
    """Delete the build trees and the wheel; the compiler cache stays."""
    for name in ("cache/builds", "wheelhouse"):
        remove_tree(ours.home(WARM) / name)


def _with_objects_of_base(ours: Ours) -> None:
    _fresh(ADDED)(ours)
    shutil.copytree(ours.home(BASE) / "cache" / "compiler-cache", ours.home(ADDED) / "cache" / "compiler-cache")


_PREPARE: Mapping[str, Callable[[Ours], None]] = {
    COLD: _fresh(COLD),
    NOOP: lambda _ours: None,
    WARM: _without_tree,
    BASE: _fresh(BASE),
    ADDED: _with_objects_of_base,
    ALONE: _fresh(ALONE),
}


def _facts(ours: Ours, part: str, begin: int) -> dict[str, Any]:
    tree, wheel = ours.tree(part), ours.wheel(part)
    if tree is None or wheel is None:
        raise BenchError(f"{part} ended well and left no wheel", fix=f"read {ours.path / 'ours.log'}")
    events = list(finished_events(tree / "events.jsonl", begin))
    slots, cores = busy(events, jobs=ours.jobs)
    return {
        **(unit_facts(read_units(tree / "events.jsonl"), jobs=ours.jobs) if part != NOOP else {"jobs": ours.jobs}),
        "compiler_calls": len(events),
        "cache_hits": sum(event.get("cache") == "hit" for event in events),
        "slots_busy": slots,
        "cores_busy": cores,
        "wheel_bytes": wheel.stat().st_size,
    }
