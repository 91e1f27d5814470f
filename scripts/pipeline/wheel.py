"""The main job: fetch, patch, toolchain, compile, package, prove; the wheel lands in wheelhouse/ with its report."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from pathlib import Path

from scripts.audit.models import AuditReport, Level
from scripts.audit.reasons import failures, in_short
from scripts.audit.show import show
from scripts.compile.build import Compiled, configure, list_units
from scripts.compile.cached import compile_cached
from scripts.compile.compiler_cache import CacheSettings
from scripts.compile.fixed_paths import refusal
from scripts.compile.shards import Shard, units_of
from scripts.compile.tree import BuildTree, plan_tree
from scripts.core.console import Console, human_seconds
from scripts.core.errors import AuditError, PackageError, from_os_error
from scripts.core.machine import read_machine
from scripts.cuda.archs import Arch, arch_list
from scripts.cuda.drivers import default_targets
from scripts.doctor.examine import examine, skipped
from scripts.doctor.registry import Subject
from scripts.downloads.access import Access
from scripts.package.build import package_wheel
from scripts.package.check import Wheel
from scripts.package.prove import prove_wheel
from scripts.recipe.costs import Unit, cost_book
from scripts.recipe.measured import keep_own, own_costs
from scripts.recipe.model import Recipe
from scripts.report.build_report import Stages, make_report
from scripts.report.models import BuildReport
from scripts.report.wheelhouse import enter, find_built
from scripts.sources.fetch import fetch_recipe
from scripts.sources.patch import prepare_tree
from scripts.sources.series import recipe_patches
from scripts.sources.types import Fetched, GitTree
from scripts.toolchain.adopt import check
from scripts.toolchain.installed_torch import InstalledTorch
from scripts.toolchain.provide import provide_toolchain
from scripts.upstream.agreement import check_agreement


@dataclass(frozen=True)
class Job:
    """One run of the main job: what the command line said, and where things go."""

    recipe: Recipe
    archs: tuple[Arch, ...]
    jobs: int
    access: Access
    wheelhouse: Path
    keep_going: bool = False
    """Whether units are compiled on after one has failed."""
    compiler_cache: CacheSettings = field(default_factory=CacheSettings)
    skip: frozenset[str] = frozenset()
    """Checks of doctor that are passed over."""
    torch: InstalledTorch | None = None
    """The installed torch that the recipe was adopted to."""

    @property
    def console(self) -> Console:
        """Where progress is shown."""
        return self.access.console

    def lock(self, tree: BuildTree) -> AbstractContextManager[None]:
        """Hold a build tree: only one run works in it at a time."""
        return self.access.cache.lock(f"build-{tree.key}", self.console)


def build_wheel(job: Job) -> tuple[Path, BuildReport]:
    """Run all stages; return the wheel in the wheelhouse and its report. Raises the failing stage's error."""
    stages = Stages()
    check_wheelhouse(job.wheelhouse)
    tree, fetched = _prepare(job, stages)
    with job.lock(tree):
        built = find_built(job.wheelhouse, tree.key, job.recipe.digest)
        if built:
            job.console.stage("ready", "this wheel is built already; nothing has changed")
            return built
        return _build_in(tree, job, fetched, stages)


def build_shard(job: Job, shard: Shard) -> None:
    """Compile one machine's part of the units into the compiler cache, and link nothing. Raises as `build_wheel`."""
    stages = Stages()
    tree, _ = _prepare(job, stages)
    book = cost_book(job.recipe)
    with job.lock(tree):
        tree.path.mkdir(exist_ok=True)
        with stages.kept_in(tree.path / "stages.json"):
            with stages.timed("configure"):
                configure(tree, console=job.console)
            every, _ = list_units(tree, tree.targets)
            mine = units_of(shard, every, book)
            job.console.stage("shard", f"{shard}: {len(mine)} of {len(every)} units")
            if not mine:  # more machines than units; ninja without targets would build everything
                return
            with stages.timed("compile"):
                done = _compile(tree, job, only=mine)
    compiled = f"{done.units_now} of {len(mine)} units compiled in {human_seconds(done.seconds)}"
    job.console.table(
        "", [("shard", f"{shard} is done: {compiled}"), ("next", "nox -s wheel without --shard links them")]
    )


