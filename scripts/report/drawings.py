"""Drawings of the build report as inline SVG: the timeline of units, and memory over time."""

from __future__ import annotations

from collections.abc import Iterator
from html import escape

from scripts.compile.sampling import Phase
from scripts.core.console import human_bytes, human_seconds
from scripts.report.timeline import Span, Timeline

WIDTH, ROW, LEFT, AXIS = 1160, 26, 40, 18  # user units of the drawing
HEIGHT = 160  # of the memory curve
_CLASSES = {
    Phase.PREPROCESS.value: "preprocess",
    Phase.CUDAFE.value: "cudafe",
    Phase.CICC.value: "cicc",
    Phase.PTXAS.value: "ptxas",
    Phase.HOST.value: "host",
    Phase.FATBINARY.value: "fatbinary",
}
_STEPS = (1, 2, 5, 10, 15, 30, 60, 120, 300, 600, 900, 1800, 3600, 7200, 14400, 28800)  # seconds between grid lines


def phase_class(phase: str) -> str:
    """Return the CSS class of a phase."""
    return _CLASSES.get(phase, "other")


def legend(timeline: Timeline) -> str:
    """Return the key to the colours that occur: units by the phase that cost most."""
    seen = dict.fromkeys((_class(span), _label(span)) for span in timeline.spans)
    return f'<p class="key">{"".join(f"<i class={kind}></i>{escape(label)}" for kind, label in seen)}</p>'


def gantt(timeline: Timeline) -> str:
    """Return the units as bars: a row per unit that ran beside others, coloured by the phase that cost most."""
    height = timeline.lanes * ROW + AXIS
    bars = "".join(_bar(span, timeline) for span in timeline.spans)
    names = "".join(f'<text x="0" y="{lane * ROW + 17}">{lane + 1}</text>' for lane in range(timeline.lanes))
    return f'<svg id="gantt" viewBox="0 0 {WIDTH} {height}">{_grid(timeline, height)}{names}{bars}</svg>'


def _bar(span: Span, timeline: Timeline) -> str:
    x, end = _x(span.start, timeline), _x(span.end, timeline)
    width = max(end - x, 0.5)
    y = span.lane * ROW
    told = (
        f"{span.source}: {span.end - span.start:.1f} s, {span.cpu_seconds:.1f} s CPU, {human_bytes(span.peak_mb * 1e6)}"
    )
    phases = ", ".join(f"{name} {seconds:.1f} s" for name, seconds in span.costs.items())
    text = span.source.rsplit("/", 1)[-1]
    label = (
        f'<text x="{x + 3:.1f}" y="{y + 16}" style="fill:#fff">{escape(text)}</text>' if width > 7 * len(text) else ""
    )
    return (
        f'<g><rect class="{_class(span)}" x="{x:.2f}" y="{y + 2}" width="{width:.2f}" height="{ROW - 4}" rx="2" '
        f'data-unit="{escape(span.source)}" data-start="{span.start}" data-seconds="{span.end - span.start:.2f}">'
        f"<title>{escape(told)}{escape('; ' + phases if phases else '')}</title></rect>{label}</g>"
    )


def _class(span: Span) -> str:
    if span.code:
        return "failed"
    return "hit" if span.cache == "hit" else phase_class(next(iter(span.costs), ""))


def _label(span: Span) -> str:
    if span.code:
        return "failed"
    return "from the cache" if span.cache == "hit" else next(iter(span.costs), "phases not seen")


def memory_curve(timeline: Timeline) -> str:
    """Return memory of all processes over time as a filled curve."""
    peak = max([rss for _, rss in timeline.memory], default=0) or 1
    points = [(_x(time, timeline), HEIGHT * (1 - rss / peak)) for time, rss in timeline.memory]
    path = " ".join(f"L{x:.1f} {y:.1f}" for x, y in points)
    left, right = points[0][0], points[-1][0]
    return (
        f'<svg id="memory" viewBox="0 0 {WIDTH} {HEIGHT + AXIS}" data-peak="{peak}">{_grid(timeline, HEIGHT + AXIS)}'
        f'<path class="memory" d="M{left:.1f} {HEIGHT} {path} L{right:.1f} {HEIGHT} Z"/>'
        f'<text x="0" y="12">{human_bytes(peak)}</text></svg>'
    )


def _x(time: float, timeline: Timeline) -> float:
    return LEFT + (WIDTH - LEFT) * time / max(timeline.seconds, 1e-9)


def _grid(timeline: Timeline, height: int) -> str:
    return "".join(
        f'<line class="grid" x1="{_x(time, timeline):.1f}" x2="{_x(time, timeline):.1f}" y1="0" y2="{height - AXIS}"/>'
        f'<text x="{_x(time, timeline):.1f}" y="{height - 4}">{human_seconds(time)}</text>'
        for time in _ticks(timeline.seconds)
    )


def _ticks(seconds: float) -> Iterator[int]:
    """Yield at most 13 times for grid lines."""
    step = next((step for step in _STEPS if seconds / step <= 12), max(_STEPS[-1], int(seconds / 12) + 1))
    yield from range(0, int(seconds) + 1, step)
