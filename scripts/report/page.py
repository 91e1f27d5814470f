"""NAME.whl.report.html: how a wheel was built and what is inside, one page that loads nothing from elsewhere.

Made from the JSON report alone: this module says what is shown, page.html how. Figures carry their exact values in
`data-` attributes, for tests and for scripts.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from typing import Any

from scripts.core.console import human_bytes, human_seconds
from scripts.core.html import render
from scripts.report.drawings import (
    HEIGHT,
    ROW,
    WIDTH,
    bars,
    gantt_height,
    legend,
    memory_path,
    peak,
    phase_class,
    ticks,
)
from scripts.report.models import BuildReport, ComponentFacts
from scripts.report.timeline import Span, Timeline

TEMPLATE = "report/page.html"
MOST_EXPENSIVE = 20


def report_page(report: BuildReport) -> str:
    """Return the page of a report."""
    timeline = report.timeline or Timeline()
    first = sorted(timeline.units, key=lambda span: -span.cpu_seconds)[:MOST_EXPENSIVE]
    archs = list(dict.fromkeys(arch for item in report.components for arch in item.bytes_per_arch))
    return render(
        TEMPLATE,
        title=report.wheel.name,
        report=report,
        summary=list(_summary(report)),
        stages=[
            (name, human_seconds(row.seconds), human_bytes(row.peak_bytes) if row.peak_bytes else "")
            for name, row in report.stages.items()
        ],
        timeline=_timeline(timeline),
        expensive=[_unit(span) for span in first],
        cache=_cache(report, timeline),
        archs=archs,
        sizes=[_sizes(item, archs) for item in report.components],
    )


def _summary(report: BuildReport) -> Iterator[tuple[str, str]]:
    wheel = report.wheel
    yield "size", f"{human_bytes(wheel.size)} ({wheel.size:,} bytes)"
    yield "sha256", wheel.sha256
    yield "version", wheel.version
    if report.torch:
        yield "for", f"torch {report.torch.version}, CUDA {report.torch.cuda}, {wheel.platform}"
    yield "archs", report.archs
    if report.recipe.name:
        yield "recipe", report.recipe.name
    if report.recipe.notice:
        yield "note", report.recipe.notice
    if report.slimmed_from:
        yield "cut out of", report.slimmed_from.name
    if report.wheelsmith:
        commit = f" ({report.wheelsmith.commit})" if report.wheelsmith.commit else ""
        yield "built by", f"wheelsmith {report.wheelsmith.version}{commit}"


def _timeline(timeline: Timeline) -> dict[str, Any]:
    """Return the text and the drawings' geometry."""
    cpu = sum(span.cpu_seconds for span in timeline.units)
    busy = sum(span.end - span.start for span in timeline.units)
    share = busy / max(timeline.seconds * timeline.lanes, 1e-9)
    return {
        "text": (
            f"{len(timeline.units)} compiler calls, {human_seconds(timeline.seconds)}, {cpu:,.0f} core-seconds; "
            f"{timeline.lanes} side by side at most, their rows filled to {share:.0%}."
        ),
        "legend": legend(timeline),
        "width": WIDTH,
        "height": gantt_height(timeline),
        "row": ROW,
        "lanes": timeline.lanes,
        "bars": bars(timeline),
        "ticks": ticks(timeline),
        "memory_height": HEIGHT,
        "memory_path": memory_path(timeline),
        "peak": peak(timeline),
    }


def _unit(span: Span) -> dict[str, Any]:
    total = sum(span.costs.values()) or 1.0
    wall, memory = f"{span.end - span.start:.1f} s", human_bytes(span.peak_mb * 1e6)
    return {
        "cells": (span.source, f"{span.cpu_seconds:.1f} s", wall, memory, _costliest(span)),
        "phases": [
            {"kind": phase_class(phase), "share": f"{100 * cost / total:.1f}", "told": f"{phase} {cost:.1f} s"}
            for phase, cost in span.costs.items()
        ],
    }


def _costliest(span: Span) -> str:
    total = sum(span.costs.values())
    if not total:
        return "cache" if span.cache == "hit" else "not seen"
    phase, seconds = next(iter(span.costs.items()))
    return f"{phase} ({seconds / total:.0%})"


def _cache(report: BuildReport, timeline: Timeline) -> dict[str, Any]:
    counts = Counter(span.cache or "off" for span in timeline.units if not span.code)
    rows = [(name, str(counts[name])) for name in ("hit", "miss", "failed", "off") if counts[name]]
    said = vars(report.compiler_cache) if report.compiler_cache else {}
    rows += [(name.replace("_", " "), _value(value)) for name, value in said.items()]
    total = sum(counts.values())
    share = counts["hit"] / max(total, 1)
    return {"rows": rows, "share": f"{share:.4f}", "text": f"{counts['hit']} of {total} units came from the cache."}


def _value(value: object) -> str:
    if isinstance(value, Mapping):
        return ", ".join(f"{key}: {item}" for key, item in value.items())
    if isinstance(value, list):
        return "; ".join(str(item) for item in value)
    return str(value)


def _sizes(item: ComponentFacts, archs: list[str]) -> tuple[str, ...]:
    bytes_per_arch = item.bytes_per_arch
    sizes = (human_bytes(bytes_per_arch[arch]) if arch in bytes_per_arch else "" for arch in archs)
    return (item.name, human_bytes(item.size), *sizes, str(len(item.operators)))
