"""NAME.whl.report.html: how a wheel was built and what is inside, one page that loads nothing from elsewhere.

Made from the JSON report alone. Figures carry their exact values in `data-` attributes, for tests and for scripts.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from html import escape
from typing import Any

from scripts.audit.models import AuditReport
from scripts.audit.show import sections
from scripts.core.console import human_bytes, human_seconds
from scripts.core.html import facts, page, table
from scripts.report.drawings import gantt, legend, memory_curve, phase_class
from scripts.report.timeline import Span, Timeline

MOST_EXPENSIVE = 20


def report_page(report: Mapping[str, Any]) -> str:
    """Return the page of a report."""
    parts = [_summary(report)]
    if report.get("timeline"):
        timeline = Timeline.of(report["timeline"])
        parts += [_stages(report), _units(timeline), _expensive(timeline), _cache(report, timeline), _memory(timeline)]
    if report.get("components"):
        parts.append(_sizes(report))
    parts.append(_origin(report))
    parts.append(f"<h2>Audit</h2>{sections(AuditReport.model_validate(report['audit']))}")
    return page(report["wheel"]["name"], "".join(parts))


def _summary(report: Mapping[str, Any]) -> str:
    wheel, recipe = report["wheel"], report["recipe"]
    rows = [
        ["size", f"{human_bytes(wheel['size'])} ({wheel['size']:,} bytes)"],
        ["sha256", f"<code>{escape(wheel['sha256'])}</code>"],
        ["version", escape(wheel["version"])],
        ["for", escape(f"torch {report['torch']['version']}, CUDA {report['torch']['cuda']}, {wheel['platform']}")],
        ["archs", escape(report["archs"])],
        ["recipe", escape(recipe["name"])],
    ]
    if recipe.get("notice"):
        rows.append(["note", escape(recipe["notice"])])
    if report.get("slimmed_from"):
        rows.append(["cut out of", escape(report["slimmed_from"]["name"])])
    return facts(rows, name="summary")


def _stages(report: Mapping[str, Any]) -> str:
    rows = [
        [escape(name), human_seconds(row["seconds"]), human_bytes(row["peak_bytes"]) if row["peak_bytes"] else ""]
        for name, row in report["stages"].items()
    ]
    return f"<h2>Stages</h2>{table(['stage', 'time', 'most memory'], rows, name='stages')}"


def _units(timeline: Timeline) -> str:
    cpu = sum(span.cpu_seconds for span in timeline.spans)
    busy = sum(span.end - span.start for span in timeline.spans)
    share = busy / max(timeline.seconds * timeline.lanes, 1e-9)
    text = (
        f"{len(timeline.spans)} compiler calls, {human_seconds(timeline.seconds)}, {cpu:,.0f} core-seconds; "
        f"{timeline.lanes} side by side at most, their rows filled to {share:.0%}."
    )
    return f"<h2>Timeline</h2><p>{text}</p>{legend(timeline)}{gantt(timeline)}"


def _expensive(timeline: Timeline) -> str:
    first = sorted(timeline.spans, key=lambda span: -span.cpu_seconds)[:MOST_EXPENSIVE]
    rows = [
        [
            escape(span.source),
            f"{span.cpu_seconds:.1f} s",
            f"{span.end - span.start:.1f} s",
            human_bytes(span.peak_mb * 1e6),
            _costliest(span),
            _phases(span),
        ]
        for span in first
    ]
    columns = ["unit", "CPU", "wall", "most memory", "phase that cost", "phases"]
    return f"<h2>The {len(first)} most expensive units</h2>{table(columns, rows, name='expensive')}"


def _costliest(span: Span) -> str:
    costs = span.costs
    if not sum(costs.values()):
        return "cache" if span.cache == "hit" else "not seen"
    phase, seconds = next(iter(costs.items()))
    return f"{escape(phase)} ({seconds / (sum(costs.values()) or 1):.0%})"


def _phases(span: Span) -> str:
    total = sum(span.costs.values()) or 1.0
    bars = "".join(
        f'<i class="{phase_class(phase)}" style="width:{100 * seconds / total:.1f}%" '
        f'title="{escape(phase)} {seconds:.1f} s"></i>'
        for phase, seconds in span.costs.items()
    )
    return f'<div class="bar">{bars}</div>'


def _cache(report: Mapping[str, Any], timeline: Timeline) -> str:
    counts = Counter(span.cache or "off" for span in timeline.spans if not span.code)
    rows = [[name, str(counts[name])] for name in ("hit", "miss", "failed", "off") if counts[name]]
    rows += [[name.replace("_", " "), _value(value)] for name, value in (report.get("compiler_cache") or {}).items()]
    total = sum(counts.values())
    share = counts["hit"] / max(total, 1)
    text = f'<p id="hits" data-share="{share:.4f}">{counts["hit"]} of {total} units came from the cache.</p>'
    return f"<h2>Compiler cache</h2>{text}{facts(rows, name='cache')}"


def _value(value: object) -> str:
    if isinstance(value, Mapping):
        return escape(", ".join(f"{key}: {item}" for key, item in value.items()))
    if isinstance(value, list):
        return escape("; ".join(str(item) for item in value))
    return escape(str(value))


def _memory(timeline: Timeline) -> str:
    if not timeline.memory:
        return ""
    peak = max(rss for _, rss in timeline.memory)
    text = f"<p>{human_bytes(peak)} at most, all processes of the compile stage together.</p>"
    return f"<h2>Memory</h2>{text}{memory_curve(timeline)}"


def _sizes(report: Mapping[str, Any]) -> str:
    archs = list(dict.fromkeys(arch for item in report["components"] for arch in item.get("bytes_per_arch", {})))
    rows = [
        [
            escape(item["name"]),
            human_bytes(item["size"]),
            *(
                human_bytes(item["bytes_per_arch"][arch]) if arch in item.get("bytes_per_arch", {}) else ""
                for arch in archs
            ),
            str(len(item["operators"])),
        ]
        for item in report["components"]
    ]
    return f"<h2>Sizes</h2>{table(['component', 'file', *archs, 'operators'], rows, name='sizes')}"


def _origin(report: Mapping[str, Any]) -> str:
    rows = [
        [
            escape(row["name"]),
            escape(row["version"]),
            f"<code>{escape(row.get('sha256') or row.get('commit', ''))}</code>",
        ]
        for row in report["sources"]
    ]
    rows += [[f"patch {escape(row['name'])}", "", f"<code>{escape(row['sha256'])}</code>"] for row in report["patches"]]
    return f"<h2>Made from</h2>{table(['what', 'version', 'sha256 or commit'], rows, name='sources')}"
