"""nox -s gpu-check: on a machine with a GPU, are a wheel's kernels right and does its engine generate?

Without nox: `python -m scripts.commands.gpu_check WHEEL` with a Python that has torch and what vLLM imports.
"""

from __future__ import annotations

import argparse
import os
import tempfile
from collections.abc import Sequence
from pathlib import Path

from scripts.commands.cli import Parser, run, user_path
from scripts.core.console import Console
from scripts.core.errors import UsageError
from scripts.downloads.unpack import unpack_wheel
from scripts.gpu_check.families import FAMILIES, Place
from scripts.gpu_check.parts import PARTS, RUN, find_python, gpu_driver
from scripts.gpu_check.report import Question, Report

DESCRIPTION = """\
On a machine with a GPU: call every operator of a wheel on fresh random inputs and compare with float64; generate
tokens with tiny random models (Llama, gpt-oss), eagerly, with CUDA graphs and through `vllm serve`; compare what was
seen with what `audit` says of this GPU; time a few operators against torch. Nothing is downloaded.
Leaves with 12 when something is wrong, with 13 when nothing could be checked (no GPU, no torch).
Example: nox -s gpu-check -- wheelhouse/vllm-0.20.1+cu130.core-cp38-abi3-manylinux_2_34_x86_64.whl --json check.json
"""


def parser() -> Parser:
    """Return the command line of `nox -s gpu-check`."""
    command = Parser("gpu-check", DESCRIPTION)
    command.add_argument("wheel", type=user_path, metavar="WHEEL", help="to be checked on the GPU of this machine")
    command.add_argument("--json", type=user_path, metavar="FILE", help="write what was seen, after every step")
    command.add_argument("--quick", action="store_true", help="common operators and one engine run: about a minute")
    command.add_argument("--part", action="append", choices=PARTS, metavar="P", help=f"only: {', '.join(PARTS)}")
    command.add_argument("--family", action="append", choices=FAMILIES, metavar="F", help="only these operators")
    command.add_argument("--python", type=user_path, metavar="PYTHON", help="a Python with torch (default: found)")
    command.add_argument("--seed", type=int, help="of the random inputs (default: a new one, recorded)")
    command.add_argument("--limit", type=int, default=180, metavar="S", help="seconds per family and engine run: 180")
    command.add_argument("--at-once", type=int, default=_at_once(), metavar="N", help="processes at a time")
    return command


def _at_once() -> int:
    return max(1, min(6, len(os.sched_getaffinity(0)) // 2))


def main(arguments: Sequence[str], console: Console) -> int:
    """Run the command; return its exit code."""
    options = parser().parse_args(arguments)
    if options.wheel.suffix != ".whl" or not options.wheel.is_file():
        raise UsageError(f"{options.wheel} is not a wheel", fix="give the path of a .whl file")
    if options.at_once < 1 or options.limit < 1:
        raise UsageError("--at-once and --limit are at least 1", fix="leave them out for the defaults")
    python = find_python(options.python, os.environ.get("PATH", ""))
    driver = gpu_driver(python)
    with tempfile.TemporaryDirectory(prefix="gpu-check-") as folder:
        question = Question(
            options.wheel,
            options.json,
            quick=options.quick,
            family=tuple(options.family or ()),
            seed=options.seed,
            limit=options.limit,
            at_once=options.at_once,
        )
        report = Report(question, driver, console)
        place = Place(python, Path(folder) / "site", Path(folder), os.environ)
        unpack_wheel(options.wheel, place.site)
        for part in _parts(options):
            report.part(part, lambda part=part: RUN[part](place, question, report))  # type: ignore[misc]
        return report.finish()


def _parts(options: argparse.Namespace) -> tuple[str, ...]:
    chosen = options.part or [part for part in PARTS if not options.quick or part not in {"slim", "speed"}]
    return tuple(part for part in PARTS if part in chosen)


if __name__ == "__main__":
    run(main)
