"""The audit's report for people: a table on the terminal and a self-contained HTML page."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from html import escape
from pathlib import PurePosixPath

from scripts.audit_models import AuditReport, Coverage, Level, TargetVerdict
from scripts.console import Console, human_bytes, human_seconds
from scripts.page import page

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
        console.grid(["shared object", "containers", "SASS", "PTX", "PTX version", "GPU code"], contents)
    if report.targets and contents:
        console.grid(
            ["native/compatible/JIT/missing", *(_label(item) for item in report.targets)], _matrix(report, mark)
        )
    for finding in report.findings:
        where = f"{finding.where}: " if finding.where else ""
        console.result(f"{finding.level.value}: {where}{finding.text} [{finding.code}]")
    for verdict in report.targets:
        console.result(f"{mark['ok'] if verdict.ok else mark['no']} {verdict.summary}")


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
            ]


def _matrix(report: AuditReport, mark: dict[str, str]) -> Iterator[list[str]]:
    for member, item in report.components.items():
        if item.containers:
            cells = (verdict.components[member] for verdict in report.targets)
            yield [_short(member, report), *(_cell(cell, mark["dash"]) for cell in cells)]


def _short(member: str, report: AuditReport) -> str:
    """Return the file name, or the whole path where two files are called the same."""
    name = PurePosixPath(member).name
    return member if sum(PurePosixPath(other).name == name for other in report.components) > 1 else name


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
        f'<li class="{kind}">{sign} {escape(item.summary)}</li>'
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
        f"<td>{escape(', '.join(item.host.base_images) or '-')}</td></tr>"
        for member, item in report.components.items()
    )
    names = ("shared object", "size", "containers", "SASS", "PTX", "PTX ISA", "stored as", "glibc", "loads on")
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
