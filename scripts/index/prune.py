"""Which wheels of a static index a rule takes out: `keep=3`, `older=90d`, or a file name."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from datetime import timedelta

from packaging.version import Version

from scripts.core.errors import UsageError
from scripts.index.entry import Entry, same_wheel


@dataclass(frozen=True)
class Rule:
    """One rule; exactly one of its fields is set."""

    keep: int = 0
    """Public versions to keep, newest first, per project and variant."""
    older: timedelta | None = None
    """Age since the upload."""
    filename: str = ""

    def __str__(self) -> str:
        """Return the rule as it is typed."""
        if self.keep:
            return f"keep={self.keep}"
        return f"older={self.older.days}d" if self.older else self.filename


def parse_rule(text: str) -> Rule:
    """Read a rule. Raises UsageError."""
    if match := re.fullmatch(r"keep=([1-9]\d{0,3})", text):
        return Rule(keep=int(match[1]))
    if match := re.fullmatch(r"older=([1-9]\d{0,4})d", text):
        return Rule(older=timedelta(days=int(match[1])))
    if text.endswith(".whl"):
        return Rule(filename=text)
    raise UsageError(
        f"--prune {text!r} is not a rule",
        fix="keep=3 (newest versions per variant), older=90d (days since the upload), or a wheel's file name",
    )


Ages = Callable[[Iterable[Entry]], Mapping[str, timedelta]]


def doomed(entries: Iterable[Entry], rule: Rule, ages: Ages) -> list[Entry]:
    """Return the wheels that a rule takes out; `ages` is asked how old they are at least, for `older=` only.

    Raises UsageError for a file name that is not there.
    """
    entries = list(entries)
    if rule.filename:
        found = [entry for entry in entries if same_wheel(entry.filename, rule.filename)]
        if not found:
            raise UsageError(f"--prune: {rule.filename} is not in the index")
        return found
    if rule.older is not None:
        age = ages(entries)
        return [entry for entry in entries if age[entry.filename] > rule.older]
    variants: dict[tuple[str, str], set[Version]] = defaultdict(set)
    for entry in entries:
        variants[entry.name, entry.label].add(_public(entry))
    kept = {key: set(sorted(versions)[-rule.keep :]) for key, versions in variants.items()}
    return [entry for entry in entries if _public(entry) not in kept[entry.name, entry.label]]


def _public(entry: Entry) -> Version:
    return Version(Version(entry.version).public)
