"""What went wrong? Known failures in any log, and what to do about them (docs/failures.md lists them all)."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import IO

from scripts.commands.cli import Parser, run, user_path
from scripts.commands.options import open_cache
from scripts.core.console import Console
from scripts.core.errors import UsageError, nearest
from scripts.core.files import write_json
from scripts.failures.catalogue import catalogue
from scripts.failures.log_files import BROKEN
from scripts.failures.recognise import Diagnosis, LogFinding, diagnose


def newest_log(root: Path) -> Path:
    """Return the log that was written last in a cache. Raises UsageError when there is none."""
    logs = [*root.glob("builds/*/*.log"), *root.glob("logs/*.log")]
    if not logs:
        raise UsageError(
            f"there is no log in {root}", fix="name one: nox -s diagnose -- LOGFILE (or - for standard input)"
        )
    return max(logs, key=lambda path: path.stat().st_mtime)


@contextmanager
def _opened(path: Path | None) -> Iterator[IO[bytes]]:
    try:
        if path is None:
            yield sys.stdin.buffer
            return
        with path.open("rb") as file:
            yield file
    except BROKEN as error:
        name = path or Path("standard input")
        names = [item.name for item in name.parent.iterdir()] if path and path.parent.is_dir() else []
        raise UsageError(
            f"{name} cannot be read: {getattr(error, 'strerror', None) or error}.{nearest(name.name, names)}",
            fix="give a log file (.gz, .xz, .bz2, .zst, .zip and .tar too), or - for standard input",
        ) from error


def _where(finding: LogFinding) -> str:
    return f"{finding.file}, line {finding.line}" if finding.file else f"line {finding.line}"


def show(diagnosis: Diagnosis, name: str, console: Console) -> None:
    """Print a diagnosis: each known failure with its line, why, and what to do."""
    for index, finding in enumerate(diagnosis.findings):
        entry = catalogue()[finding.id]
        console.result(f"{'' if not index else chr(10)}{finding.id}: {entry.title}")
        console.result(f"  {_where(finding)}: {finding.text}")
        for label, text in (("why", entry.cause), ("fix", entry.fix), ("see", entry.link)):
            console.result(f"  {label}: {text}")
    if diagnosis.findings:
        return
    if diagnosis.empty:
        console.result(f"{name}: there is nothing in it, so nothing can be said")
        console.result("  fix: write both streams into it: COMMAND > build.log 2>&1")
    elif diagnosis.error is None or diagnosis.ended_well:
        console.result(f"{name}: no failure is seen")
    else:
        console.result(f"{name}: a failure that the catalogue does not know")
        console.result(f"  {_where(diagnosis.error)}: {diagnosis.error.text}")
        console.result("  that is the first line of a tool's own error; what follows is often only its consequence")


def as_json(findings: Iterable[LogFinding]) -> list[Mapping[str, object]]:
    """Return findings as a JSON-able list of {id, stage, line, text}."""
    return [{key: value for key, value in asdict(item).items() if key != "file" or value} for item in findings]


def main(arguments: Sequence[str], console: Console) -> int:
    """Diagnose a log; always 0 when it could be read."""
    parser = Parser("diagnose", "Recognise known failures in a log and say what to do about them.")
    parser.add_argument("log", nargs="?", metavar="LOGFILE", help="any log, or - (default: the cache's newest)")
    parser.add_argument("--json", type=user_path, metavar="FILE", help="also write the findings as JSON")
    parser.add_argument("--cache", type=user_path, metavar="DIR", help="whose newest log is read")
    options = parser.parse_args(arguments)
    path = (
        None if options.log == "-" else user_path(options.log) if options.log else newest_log(open_cache(options).root)
    )
    with _opened(path) as stream:
        diagnosis = diagnose(stream)
    if not options.log:
        console.note(f"reading {path}")
    if diagnosis.slow:
        console.note("Hyperscan is not installed here: the answer is the same, a large log only takes longer")
    show(diagnosis, str(path or "standard input"), console)
    if options.json:
        write_json(options.json, as_json(diagnosis.findings))
    return 0


if __name__ == "__main__":
    run(main)
