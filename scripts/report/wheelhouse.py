"""The wheels that are to be published: found, their digests known, their audits looked at."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from scripts.core.cache import Cache
from scripts.core.errors import PackageError, PublishError, UsageError, from_os_error
from scripts.core.files import digest, file_sha256, install_file, write_atomic, write_json
from scripts.downloads.access import Access
from scripts.formats.wheel import open_wheel, wheel_name
from scripts.report.page import report_page
from scripts.report.timeline import Timeline
from scripts.report.trace import trace

SCHEMA = 1

_SETTLED = 1e9  # nanoseconds that a file must not have changed before its digest is remembered


@dataclass(frozen=True)
class Local:
    """A wheel on this machine."""

    path: Path
    sha256: str
    size: int
    """Bytes."""
    report: dict[str, Any] | None
    """NAME.whl.report.json: of the build, or of `nox -s audit -- --json`; None when there is none about these bytes."""

    @property
    def audit(self) -> dict[str, Any] | None:
        """The audit inside the report."""
        if self.report is None:
            return None
        found = self.report.get("audit") if "schema" in self.report else self.report
        return found if isinstance(found, dict) and isinstance(found.get("ok"), bool) else None

    @property
    def notice(self) -> str:
        """What the recipe says people must know of this wheel."""
        recipe = (self.report or {}).get("recipe")
        return str(recipe.get("notice") or "") if isinstance(recipe, dict) else ""


def find_wheels(named: Sequence[Path], wheelhouse: Path, access: Access, *, audit: bool) -> list[Local]:
    """Return the wheels named, or those of the wheelhouse whose audit passed (with `audit` False: all).

    Raises UsageError for a file that is not there, AuditError for one that is no wheel, PublishError for a named
    wheel whose audit did not pass or is missing.
    """
    for path in named:
        if not path.is_file():
            raise UsageError(f"{path} is not there", fix="name wheels, or none for all of the wheelhouse")
    found = []
    for path in named or sorted(wheelhouse.glob("*.whl")):
        wheel = read_local(path, access.cache)
        problem = audit_problem(wheel) if audit else ""
        if problem and named:
            raise PublishError(
                f"{path.name}: {problem}",
                fix=[f"nox -s audit -- {path} --json {report_path(path)}", "publish it anyway: --no-audit"],
            )
        if problem:
            access.console.warn(f"{path.name} is left out: {problem} (--no-audit takes it anyway)")
        else:
            found.append(wheel)
    return found


def audit_problem(wheel: Local) -> str:
    """Return why a wheel may not be published without --no-audit, "" when it may."""
    if wheel.audit is None:
        return "it has no audit report about these bytes"
    return "" if wheel.audit["ok"] else "its audit did not pass"


def read_local(path: Path, cache: Cache) -> Local:
    """Look at a wheel: name, table of contents, digest, report. Raises AuditError when it is no whole wheel."""
    wheel_name(path)
    with open_wheel(path):
        pass
    sha256 = known_sha256(path, cache)
    return Local(path, sha256, path.stat().st_size, _report(path, sha256))


def known_sha256(path: Path, cache: Cache) -> str:
    """Return a file's sha256; it is read once, and again only after its size, times or inode have changed."""
    before = _identity(path)
    place = cache.place("digests", digest(before))
    try:
        if len(known := place.read_text().strip()) == 64:
            return known
    except OSError:
        pass
    sha256 = file_sha256(path)
    if before == _identity(path) and time.time_ns() - path.stat().st_ctime_ns > _SETTLED:
        write_atomic(place, f"{sha256}\n".encode())
    return sha256


def _identity(path: Path) -> list[Any]:
    stat = path.stat()
    return [os.fspath(path.resolve()), stat.st_dev, stat.st_ino, stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns]


def _report(path: Path, sha256: str) -> dict[str, Any] | None:
    """Return the report beside a wheel when it is about these bytes."""
    try:
        report = json.loads(report_path(path).read_text())
        about = report["wheel"]["sha256"] if "schema" in report else report["sha256"]
    except (OSError, ValueError, KeyError, TypeError):
        return None
    return dict(report) if about == sha256 else None


def report_path(wheel: Path) -> Path:
    """Return where the report of a wheel is: `NAME.whl.report.json`."""
    return wheel.with_name(wheel.name + ".report.json")


def enter(wheel: Path, report: Mapping[str, Any], wheelhouse: Path) -> Path:
    """Put the reports and then the wheel into the wheelhouse, each by rename: a wheel there always has its report.

    Raises PackageError.
    """
    final = wheelhouse / wheel.name
    try:
        write_json(report_path(final), report)
        write_atomic(final.with_name(final.name + ".report.html"), report_page(report).encode())
        if report.get("timeline"):
            events = trace(Timeline.of(report["timeline"]), final.name)
            write_atomic(final.with_name(final.name + ".trace.json"), json.dumps(events).encode())
    except OSError as error:
        raise from_os_error(PackageError, error, doing="writing", path=wheelhouse, variable="--wheelhouse") from error
    install_file(wheel, final, kind=PackageError, variable="--wheelhouse")
    return final


def read_report(wheel: Path, **wanted: str) -> dict[str, Any] | None:
    """Return the report of a wheel when both are whole: readable, and about this very file. Else None.

    `wanted` are values that the report must have (`build`, `recipe_digest`): the file is hashed only then.
    """
    try:
        report = json.loads(report_path(wheel).read_text())
        found = {"build": report.get("build"), "recipe_digest": report["recipe"]["digest"]} if wanted else {}
        if report["schema"] == SCHEMA and found == wanted and report["wheel"]["sha256"] == file_sha256(wheel):
            return dict(report)
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        pass
    return None


def find_built(wheelhouse: Path, build: str, recipe_digest: str) -> tuple[Path, Mapping[str, Any]] | None:
    """Return the wheel (and its report) that this recipe's build has left in the wheelhouse, if it is whole."""
    for path in sorted(wheelhouse.glob("*.whl")):
        if report := read_report(path, build=build, recipe_digest=recipe_digest):
            return path, report
    return None
