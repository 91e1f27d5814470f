"""Why an audit fails, in words: whole, and short enough for a message."""

from __future__ import annotations

from collections.abc import Sequence

from scripts.audit.models import AuditReport, Level

FIRST = 3
_LONGEST = 120  # characters of one reason in a message


def failures(report: AuditReport) -> list[str]:
    """Return what makes the audit fail, in words."""
    return [item.summary for item in report.targets if not item.ok] + errors(report)


def errors(report: AuditReport) -> list[str]:
    """Return what is wrong with the wheel itself, whatever the GPU."""
    found = [item for item in report.findings if item.level is Level.ERROR]
    return [f"{item.where}: {item.text}" if item.where else item.text for item in found]


def in_short(reasons: Sequence[str]) -> str:
    """Return the first three reasons, none longer than 120 characters, and how many more there are."""
    first = [text if len(text) <= _LONGEST else text[: _LONGEST - 1].rstrip() + "…" for text in reasons[:FIRST]]
    more = len(reasons) - len(first)
    return "; ".join(first) + (f"; and {more} more" if more else "")
