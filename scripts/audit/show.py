"""The audit's report for people: a table on the terminal and a self-contained HTML page."""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Iterator, Sequence
from html import escape
from pathlib import PurePosixPath

from scripts.audit.models import AuditReport, Coverage, Level, TargetVerdict
from scripts.core.console import Console, human_bytes, human_seconds
from scripts.core.html import page

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
    facts = (
        f"<p>{human_bytes(report.size)}, sha256 <code>{report.sha256 or 'not a wheel'}</code>, "
        f"torch <code>{escape(report.torch or 'not named')}</code></p>"
    )
    return page(f"Audit of {report.subject}", facts + sections(report))


def sections(report: AuditReport) -> str:
    """Return the verdicts, findings and contents of a report as parts of an HTML page."""
    passed, failed = ("ok", "&#10003;"), ("error", "&#10007;")
    verdicts = "".join(
        f'<li class="{kind}">{sign} {escape(item.summary)}{_html_warnings(item)}</li>'
        for item in report.targets
        for kind, sign in [passed if item.ok else failed]
    )
    findings = "".join(
        f'<li class="{item.level.value}"><b>{item.level.value}</b> {escape(item.where)} {escape(item.text)} '
        f"<code>{item.code}</code></li>"
        for item in report.findings
    )
    return (
        f"<h2>Verdicts</h2><ul>{verdicts}</ul>{_html_matrix(report)}"
        f"<h2>Findings</h2><ul>{findings or '<li>none</li>'}</ul>{_html_contents(report)}{_html_jit(report)}"
        "<p>native: SASS of this arch. compatible: SASS of an earlier minor version. JIT: the driver compiles PTX. "
        "missing: nothing this GPU can run. Counted in containers, one per translation unit.</p>"
    )


def _html_warnings(item: TargetVerdict) -> str:
    rows = "".join(f"<li>{escape(text)}</li>" for text in item.warnings)
    return f'<ul class="warning">{rows}</ul>' if rows else ""


def _html_matrix(report: AuditReport) -> str:
    head = "".join(f"<th>{escape(_label(item))}</th>" for item in report.targets)
    rows = "".join(
        f"<tr><th>{escape(member)}</th>{''.join(_html_cell(item.components[member]) for item in report.targets)}</tr>"
        for member, component in report.components.items()
        if component.containers
    )
    return f"<h2>Components and GPUs</h2><table><tr><th>shared object</th>{head}</tr>{rows}</table>"


def _html_cell(item: Coverage) -> str:
    total = max(item.native + item.compatible + item.jit + item.missing, 1)
    parts = (("native", item.native), ("compatible", item.compatible), ("jit", item.jit))
    bars = "".join(f'<i class="{name}" style="width:{100 * count / total:.1f}%"></i>' for name, count in parts if count)
    text = f"{item.native} native, {item.compatible} compatible, {item.jit} JIT, {item.missing} missing"
    return f'<td title="{text}"><div class="bar">{bars}</div>{text}</td>'


def _html_contents(report: AuditReport) -> str:
    rows = "".join(
        f"<tr><th>{escape(member)}</th><td class=n>{human_bytes(item.size)}</td><td class=n>{item.containers}</td>"
        f"<td>{_counts(item.elf)}</td><td>{_counts(item.ptx)}</td><td>{_counts(item.ptx_versions)}</td>"
        f"<td>{_counts(item.compression)}</td><td>{escape(item.host.glibc or '-')}</td>"
        f"<td>{escape(', '.join(item.host.base_images) or '-')}</td><td>{escape(item.torch or '-')}</td></tr>"
        for member, item in report.components.items()
    )
    names = ("shared object", "size", "containers", "SASS", "PTX", "PTX ISA", "stored as", "glibc", "loads on", "torch")
    head = "".join(f"<th>{name}</th>" for name in names)
    return f"<h2>Contents</h2><table><tr>{head}</tr>{rows}</table>"


def _counts(counts: dict[str, int]) -> str:
    return escape(" ".join(f"{name}:{count}" for name, count in counts.items()))


def _html_jit(report: AuditReport) -> str:
    parts = []
    for verdict in report.targets:
        units = [(member, unit) for member, item in verdict.components.items() for unit in item.jit_units]
        if units:
            rows = "".join(
                f"<li>{escape(member)}: <code>{escape(unit.unit)}</code> {unit.arch}, PTX {unit.ptx} (CUDA {unit.cuda})"
                f"{', no kernels' if unit.kernels == 0 else ''}</li>"
                for member, unit in units
            )
            parts.append(
                f"<details><summary>{escape(_label(verdict))}: {len(units)} units</summary><ul>{rows}</ul></details>"
            )
    return f"<h2>Compiled by the driver (JIT)</h2>{''.join(parts) or '<p>nothing</p>'}"


def failures(report: AuditReport) -> list[str]:
    """Return what makes the audit fail, in words."""
    unmet = [item.summary for item in report.targets if not item.ok]
    return unmet + [f"{item.where}: {item.text}" for item in report.findings if item.level is Level.ERROR]
