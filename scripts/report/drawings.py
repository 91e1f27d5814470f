"""Geometry of the drawings of the build report: the timeline of units, and memory over time. drawings.html draws it."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from scripts.compile.sampling import Phase
from scripts.core.console import human_bytes
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


@dataclass(frozen=True)
class Bar:
    """A unit of the timeline; places in user units, times in seconds."""

    unit: str
    kind: str
    """CSS class: the phase that cost most, `hit` or `failed`."""
    x: str
    y: int
    width: str
    start: float
    seconds: str
    told: str
    label: str
    """The source's name where there is room for it, else ""."""
    label_x: str


def phase_class(phase: str) -> str:
    """Return the CSS class of a phase."""
    return _CLASSES.get(phase, "other")


def legend(timeline: Timeline) -> list[tuple[str, str]]:
    """Return the classes and labels that occur: units by the phase that cost most."""
    return list(dict.fromkeys((_class(span), _label(span)) for span in timeline.units))


def bars(timeline: Timeline) -> list[Bar]:
    """Return the units: a row per unit that ran beside others, coloured by the phase that cost most."""
    return [_bar(span, timeline) for span in timeline.units]


def gantt_height(timeline: Timeline) -> int:
    """Return the height of the timeline's drawing."""
    return timeline.lanes * ROW + AXIS


def _bar(span: Span, timeline: Timeline) -> Bar:
    x, end = _x(span.start, timeline), _x(span.end, timeline)
    width, seconds = max(end - x, 0.5), span.end - span.start
    told = f"{span.source}: {seconds:.1f} s, {span.cpu_seconds:.1f} s CPU, {human_bytes(span.peak_mb * 1e6)}"
    phases = ", ".join(f"{name} {cost:.1f} s" for name, cost in span.costs.items())
    name = span.source.rsplit("/", 1)[-1]
    return Bar(
        unit=span.source,
        kind=_class(span),
        x=f"{x:.2f}",
        y=span.lane * ROW,
        width=f"{width:.2f}",
        start=span.start,
        seconds=f"{seconds:.2f}",
        told=f"{told}; {phases}" if phases else told,
        label=name if width > 7 * len(name) else "",
        label_x=f"{x + 3:.1f}",
    )


def _class(span: Span) -> str:
    if span.code:
        return "failed"
    return "hit" if span.cache == "hit" else phase_class(next(iter(span.costs), ""))


def _label(span: Span) -> str:
    if span.code:
        return "failed"
    return "from the cache" if span.cache == "hit" else next(iter(span.costs), "phases not seen")


def peak(timeline: Timeline) -> int:
    """Return the most bytes that all processes had together."""
    return max([rss for _, rss in timeline.memory], default=0)


def memory_path(timeline: Timeline) -> str:
    """Return memory of all processes over time as the path of a filled curve, "" when none was measured."""
    if not timeline.memory:
        return ""
    most = peak(timeline) or 1
    points = [(_x(time, timeline), HEIGHT * (1 - rss / most)) for time, rss in timeline.memory]
    path = " ".join(f"L{x:.1f} {y:.1f}" for x, y in points)
    return f"M{points[0][0]:.1f} {HEIGHT} {path} L{points[-1][0]:.1f} {HEIGHT} Z"


def ticks(timeline: Timeline) -> list[dict[str, object]]:
    """Return at most 13 grid lines: where, and at how many seconds."""
    return [{"x": f"{_x(seconds, timeline):.1f}", "seconds": seconds} for seconds in _steps(timeline.seconds)]


def _x(time: float, timeline: Timeline) -> float:
    return LEFT + (WIDTH - LEFT) * time / max(timeline.seconds, 1e-9)


def _steps(seconds: float) -> Iterator[int]:
    step = next((step for step in _STEPS if seconds / step <= 12), max(_STEPS[-1], int(seconds / 12) + 1))
    yield from range(0, int(seconds) + 1, step)
