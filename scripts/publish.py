"""nox -s publish: wheels into a private index, a static one or an upload API. See docs/publishing.md."""

from __future__ import annotations

import argparse
import os
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from scripts.cache import file_sha256, write_atomic, write_json
from scripts.cli import Parser, add_cache_options, open_cache, run, user_path
from scripts.console import Console, human_bytes, human_seconds
from scripts.errors import UsageError
from scripts.index_entry import Entry, make_entry
from scripts.indexes import read_indexes, redacted
from scripts.object_store import SCHEMES, ObjectStore
from scripts.provenance import SUFFIX, load_signer, sign, statement
from scripts.prune import Rule, doomed, parse_rule
from scripts.recipe import ROOT
from scripts.report import report_path
from scripts.simple_client import SimpleClient
from scripts.static_index import Item, StaticIndex
from scripts.store import Directory, Store
from scripts.upload import Api, check_url_syntax, default_check_url, upload
from scripts.variants import Variant, VariantIndex, describe
from scripts.wheelhouse import Local, find_wheels

DESCRIPTION = """\
Put wheels into an index of your own.

  --to DIR                   a static index: HTML and JSON pages, metadata, hashes, a page for people
  --to s3://bucket/prefix    the same in an object store (also gs://, az://)
  --to https://host/upload   an upload API (devpi, Artifactory, GitLab, ...), through uv publish; credentials come
                             from UV_PUBLISH_USERNAME and UV_PUBLISH_PASSWORD, netrc or a keyring, never from here

Without WHEEL: everything in wheelhouse/ whose audit passed. The same bytes are left alone, other bytes under a
published name are refused (exit code 10).
Example: nox -s publish -- --to /srv/wheels
"""


def parser() -> Parser:
    """Return the command line of `nox -s publish`."""
    command = Parser("publish", DESCRIPTION)
    command.add_argument("wheels", nargs="*", type=user_path, metavar="WHEEL", help="default: wheelhouse/*.whl")
    command.add_argument("--to", required=True, metavar="TARGET", help="where the index is")
    command.add_argument("--dry-run", action="store_true", help="tell what would be done")
    command.add_argument("--no-audit", action="store_true", help="publish wheels that have no passed audit")
    command.add_argument(
        "--prune",
        action="append",
        default=[],
        metavar="RULE",
        help="take out old wheels: keep=3 (versions per variant), older=90d, or a file name; alone: publish nothing",
    )
    command.add_argument(
        "--variants", action="store_true", help="static indexes: wheel variants as well (experimental, see docs)"
    )
    command.add_argument("--check-url", metavar="URL", help="upload APIs: the index that shows what was uploaded")
    command.add_argument("--keyring", metavar="USER", help="upload APIs: take this user's password from the keyring")
    command.add_argument("--sign-key", type=user_path, metavar="PEM", help="sign provenance with this private key")
    command.add_argument("--wheelhouse", type=user_path, default=ROOT / "wheelhouse", metavar="DIR")
    command.add_argument("--json", type=user_path, metavar="FILE", help="write what was done to a file")
    add_cache_options(command)
    return command


def main(arguments: Sequence[str], console: Console) -> int:
    """Run the command; return its exit code."""
    options = parser().parse_args(arguments)
    started = time.monotonic()
    rules = [parse_rule(text) for text in options.prune]
    wheels = _wheels(options, console)
    if options.sign_key and not options.dry_run:
        sign_wheels(wheels, options.sign_key, console)
    if options.to.startswith(("http://", "https://")):
        location, rows = publish_upload(wheels, options, console)
    else:
        store = open_store(options.to)
        location = store.location
        console.stage("publish", f"{len(wheels)} wheel(s) to {location}")
        rows = publish_static(store, wheels, rules, options, console)
    if options.json:
        write_json(options.json, {"schema": 1, "target": location, "dry_run": options.dry_run, "wheels": rows})
    show(rows, location, time.monotonic() - started, console)
    return 0


def publish_upload(
    wheels: Sequence[Local], options: argparse.Namespace, console: Console
) -> tuple[str, list[dict[str, Any]]]:
    """Put wheels into an index through its upload API; return where, and a row per wheel."""
    url = check_url_syntax(options.to, "--to")
    if options.variants:
        raise UsageError("--variants is for static indexes", why="upload APIs refuse variants.json")
    if options.prune:
        raise UsageError("--prune is for static indexes", fix="delete files with the index's own tools")
    check_url = check_url_syntax(options.check_url or default_check_url(url), "--check-url")
    api = Api(url, check_url, keyring=bool(options.keyring), user=options.keyring or "")
    console.stage("publish", f"{len(wheels)} wheel(s) to {redacted(url)}, read back from {redacted(check_url)}")
    with SimpleClient(check_url, read_indexes(), os.environ) as client:
        states = upload(wheels, api, client, console, environment=os.environ, dry_run=options.dry_run)
    return redacted(url), [_row(wheel, state) for wheel, state in zip(wheels, states, strict=True)]


