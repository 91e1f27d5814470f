"""What went wrong? Known failures in any log, and what to do about them (docs/failures.md lists them all)."""

from __future__ import annotations

import sys
import zlib
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
from scripts.failures.recognise import Diagnosis, Finding, diagnose


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
    if path is None:
        yield sys.stdin.buffer
        return
    try:
        with path.open("rb") as file:
            yield file
    except (OSError, EOFError, zlib.error) as error:
        names = [item.name for item in path.parent.iterdir()] if path.parent.is_dir() else []
        raise UsageError(
            f"{path} cannot be read: {getattr(error, 'strerror', None) or error}.{nearest(path.name, names)}",
            fix="give a log file, .gz too, or - for standard input",
        ) from error


def show(diagnosis: Diagnosis, name: str, console: Console) -> None:
    """Print a diagnosis: each known failure with its line, why, and what to do."""
    for index, finding in enumerate(diagnosis.findings):
        entry = catalogue()[finding.id]
        console.result(f"{'' if not index else chr(10)}{finding.id}: {entry.title}")
        console.result(f"  line {finding.line}: {finding.text}")
        for label, text in (("why", entry.cause), ("fix", entry.fix), ("see", entry.link)):
            console.result(f"  {label}: {text}")
    if diagnosis.findings:
        return
    if diagnosis.error is None or diagnosis.ended_well:
        console.result(f"{name}: no failure is seen")
        return
    console.result(f"{name}: a failure that the catalogue does not know")
    console.result(f"  line {diagnosis.error.line}: {diagnosis.error.text}")
    console.result("  that is the first line that looks like an error; what follows is often only its consequence")


def as_json(findings: Iterable[Finding]) -> list[Mapping[str, object]]:
    """Return findings as a JSON-able list of {id, stage, line, text}."""
    return [asdict(item) for item in findings]


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
    show(diagnosis, str(path or "standard input"), console)
    if options.json:
        write_json(options.json, as_json(diagnosis.findings))
    return 0


if __name__ == "__main__":
    run(main)
