"""Stage compile: configure with CMake, compile with ninja, in a build tree that stays.

The tree is keyed by everything that decides its objects; a killed run loses the units in flight, nothing else.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path

from scripts.compile.admission import Admission, lookahead
from scripts.compile.compiler_cache import CacheSummary, CompilerCache
from scripts.compile.device_steps import put_programs
from scripts.compile.forecast import Forecast
from scripts.compile.older_glibc import link_to_older_glibc
from scripts.compile.sampling import SAMPLES, Sampler
from scripts.compile.schedule import Task
from scripts.compile.sources import copy_sources, mend_sources
from scripts.compile.standalone.launcher import REACH, arch_count, unit_of
from scripts.compile.tree import OLDER_GLIBC, BuildTree
from scripts.compile.units import UnitFailure, UnitRecord, UnitWatch, read_failures, read_units
from scripts.core.console import Console, human_seconds
from scripts.core.errors import CompileError
from scripts.core.files import remove_tree, write_json
from scripts.core.machine import memory_now
from scripts.core.process import Command, Finished, Look, capture, run_logged
from scripts.recipe.costs import CostBook, Unit, short_name

_LINKING = re.compile(r"\bld(\.\w+)?: |undefined reference|ld returned \d")


@dataclass(frozen=True)
class Compiled:
    """What was compiled."""

    units: tuple[UnitRecord, ...]
    """All units, those that earlier runs compiled included."""
    units_now: int
    """How many of them this run compiled."""
    seconds: float
    peak_bytes: int
    """Peak memory of ninja and all compilers together."""
    retried: tuple[str, ...] = ()
    """Sources of units that were killed and compiled again alone."""
    busy: float = 0.0
    """Of the cores that could work on this run's units (`jobs`), the share that did: core-seconds over wall time."""
    cache: CacheSummary | None = None
    """What the compiler cache did in this run."""


def configure(tree: BuildTree, *, console: Console) -> None:
    """Run CMake unless the tree is configured already. Raises CompileError."""
    marker = tree.path / "configured.json"
    if marker.exists():
        mend_sources(tree.source.path, tree.sources, console)
        return
    copy_sources(tree.source.path, tree.sources)
    remove_tree(tree.binary)  # of a try that failed: its CMakeCache.txt remembers a library as NOTFOUND for good
    tree.binary.mkdir()
    (tree.path / "failures").mkdir(exist_ok=True)
    (tree.path / "fetched").mkdir(exist_ok=True)
    put_programs(tree.path, tree.inside(tree.toolchain.python))
    tree.paths.write(tree.enter)
    _prepare_link(tree, console)
    cmake = tree.inside(tree.toolchain.environment / "bin" / "cmake")
    begin = tree.log.stat().st_size if tree.log.exists() else 0
    folders: Command = ["-S", tree.inside(tree.sources), "-B", tree.inside(tree.binary)]
    done = run_in(tree, [cmake, *folders, "-G", "Ninja", *tree.definitions])
    if done.code:
        raise _configure_error(tree, begin)
    console.note(f"configured in {human_seconds(done.seconds)}")
    write_json(marker, list(tree.definitions))


def _prepare_link(tree: BuildTree, console: Console) -> None:
    folder, compiler = tree.path / OLDER_GLIBC, [*tree.prefix, tree.inside(tree.toolchain.host.path)]
    if why := link_to_older_glibc(folder, tree.inside(folder), compiler, tree.environment):
        console.warn(f"the wheel will not load on systems older than this one: {why}")


