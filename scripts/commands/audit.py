"""nox -s audit: which GPUs and drivers a wheel really runs on, and what else may stop it. See docs/audit.md."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from scripts.audit.collect import audit_path, environment_site
from scripts.audit.host import read_site
from scripts.audit.models import AuditReport, Level, TargetVerdict
from scripts.audit.reasons import failures, in_short
from scripts.audit.show import html, show
from scripts.audit.subjects import label_archs, matching_recipe, targets_for
from scripts.commands.cli import Parser, run, user_path
from scripts.commands.options import recipe_argument
from scripts.core.console import Console
from scripts.core.errors import AuditError, UsageError
from scripts.core.files import write_atomic, write_json
from scripts.cuda.archs import architecture, parse_arch
from scripts.cuda.drivers import Target, parse_target, release
from scripts.recipe.files import load_recipe

DESCRIPTION = """\
Tell which GPUs and drivers wheels, shared objects, directories or installed environments really run on.

A target is a GPU by name or number, and maybe its driver: rtx5090, H100@12.8, 9.0@570.86.10. Without a driver the
lowest one is told. Without targets: the archs of the wheel's recipe (or of its version label) at the recipe's CUDA.
Leaves with 9 when a target is not met or something else is wrong with the wheel.
Example: nox -s audit -- vllm-0.15.1-cp38-abi3-manylinux_2_31_x86_64.whl --target rtx5090@12.8
"""


def parser() -> Parser:
    """Return the command line of `nox -s audit`."""
    command = Parser("audit", DESCRIPTION)
    command.add_argument(
        "subjects", nargs="+", type=user_path, metavar="WHEEL", help="wheel, .so, directory, environment"
    )
    command.add_argument("--target", action="append", default=[], metavar="GPU[@DRIVER]", help="may be repeated")
    command.add_argument("--recipe", metavar="R", help="expect this recipe's components (default: by name and version)")
    command.add_argument("--torch", type=user_path, metavar="DIR", help="environment with the torch the wheel names")
    command.add_argument("--package", default="vllm", metavar="NAME", help="what to audit in an environment: vllm")
    command.add_argument("--json", type=user_path, metavar="FILE", help="write the report (docs/audit.md) to a file")
    command.add_argument("--html", type=user_path, metavar="FILE", help="write the report as a page to a file")
    return command


def main(arguments: Sequence[str], console: Console) -> int:
    """Run the command; return its exit code."""
    options = parser().parse_args(arguments)
    paths = [path for given in options.subjects for path in subjects(given)]
    if len(paths) > 1 and (options.json or options.html):
        raise UsageError("--json and --html take one wheel", fix="audit the wheels one by one")
    targets = [parse_target(text) for text in options.target]
    reports = [_audit(path, options, targets) for path in paths]
    for report in reports:
        show(report, console)
    if options.json:
        write_json(options.json, reports[0].model_dump(mode="json"))
    if options.html:
        write_atomic(options.html, html(reports[0]).encode())
    failed = [(path, report) for path, report in zip(paths, reports, strict=True) if not report.ok]
    if failed:
        path, report = failed[0]
        raise AuditError(
            f"{report.subject} does not do what is asked of it",
            why=in_short(failures(report)),
            fix=_remedies(report, compiled=matching_recipe(path) is not None),
            docs="docs/audit.md",
        )
    return 0


def subjects(path: Path) -> list[Path]:
    """Return what to audit: of a directory the wheels in it. Raises UsageError when there is no such file."""
    if not path.exists():
        raise UsageError(f"there is no {path}", fix="give a wheel, a .so file, a directory or an environment")
    if path.is_dir() and environment_site(path) is None:
        return sorted(path.glob("*.whl")) or [path]
    return [path]


def _remedies(report: AuditReport, *, compiled: bool) -> list[str]:
    """Return what to do, each thing once; to compile is offered for wheels that a recipe makes."""
    unmet = [item for item in report.targets if not item.ok and item.judged]
    hazards = [hazard.remedy for item in unmet for hazard in item.hazards if hazard.level is Level.ERROR]
    drivers = {_driver(item): item.gpu for item in reversed(unmet) if item.lowest_cuda and not item.hazards}
    fixes = [*hazards, *(f"{text} on the {gpu}" for text, gpu in reversed(drivers.items()))]
    lacking = [item for item in unmet if not item.lowest_cuda or item.hazards]
    if lacking and compiled:
        archs = ";".join(dict.fromkeys(f"{item.arch[3:-1]}.{item.arch[-1]}" for item in lacking))
        fixes.append(f"compile for it: nox -s wheel -- --arch '{archs}'")
    unique = list(dict.fromkeys(fixes))
    return unique[:3] or ["nox -s audit -- --help; every finding's code is explained in docs/audit.md"]


def _driver(verdict: TargetVerdict) -> str:
    """Return which drivers would do, in words."""
    lowest = release(verdict.lowest_cuda or "")
    if not lowest.known:
        return str(lowest)
    number = verdict.lowest_driver or "its number is not known"
    return f"a driver of CUDA {lowest.cuda} ({number}) {architecture(parse_arch(verdict.arch)).or_later}"


def _audit(path: Path, options: argparse.Namespace, targets: Sequence[Target]) -> AuditReport:
    recipe = load_recipe(recipe_argument(options.recipe)) if options.recipe else matching_recipe(path)
    archs = label_archs(path) or (recipe.archs if recipe else ())
    if options.torch and read_site(options.torch) is None:
        raise UsageError(
            f"--torch {options.torch} holds no torch",
            why="neither it nor its lib/python3.*/site-packages has a folder torch/lib",
            fix="name an environment or a site-packages folder with the torch the wheel was made for",
        )
    chosen = targets or targets_for(recipe, archs)
    return audit_path(path, chosen, recipe=recipe, archs=archs, torch=options.torch, package=options.package)


if __name__ == "__main__":
    run(main)
