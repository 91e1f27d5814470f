"""NAME.whl.trace.json: the build for Perfetto and chrome://tracing, in Chrome's trace event format.

One row per unit that ran beside others, its phases nested inside, and counters for memory and units that run.
Times are microseconds, as the format wants: "Trace Event Format", Google, 2016.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from scripts.report.timeline import Span, Timeline

PROCESS = 1


def trace(timeline: Timeline, title: str) -> dict[str, Any]:
    """Return a trace as JSON-able data."""
    events = [_named("process_name", title, 0)]
    events += [_named("thread_name", f"unit {lane + 1}", lane + 1) for lane in range(timeline.lanes)]
    for span in timeline.units:
        events += _unit(span)
    events += [_counter("memory", "bytes", time, rss) for time, rss in timeline.memory]
    events += [_counter("units", "running", time, count) for time, count in running(timeline)]
    return {"traceEvents": events, "displayTimeUnit": "ms"}


def running(timeline: Timeline) -> Iterator[tuple[float, int]]:
    """Yield (seconds, units that run from then on)."""
    changes = sorted([(span.start, 1) for span in timeline.units] + [(span.end, -1) for span in timeline.units])
    count = 0
    for time, change in changes:
        count += change
        yield time, count


def _unit(span: Span) -> Iterator[dict[str, Any]]:
    about = {"object": span.unit, "cpu_seconds": span.cpu_seconds, "peak_mb": span.peak_mb, "cache": span.cache}
    yield _slice(span.source, "failed" if span.code else "unit", span.lane, span.start, span.end, about)
    at = span.start  # slices of a row must nest: what the clock of the sampler blurs is cut
    for phase in span.phases:
        start, end = max(phase.start, at), min(phase.end, span.end)
        if end > start:
            yield _slice(phase.phase, "phase", span.lane, start, end, {"cpu_seconds": phase.cpu_seconds})
            at = end


def _slice(name: str, kind: str, lane: int, start: float, end: float, about: dict[str, Any]) -> dict[str, Any]:
    begin = round(start * 1e6)
    times = {"ts": begin, "dur": round(end * 1e6) - begin}
    return {"name": name, "cat": kind, "ph": "X", "pid": PROCESS, "tid": lane + 1, **times, "args": about}


def _counter(name: str, key: str, time: float, value: int) -> dict[str, Any]:
    return {"name": name, "ph": "C", "pid": PROCESS, "ts": round(time * 1e6), "args": {key: value}}


def _named(what: str, name: str, lane: int) -> dict[str, Any]:
    return {"name": what, "ph": "M", "pid": PROCESS, "tid": lane, "args": {"name": name}}
