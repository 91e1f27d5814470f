"""nox -s slim: cut a wheel for many archs down to some, without compiling. See docs/audit.md."""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path

from scripts.audit.collect import audit_wheel
from scripts.audit.subjects import matching_recipe
from scripts.commands.cli import Parser, run, user_path
from scripts.core.console import Console, human_bytes, human_seconds
from scripts.core.files import file_sha256, write_json
from scripts.core.paths import ROOT
from scripts.cuda.archs import arch_list, parse_arch_list
from scripts.cuda.drivers import default_targets
from scripts.report.models import CutFrom
from scripts.report.slim_report import slim_report
from scripts.report.wheelhouse import read_report, report_path
from scripts.slim.wheel import SlimmedMember, SlimResult, slim

DESCRIPTION = """\
Make a wheel for some GPUs out of a wheel for many, without compiling.

In each container of GPU code the entries stay that the driver would choose for --arch; the rest leaves the file.
The wheel gets a new version label (0.15.1+cu129.sm86), RECORD, tags and an SBOM; nothing else in it changes.
Beside it NAME.whl.report.json says what it was cut out of and what its audit found: it can be published and signed.
Example: nox -s slim -- vllm-0.15.1-cp38-abi3-manylinux_2_31_x86_64.whl --arch 8.6
"""


def parser() -> Parser:
    """Return the command line of `nox -s slim`."""
    command = Parser("slim", DESCRIPTION)
    command.add_argument("wheel", type=user_path, metavar="WHEEL", help="the wheel to cut; it stays as it is")
    command.add_argument("--arch", action="append", required=True, metavar="LIST", help='"8.6", "8.6;9.0", H100')
    command.add_argument(
        "--out", type=user_path, default=ROOT / "wheelhouse", metavar="DIR", help="default: wheelhouse/"
    )
    command.add_argument("--drop-empty", action="store_true", help="leave out shared objects with nothing for --arch")
    command.add_argument(
        "--recompress",
        action="store_true",
        help="store the code as zstd: a smaller wheel, for drivers of CUDA 12.4 (550) and newer",
    )
    command.add_argument("--json", type=user_path, metavar="FILE", help="write what was done to a file")
    return command


def main(arguments: Sequence[str], console: Console) -> int:
    """Run the command; return its exit code."""
    options = parser().parse_args(arguments)
    archs = parse_arch_list(";".join(options.arch))
    console.stage("slim", f"{options.wheel.name} for {arch_list(archs)}")
    started = time.monotonic()
    result = slim(
        options.wheel,
        archs,
        options.out,
        drop_empty=options.drop_empty,
        recompress=options.recompress,
        on_member=lambda item: _tell(console, item),
    )
    seconds = time.monotonic() - started
    sha256 = file_sha256(result.wheel)
    audit = audit_wheel(
        result.wheel, default_targets(archs, result.cuda or "12.0"), optional=matching_recipe(result.wheel)
    )
    source = CutFrom(name=options.wheel.name, sha256=result.source_sha256, size=result.before)
    built = read_report(options.wheel)
    report = slim_report(result.wheel, source, archs, audit, built, drop_empty=options.drop_empty)
    write_json(report_path(result.wheel), report.data())
    for note in result.notes:
        console.warn(note)
    if options.json:
        write_json(options.json, _report(result, sha256, seconds))
    console.table(
        "slim wheel",
        [
            ("wheel", str(result.wheel)),
            (
                "size",
                f"{human_bytes(result.after)} ({result.after / result.before:.0%} of {human_bytes(result.before)})",
            ),
            ("sha256", sha256),
            ("time", human_seconds(seconds)),
        ],
    )
    return 0


def _tell(console: Console, item: SlimmedMember) -> None:
    result = item.result
    if item.dropped:
        text = "dropped: nothing for these archs"
    elif result.entries_before == result.entries_after and not result.recompressed:
        text = f"unchanged, {human_bytes(result.after)}"
    else:
        text = f"{human_bytes(result.before)} -> {human_bytes(result.after)}"
        text += f", {result.entries_after} of {result.entries_before} entries stay"
        text += f", {result.recompressed} compressed anew" if result.recompressed else ""
        text += "; no GPU code left (--drop-empty leaves it out)" if result.empty else ""
    console.note(f"{Path(item.name).name}: {text}")


def _report(result: SlimResult, sha256: str, seconds: float) -> dict[str, object]:
    return {
        "schema_version": 1,
        "wheel": result.wheel.name,
        "sha256": sha256,
        "size_before": result.before,
        "size": result.after,
        "seconds": round(seconds, 2),
        "components": {
            item.name: {
                "size_before": item.result.before,
                "size": 0 if item.dropped else item.result.after,
                "entries_before": item.result.entries_before,
                "entries": item.result.entries_after,
                "recompressed": item.result.recompressed,
                "dropped": item.dropped,
            }
            for item in result.members
        },
    }


if __name__ == "__main__":
    run(main)