def run_in(
    tree: BuildTree,
    command: Command,
    *,
    cwd: Path | None = None,
    environment: Mapping[str, str] | None = None,
    fixed: bool = True,
    tick: Callable[[], None] = lambda: None,
    look: Look = lambda _processes, _rss: None,
) -> Finished:
    """Run a command with the tree's log, environment and folder for temporary files, which is emptied at the end.

    `fixed`: under the tree's fixed paths; without, the paths are the real ones.
    """
    scratch = tree.path / "tmp"
    place = tree.inside(scratch) if fixed else scratch
    return run_logged(
        [*(tree.prefix if fixed else ()), *command],
        log=tree.log,
        cwd=cwd or tree.path,
        environment={**(tree.environment if environment is None else environment), "TMPDIR": str(place)},
        tick=tick,
        look=look,
        scratch=scratch,
    )


def _configure_error(tree: BuildTree, begin: int) -> CompileError:
    text = tree.log.read_bytes()[begin:].decode("utf-8", "replace")
    errors = re.findall(r"CMake Error.*?(?=\n\n\n|\n-- |\Z)", text, re.DOTALL)
    return CompileError(
        "CMake could not configure vLLM",
        why="the first error is shown above",
        fix=f"the whole output is in {tree.log}",
        detail=errors[0].strip() if errors else text[-3000:],
        output=text,
    )


def compile_units(
    tree: BuildTree,
    *,
    jobs: int,
    book: CostBook,
    console: Console,
    keep_going: bool = False,
    only: Sequence[Unit] | None = None,
    compiler_cache: CompilerCache | None = None,
) -> Compiled:
    """Compile and link the tree's targets, or compile `only` some units.

    `jobs` run at a time at most, fewer where memory does not reach. Raises CompileError with each failed unit's output,
    once; with `keep_going` after all others were tried.
    """
    failures = tree.path / "failures"
    for old in failures.glob("*.json"):
        old.unlink()
    put_programs(tree.path, tree.inside(tree.toolchain.python))
    targets = tree.targets if only is None else tuple(unit.object for unit in only)
    total, todo = list_units(tree, targets)
    memory = memory_now()
    tasks = [task_of(unit, book) for unit in todo]
    sampler = Sampler(tree.path / SAMPLES)
    forecast = Forecast(tasks, jobs=jobs, memory=memory)
    watch = UnitWatch(tree.events, len(total), len(todo), forecast, share=lambda: sampler.share(admission.running))
    watch.begin()
    begin = watch.events.stat().st_size if watch.events.exists() else 0
    console.stage("compile", f"{len(todo)} of {len(total)} units to do, at most {jobs} at a time; log: {tree.log}")
    slots = jobs + lookahead(memory, jobs)
    admission = Admission(book, jobs=jobs, expected=min(len(todo), slots), keep_going=keep_going, say=console.warn)
    ninja: Command = [tree.inside(tree.toolchain.environment / "bin" / "ninja")]
    limits: Command = ["-j", str(slots), "-k", "0" if keep_going else "1"]

    with (
        console.progress(watch.render, watch.plain) as progress,
        admission.listening(tree.path / "admission"),
        _reach(tree, console) if todo else nullcontext(),
    ):

        def tick() -> None:
            admission.tick()
            watch.update()
            progress.tick()
            if compiler_cache:
                compiler_cache.tick()

        done = run_in(
            tree,
            [*ninja, "-C", tree.inside(tree.binary), *limits, *targets],
            environment={**tree.environment, **(compiler_cache.environment if compiler_cache else {})},
            tick=tick,
            look=sampler.look,
        )
    sampler.close()
    watch.update()
    if done.code:
        raise _compile_error(tree, done, read_failures(failures))
    busy = sum(record.cpu_seconds for record in watch.finished) / (jobs * max(done.seconds, 0.001))
    if watch.finished:
        console.note(f"{len(watch.finished)} units in {human_seconds(done.seconds)}, cores busy {100 * busy:.0f} %")
    units = tuple(read_units(watch.events))
    if stock := [short_name(record.source) for record in units if record.headers == "stock"]:
        names = ", ".join(stock[:6]) + (" …" if len(stock) > 6 else "")
        console.note(f"{len(stock)} units needed stock headers, not the lean ones or our names for CUB: {names}")
    return Compiled(
        units,
        len(watch.finished),
        done.seconds,
        done.peak_bytes,
        retried=tuple(admission.retried),
        busy=busy,
        cache=compiler_cache.summary(watch.events, begin) if compiler_cache else None,
    )


