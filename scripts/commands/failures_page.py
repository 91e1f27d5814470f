"""docs/failures.md: the failure catalogue as a page. `python -m scripts.commands.failures_page` writes it."""

from __future__ import annotations

import sys
from collections.abc import Iterable

from scripts.commands.doctor import CHECKS
from scripts.core.paths import ROOT
from scripts.failures.catalogue import Failure, Stage, catalogue

PAGE = ROOT / "docs" / "failures.md"


def page(entries: Iterable[Failure], checked: Iterable[str] = ()) -> str:
    """Return docs/failures.md; `checked` are the ids that `doctor` looks for beforehand."""
    known, before = list(entries), set(checked)
    lines = [
        "# Failures, their causes and what to do",
        "",
        "Generated from `scripts/failures/failures.toml` by `python -m scripts.commands.failures_page`.",
        "`nox -s diagnose -- LOGFILE`",
        "finds these entries in a log; those marked *doctor* are looked for before a build ([doctor.md](doctor.md)).",
        f"{len(known)} entries. The remedies are condensed from the threads named; few were tried for this project.",
    ]
    for stage in Stage:
        lines += ["", f"## {stage.value}"]
        for item in sorted((item for item in known if item.stage is stage), key=lambda item: item.id.lower()):
            lines += ["", *_section(item, doctor=item.id in before)]
    return "\n".join(lines) + "\n"


def _section(item: Failure, *, doctor: bool) -> list[str]:
    lines = [f"### {item.id}", "", f"**{item.title}.**{' *doctor*' if doctor else ''} {item.cause}", ""]
    lines.append(f"To do: {item.fix}")
    if item.seen_as:
        lines += ["", "```text", *item.seen_as, "```"]
    elif item.symptom:
        lines += ["", f"Seen as: {item.symptom}."]
    if item.references:
        lines += ["", "Threads: " + ", ".join(item.references)]
    return lines


def main() -> int:
    """Write docs/failures.md."""
    PAGE.write_text(page(catalogue().values(), CHECKS), encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
