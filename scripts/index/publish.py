"""Put wheels into a static index, and everything that travels with them: reports, signatures, SBOM, provenance."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import timedelta
from pathlib import Path
from typing import Any

from scripts.core.console import Console, human_bytes
from scripts.core.files import file_sha256, write_atomic
from scripts.formats.sbom import FOLDER, NAME
from scripts.formats.wheel import open_wheel
from scripts.index.attestations import SUFFIX as PROVENANCE
from scripts.index.attestations import provenance_of
from scripts.index.entry import Entry, Origin, make_entry
from scripts.index.provenance import SUFFIX, KeyPair, is_signed, key_id, sign
from scripts.index.prune import Rule, doomed
from scripts.index.statements import built, mirrored, slimmed
from scripts.index.static import Item, StaticIndex
from scripts.index.store import Store
from scripts.index.variant_index import VariantIndex
from scripts.index.variants import Variant, describe
from scripts.report.wheelhouse import Local, report_path

SBOM = ".cdx.json"
GRACE = timedelta(days=1)
"""How long the files of a wheel that was taken out stay, for readers that have begun to fetch it."""


@dataclass(frozen=True)
class Wishes:
    """How to publish."""

    who: str
    audit: bool = True
    dry_run: bool = False
    rules: tuple[Rule, ...] = ()
    grace: timedelta = GRACE
    variants: bool = False
    signer: KeyPair | None = None
    origins: Mapping[str, Origin] = field(default_factory=dict)
    """By file name: where a wheel was taken from."""
    action: str = "publish"
    note: str = ""


@dataclass(frozen=True)
class Done:
    """What became of a wheel."""

    name: str
    state: str
    """`published`, `updated`, `unchanged`, `signed`, `removed`, `deleted`; in a dry run `would be ...`."""
    sha256: str = ""
    size: int = 0
    note: str = ""

    def row(self) -> dict[str, Any]:
        """Return it for JSON."""
        return {key: value for key, value in vars(self).items() if value}


def publish_static(store: Store, wheels: Sequence[Local], wishes: Wishes, console: Console) -> list[Done]:
    """Put wheels into a static index and take out what the rules say. Raises PublishError; other bytes before all."""
    index = StaticIndex(store, console, who=wishes.who)
    there = index.entries()
    known = [(wheel, index.known(wheel.path.name, wheel.sha256, there)) for wheel in wheels]
    signed = sign_wheels(wheels, wishes, console) if wishes.signer else []
    beside = {wheel.path: beside_files(wheel) for wheel in wheels}
    if wishes.dry_run:
        return [*signed, *_planned(known, beside, wishes), *_leaving(index, there, wishes)]
    store.check_space(sum(wheel.size for wheel, entry in known if entry is None))
    items = {wheel.path: make_item(wheel, beside[wheel.path], wishes) for wheel, entry in known if entry is None}
    described = _variants(known, list(items.values())) if wishes.variants else []  # refuses before sending any
    done = list(signed)
    with store.lock(console):
        for wheel, entry in known:
            state = _put(index, wheel, entry, items.get(wheel.path), beside[wheel.path], wishes, console)
            done.append(Done(wheel.path.name, state, wheel.sha256, wheel.size))
        index.refresh()
        done += prune(index, wishes)
        _publish_variants(VariantIndex(store, console), described, index, wishes)
    return done


def _put(
    index: StaticIndex,
    wheel: Local,
    entry: Entry | None,
    item: Item | None,
    beside: Mapping[str, bytes],
    wishes: Wishes,
    console: Console,
) -> str:
    event = index.event(wishes.action, wishes.note)
    if item:
        console.note(f"{wheel.path.name} ({human_bytes(wheel.size)})")
        return index.add(item, event)
    if entry and _news(entry, beside):
        return index.update(wheel.path.name, wheel.sha256, beside, event)
    return "unchanged"


def _news(entry: Entry, beside: Mapping[str, bytes]) -> list[str]:
    """Return what lies beside a wheel here and not, or as other bytes, in the index."""
    return sorted(
        suffix for suffix, data in beside.items() if entry.extras.get(suffix) != hashlib.sha256(data).hexdigest()
    )


def _planned(
    known: Sequence[tuple[Local, Entry | None]], beside: Mapping[Path, Mapping[str, bytes]], wishes: Wishes
) -> list[Done]:
    """Say what publishing would do; the wheels are read as they would be, so that what is refused is refused now."""
    planned = []
    for wheel, entry in known:
        state, note = "unchanged", ""
        if entry is None:
            state, item = "would be published", make_item(wheel, beside[wheel.path], wishes)
            note = ", ".join(("below " + item.entry.roots[-1], *sorted(item.beside)))
            if wishes.variants:
                note += f", variant {describe(item.entry).label}"
        elif news := _news(entry, beside[wheel.path]):
            state, note = "would be updated", ", ".join(news)
        planned.append(Done(wheel.path.name, state, wheel.sha256, wheel.size, note))
    return planned


def _leaving(index: StaticIndex, there: Mapping[str, Entry], wishes: Wishes) -> list[Done]:
    leaving = {entry.filename: entry for rule in wishes.rules for entry in doomed(there.values(), rule, index.ages)}
    return [Done(name, "would be removed", leaving[name].sha256, leaving[name].size) for name in sorted(leaving)]


def prune(index: StaticIndex, wishes: Wishes) -> list[Done]:
    """Take out what the rules say, and delete the files of what was taken out long enough ago."""
    done = []
    for rule in wishes.rules:
        taken = index.remove(doomed(index.entries().values(), rule, index.ages), f"--prune {rule}")
        done += [Done(entry.filename, "removed", entry.sha256, entry.size) for entry in taken]
    if wishes.rules:
        swept = index.sweep(wishes.grace)
        done += [Done(entry.filename, "deleted", entry.sha256, entry.size) for entry in swept]
    return done


def _publish_variants(
    variants: VariantIndex, described: Sequence[tuple[Path, Entry, Variant]], index: StaticIndex, wishes: Wishes
) -> None:
    """Add the variants of wheels that the index has; take out those of others."""
    there = index.entries() if described else {}
    for path, entry, variant in described:
        if entry.filename in there:
            variants.add(path, there[entry.filename], variant)
    variants.refresh(index.entries)
    if wishes.rules:
        variants.sweep(wishes.grace)


def _variants(known: Sequence[tuple[Local, Entry | None]], items: Sequence[Item]) -> list[tuple[Path, Entry, Variant]]:
    """Describe every wheel as a variant. Raises PublishError for one that the format cannot describe."""
    there = [(wheel.path, entry) for wheel, entry in known if entry]
    return [(path, entry, describe(entry)) for path, entry in [*there, *((i.path, i.entry) for i in items)]]


def make_item(wheel: Local, beside: Mapping[str, bytes], wishes: Wishes) -> Item:
    """Read what the index must know of a wheel; its GPU code is audited for every GPU unless that is not wished."""
    digests = {suffix: hashlib.sha256(data).hexdigest() for suffix, data in beside.items()}
    entry, metadata = make_entry(wheel.path, wheel.sha256, notice=wheel.notice, extras=digests, audit=wishes.audit)
    entry = entry.model_copy(update={"origin": wishes.origins.get(wheel.path.name)})
    return Item(wheel.path, entry, metadata, beside)


def beside_files(wheel: Local) -> dict[str, bytes]:
    """Return what is published beside a wheel, by suffix."""
    suffixes = [SUFFIX, *([".report.json", ".report.html"] if wheel.report is not None else [])]
    paths = {suffix: wheel.path.with_name(wheel.path.name + suffix) for suffix in suffixes}
    found = {suffix: path.read_bytes() for suffix, path in paths.items() if path.is_file()}
    with open_wheel(wheel.path) as opened:
        sbom = opened.read(f"{opened.dist_info}/{FOLDER}/{NAME}")
    if sbom is not None:
        found[SBOM] = sbom
    provenance = provenance_of(wheel.path, wheel.sha256)
    return {**found, PROVENANCE: provenance} if provenance else found


def sign_wheels(wheels: Sequence[Local], wishes: Wishes, console: Console) -> list[Done]:
    """Write the provenance of each wheel beside it; one that says the same with the same key stays as it is."""
    signer = wishes.signer
    if signer is None:
        return []
    done = []
    for wheel in wheels:
        path = wheel.path.with_name(wheel.path.name + SUFFIX)
        claim = statement_of(wheel, wishes.origins.get(wheel.path.name))
        if path.is_file() and is_signed(path.read_bytes(), claim, signer.public):
            continue
        if not wishes.dry_run:
            write_atomic(path, sign(claim, signer))
            console.note(f"{path.name} signed with key {key_id(signer.public)[:16]}")
        state = "would be signed" if wishes.dry_run else "signed"
        done.append(Done(path.name, state))
    return done


def statement_of(wheel: Local, origin: Origin | None) -> dict[str, Any]:
    """Return what a signature claims of a wheel. Raises PublishError for one of which nothing is known."""
    if origin:
        return mirrored(wheel.path.name, wheel.sha256, origin)
    digest = file_sha256(report_path(wheel.path)) if wheel.report is not None else ""
    if wheel.build is None or wheel.build.slimmed_from:
        cut = slimmed(wheel.path, wheel.sha256, wheel.build, report_sha256=digest)
        if cut:
            return cut
    return built(wheel.path.name, wheel.sha256, wheel.build, report_sha256=digest)
