"""The wheels that are to be published: found, their digests known, their audits looked at."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from scripts.audit.models import AuditReport
from scripts.audit.reasons import failures, in_short
from scripts.core.cache import Cache
from scripts.core.errors import PackageError, PublishError, UsageError, from_os_error
from scripts.core.files import digest, file_sha256, install_file, write_atomic, write_json
from scripts.downloads.access import Access
from scripts.formats.wheel import open_wheel, wheel_name
from scripts.report.models import BuildReport, report_of
from scripts.report.page import report_page
from scripts.report.trace import trace

_SETTLED = 1e9  # nanoseconds that a file must not have changed before its digest is remembered


@dataclass(frozen=True)
class Local:
    """A wheel on this machine."""

    path: Path
    sha256: str
    size: int
    """Bytes."""
    report: BuildReport | AuditReport | None
    """NAME.whl.report.json: of the build, or of `nox -s audit -- --json`; None when there is none about these bytes."""
    unread: str = ""
    """Why there is a report and it could not be read; "" mostly."""

    @property
    def audit(self) -> AuditReport | None:
        """The audit inside the report."""
        return self.report.audit if isinstance(self.report, BuildReport) else self.report

    @property
    def build(self) -> BuildReport | None:
        """The report of the build; None when there is none, or an audit's alone."""
        return self.report if isinstance(self.report, BuildReport) else None

    @property
    def notice(self) -> str:
        """What the recipe says people must know of this wheel."""
        return self.build.recipe.notice if self.build else ""


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
                why=audit_reasons(wheel),
                fix=[*_remedies(wheel), "publish it anyway: --no-audit"],
            )
        if problem:
            why = f": {reasons}" if (reasons := audit_reasons(wheel)) else ""
            access.console.warn(f"{path.name} is left out: {problem}{why} (--no-audit takes it anyway)")
        else:
            found.append(wheel)
    return found


def audit_problem(wheel: Local) -> str:
    """Return why a wheel may not be published without --no-audit, "" when it may."""
    if wheel.audit is None:
        return wheel.unread or "it has no audit report about these bytes"
    return "" if wheel.audit.ok else "its audit did not pass"


def audit_reasons(wheel: Local) -> str:
    """Return why its audit did not pass, in short; "" when it passed or there is none."""
    return in_short(failures(wheel.audit)) if wheel.audit and not wheel.audit.ok else ""


def _remedies(wheel: Local) -> list[str]:
    """Return what to do about a wheel that may not be published. The report of a build is never overwritten."""
    audit = f"nox -s audit -- {wheel.path}"
    if wheel.audit is None:
        return [f"{audit} --json {report_path(wheel.path)}"]
    again = f"audit it for the GPUs it is for: {audit} --target GPU --json {report_path(wheel.path)}"
    return [f"see all of it: {audit}", *([] if wheel.build else [again])]


def read_local(path: Path, cache: Cache) -> Local:
    """Look at a wheel: name, table of contents, digest, report. Raises AuditError when it is no whole wheel."""
    wheel_name(path)
    with open_wheel(path):
        pass
    sha256 = known_sha256(path, cache)
    report, unread = _report(path, sha256)
    return Local(path, sha256, path.stat().st_size, report, unread)


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


def _report(path: Path, sha256: str) -> tuple[BuildReport | AuditReport | None, str]:
    """Return the report beside a wheel when it is about these bytes, and else why it could not be read."""
    try:
        text = report_path(path).read_bytes()
    except OSError:
        return None, ""
    try:
        if audit := _audit_of(text):
            return (audit, "") if audit.sha256 == sha256 else (None, "")
        report = report_of(text, report_path(path).name)
    except UsageError as error:
        return None, f"{error.what} ({error.why})"
    return (report, "") if report.wheel.sha256 == sha256 else (None, "")


def _audit_of(text: bytes) -> AuditReport | None:
    """Return the report of `nox -s audit`, None for other text."""
    try:
        return AuditReport.model_validate_json(text)
    except ValidationError:
        return None


def report_path(wheel: Path) -> Path:
    """Return where the report of a wheel is: `NAME.whl.report.json`."""
    return wheel.with_name(wheel.name + ".report.json")


def enter(wheel: Path, report: BuildReport, wheelhouse: Path) -> Path:
    """Put the reports and then the wheel into the wheelhouse, each by rename: a wheel there always has its report.

    Raises PackageError.
    """
    final = wheelhouse / wheel.name
    try:
        write_json(report_path(final), report.data())
        write_atomic(final.with_name(final.name + ".report.html"), report_page(report).encode())
        if report.timeline:
            events = trace(report.timeline, final.name)
            write_atomic(final.with_name(final.name + ".trace.json"), json.dumps(events).encode())
    except OSError as error:
        raise from_os_error(PackageError, error, doing="writing", path=wheelhouse, variable="--wheelhouse") from error
    install_file(wheel, final, kind=PackageError, variable="--wheelhouse")
    return final


def read_report(wheel: Path) -> BuildReport | None:
    """Return the report of a wheel when both are whole: readable, and about this very file. Else None."""
    try:
        report = report_of(report_path(wheel).read_bytes(), wheel.name)
        return report if report.wheel.sha256 == file_sha256(wheel) else None
    except (OSError, UsageError):
        return None


def find_built(wheelhouse: Path, build: str, recipe_digest: str) -> tuple[Path, BuildReport] | None:
    """Return the wheel (and its report) that this recipe's build has left in the wheelhouse, if it is whole.

    A wheel is hashed only when its report is of this build.
    """
    for path in sorted(wheelhouse.glob("*.whl")):
        try:
            report = report_of(report_path(path).read_bytes(), path.name)
        except (OSError, UsageError):
            continue
        mine = (report.build, report.recipe.digest) == (build, recipe_digest)
        if mine and report.wheel.sha256 == file_sha256(path):
            return path, report
    return None
