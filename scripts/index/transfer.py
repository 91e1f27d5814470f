"""Wheels from one index into another: promoted from staging to production, or mirrored from an index of others.

Both come with all that lies beside them, byte for byte, and are audited again before anything is sent.
"""

from __future__ import annotations

import hashlib
import tempfile
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from scripts.core.errors import AuditError, PublishError
from scripts.downloads.access import Access
from scripts.downloads.indexes import redacted
from scripts.index.attestations import SUFFIX as PROVENANCE
from scripts.index.attestations import check_provenance
from scripts.index.entry import Entry, Origin
from scripts.index.provenance import SUFFIX, PublicKey, check
from scripts.index.publish import SBOM, Done, Wishes, publish_static
from scripts.index.reader import Listed, SimpleClient
from scripts.index.static import StaticIndex, refuse_other_bytes
from scripts.index.store import Store
from scripts.index.wanted import matching
from scripts.report.wheelhouse import Local, audit_problem, audit_reasons, read_local


def promote(
    source: Store,
    target: Store,
    names: Sequence[str],
    wishes: Wishes,
    access: Access,
    *,
    key: PublicKey | None = None,
) -> list[Done]:
    """Put wheels of a static index into another: the same bytes, the same signatures, audited again.

    With `key` the signature of each is checked first. Raises PublishError, AuditError, UsageError; nothing is sent
    unless all are right.
    """
    entries = [StaticIndex(source, access.console).find(name) for name in names]
    yanked = next((entry for entry in entries if entry.yanked is not None), None)
    if yanked:
        raise PublishError(f"{yanked.filename} is yanked", why=yanked.yanked or "no reason is given", fix="unyank it")
    access.console.stage("promote", f"{len(entries)} wheel(s) from {source.location} to {target.location}")
    with tempfile.TemporaryDirectory(prefix="wheelsmith-promote-") as folder:
        wheels = [_taken(source, entry, Path(folder), access) for entry in entries]
        for wheel, entry in zip(wheels, entries, strict=True):
            if wheel.report is not None:  # else it was published without, and is audited before it is sent
                _check_audit(wheel, entry, source)
            if key:
                _check_signature(wheel, key, source)
        origins = {entry.filename: Origin(index=source.location, url=entry.key) for entry in entries}
        wishes = replace(wishes, action="promote", note=f"from {source.location}", origins=origins, signer=None)
        return publish_static(target, wheels, wishes, access.console)


def _taken(source: Store, entry: Entry, folder: Path, access: Access) -> Local:
    """Copy a wheel and what lies beside it; what is not as its record says is refused."""
    place = folder / entry.sha256
    place.mkdir()
    path = place / entry.filename
    _check_copy(entry, "", source.fetch(entry.key, path), entry.sha256, source)
    for suffix, sha256 in entry.extras.items():
        if suffix != SBOM:  # it is inside
            beside = path.with_name(path.name + suffix)
            _check_copy(entry, suffix, source.fetch(entry.key + suffix, beside), sha256, source)
    return read_local(path, access.cache)


def _check_copy(entry: Entry, suffix: str, found: str, wanted: str, source: Store) -> None:
    if wanted and found != wanted:
        raise PublishError(
            f"{source.location} has another {entry.filename}{suffix} than its record says",
            why=f"sha256 {found}, not {wanted}: it was changed there",
            fix="find out who changed it; publish the wheel to staging again",
        )


def _check_audit(wheel: Local, entry: Entry, source: Store) -> None:
    problem = audit_problem(wheel)
    if problem:
        audit = f"nox -s audit -- {entry.filename} --target GPU --json {entry.filename}.report.json"
        raise AuditError(
            f"{entry.filename}: {problem}",
            why=audit_reasons(wheel),
            fix=f"audit it for the GPUs it is for ({audit}), and publish that report to {source.location}",
        )


def _check_signature(wheel: Local, key: PublicKey, source: Store) -> None:
    path = wheel.path.with_name(wheel.path.name + SUFFIX)
    if not path.is_file():
        raise AuditError(
            f"{wheel.path.name} is not signed",
            why="--key takes only what this key has signed",
            fix=f"sign it there: nox -s publish -- --to {source.location} --sign-key PEM {wheel.path.name}",
        )
    check(path.read_bytes(), key, name=wheel.path.name, sha256=wheel.sha256)


def mirror(
    client: SimpleClient,
    index: str,
    wanted: Sequence[str],
    target: Store,
    wishes: Wishes,
    access: Access,
) -> list[Done]:
    """Take named wheels (`NAME.whl` or `vllm==0.15.1`) of another index in, with where they came from written down.

    Raises PublishError, AuditError, UsageError; nothing is sent unless all could be fetched and are right.
    """
    found = [item for text in wanted for item in matching(client, text, index)]
    access.console.stage("mirror", f"{len(found)} wheel(s) from {redacted(index)} to {target.location}")
    with tempfile.TemporaryDirectory(prefix="wheelsmith-mirror-") as folder:
        wheels = [_fetched(client, item, Path(folder), access) for item in found]
        origins = {item.name: Origin(index=redacted(index), url=redacted(item.url)) for item in found}
        wishes = replace(wishes, action="mirror", note=f"from {redacted(index)}", origins=origins)
        return publish_static(target, wheels, wishes, access.console)


def _fetched(client: SimpleClient, item: Listed, folder: Path, access: Access) -> Local:
    place = folder / hashlib.sha256(item.url.encode()).hexdigest()[:20]
    place.mkdir()
    path = place / item.name
    access.console.note(f"{item.name} from {redacted(item.url)}")
    sha256 = client.save(item, path)
    if item.sha256:
        refuse_other_bytes(item.name, published=item.sha256, ours=sha256, place="the index's own page")
    else:
        access.console.warn(f"the index gives no sha256 for {item.name}: so whether it came whole stays unknown")
    if item.provenance:
        data = client.small(item.provenance)
        check_provenance(data, item.name, sha256)
        path.with_name(item.name + PROVENANCE).write_bytes(data)
    return read_local(path, access.cache)
