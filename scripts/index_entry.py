"""What an index knows of a wheel: one small JSON record, written once, from which every page is made."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Sequence
from datetime import datetime, timezone
from pathlib import Path
from typing import Annotated, Literal

from packaging.utils import canonicalize_name
from packaging.version import Version
from pydantic import Field, ValidationError

from scripts.archs import TABLE, Arch
from scripts.audit_collect import audit_wheel
from scripts.audit_models import AuditReport, TargetVerdict
from scripts.drivers import Target
from scripts.errors import PublishError
from scripts.recipe import Model
from scripts.wheel_file import open_wheel, wheel_name

ENTRIES = "entries/"
FILES = "files/"
Sha256 = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]


class Served(Model):
    """A GPU generation that a wheel has code for, as the audit found it; counts are of kernel containers."""

    arch: str
    """Compute capability: `12.0`."""
    native: int
    compatible: int
    jit: int
    cuda: str
    """Lowest CUDA version whose driver runs all of it: `12.8`; "" when there is no GPU code inside."""
    driver: str
    """First Linux driver of that version; "" when the table does not know it."""


class Entry(Model):
    """A wheel of the index."""

    schema_version: Literal[1] = 1
    filename: str
    name: str = Field(pattern=r"^[a-z0-9]+(-[a-z0-9]+)*$")
    """Normalised project name."""
    version: str
    sha256: Sha256
    size: int
    """Bytes."""
    metadata_sha256: Sha256
    """Of the file METADATA, which is served beside the wheel (PEP 658)."""
    requires_python: str
    uploaded: str
    """UTC, as PEP 700 writes it: `2026-11-23T22:00:00.000000Z`."""
    torch: str
    """`==2.9.1`, "" when the wheel does not say."""
    notice: str
    """What people must know before they use it; "" mostly."""
    extras: tuple[Annotated[str, Field(pattern=r"^(\.[a-z]+)+$")], ...]
    """What lies beside the wheel, by its suffix: `.report.json`."""
    serves: tuple[Served, ...] | None
    """Per GPU generation; null when the wheel was published without an audit."""
    removed: bool = False
    """It is being taken out: no page lists it, its files go, and then this record."""

    @property
    def key(self) -> str:
        """Where the wheel is: addressed by its content, so that no other bytes can ever be there."""
        return f"{FILES}{self.sha256}/{self.filename}"

    @property
    def record(self) -> str:
        """Where this record is."""
        return entry_key(self.filename)

    @property
    def label(self) -> str:
        """The local version as a folder: `cu128-sm120`; "" without one."""
        return (Version(self.version).local or "").replace(".", "-")

    @property
    def cuda(self) -> str:
        """`cu128`, "" when the version does not say."""
        return next((part for part in self.label.split("-") if re.fullmatch(r"cu\d+", part)), "")

    @property
    def roots(self) -> list[str]:
        """Folders of the indexes that list it: all wheels, all of its CUDA, of its version, of its variant."""
        version = f"{self.name}/{Version(self.version).public}/"
        roots = ["simple/", version]
        roots += [f"{self.cuda}/"] if self.cuda else []
        return [*roots, f"{version}{self.label}/"] if self.label else roots

    def json(self) -> bytes:  # type: ignore[override]
        """Return the record's bytes."""
        return (json.dumps(self.model_dump(mode="json"), indent=1, sort_keys=True) + "\n").encode()


def entry_key(filename: str) -> str:
    """Return where the record of a wheel is."""
    return f"{ENTRIES}{filename}.json"


def read_entry(data: bytes, place: str) -> Entry:
    """Read a record of the index. Raises PublishError when it is none."""
    try:
        entry = Entry.model_validate_json(data)
        Version(entry.version)
    except (ValidationError, ValueError) as error:
        raise PublishError(
            f"{place} is not a record of this index",
            why=str(error).splitlines()[0],
            fix="delete it and publish its wheel again; nothing was changed",
        ) from error
    if entry_key(entry.filename) != place:
        raise PublishError(f"{place} is the record of {entry.filename}", fix="delete it and publish its wheel again")
    return entry


def now() -> str:
    """Return the time as PEP 700 writes it."""
    return datetime.now(timezone.utc).strftime("%Y-%m-%dT%H:%M:%S.%fZ")


def make_entry(
    wheel: Path, sha256: str, *, notice: str = "", extras: Sequence[str] = (), audit: bool = True
) -> tuple[Entry, bytes]:
    """Return a wheel's record and its METADATA; `audit` reads its GPU code for every GPU there is.

    Raises AuditError for a file that is not a wheel.
    """
    name = wheel_name(wheel)
    with open_wheel(wheel) as opened:
        metadata = opened.read(f"{opened.dist_info}/METADATA") or b""
        message = opened.message("METADATA")
    report = audit_wheel(wheel, every_gpu()) if audit else None
    entry = Entry(
        filename=wheel.name,
        name=canonicalize_name(name.name),
        version=str(Version(name.version)),
        sha256=sha256,
        size=wheel.stat().st_size,
        metadata_sha256=hashlib.sha256(metadata).hexdigest(),
        requires_python=str(message["Requires-Python"] or ""),
        uploaded=now(),
        torch=_torch(message.get_all("Requires-Dist") or []),
        notice=notice,
        extras=tuple(extras),
        serves=served(report) if report else None,
    )
    return entry, metadata


def _torch(requirements: Sequence[str]) -> str:
    found = [match[1] for text in requirements if (match := re.match(r"torch\s*\(?(==[\w.+]+)", text))]
    return found[0] if found else ""


def every_gpu() -> list[Target]:
    """Return a target for each GPU generation, to be told the lowest driver."""
    return [Target(row.gpus[0], Arch(*(int(part) for part in row.number.split(".")))) for row in TABLE]  # type: ignore[arg-type]


def served(report: AuditReport) -> tuple[Served, ...]:
    """Return which GPU generations an audit says can run the wheel, and from which driver on."""
    return tuple(_served(verdict) for verdict in report.targets if verdict.ok)


def _served(verdict: TargetVerdict) -> Served:
    digits = verdict.arch.removeprefix("sm_")
    return Served(
        arch=f"{digits[:-1]}.{digits[-1]}",
        native=verdict.native,
        compatible=verdict.compatible,
        jit=verdict.jit,
        cuda=verdict.lowest_cuda or "",
        driver=verdict.lowest_driver or "",
    )
