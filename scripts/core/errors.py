"""Every failure a user can meet: what happened, why, what to do, and one exit code per kind."""

from __future__ import annotations

import difflib
import errno
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import ClassVar

DOCS = "docs/errors.md"
INTERRUPTED = 130  # 128 + SIGINT, as shells report it
BROKEN_PIPE = 141  # 128 + SIGPIPE: whoever read the output has gone
BUG = 1


class WheelsmithError(Exception):
    """Base of all expected failures.

    `what` is one line; `why` the likely cause; `fix` the things to try, each a sentence or a command to
    paste; `detail` text of any length shown before the message (a compiler's output, say); `output` more of what
    the tool said, not shown, in which known failures are looked for (`detail` when empty).
    """

    exit_code: ClassVar[int] = BUG
    kind: ClassVar[str] = "error"

    def __init__(
        self,
        what: str,
        *,
        why: str = "",
        fix: str | Sequence[str] = (),
        detail: str = "",
        docs: str = "",
        output: str = "",
    ) -> None:
        super().__init__(what)
        self.what = what
        self.why = why
        self.fix = [fix] if isinstance(fix, str) else list(fix)
        self.detail = detail
        self.output = output
        self.docs = docs or f"{DOCS}#{self.kind}"


class UsageError(WheelsmithError):
    """Wrong option, recipe, arch or component: exit code 2."""

    exit_code = 2
    kind = "usage"


class DoctorError(WheelsmithError):
    """The machine cannot do what was asked: exit code 3."""

    exit_code = 3
    kind = "doctor"


class FetchError(WheelsmithError):
    """A source could not be had, or is not the pinned one: exit code 4."""

    exit_code = 4
    kind = "fetch"


class PatchError(WheelsmithError):
    """A patch does not apply: exit code 5."""

    exit_code = 5
    kind = "patch"


class ToolchainError(WheelsmithError):
    """No compiler, CUDA or torch that fits the recipe: exit code 6."""

    exit_code = 6
    kind = "toolchain"


class CompileError(WheelsmithError):
    """CMake, the compiler or the linker failed: exit code 7."""

    exit_code = 7
    kind = "compile"


class PackageError(WheelsmithError):
    """The wheel could not be made, or is not what the recipe says: exit code 8."""

    exit_code = 8
    kind = "package"


class AuditError(WheelsmithError):
    """The wheel does not hold or do what was asked of it: exit code 9."""

    exit_code = 9
    kind = "audit"


class PublishError(WheelsmithError):
    """The index did not take the wheel whole: exit code 10."""

    exit_code = 10
    kind = "publish"


class ImageError(WheelsmithError):
    """The runtime image could not be made: exit code 11."""

    exit_code = 11
    kind = "image"


class GpuError(WheelsmithError):
    """On a GPU the wheel did something wrong, or less than it should: exit code 12."""

    exit_code = 12
    kind = "gpu"


class NoGpuError(WheelsmithError):
    """Nothing was checked, for want of a GPU or of a Python with torch: exit code 13."""

    exit_code = 13
    kind = "no-gpu"


class BenchError(WheelsmithError):
    """A benchmark could not be run, or what must be equal differs."""

    exit_code = 14
    kind = "bench"


def nearest(word: str, known: Iterable[str]) -> str:
    """Return " Perhaps you meant 'x'?" for the known word nearest to `word`, or "" when none is near."""
    found = nearest_of(word, known)
    return f" Perhaps you meant {found!r}?" if found else ""


def nearest_of(word: str, known: Iterable[str]) -> str:
    """Return the known word nearest to `word`, "" when none is near."""
    matches = difflib.get_close_matches(word, list(known), n=1, cutoff=0.5)
    return matches[0] if matches else ""


def a_few(names: Sequence[str], most: int = 6) -> str:
    """Return the first names and how many more there are: `a, b and 3 more`."""
    more = len(names) - most
    return ", ".join(names[:most]) + (f" and {more} more" if more > 0 else "")


_OS_CAUSES = {
    errno.ENOSPC: ("no space left on the filesystem", "free space there, or point {variable} at a larger disk"),
    errno.EDQUOT: ("the disk quota is used up", "free space there, or point {variable} at another disk"),
    errno.EACCES: ("permission denied", "make it writable for this user, or point {variable} elsewhere"),
    errno.EPERM: ("operation not permitted", "make it writable for this user, or point {variable} elsewhere"),
    errno.EROFS: ("the filesystem is mounted read-only", "point {variable} at a writable directory"),
    errno.EEXIST: ("a file is in the way", "remove that file, or point {variable} elsewhere"),
    errno.ENAMETOOLONG: ("the path is too long for the filesystem", "point {variable} at a shorter path"),
    errno.ENOTDIR: ("part of the path is a file, not a directory", "remove that file, or point {variable} elsewhere"),
}


def from_os_error(
    kind: type[WheelsmithError], error: OSError, *, doing: str, path: Path, variable: str = "WHEELSMITH_CACHE"
) -> WheelsmithError:
    """Turn an OSError met while `doing` something at `path` into an error of the stage's own `kind`."""
    cause, fix = _OS_CAUSES.get(error.errno or 0, (error.strerror or str(error), "check the path and its filesystem"))
    return kind(f"{doing} failed: {path}", why=cause, fix=fix.format(variable=variable))
