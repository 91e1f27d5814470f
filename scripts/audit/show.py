"""The audit's report for people: a table on the terminal and a self-contained HTML page."""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import PurePosixPath

from scripts.audit.models import AuditReport, Coverage, TargetVerdict
from scripts.core.console import Console, human_bytes, human_seconds
from scripts.core.html import render

TEMPLATE = "audit/page.html"
MAX_SHOWN = 3  # findings of one kind on the terminal
_HEADER = "native/compatible/JIT/missing"
_UNICODE = {"ok": "✓", "no": "✗", "dash": "\u2013"}
_ASCII = {"ok": "ok", "no": "NO", "dash": "-"}


def signs() -> dict[str, str]:
    """Return the marks to print: Unicode when the terminal can show it, else ASCII."""
    try:
        "".join(_UNICODE.values()).encode(sys.stdout.encoding or "ascii")
    except (UnicodeEncodeError, LookupError):
        return _ASCII
    return _UNICODE


def show(report: AuditReport, console: Console) -> None:
    """Print the report: contents, coverage, findings, and the verdicts last, where people look."""
    mark = signs()
    console.table(
        "audit",
        [
            ("subject", report.subject),
            ("size", f"{human_bytes(report.size)} in {len(report.components)} shared objects"),
            *([("torch", report.torch)] if report.torch else []),
            ("time", human_seconds(report.seconds)),
        ],
    )
    contents = list(_contents(report, mark["dash"]))
    if contents:
        console.grid(["file", "containers", "SASS", "PTX", "PTX version", "GPU code", "torch"], contents)
    if report.targets and contents:
        for columns, rows in _matrix(report, mark, console.width):
            console.grid(columns, rows)
    for text in _findings(report):
        console.result(text)
    for verdict in report.targets:
        console.result(f"{mark['ok'] if verdict.ok else mark['no']} {verdict.summary}")
        for warning in verdict.warnings:
            console.result(f"  warning: {verdict.gpu}: {warning}")


def _findings(report: AuditReport) -> Iterator[str]:
    """Yield the findings as lines; of many with the same code the first few."""
    counts = Counter(item.code for item in report.findings)
    shown: Counter[str] = Counter()
    for item in report.findings:
        shown[item.code] += 1
        if shown[item.code] > MAX_SHOWN and counts[item.code] > MAX_SHOWN + 1:
            if shown[item.code] == MAX_SHOWN + 1:
                yield f"{item.level.value}: {counts[item.code] - MAX_SHOWN} more of this kind (--json) [{item.code}]"
            continue
        where = f"{item.where}: " if item.where else ""
        yield f"{item.level.value}: {where}{item.text} [{item.code}]"


def _label(verdict: TargetVerdict) -> str:
    return f"{verdict.gpu}@{verdict.driver}" if verdict.driver else verdict.gpu


def _contents(report: AuditReport, dash: str) -> Iterator[list[str]]:
    for member, item in report.components.items():
        if item.containers:
            yield [
                _short(member, report),
                str(item.containers),
                " ".join(f"{arch}:{count}" for arch, count in item.elf.items()) or dash,
                " ".join(f"{arch}:{count}" for arch, count in item.ptx.items()) or dash,
                " ".join(item.ptx_versions) or dash,
                human_bytes(item.device_size),
                item.torch.replace(" (stable ABI)", " stable").split(" (")[0] if item.kind == "library" else item.kind,
            ]


def _matrix(report: AuditReport, mark: dict[str, str], width: int) -> Iterator[tuple[list[str], list[list[str]]]]:
    """Yield tables with a row per target; libraries go on in a further table where the terminal is too narrow."""
    labels = [_label(item) for item in report.targets]
    first = max(len(_HEADER), *map(len, labels))
    columns: list[list[str]] = []
    used = first
    for member, component in report.components.items():
        if not component.containers or component.kind in {"archive", "object"}:
            continue
        cells = [_judged_cell(verdict, member, mark["dash"]) for verdict in report.targets]
        column = [_stem(member), *cells]
        wide = max(map(len, column)) + 2
        if columns and used + wide > width:
            yield _table(labels, columns)
            columns, used = [], first
        columns.append(column)
        used += wide
    if columns:
        yield _table(labels, columns)


def _stem(member: str) -> str:
    name = PurePosixPath(member).name
    return name if name.startswith("*") else name.split(".")[0]


def _table(labels: Sequence[str], columns: Sequence[Sequence[str]]) -> tuple[list[str], list[list[str]]]:
    header = [_HEADER, *(column[0] for column in columns)]
    return header, [[label, *(column[index + 1] for column in columns)] for index, label in enumerate(labels)]


def _short(member: str, report: AuditReport) -> str:
    """Return the file name, or the whole path where two files are called the same."""
    name = PurePosixPath(member).name
    return member if sum(PurePosixPath(other).name == name for other in report.components) > 1 else name


def _judged_cell(verdict: TargetVerdict, member: str, dash: str) -> str:
    """Return a cell of the table, in parentheses where the target loads another library instead."""
    text = _cell(verdict.components[member], dash)
    return f"({text})" if member in verdict.alternatives else text


def _cell(item: Coverage, dash: str) -> str:
    if not item.native + item.compatible + item.jit:
        return dash
    return f"{item.native}/{item.compatible}/{item.jit}/{item.missing}"


def html(report: AuditReport) -> str:
    """Return the report as one HTML page that loads nothing from elsewhere."""
    return render(TEMPLATE, title=f"Audit of {report.subject}", audit=report)
