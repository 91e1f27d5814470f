"""Everything that can be known before the first compile: checks of this machine against a recipe.

Each check (scripts/doctor/checks) is a small function under an id of the failure catalogue; `wheel` runs them first.
"""

from __future__ import annotations

import argparse
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

from scripts.commands.cli import Parser, run, user_path
from scripts.commands.options import (
    add_cache_options,
    add_skip_option,
    add_torch_option,
    adopt_torch,
    open_access,
    recipe_argument,
)
from scripts.core.console import Console
from scripts.core.errors import DoctorError, UsageError
from scripts.core.files import write_json
from scripts.core.machine import read_machine
from scripts.core.paths import DEFAULT_RECIPE, ROOT
from scripts.cuda.archs import parse_arch_list
from scripts.cuda.drivers import parse_target
from scripts.doctor.examine import SMALLEST, blocking, read_skips, smaller_subject
from scripts.doctor.registry import Row, Subject, Verdict, run_checks
from scripts.recipe.files import load_recipe
from scripts.recipe.torch_pin import torch_requirement
from scripts.toolchain.adopt import other_torch
from scripts.toolchain.installed_torch import InstalledTorch


def read_arguments(arguments: Sequence[str]) -> argparse.Namespace:
    """Read the command line. Raises UsageError."""
    parser = Parser("doctor", "Check this machine against a recipe, before anything large is downloaded or compiled.")
    parser.add_argument("--recipe", default=DEFAULT_RECIPE, metavar="R", help=f"a recipe (default: {DEFAULT_RECIPE})")
    parser.add_argument("--arch", metavar="LIST", help="archs (default: the recipe's)")
    parser.add_argument(
        "--target", action="append", default=[], metavar="GPU[@DRIVER]", help="a GPU to run on; repeated"
    )
    parser.add_argument("--jobs", metavar="N", help="units compiled at once (default: the cores)")
    parser.add_argument("--python", type=user_path, metavar="PYTHON", help="also judge this interpreter's environment")
    parser.add_argument(
        "--wheelhouse", type=user_path, default=ROOT / "wheelhouse", metavar="DIR", help="for the wheel"
    )
    parser.add_argument("--all", action="store_true", help="also list the checks that found nothing")
    parser.add_argument("--json", type=user_path, metavar="FILE", help="write all answers to a file")
    add_torch_option(parser)
    add_skip_option(parser)
    add_cache_options(parser)
    return parser.parse_args(arguments)


def read_subject(options: argparse.Namespace, console: Console) -> Subject:
    """Return what the command line is about. Raises UsageError or FetchError."""
    recipe, torch = adopt_torch(options, load_recipe(recipe_argument(options.recipe)))
    machine = read_machine()
    if options.jobs and (not options.jobs.isdecimal() or int(options.jobs) < 1):
        raise UsageError(f"--jobs is {options.jobs!r}", fix="--jobs 2")
    return Subject(
        recipe=recipe,
        archs=parse_arch_list(options.arch) if options.arch else recipe.archs,
        jobs=int(options.jobs) if options.jobs else machine.cores,
        machine=machine,
        access=open_access(options, console, recipe),
        wheelhouse=options.wheelhouse,
        targets=tuple(parse_target(text) for text in options.target),
        python=options.python,
        torch=torch,
    )


def show(subject: Subject, rows: Sequence[Row], console: Console, *, everything: bool) -> None:
    """Print what was found: what blocks first, each with what was measured and what to do."""
    for verdict in (Verdict.BLOCKED, Verdict.WARNING, *([Verdict.UNKNOWN, Verdict.OK] if everything else [])):
        for row in rows:
            if row.verdict is verdict:
                console.result(f"{verdict.value:<8} {row.id}: {row.measured}")
                if row.fix:
                    console.result(f"         fix: {row.fix}")
    if subject.torch:
        show_torch(subject, subject.torch, console)
    counts = Counter(row.verdict for row in rows)
    told = ", ".join(f"{counts[verdict]} {verdict.value}" for verdict in Verdict if counts[verdict])
    console.result(f"{subject.recipe.name}: {len(rows)} checks: {told}")


def show_torch(subject: Subject, torch: InstalledTorch, console: Console) -> None:
    """Print what is known of the installed torch that is compiled against."""
    recipe = subject.recipe
    changed = f"; {len(torch.changed)} files are not as RECORD says" if torch.changed else ""
    files = f"RECORD{changed}" if torch.record else "no RECORD: known by sizes and times"
    rows = [
        ("torch", f"{torch.version} of {torch.python} (Python {'.'.join(map(str, torch.python_version))})"),
        ("place", f"{torch.root}/torch; {files}"),
        ("CUDA", f"{torch.cuda}; compiled with nvcc {recipe.toolchain.cuda}"),
        ("C++ ABI", "C++11" if torch.cxx11_abi else "from before C++11"),
        ("its archs", " ".join(torch.archs) or "none"),
        ("recipe", other_torch(recipe) or f"made for torch {recipe.pinned_torch}, which this is"),
        ("wheel", f"{recipe.package.name} {recipe.version(subject.archs)}"),
        ("requires", f"torch{torch_requirement(recipe.torch.version)}, or a range if all of it has the stable ABI"),
    ]
    console.table("installed torch", rows)


def judge(subject: Subject, rows: Sequence[Row], smaller: Sequence[Row], console: Console) -> int:
    """Print what works now; return the exit code."""
    names = [subject.recipe.name] if not blocking(rows) else []
    if smaller and not blocking(smaller):
        names.append(SMALLEST)
    for name in names:
        console.result(f"works now: nox -s wheel -- --recipe {name}")
    if missing := blocking(rows):
        console.result(f"missing for {subject.recipe.name}: {', '.join(missing)}")
    if smaller and (lacks := blocking(smaller)):
        console.result(f"missing for {SMALLEST}: {', '.join(lacks)}")
    return DoctorError.exit_code if blocking(rows) else 0


def write_rows(path: Path, subject: Subject, rows: Sequence[Row]) -> None:
    """Write all answers as JSON."""
    write_json(
        path, {"recipe": subject.recipe.name, "checks": [{**asdict(row), "verdict": row.verdict.value} for row in rows]}
    )


def main(arguments: Sequence[str], console: Console) -> int:
    """Check this machine; 0 when the recipe can be built, 3 when not."""
    options = read_arguments(arguments)
    subject = read_subject(options, console)
    skip = read_skips(options.skip)
    rows = run_checks(subject, skip=skip)
    show(subject, rows, console, everything=options.all)
    small = smaller_subject(subject) if blocking(rows) else None
    code = judge(subject, rows, run_checks(small, skip=skip) if small else (), console)
    if options.json:
        write_rows(options.json, subject, rows)
    return code


if __name__ == "__main__":
    run(main)