@contextmanager
def _reach(tree: BuildTree, console: Console) -> Iterator[None]:
    """Let launchers know what each unit can read; without that it is all of the sources, and nothing is lost.

    What it says is true of the sources as they are now, so it goes with the block.
    """
    table, python = tree.path / REACH, tree.inside(tree.toolchain.python)
    places: Command = [tree.inside(path) for path in (tree.binary / "build.ninja", tree.sources, table)]
    program = tree.inside(tree.path / "reach.py")
    table.unlink(missing_ok=True)
    code, text = capture(
        [*tree.prefix, python, "-SE", program, *places, *tree.dependencies], environment=tree.environment
    )
    if code:
        said = text.strip().splitlines()[-1:] or [f"exit code {code}"]
        console.note(f"an added arch will compile more than it must: reach.py: {said[0][:200]}")
    try:
        yield
    finally:
        table.unlink(missing_ok=True)


def task_of(unit: Unit, book: CostBook) -> Task:
    """Return a unit with what the cost model expects of it."""
    estimate = book.estimate(unit)
    return Task(unit.object, estimate.cpu_seconds, estimate.peak_bytes)


def list_units(tree: BuildTree, targets: Sequence[str]) -> tuple[list[Unit], list[Unit]]:
    """Return (units of the targets, those that are out of date), as ninja sees it. Raises CompileError."""
    ninja = tree.inside(tree.toolchain.environment / "bin" / "ninja")
    launcher = str(tree.inside(tree.path / "launcher.py"))
    lists = []
    for mode in (["-t", "commands"], ["-n", "-v"]):
        command = [*tree.prefix, ninja, "-C", tree.inside(tree.binary), *mode, *targets]
        code, text = capture(command, environment=tree.environment)
        if code:
            raise CompileError(
                "ninja cannot read the build tree",
                why=text.strip()[-500:],
                fix=f"delete {tree.path} and run again: it is then configured anew",
            )
        commands = [line.split() for line in text.splitlines() if launcher in line]  # no path has a blank in it
        lists.append([Unit(*unit_of(words), arch_count(words)) for words in commands])
    return lists[0], lists[1]


def _compile_error(tree: BuildTree, done: Finished, failures: Sequence[UnitFailure]) -> CompileError:
    if not failures:
        tail = done.tail()
        full = "No space left" in tail
        return CompileError(
            "linking failed" if _LINKING.search(tail) else "ninja failed",
            why="no space left on the filesystem" if full else "the end of its output is shown above",
            fix=f"free space at {tree.path}" if full else f"the whole output is in {tree.log}",
            detail=tail,
        )
    repeats = [tree.paths.repeat(tree.enter, item.command) for item in failures]
    shown = "\n\n".join(
        f"{item.unit}\n{item.output}\nrepeat it with:\n{repeat}" for item, repeat in zip(failures, repeats, strict=True)
    )
    text = "".join(item.output for item in failures)
    why, fix = "the compiler's output is shown above", "nothing compiled is lost: run again after correcting the cause"
    if "No space left" in text:
        why, fix = "no space left on the filesystem", f"free space at {tree.path}, then run again"
    elif any(item.killed for item in failures):
        why = "the compiler was killed though nothing else was compiled: this machine has too little memory for it"
        fix = "give it more memory or swap; what was compiled is kept"
    names = ", ".join(item.unit for item in failures[:3])
    return CompileError(f"{len(failures)} unit(s) failed: {names}", why=why, fix=fix, detail=shown)


def unit_count_in_log(tree: BuildTree) -> int:
    """Return how many launcher starts the tree has seen, to prove that packaging compiles nothing."""
    return tree.events.read_bytes().count(b'"start"') if tree.events.exists() else 0
