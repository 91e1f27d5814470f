"""The line of a log that a person would look for: the tool's own error before what other tools say of it."""

from __future__ import annotations

import re
from functools import cache
from itertools import islice

from scripts.failures.prefilter import SMALL, Prefilter, library

_ERRORS = (
    r"\berror\s*:",
    r"\berror\[",
    r"\bfatal(?: error)?\s*:",
    r"\bfailed:",
    r"^\s*failed ",
    r"\w(?:error|exception|interrupt|outofresources)(?::|$)",
    r"cmake error",
    r": \*\*\* ",
    r"command not found",
    r": not found$",
    r"\bkilled\b",
    r"exit(?: code|ed with code| status):? [1-9]",
    r"panicked at",
    r"segmentation fault",
    r"core dumped",
    r"undefined reference to",
    r"cannot find -l",
    r"##\[error\]",
    r"\bcuda_error_[a-z]",
    r"^error\s",
    r"terminate called",
    r"no space left",
)
_ERROR = re.compile("|".join(_ERRORS).encode(), re.MULTILINE | re.IGNORECASE)
_WRAPPER = re.compile(
    r"\bFAILED:|^FAILED |ninja: build stopped|: \*\*\* |subprocess-exited-with-error|originates from a subprocess"
    r"|[Ee]ngine ?[Cc]ore (?:initialization|encountered|failed|died)|EngineDeadError|EngineGenerateError"
    r"|WorkerProc|See (?:root cause|stack trace|above)|CalledProcessError|returned non-zero exit|[Ff]ailed building"
    r"|Failed to build|Could not build wheels|failed to build installable|metadata-generation-failed"
    r"|[Ee]xit(?:ed)? ?(?:with )?(?:code|status)|did not complete successfully|failed to solve|Ninja build failed"
    r"|Error (?:compiling objects|building extension)|backend returned an error|Call to `|Getting requirements to build"
    r"|Preparing metadata|Building wheel for|##\[error\]Process completed|errors? (?:detected|generated)"
    r"|compilation terminated|recipe for target|Configuring incomplete|Generate step failed|ChildFailedError|died with"
    r"|process has (?:died|terminated)|\bstopped\b|Command '\[|cmake --build|ERROR conda|The command '"
)
_SURVIVED = re.compile(
    r"\bWARN(?:ING)?\b|\bDEBUG\b|\bTRACE\b|[Ww]arning:|\bINFO\b|[Rr]etry|-- Performing Test|-- Looking for"
)
_QUOTED = re.compile(
    r"^\s*\d+ \|"  # gcc's and BuildKit's quotes
    r"|^\s*\|"
    r"|^\++ |^\[command\]|^##\[(?:group|command)\]|^Step \d+/\d+ : "
    r"|^(?:#\d+ )?\[\S* *\d+/\d+\] (?:RUN|COPY)"
)
_WARNING = re.compile(r"[:(]\d+(?:[:,]\d+)?\)?: warning\b|\bwarning #\d+|: \w*Warning: ")
WEAK, LOUD = 1, 2


def is_quoted(lines: list[str], raw: list[str], row: int) -> bool:
    """Return whether a line only quotes source code: a compiler warning, its excerpt, an echoed command.

    `lines` are without prefixes and `raw` as they stood.
    """
    if _QUOTED.search(lines[row]) or re.match(r"\s*\d* \| ", raw[row]):
        return True
    if re.search(r"[:(]\d+(?:[:,]\d+)?\)?: warning\b|\bwarning #\d+", lines[row]):
        return True
    if not raw[row][:1].isspace() and raw[row] == lines[row]:
        return False
    indented = len(raw[row]) - len(raw[row].lstrip())
    above = lines[max(0, row - 2) : row]
    return bool(above) and indented > 0 and any(_WARNING.search(line) for line in above)


def weight(line: str) -> int:
    """Return how much a line looks like the error that is looked for: LOUD, WEAK (a consequence, a warning) or 0."""
    if not _ERROR.search(line.encode("utf-8", "replace")):
        return 0
    return WEAK if _WRAPPER.search(line) or _SURVIVED.search(line) else LOUD


def is_bare(line: str) -> bool:
    """Return whether a line is the name of an exception without a message."""
    return re.fullmatch(r"[\w.]+(?:Error|Exception)", line) is not None


@cache
def _fast() -> Prefilter | None:
    hyperscan = library()
    return Prefilter(hyperscan, [f"(?i){text}" for text in _ERRORS], places=True) if hyperscan else None


def places(text: bytes, limit: int) -> list[int]:
    """Return where lines that look like errors may be, one place a line, `limit` places at most."""
    if len(text) > SMALL and (fast := _fast()):
        return [end - 1 for end in fast.ends(text, limit)]
    return [match.start() for match in islice(_ERROR.finditer(text), limit)]


def follows(text: bytes, at: int) -> bool:
    """Return whether something that looks like an error comes behind `at`."""
    return _ERROR.search(text, at) is not None
