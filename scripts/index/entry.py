"""What an index knows of a wheel: one small JSON record, written once, from which every page is made."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping, Sequence
from contextlib import suppress
from datetime import datetime, timezone
from email.message import Message
from pathlib import Path
from typing import Annotated, Any, Literal

from packaging.requirements import InvalidRequirement, Requirement
from packaging.utils import InvalidWheelFilename, canonicalize_name, parse_wheel_filename
from packaging.version import InvalidVersion, Version
from pydantic import Field, ValidationError, field_validator

from scripts.audit.collect import audit_wheel
from scripts.audit.models import AuditReport, TargetVerdict
from scripts.audit.reasons import errors, in_short
from scripts.audit.subjects import matching_recipe
from scripts.core.errors import AuditError, PublishError
from scripts.core.models import Model
from scripts.cuda.archs import TABLE, Arch
from scripts.cuda.drivers import Target
from scripts.formats.wheel import WheelFile, WheelName, open_wheel, wheel_name

ENTRIES = "entries/"
PUBLIC = "_public"
"""Folder of the wheels without a label, which no other wheel of the version shares."""
FILES = "files/"
Sha256 = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
Suffix = Annotated[str, Field(pattern=r"^(\.[a-z]+)+$")]
EPOCH = "1970-01-01T00:00:00.000000Z"


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


class Event(Model):
    """Something that was done to a wheel of the index. Events are part of its record and never leave it."""

    when: str
    """UTC, by the clock of the machine that did it."""
    who: str
    """User and machine, or what --who named."""
    action: Literal["publish", "update", "restore", "yank", "unyank", "remove", "sweep", "promote", "mirror"]
    note: str = ""
    """Why, where from, or what was changed."""


class Origin(Model):
    """Where a wheel came from that was not published from a file."""

    index: str
    """URL of the index, or the place of the static index; without credentials."""
    url: str = ""
    """URL of the file."""


class Entry(Model):
    """A wheel of the index."""

    schema_version: Literal[1, 2] = 2
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
    """What it asks for, `==2.9.1` or `>=2.11,<3`; "" when it does not say."""
    notice: str
    """What people must know before they use it; "" mostly."""
    extras: dict[Suffix, Sha256 | Literal[""]]
    """What lies beside the wheel, by its suffix (`.report.json`), with its sha256; "" when that is not known."""
    serves: tuple[Served, ...] | None
    """Per GPU generation; null when the wheel was published without an audit."""
    yanked: str | None = None
    """Why it should not be used any more; "" for no reason, null when it is not yanked (PEP 592)."""
    origin: Origin | None = None
    generation: int = Field(default=0, ge=0)
    """How often these bytes were taken out and put in again; each time they lie in another folder."""
    removed: str = ""
    """When it was taken out, by the store's clock; its files go later. "" while it is in the index."""
    swept: Literal["", "begun", "done"] = ""
    """Whether its files go, or are gone. Nobody takes a wheel back from there: it gets the next generation."""
    history: tuple[Event, ...] = ()

    @field_validator("extras", mode="before")
    @classmethod
    def _from_suffixes(cls, value: Any) -> Any:
        """Read schema 1, which had suffixes only."""
        return dict.fromkeys(value, "") if isinstance(value, list | tuple) else value

    @field_validator("removed", mode="before")
    @classmethod
    def _from_flag(cls, value: Any) -> Any:
        """Read schema 1, which had a flag."""
        return (EPOCH if value else "") if isinstance(value, bool) else value

    @property
    def listed(self) -> bool:
        """Whether pages list it."""
        return not self.removed

    @property
    def key(self) -> str:
        """Where the wheel is: addressed by its content, so that no other bytes can ever be there."""
        again = f"-{self.generation}" if self.generation else ""
        return f"{FILES}{self.sha256}{again}/{self.filename}"

    @property
    def identity(self) -> str:
        """What the file name says, normalised: `VLLM-1.0+CU128-py3-none-any.whl` is the same wheel in small letters."""
        return identity(self.filename)

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
        # No label has an underscore, so that no variant can be called so.
        return [*roots, f"{version}{self.label or PUBLIC}/"]

    def with_event(self, event: Event, **changes: Any) -> Entry:
        """Return the record after something was done."""
        return self.model_copy(update={**changes, "schema_version": 2, "history": (*self.history, event)})

    def json(self) -> bytes:  # type: ignore[override]
        """Return the record's bytes."""
        return (json.dumps(self.model_dump(mode="json"), indent=1, sort_keys=True) + "\n").encode()


