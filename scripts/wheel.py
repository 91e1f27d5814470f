"""The main job: fetch, patch, toolchain, compile, package, prove; the wheel lands in wheelhouse/ with its report."""

from __future__ import annotations

import argparse
import json
import os
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from scripts.agreement import check_agreement
from scripts.archs import Arch, arch_list, check_cuda_can, parse_arch_list
from scripts.audit_collect import audit_wheel
from scripts.audit_models import AuditReport, Level
from scripts.audit_show import failures, show
from scripts.cache import Cache, digest
from scripts.checks import Subject
from scripts.cli import Parser, add_cache_options, recipe_argument, run, user_path
from scripts.compile import BuildTree, Compiled, compile_units, configure, list_units, plan_tree
from scripts.compiler_cache import CacheSettings, CacheSummary, compiler_cache, headers_digest, read_settings
from scripts.console import Console, human_bytes, human_seconds
from scripts.cost_model import Unit, cost_book
from scripts.doctor import add_skip_option, examine, read_skips, skipped
from scripts.drivers import default_targets
from scripts.errors import AuditError, PackageError, UsageError, from_os_error
from scripts.fetch import Fetched, fetch_recipe, open_access
from scripts.fixed_paths import refusal
from scripts.git_checkout import Access
from scripts.git_source import GitTree
from scripts.indexes import Indexes, read_indexes
from scripts.machine import Machine, read_machine
from scripts.package import package_wheel
from scripts.patch import prepare_tree
from scripts.patches import recipe_patches
from scripts.plan import show_plan
from scripts.prove import Proof, prove_wheel
from scripts.recipe import DEFAULT_RECIPE, ROOT, Recipe
from scripts.recipe_files import load_recipe, recipe_names
from scripts.report import Stages, enter, find_built, make_report
from scripts.shards import Shard, parse_shard, plan_json, units_of
from scripts.split import split_wheel
from scripts.toolchain import provide_toolchain

WHEELHOUSE = ROOT / "wheelhouse"


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


def read_arguments(arguments: Sequence[str]) -> argparse.Namespace:
    """Read the command line. Raises UsageError."""
    parser = Parser("wheel", "Build a wheel of a recipe: fetch, patch, toolchain, compile, package, prove.")
    known = ", ".join(recipe_names())
    parser.add_argument("--recipe", default=DEFAULT_RECIPE, metavar="R", help=f"a recipe file, or one of: {known}")
    parser.add_argument(
        "--arch",
        action="append",
        metavar="LIST",
        help='archs, such as "9.0" or "8.0;12.0" or H100 (default: the recipe\'s); repeated: one wheel each',
    )
    parser.add_argument(
        "--jobs",
        metavar="N",
        help="units compiled at once at most (default: MAX_JOBS, else all cores); fewer where memory does not reach",
    )
    parser.add_argument("--keep-going", action="store_true", help="compile on when a unit fails; show all that failed")
    parser.add_argument("--split", action="store_true", help="also cut a slim wheel per arch out of the result")
    parser.add_argument(
        "--shard", metavar="I/N", help="compile the I-th of N parts of the units into the compiler cache, and stop"
    )
    parser.add_argument("--plan-json", action="store_true", help="print the plan with a CI matrix of shards, and stop")
    parser.add_argument(
        "--no-compiler-cache", action="store_true", help="compile everything; read and fill no cache of objects"
    )
    parser.add_argument(
        "--dist", default="", metavar="URL", help="experimental: compile on the builders of an sccache-dist scheduler"
    )
    parser.add_argument("--dry-run", action="store_true", help="print the plan and stop")
    parser.add_argument("--list", action="store_true", help="list the recipes and stop")
    parser.add_argument("--wheelhouse", type=user_path, default=WHEELHOUSE, metavar="DIR", help="where the wheel goes")
    add_skip_option(parser)
    add_cache_options(parser)
    return parser.parse_args(arguments)


def choose_archs(recipe: Recipe, text: str | None) -> tuple[Arch, ...]:
    """Return the archs of one --arch option, or the recipe's. Raises UsageError for what its CUDA cannot do."""
    archs = parse_arch_list(text) if text is not None else recipe.archs
    check_cuda_can(archs, recipe.toolchain.cuda)
    return archs


def choose_jobs(option: str | None, environment: Mapping[str, str], machine: Machine) -> int:
    """Return how many units to compile at once at most: --jobs, MAX_JOBS, else the cores. Raises UsageError."""
    for name, text in (("--jobs", option), ("MAX_JOBS", environment.get("MAX_JOBS"))):
        if text:
            if not text.isdecimal() or int(text) < 1:
                raise UsageError(f"{name} is {text!r}", why="it must be a whole number of at least 1", fix=f"{name}=2")
            return int(text)
    return machine.cores


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
                done = compile_cached(tree, job, console, only=mine)
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
            compiled = compile_cached(tree, job, console)
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


