"""nox -s publish: wheels into a private index, a static one or an upload API. See docs/publishing.md."""

from __future__ import annotations

import argparse
import os
import pwd
import socket
import time
from collections.abc import Sequence
from dataclasses import replace
from datetime import timedelta

from scripts.commands.cli import Parser, run, user_path
from scripts.commands.options import add_cache_option, open_access
from scripts.core.console import Console, human_bytes, human_seconds
from scripts.core.errors import UsageError
from scripts.core.files import write_json
from scripts.core.paths import ROOT
from scripts.downloads.access import Access
from scripts.downloads.indexes import redacted
from scripts.index.object_store import SCHEMES, ObjectStore
from scripts.index.provenance import load_signer
from scripts.index.prune import parse_rule
from scripts.index.publish import GRACE, Done, Wishes, publish_static, sign_wheels
from scripts.index.reader import SimpleClient
from scripts.index.store import WAIT, Directory, Store
from scripts.index.upload import Api, check_url_syntax, find_check_url, upload
from scripts.report.wheelhouse import Local, find_wheels

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
    command.add_argument(
        "--grace",
        type=_days,
        default=GRACE,
        metavar="DAYS",
        help="how long files stay after --prune took them off the pages (default: 1)",
    )
    command.add_argument("--check-url", metavar="URL", help="upload APIs: the index that shows what was uploaded")
    command.add_argument("--keyring", metavar="USER", help="upload APIs: take this user's password from the keyring")
    command.add_argument("--sign-key", type=user_path, metavar="PEM", help="sign provenance with this private key")
    command.add_argument(
        "--wheelhouse", type=user_path, default=ROOT / "wheelhouse", metavar="DIR", help="where they are"
    )
    command.add_argument("--json", type=user_path, metavar="FILE", help="write what was done to a file")
    add_store_options(command)
    add_cache_option(command)
    return command


def add_store_options(command: Parser) -> None:
    """Add what every command that changes a static index takes."""
    command.add_argument("--dry-run", action="store_true", help="tell what would be done")
    command.add_argument("--who", metavar="NAME", help="whose deed the index writes down (default: USER@HOST)")
    command.add_argument(
        "--wait",
        type=float,
        default=WAIT,
        metavar="SECONDS",
        help=f"directories: how long to wait for another publisher (default: {WAIT:.0f})",
    )
    command.add_argument(
        "--public-cache", action="store_true", help="buckets: let shared caches keep wheels (an index without users)"
    )


def who(options: argparse.Namespace) -> str:
    """Return whose deed it is."""
    if options.who:
        return str(options.who)
    try:
        user = pwd.getpwuid(os.getuid()).pw_name
    except KeyError:
        user = f"uid {os.getuid()}"
    return f"{user}@{socket.gethostname()}"


def _days(text: str) -> timedelta:
    try:
        days = timedelta(days=float(text))
    except (ValueError, OverflowError) as error:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number of days") from error
    if days < timedelta(0):
        raise argparse.ArgumentTypeError("days cannot be negative")
    return days


def main(arguments: Sequence[str], console: Console) -> int:
    """Run the command; return its exit code."""
    options = parser().parse_args(arguments)
    started = time.monotonic()
    wishes = _wishes(options)
    access = open_access(options, console)
    wheels = _wheels(options, access)
    if options.to.startswith(("http://", "https://")):
        location, done = publish_upload(wheels, options, wishes, access)
    else:
        store = open_store(options.to, public=options.public_cache, wait=options.wait)
        location = store.location
        console.stage("publish", f"{len(wheels)} wheel(s) to {location}")
        done = publish_static(store, wheels, wishes, console)
    if options.json:
        rows = [item.row() for item in done]
        write_json(options.json, {"schema": 1, "target": location, "dry_run": options.dry_run, "wheels": rows})
    show(done, location, console, seconds=time.monotonic() - started)
    return 0


def _wishes(options: argparse.Namespace) -> Wishes:
    wishes = Wishes(
        who(options),
        audit=not options.no_audit,
        dry_run=options.dry_run,
        rules=tuple(parse_rule(text) for text in options.prune),
        grace=options.grace,
        variants=options.variants,
    )
    if not options.sign_key:
        return wishes
    return replace(wishes, signer=load_signer(options.sign_key, os.environ.get("WHEELSMITH_KEY_PASSWORD", "")))


def publish_upload(
    wheels: Sequence[Local], options: argparse.Namespace, wishes: Wishes, access: Access
) -> tuple[str, list[Done]]:
    """Put wheels into an index through its upload API; return where, and what became of each."""
    url = check_url_syntax(options.to, "--to")
    if options.variants:
        raise UsageError("--variants is for static indexes", why="upload APIs refuse variants.json")
    if options.prune:
        raise UsageError("--prune is for static indexes", fix="delete files with the index's own tools")
    console = access.console
    check_url = _check_url(url, options.check_url, access)
    certificates = access.indexes.certificates(access.environment)
    api = Api(url, check_url, bool(options.keyring), options.keyring or "", certificates)
    signed = sign_wheels(wheels, wishes, console)
    console.stage("publish", f"{len(wheels)} wheel(s) to {redacted(url)}, read back from {redacted(check_url)}")
    with SimpleClient(check_url, access) as client:
        states = upload(wheels, api, client, access, dry_run=options.dry_run)
    done = [Done(wheel.path.name, state, wheel.sha256, wheel.size) for wheel, state in zip(wheels, states, strict=True)]
    return redacted(url), [*signed, *done]


def _check_url(url: str, named: str | None, access: Access) -> str:
    if named:
        return check_url_syntax(named, "--check-url")
    return find_check_url(url, lambda guess: SimpleClient(guess, access))


def open_store(text: str, *, public: bool = False, wait: float = WAIT) -> Store:
    """Return where a static index lies; `wait` seconds for other publishers of a directory. Raises UsageError."""
    if text.startswith(SCHEMES):
        return ObjectStore(text, public=public)
    if "://" in text:
        known = ", ".join((*SCHEMES, "https://"))
        raise UsageError(
            f"{redacted(text)}: wheelsmith does not know this kind of place", fix=f"a directory, or {known}"
        )
    return Directory(user_path(text), wait=wait)


def _wheels(options: argparse.Namespace, access: Access) -> list[Local]:
    if options.prune and not options.wheels:
        return []
    wheels = find_wheels(options.wheels, options.wheelhouse, access, audit=not options.no_audit)
    if not wheels and any(options.wheelhouse.glob("*.whl")):
        raise UsageError(
            f"no wheel of {options.wheelhouse} is published",
            why="each was left out for the reason above",
            fix=["name one, to be told what to do about it", "publish them anyway: --no-audit"],
        )
    if not wheels:
        raise UsageError(f"there is no wheel to publish in {options.wheelhouse}", fix="name one, or: nox -s wheel")
    return wheels


def show(done: Sequence[Done], location: str, console: Console, *, seconds: float | None = None) -> None:
    """Print the closing table."""
    table = [("index", location)]
    for item in done:
        size = f", {human_bytes(item.size)}, sha256 {item.sha256}" if item.sha256 else ""
        table.append((item.state, item.name + size + (f"; {item.note}" if item.note else "")))
    console.table("", [*table, *([("time", human_seconds(seconds))] if seconds is not None else [])])


if __name__ == "__main__":
    run(main)
