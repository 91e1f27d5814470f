"""docs/failures.md: the failure catalogue as a page. `python -m scripts.commands.failures_page` writes it."""

from __future__ import annotations

import sys
from collections.abc import Iterable

from scripts.core.paths import ROOT
from scripts.doctor.examine import every_check
from scripts.failures.catalogue import Failure, Stage, catalogue

PAGE = ROOT / "docs" / "failures.md"


WORDS = {
    Stage.FETCH: "downloads, git, the network, the disk",
    Stage.CONFIGURE: "CMake, setup.py, the environment",
    Stage.COMPILE: "nvcc, g++, memory",
    Stage.LINK: "ld and nvlink",
    Stage.PACKAGE: "wheels, auditwheel, uploads",
    Stage.INSTALL: "pip and uv",
    Stage.RUNTIME: "imports, drivers, GPUs, servers, containers",
}
"""What fails in each stage, for those who look for it."""


def page(entries: Iterable[Failure], checked: Iterable[str] = ()) -> str:
    """Return docs/failures.md; `checked` are the ids that `doctor` looks for beforehand."""
    known, before = list(entries), set(checked)
    lines = [
        "# Failures, their causes and what to do",
        "",
        "`nox -s diagnose -- LOGFILE` finds these entries in a log: a text file, `.gz`, `.xz`, `.bz2`, `.zst`, `.tar`,",
        "or the `.zip` of all steps that GitHub gives. It reads UTF-8 and UTF-16, JSON lines, HTML and wrapped text.",
        "Entries marked *doctor* are looked for before a build ([doctor.md](doctor.md)).",
        "Search this page for a word of your message, or for the name that `diagnose` prints. Where",
        "`scripts/failures/failures.toml` names public threads, the remedy is condensed from them; the others are what",
        "the field knows, without a thread. Few were tried for this project.",
        "",
        f"| where it shows | what fails there | {len(known)} entries |",
        "|---|---|---|",
    ]
    known.sort(key=lambda item: item.id.lower())
    stages = {stage: [item for item in known if item.stage is stage] for stage in Stage}
    lines += [f"| [{stage.value}](#{stage.value}) | {WORDS[stage]} | {len(items)} |" for stage, items in stages.items()]
    for stage, items in stages.items():
        lines += ["", f"## {stage.value}"]
        for item in items:
            lines += ["", *_section(item, doctor=item.id in before)]
    lines += ["", "---", "Written by `python -m scripts.commands.failures_page` from `scripts/failures/failures.toml`."]
    return "\n".join(lines) + "\n"


def _section(item: Failure, *, doctor: bool) -> list[str]:
    """Return an entry: its heading, and what, why and do in a line each."""
    seen = " ".join(f"`` {text} ``" if "`" in text else f"`{text}`" for text in item.seen_as)
    what = f"- **{item.title}.**{' *doctor*' if doctor else ''}"
    if seen or item.symptom:
        what += f" Seen as: {seen or item.symptom + '.'}"
    return [f"### {item.id}", what, f"- Why: {item.cause}", f"- Do: {item.fix}"]


def main() -> int:
    """Write docs/failures.md."""
    PAGE.write_text(page(catalogue().values(), every_check()), encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
