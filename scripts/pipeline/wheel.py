"""The main job: fetch, patch, toolchain, compile, package, prove; the wheel lands in wheelhouse/ with its report."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from scripts.audit.collect import audit_wheel
from scripts.audit.models import AuditReport, Level
from scripts.audit.show import failures, show
from scripts.compile.build import Compiled, configure, list_units
from scripts.compile.cached import compile_cached
from scripts.compile.compiler_cache import CacheSettings
from scripts.compile.fixed_paths import refusal
from scripts.compile.shards import Shard, units_of
from scripts.compile.tree import BuildTree, plan_tree
from scripts.core.cache import Cache
from scripts.core.console import Console, human_seconds
from scripts.core.errors import AuditError, PackageError, from_os_error
from scripts.core.machine import read_machine
from scripts.cuda.archs import Arch, arch_list
from scripts.cuda.drivers import default_targets
from scripts.doctor.examine import examine, skipped
from scripts.doctor.registry import Subject
from scripts.downloads.access import Access
from scripts.downloads.indexes import Indexes
from scripts.package.build import package_wheel
from scripts.package.prove import Proof, prove_wheel
from scripts.recipe.costs import Unit, cost_book
from scripts.recipe.model import Recipe
from scripts.report.build_report import Stages, make_report
from scripts.report.wheelhouse import enter, find_built
from scripts.sources.fetch import fetch_recipe
from scripts.sources.patch import prepare_tree
from scripts.sources.series import recipe_patches
from scripts.sources.types import Fetched, GitTree
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
    indexes: Indexes
    environment: Mapping[str, str]
    keep_going: bool = False
    """Whether units are compiled on after one has failed."""
    compiler_cache: CacheSettings = field(default_factory=CacheSettings)
    skip: frozenset[str] = frozenset()
    """Checks of doctor that are passed over."""

    @property
    def cache(self) -> Cache:
        """The cache directory."""
        return self.access.cache

    @property
    def offline(self) -> bool:
        """Whether the network must not be used."""
        return self.access.offline


def build_wheel(job: Job, console: Console) -> tuple[Path, Mapping[str, Any]]:
    """Run all stages; return the wheel in the wheelhouse and its report. Raises the failing stage's error."""
    stages = Stages()
    check_wheelhouse(job.wheelhouse)
    tree, fetched = _prepare(job, stages, console)
    with job.cache.lock(f"build-{tree.key}", console):
        built = find_built(job.wheelhouse, tree.key, job.recipe.digest)
        if built:
            console.stage("ready", "this wheel is built already; nothing has changed")
            return built
        return _build_in(tree, job, fetched, stages, console)


def build_shard(job: Job, shard: Shard, console: Console) -> None:
    """Compile one machine's part of the units into the compiler cache, and link nothing. Raises as `build_wheel`."""
    stages = Stages()
    tree, _ = _prepare(job, stages, console)
    book = cost_book(job.recipe)
    with job.cache.lock(f"build-{tree.key}", console):
        tree.path.mkdir(exist_ok=True)
        with stages.kept_in(tree.path / "stages.json"):
            with stages.timed("configure"):
                configure(tree, console=console)
            every, _ = list_units(tree, tree.targets)
            mine = units_of(shard, every, book)
            console.stage("shard", f"{shard}: {len(mine)} of {len(every)} units")
            if not mine:  # more machines than units; ninja without targets would build everything
                return
            with stages.timed("compile"):
                done = _compile(tree, job, console, only=mine)
    compiled = f"{done.units_now} of {len(mine)} units compiled in {human_seconds(done.seconds)}"
    console.table("", [("shard", f"{shard} is done: {compiled}"), ("next", "nox -s wheel without --shard links them")])