def open_store(text: str) -> Store:
    """Return where a static index lies. Raises UsageError."""
    if text.startswith(SCHEMES):
        return ObjectStore(text)
    if "://" in text:
        known = ", ".join((*SCHEMES, "https://"))
        raise UsageError(f"--to {redacted(text)}: this kind of place is not known", fix=f"a directory, or {known}")
    return Directory(user_path(text))


def sign_wheels(wheels: Sequence[Local], key: Path, console: Console) -> None:
    """Write the provenance of each wheel beside it. Raises UsageError for the key, PublishError for a report."""
    signer = load_signer(key, os.environ.get("WHEELSMITH_KEY_PASSWORD", ""))
    for wheel in wheels:
        report = report_path(wheel.path)
        digest = file_sha256(report) if wheel.report is not None else ""
        claim = statement(wheel.path.name, wheel.sha256, wheel.report or {}, report_sha256=digest)
        write_atomic(wheel.path.with_name(wheel.path.name + SUFFIX), sign(claim, signer))
        console.note(f"{wheel.path.name}{SUFFIX} signed with key {signer.public_key.keyid[:16]}")


def _wheels(options: argparse.Namespace, console: Console) -> list[Local]:
    if options.prune and not options.wheels:
        return []
    wheels = find_wheels(
        options.wheels, options.wheelhouse, open_cache(options), audit=not options.no_audit, console=console
    )
    if not wheels:
        raise UsageError(f"there is no wheel to publish in {options.wheelhouse}", fix="name one, or: nox -s wheel")
    return wheels


def publish_static(
    store: Store, wheels: Sequence[Local], rules: Sequence[Rule], options: argparse.Namespace, console: Console
) -> list[dict[str, Any]]:
    """Put wheels into a static index and take out what the rules say; return a row per wheel."""
    index = StaticIndex(store, console)
    states = [(wheel, index.known(wheel.path.name, wheel.sha256)) for wheel in wheels]  # refuses before sending any
    new = [wheel for wheel, entry in states if entry is None]
    rows = [_row(wheel, "unchanged" if entry else "published") for wheel, entry in states]
    if options.dry_run:
        leaving = {entry.filename for rule in rules for entry in doomed(index.entries().values(), rule)}
        return rows + [{"name": name, "state": "removed"} for name in sorted(leaving)]
    items = [make_item(wheel, options) for wheel in new]
    described = _variants(states, items) if options.variants else []  # refuses before sending any
    with store.lock(console):
        for item in items:
            console.note(f"{item.path.name} ({human_bytes(item.entry.size)})")
            index.add(item)
        index.refresh()
        for rule in rules:
            leaving_now = doomed(index.entries().values(), rule)
            index.remove(leaving_now)
            rows += [{"name": entry.filename, "state": "removed"} for entry in leaving_now]
        _publish_variants(VariantIndex(store, console), described, index.entries())
    return rows


def _variants(states: Sequence[tuple[Local, Entry | None]], items: Sequence[Item]) -> list[tuple[Path, Entry, Variant]]:
    """Describe every wheel as a variant. Raises PublishError for one that the format cannot describe."""
    known = [(wheel.path, entry) for wheel, entry in states if entry]
    return [(path, entry, describe(entry)) for path, entry in [*known, *((i.path, i.entry) for i in items)]]


def _publish_variants(
    variants: VariantIndex, described: Sequence[tuple[Path, Entry, Variant]], entries: Mapping[str, Entry]
) -> None:
    for path, entry, variant in described:
        if entry.filename in entries:
            variants.add(path, entry, variant)
    variants.refresh(entries)


def make_item(wheel: Local, options: argparse.Namespace) -> Item:
    """Read what the index must know of a wheel; its GPU code is audited for every GPU unless --no-audit."""
    suffixes = [SUFFIX, *([".report.json", ".report.html"] if wheel.report is not None else [])]
    paths = {suffix: wheel.path.with_name(wheel.path.name + suffix) for suffix in suffixes}
    beside = {suffix: path.read_bytes() for suffix, path in paths.items() if path.is_file()}
    entry, metadata = make_entry(
        wheel.path, wheel.sha256, notice=wheel.notice, extras=sorted(beside), audit=not options.no_audit
    )
    return Item(wheel.path, entry, metadata, beside)


def _row(wheel: Local, state: str) -> dict[str, Any]:
    return {"name": wheel.path.name, "sha256": wheel.sha256, "size": wheel.size, "state": state}


def show(rows: Sequence[dict[str, Any]], location: str, seconds: float, console: Console) -> None:
    """Print the closing table."""
    table = [("index", location)]
    for row in rows:
        size = f", {human_bytes(row['size'])}, sha256 {row['sha256']}" if "sha256" in row else ""
        table.append((row["state"], row["name"] + size))
    console.table("", [*table, ("time", human_seconds(seconds))])


if __name__ == "__main__":
    run(main)