def _fixed(console: Console) -> bool:
    """Whether to compile under paths that are the same on every machine; says when that cannot be."""
    why = refusal()
    if why:
        console.note(f"no mount namespace here ({why}): cached objects are shared only with builds at the same paths")
    return not why


def compile_cached(tree: BuildTree, job: Job, console: Console, *, only: Sequence[Unit] | None = None) -> Compiled:
    """Compile with the compiler cache, whose programs end with it."""
    with compiler_cache(
        job.compiler_cache,
        job.cache,
        tree=tree.path,
        key=digest([tree.basis, headers_digest(tree.sources)]),
        enter=tree.prefix,
        environment=tree.environment,
        console=console,
    ) as opened:
        return compile_units(
            tree,
            jobs=job.jobs,
            book=cost_book(job.recipe),
            console=console,
            keep_going=job.keep_going,
            only=only,
            compiler_cache=opened,
        )


def _audit(wheel: Path, job: Job, tree: BuildTree, proof: Proof, console: Console) -> AuditReport:
    """Judge the wheel for the recipe's archs with the driver of its CUDA. Raises AuditError when one is not met."""
    console.stage("audit", f"for {arch_list(job.archs)} with a CUDA {job.recipe.torch.cuda} driver")
    targets = default_targets(job.archs, job.recipe.torch.cuda)
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


def show_result(path: Path, report: Mapping[str, Any], console: Console) -> None:
    """Print the closing table."""
    components = [
        f"{item['name']}: {human_bytes(item['size'])}, {len(item['operators'])} operators, {_counts(item['cubins'])}"
        for item in report["components"]
    ]
    stages = [f"{name} {human_seconds(row['seconds'])}" for name, row in report["stages"].items()]
    peak = report["stages"].get("compile", {}).get("peak_bytes", 0)
    rows = [
        ("wheel", str(path)),
        ("size", human_bytes(report["wheel"]["size"])),
        ("sha256", report["wheel"]["sha256"]),
        ("for", f"torch {report['torch']['version']}, CUDA {report['torch']['cuda']}, {report['wheel']['platform']}"),
        ("archs", report["archs"]),
        *(("component", text) for text in components),
        ("stages", ", ".join(stages)),
        *(("cache", CacheSummary(**data).line()) for data in [report.get("compiler_cache")] if data),
        ("memory", f"{human_bytes(peak)} at most while compiling"),
    ]
    if report["recipe"]["notice"]:
        rows.append(("note", report["recipe"]["notice"]))
    console.table("", rows)


def _counts(counts: Mapping[str, int]) -> str:
    return "cubins " + (", ".join(f"sm_{arch}: {count}" for arch, count in counts.items()) or "none")


def main(arguments: Sequence[str], console: Console) -> int:
    """Build one wheel per --arch list, or print the plan."""
    options = read_arguments(arguments)
    if options.list:
        console.grid(["recipe", "what it builds"], [(name, load_recipe(name).description) for name in recipe_names()])
        return 0
    recipe = load_recipe(recipe_argument(options.recipe))
    lists = list(dict.fromkeys(choose_archs(recipe, text) for text in options.arch or [None]))
    if options.plan_json:
        plans = [plan_json(recipe, archs) for archs in lists]
        console.result(json.dumps(plans[0] if len(plans) == 1 else plans))
        return 0
    shard = parse_shard(options.shard) if options.shard is not None else None
    machine = read_machine()
    jobs = choose_jobs(options.jobs, os.environ, machine)
    if options.dry_run:
        for archs in lists:
            show_plan(
                recipe,
                archs,
                jobs=jobs,
                machine=machine,
                wheelhouse=options.wheelhouse,
                environment=os.environ,
                console=console,
            )
        return 0
    access = open_access(options, console, recipe)
    indexes = read_indexes()
    skip = read_skips(options.skip)
    for archs in lists:
        console.stage("wheel", f"{recipe.name}: {recipe.package.name} {recipe.version(archs)} for {arch_list(archs)}")
        settings = read_settings(os.environ, enabled=not options.no_compiler_cache, scheduler=options.dist)
        job = Job(
            recipe, archs, jobs, access, options.wheelhouse, indexes, os.environ, options.keep_going, settings, skip
        )
        if shard:
            build_shard(job, shard, console)
            continue
        path, report = build_wheel(job, console)
        show_result(path, report, console)
        if options.split and len(archs) > 1:
            split_wheel(path, report, archs, options.wheelhouse, console=console)
    return 0


if __name__ == "__main__":
    run(main)
