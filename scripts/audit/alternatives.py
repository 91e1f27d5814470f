"""Libraries of which a program loads one: a shared object per CUDA version, or per GPU generation.

bitsandbytes brings `libbitsandbytes_cuda118.so` to `..._cuda132.so` and loads the one of torch's CUDA; sgl-kernel
brings `sm90/common_ops` and `sm100/common_ops`. Libraries are alternatives when their paths differ in such a number
only. Which one is loaded the wheel does not say: it is taken to be the newest that the driver's CUDA runs, else the
next one that does.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field

from scripts.audit.coverage import Library
from scripts.cuda.drivers import Target, numbers

_CUDA = re.compile(r"(?<![a-z0-9])(?:cuda|cu)[-_]?(\d{2,3})(?!\d)")
_SM = re.compile(r"(?<![a-z0-9])sm_?(\d{2,3})[af]?(?![0-9a-z])")


@dataclass(frozen=True)
class Chosen:
    """The libraries that a target loads."""

    libraries: list[Library] = field(default_factory=list)
    left_out: list[Library] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    """Which alternative is judged, in words."""


def choose_libraries(target: Target, libraries: Sequence[Library], works: Callable[[Library], bool]) -> Chosen:
    """Choose one of each group of alternatives for a target; `works` says whether one would do."""
    chosen = Chosen()
    for group in _groups(libraries):
        best = group[0] if len(group) == 1 else _best(target, group, works)
        chosen.libraries.append(best)
        chosen.left_out.extend(item for item in group if item is not best)
        if len(group) > 1:
            chosen.notes.append(f"{best.member.rsplit('/', 1)[-1] if _is_cuda(best) else best.member} of {len(group)}")
    return chosen


def has_cuda_alternatives(members: Iterable[str]) -> bool:
    """Whether some of these libraries differ in a CUDA version in their paths only."""
    keys = [_CUDA.sub("cuda#", member) for member in members if _CUDA.search(member)]
    return len(set(keys)) < len(keys)


def _is_cuda(library: Library) -> bool:
    return bool(_CUDA.search(library.member))


def _groups(libraries: Sequence[Library]) -> list[list[Library]]:
    """Return the libraries in groups of alternatives; those without GPU code have none."""
    groups: defaultdict[str, list[Library]] = defaultdict(list)
    for library in libraries:
        key = library.member
        if library.judged and not library.loose:
            key = _SM.sub("sm#", _CUDA.sub("cuda#", library.member))
        groups[key].append(library)
    return list(groups.values())


def _best(target: Target, group: Sequence[Library], works: Callable[[Library], bool]) -> Library:
    order = sorted(group, key=lambda item: _preference(target, item))
    return next((item for item in order if works(item)), order[0])


def _preference(target: Target, library: Library) -> tuple[bool, float]:
    """Rank: what the target can run at all first, and of those the newest; of the others the oldest."""
    if match := _CUDA.search(library.member):
        version = _cuda(match[1])
        limit = numbers(target.cuda) if target.cuda else (99, 0)
    else:
        version = divmod(int(_SM.search(library.member)[1]), 10)  # type: ignore[index]
        limit = (target.arch.major, target.arch.minor)
    fits = version <= limit
    rank = version[0] * 100 + version[1]
    return not fits, -rank if fits else rank


def _cuda(digits: str) -> tuple[int, int]:
    """Return a CUDA version as file names write it: `128` is 12.8, `12` is any 12.x."""
    return (int(digits[:2]), int(digits[2:] or 0))
