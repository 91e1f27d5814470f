"""The failure catalogue: how each known failure looks in a log, why it happens, what to do.

`failures.toml` beside this file holds the entries. Their ids are used by `diagnose`, by the checks of `doctor`, and as
anchors of docs/failures.md, which `python -m scripts.commands.failures_page` writes. Most messages were
seen in public issue threads (`references`); entries without references are wheelsmith's own.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Mapping
from enum import Enum
from functools import cache
from pathlib import Path

from pydantic import Field

from scripts.core.models import Model

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

DATA = Path(__file__).with_name("failures.toml")


class Stage(str, Enum):
    """Where a failure shows, in the order in which a wheel is made and used."""

    FETCH = "fetch"
    CONFIGURE = "configure"
    COMPILE = "compile"
    LINK = "link"
    PACKAGE = "package"
    INSTALL = "install"
    RUNTIME = "runtime"


class Failure(Model):
    """One entry."""

    id: str = Field(pattern=r"^[a-zA-Z0-9-]+$")
    stage: Stage
    order: int = Field(default=1, ge=0, le=3)
    """0: names a cause by itself (memory, disk, driver); 1: an error; 2: often survived; 3: the trace of another."""
    recoverable: bool = False
    """Tools say this and go on: it is not reported when the log ends well."""
    lasting: bool = False
    """It counts although the log goes on and ends well: what was left out, what was swapped."""
    title: str
    cause: str
    fix: str
    symptom: str = ""
    """How to know it where no line of a log shows it."""
    patterns: tuple[str, ...] = ()
    """Regular expressions, each of which is enough; `\\s+` may cross a line's end. Alternatives stand in groups."""
    over: tuple[str, ...] = ()
    """Less specific entries that give way on the same line."""
    seen_as: tuple[str, ...] = ()
    """Pieces of real messages."""
    references: tuple[str, ...] = ()
    """Public threads: `owner/repository#number`."""

    @property
    def link(self) -> str:
        """Where the entry is explained."""
        return f"docs/failures.md#{self.id.lower()}"


@cache
def catalogue() -> Mapping[str, Failure]:
    """Return all entries by id, in the order of the file."""
    rows = tomllib.loads(DATA.read_text(encoding="utf-8"))["failure"]
    return {row["id"]: Failure.model_validate(row) for row in rows}


def literal(pattern: str) -> str:
    """Return the longest text, in lower case, that every match of a pattern contains: what to look for first.

    Only what stands outside groups and is not repeated counts; "" when there is none.
    """
    plain = re.sub(r"^\(\?i\)", "", pattern)
    runs: list[str] = []
    depth, run = 0, ""
    for token in re.findall(r"\\.|\[(?:\\.|[^\]])*\]|[*+?]\??|\{\d*,?\d*\}|.", plain, re.DOTALL):
        if token[0] in "*+?{":
            run = run[:-1] if token[0] != "+" else run
            runs.append(run)
            run = ""
            continue
        depth += {"(": 1, ")": -1}.get(token, 0)
        character = token[1:] if token[0] == "\\" and not token[1:].isalnum() else token
        if depth == 0 and len(character) == 1 and token not in {")", ".", "^", "$", "|"}:
            run += character
        else:
            runs.append(run)
            run = ""
    return str(max([*runs, run], key=len)).lower()