def identity(filename: str) -> str:
    """Return a wheel's file name with name, version, build and tags normalised. Raises ValueError."""
    name, version, build, tags = parse_wheel_filename(filename)
    parts = [name.replace("-", "_"), str(version), *(["".join(map(str, build))] if build else [])]
    kinds = [".".join(sorted(set(kind))) for kind in zip(*(str(tag).split("-") for tag in tags), strict=True)]
    return "-".join([*parts, *kinds]) + ".whl"


def same_wheel(first: str, second: str) -> bool:
    """Tell whether two file names mean the same wheel."""
    try:
        return first == second or identity(first) == identity(second)
    except (InvalidWheelFilename, ValueError):
        return False


def entry_key(filename: str) -> str:
    """Return where the record of a wheel is: one place, however its name is spelled."""
    return f"{ENTRIES}{identity(filename)}.json"


def read_entry(data: bytes, place: str) -> Entry:
    """Read a record of the index. Raises PublishError when it is none."""
    try:
        entry = Entry.model_validate_json(data)
        Version(entry.version)
        right = same_wheel(entry.filename, place.removeprefix(ENTRIES).removesuffix(".json"))
    except (ValidationError, ValueError) as error:
        raise PublishError(
            f"{place} is not a record of this index",
            why=str(error).splitlines()[0],
            fix="delete it and publish its wheel again; nothing was changed",
        ) from error
    if not right or "/" in entry.filename:
        raise PublishError(f"{place} is the record of {entry.filename}", fix="delete it and publish its wheel again")
    return entry


def now() -> str:
    """Return the time as PEP 700 writes it."""
    return datetime.now(timezone.utc).strftime("%Y-%m-%dT%H:%M:%S.%fZ")


def make_entry(
    wheel: Path, sha256: str, *, notice: str = "", extras: Mapping[str, str] | None = None, audit: bool = True
) -> tuple[Entry, bytes]:
    """Return a wheel's record and its METADATA; `audit` reads its GPU code for every GPU there is.

    Raises AuditError for a file that is not a wheel, is not the wheel its name says, or has errors in its audit.
    """
    name = wheel_name(wheel)
    with open_wheel(wheel) as opened:
        metadata = opened.read(f"{opened.dist_info}/METADATA") or b""
        message = opened.message("METADATA")
        check_dist_info(opened, name, message)
    report = audit_wheel(wheel, every_gpu(), optional=matching_recipe(wheel)) if audit else None
    if report and (wrong := errors(report)):
        raise AuditError(
            f"{wheel.name}: its audit did not pass",
            why=in_short(wrong),
            fix=[f"see all of it: nox -s audit -- {wheel.name}", "publish and mirror take it anyway: --no-audit"],
        )
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
        extras=dict(extras or {}),
        serves=served(report) if report else None,
    )
    return entry, metadata


def check_dist_info(wheel: WheelFile, name: WheelName, metadata: Message) -> None:
    """Raise AuditError when the wheel's own .dist-info is of another project or version than its file name says."""
    folder = wheel.dist_info.removesuffix(".dist-info")
    stated = {
        "file name": (name.name, name.version),
        "METADATA": (str(metadata["Name"] or ""), str(metadata["Version"] or "")),
        "folder": (folder.rpartition("-")[0], folder.rpartition("-")[2]),
    }
    try:
        meant = {(canonicalize_name(project), Version(version)) for project, version in stated.values()}
    except InvalidVersion as error:
        raise wheel.error("its .dist-info has no version", str(error)) from error
    if len(meant) > 1:
        said = "; ".join(f"{where}: {project} {version}" for where, (project, version) in stated.items())
        raise wheel.error("its .dist-info and its file name disagree", f"{said}: it was renamed")


def _torch(requirements: Sequence[str]) -> str:
    for text in requirements:
        with suppress(InvalidRequirement):
            found = Requirement(text)
            if canonicalize_name(found.name) == "torch" and not found.marker:
                return ",".join(sorted(map(str, found.specifier), key=lambda text: text[0] == "<"))  # from, then to
    return ""


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