def _prepare(job: Job, stages: Stages, console: Console) -> tuple[BuildTree, Fetched]:
    """Fetch, patch and install; return the planned build tree."""
    patches, _ = recipe_patches(job.recipe)
    stages.doctor = skipped(examine(_subject(job), job.skip, console))
    with stages.timed("fetch"):
        fetched = fetch_recipe(job.recipe, job.access)
    if isinstance(fetched.source, GitTree):  # archives are held to their recipes by the tests
        check_agreement(job.recipe, fetched.source.path, console)
    with stages.timed("patch"):
        console.stage("patch", f"{len(patches)} patches")
        source = prepare_tree(fetched.source, patches, cache=job.cache, console=console)
    with stages.timed("toolchain"):
        toolchain = provide_toolchain(
            job.recipe,
            job.archs,
            cache=job.cache,
            console=console,
            indexes=job.indexes,
            offline=job.offline,
            environment=job.environment,
        )
    tree = plan_tree(
        job.recipe,
        source,
        toolchain,
        job.archs,
        dependencies=fetched.dependencies,
        cache=job.cache,
        environment=job.environment,
        fixed=_fixed(console),
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
        indexes=job.indexes,
        environment=job.environment,
    )


def _build_in(
    tree: BuildTree, job: Job, fetched: Fetched, stages: Stages, console: Console
) -> tuple[Path, Mapping[str, Any]]:
    tree.path.mkdir(exist_ok=True)
    with stages.kept_in(tree.path / "stages.json"):
        with stages.timed("configure"):
            configure(tree, console=console)
        with stages.timed("compile"):
            compiled = _compile(tree, job, console)
        stages.peak_bytes["compile"] = max(compiled.peak_bytes, stages.peak_bytes.get("compile", 0))
    with stages.timed("package"):
        wheel = package_wheel(tree, job.recipe, jobs=job.jobs, console=console)
    with stages.timed("prove"):
        proof = prove_wheel(
            wheel.path,
            job.recipe,
            job.archs,
            tree.toolchain,
            cache=job.cache,
            console=console,
            indexes=job.indexes,
            offline=job.offline,
        )
    with stages.timed("audit"):
        audit = _audit(wheel.path, job, tree, proof, console)
    report = {
        **make_report(job.recipe, fetched, tree, compiled, wheel, proof, stages),
        "audit": audit.model_dump(mode="json"),
    }
    return enter(wheel.path, report, job.wheelhouse), report


def _compile(tree: BuildTree, job: Job, console: Console, *, only: Sequence[Unit] | None = None) -> Compiled:
    return compile_cached(
        tree,
        console,
        jobs=job.jobs,
        book=cost_book(job.recipe),
        settings=job.compiler_cache,
        cache=job.cache,
        keep_going=job.keep_going,
        only=only,
    )


def _fixed(console: Console) -> bool:
    """Whether to compile under paths that are the same on every machine; says when that cannot be."""
    why = refusal()
    if why:
        console.note(f"no mount namespace here ({why}): cached objects are shared only with builds at the same paths")
    return not why


def _audit(wheel: Path, job: Job, tree: BuildTree, proof: Proof, console: Console) -> AuditReport:
    """Judge the wheel for the recipe's archs with the driver of its CUDA. Raises AuditError when one is not met."""
    console.stage("audit", f"for {arch_list(job.archs)} with a CUDA {job.recipe.toolchain.cuda} driver")
    targets = default_targets(job.archs, job.recipe.toolchain.cuda)  # whose compiler wrote the PTX
    torch = tree.toolchain.environment
    report = audit_wheel(wheel, targets, recipe=job.recipe, archs=job.archs, torch=torch, known=proof.device)
    for verdict in report.targets:
        console.note(verdict.summary)
        for warning in verdict.warnings:
            console.warn(f"{verdict.gpu}: {warning}")
    for finding in report.findings:
        if finding.level is Level.WARNING:
            console.warn(f"{finding.where} {finding.text}")
    if not report.ok:
        show(report, console)
        raise AuditError(
            f"{wheel.name} is not what it should be",
            why="; ".join(failures(report)[:5]),
            fix=f"the wheel is kept at {wheel}: nox -s audit -- {wheel}",
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