def _prepare(job: Job, stages: Stages) -> tuple[BuildTree, Fetched]:
    """Fetch, patch and install; return the planned build tree."""
    patches, _ = recipe_patches(job.recipe)
    stages.doctor = skipped(examine(_subject(job), job.skip, job.console))
    with stages.timed("fetch"):
        fetched = fetch_recipe(job.recipe, job.access)
    if isinstance(fetched.source, GitTree):  # archives are held to their recipes by the tests
        check_agreement(job.recipe, fetched.source.path, job.console)
    with stages.timed("patch"):
        job.console.stage("patch", f"{len(patches)} patches")
        source = prepare_tree(fetched.source, patches, job.access)
    with stages.timed("toolchain"):
        if job.torch:
            check(job.torch, job.recipe, job.archs, source.path)
        toolchain = provide_toolchain(job.recipe, job.archs, job.access, job.torch)
    tree = plan_tree(
        job.recipe,
        source,
        toolchain,
        job.archs,
        dependencies=fetched.dependencies,
        access=job.access,
        fixed=_fixed(job.console),
    )
    return tree, fetched


def _subject(job: Job) -> Subject:
    return Subject(
        recipe=job.recipe,
        archs=job.archs,
        jobs=job.jobs,
        machine=read_machine(),
        access=job.access,
        wheelhouse=job.wheelhouse,
        torch=job.torch,
    )


def _build_in(tree: BuildTree, job: Job, fetched: Fetched, stages: Stages) -> tuple[Path, BuildReport]:
    tree.path.mkdir(exist_ok=True)
    with stages.kept_in(tree.path / "stages.json"):
        with stages.timed("configure"):
            configure(tree, console=job.console)
        with stages.timed("compile"):
            compiled = _compile(tree, job)
        stages.peak_bytes["compile"] = max(compiled.peak_bytes, stages.peak_bytes.get("compile", 0))
    with stages.timed("package"):
        wheel = package_wheel(
            tree,
            job.recipe,
            jobs=job.jobs,
            console=job.console,
            site=job.torch.root if job.torch else tree.toolchain.environment,
            libraries=[*job.torch.libraries, tree.toolchain.cuda_home / "lib64"] if job.torch else (),
        )
    with stages.timed("prove"):
        proof = prove_wheel(wheel, job.recipe, job.archs, tree.toolchain, job.access)
    with stages.timed("audit"):
        audit = _audit(wheel, job)
    report = make_report(job.recipe, fetched, tree, compiled, wheel, proof, stages, audit)
    return enter(wheel.path, report, job.wheelhouse), report


def _compile(tree: BuildTree, job: Job, *, only: Sequence[Unit] | None = None) -> Compiled:
    cache = job.access.cache.root
    try:
        return compile_cached(
            tree,
            job.access,
            jobs=job.jobs,
            book=cost_book(job.recipe, own_costs(cache, job.recipe)),
            settings=job.compiler_cache,
            keep_going=job.keep_going,
            only=only,
        )
    finally:
        keep_own(cache, job.recipe, tree.events)


def _fixed(console: Console) -> bool:
    """Whether to compile under paths that are the same on every machine; says when that cannot be."""
    why = refusal()
    if why:
        console.note(f"no mount namespace here ({why}): cached objects are shared only with builds at the same paths")
    return not why


def _audit(wheel: Wheel, job: Job) -> AuditReport:
    """Judge the wheel for the recipe's archs with the driver of its CUDA. Raises AuditError when one is not met."""
    job.console.stage("audit", f"for {arch_list(job.archs)} with a CUDA {job.recipe.toolchain.cuda} driver")
    targets = default_targets(job.archs, job.recipe.toolchain.cuda)  # whose compiler wrote the PTX
    report = wheel.contents.report(targets, time.monotonic())
    for verdict in report.targets:
        job.console.note(verdict.summary)
        for warning in verdict.warnings:
            job.console.warn(f"{verdict.gpu}: {warning}")
    for finding in report.findings:
        if finding.level is Level.WARNING:
            job.console.warn(f"{finding.where} {finding.text}")
    if not report.ok:
        show(report, job.console)
        raise AuditError(
            f"{wheel.path.name} is not what it should be",
            why=in_short(failures(report)),
            fix=f"the wheel is kept at {wheel.path}: nox -s audit -- {wheel.path}",
            docs="docs/audit.md",
        )
    return report


def check_wheelhouse(folder: Path) -> None:
    """Make the wheelhouse and see that it can be written, before hours of compiling. Raises PackageError."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise from_os_error(
            PackageError, error, doing="opening the wheelhouse", path=folder, variable="--wheelhouse"
        ) from error
