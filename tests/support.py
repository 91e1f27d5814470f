"""What several tests share: strategies and small makers of real things."""

from __future__ import annotations

from hypothesis import strategies as st

from scripts.archs import TABLE, Arch


@st.composite
def archs(draw: st.DrawFn) -> Arch:
    """Return an arch that exists, with any suffix it may have."""
    row = draw(st.sampled_from(TABLE))
    major, minor = (int(part) for part in row.number.split("."))
    suffixes = [""] + ["a"] * (major >= 9) + ["f"] * (major >= 10)
    return Arch(major, minor, draw(st.sampled_from(suffixes)), draw(st.booleans()))
