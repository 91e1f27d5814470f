"""nox -s index: take back, release and look after the wheels of a static index. See docs/publishing.md."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from scripts.commands.cli import Parser, run, user_path
from scripts.commands.options import add_cache_option, open_access
from scripts.commands.publish import add_store_options, open_store, show, who
from scripts.core.console import Console
from scripts.core.errors import UsageError, nearest
from scripts.core.files import write_json
from scripts.downloads.indexes import redacted
from scripts.index.entry import Entry
from scripts.index.provenance import load_key, load_signer
from scripts.index.publish import Done, Wishes
from scripts.index.reader import SimpleClient
from scripts.index.static import StaticIndex
from scripts.index.store import Store
from scripts.index.transfer import mirror, promote
from scripts.index.upload import check_url_syntax
from scripts.index.variant_index import VariantIndex

DESCRIPTION = """\
Look after the wheels of a static index, in a directory or a bucket.

  yank INDEX WHEEL... --reason TEXT   installers take it only when it is pinned exactly; the page for people says why
  unyank INDEX WHEEL...               take that back
  promote FROM TO WHEEL...            from staging to production: the same bytes and signatures, audited again;
                                      --key PUB: only what this key has signed
  mirror URL TO WHEEL...              take wheels (or vllm==0.15.1) of another index in, audited;
                                      --sign-key PEM: sign where they came from
  log INDEX [WHEEL...]                who did what, and when

Each has its own help: nox -s index -- yank --help. Old wheels go with `nox -s publish -- --to INDEX --prune RULE`.
Example: nox -s index -- yank /srv/wheels vllm-0.15.1+cu128-....whl --reason "wrong on sm_89"
"""
ABOUT = {
    "yank": "Advise against wheels: installers take them only when they are pinned exactly, and show the reason.",
    "unyank": "Take a yank back.",
    "promote": "Copy wheels and all that lies beside them from one static index to another, audited again.",
    "mirror": "Take wheels of any package index into a static index, checked and audited; with where they came from.",
    "log": "Show who did what to the wheels of a static index, and when; of wheels that are gone too.",
}
PLACES = {
    "INDEX": "the static index: a directory, s3://bucket/prefix, gs://... or az://...",
    "FROM": "the static index they are in: a directory or a bucket",
    "TO": "the static index they go to: a directory or a bucket; made when it is not there",
    "URL": "the index they are in, as pip takes it: https://host/simple/",
}


def main(arguments: Sequence[str], console: Console) -> int:
    """Run the action that the first argument names; return its exit code."""
    action = arguments[0] if arguments else "--help"
    if action in {"--help", "-h"}:
        Parser("index", DESCRIPTION).parse_args(["--help"])
    if action not in ACTIONS:
        raise UsageError(
            f"nox -s index: there is no action {action!r}.{nearest(action, ACTIONS)}",
            fix=f"one of {', '.join(ACTIONS)}",
        )
    return ACTIONS[action](arguments[1:], console)


def _parser(action: str, *places: str, wheels: str = "its file name", number: str = "+") -> Parser:
    command = Parser(f"index -- {action}", ABOUT[action])
    for place in places:
        command.add_argument(place.lower(), metavar=place, help=PLACES[place])
    command.add_argument("wheels", nargs=number, metavar="WHEEL", help=wheels)
    command.add_argument("--json", type=user_path, metavar="FILE", help="write what is shown at the end to a file")
    return command


def _yank(arguments: Sequence[str], console: Console) -> int:
    command = _parser("yank", "INDEX")
    add_store_options(command)
    command.add_argument("--reason", required=True, metavar="TEXT", help="what people read: why not to use it")
    options = command.parse_args(arguments)
    return _mark(options, options.reason, console)


def _unyank(arguments: Sequence[str], console: Console) -> int:
    command = _parser("unyank", "INDEX")
    add_store_options(command)
    return _mark(command.parse_args(arguments), None, console)


def _mark(options: Any, reason: str | None, console: Console) -> int:
    store = _target(options.index, options)
    index = StaticIndex(store, console, who=who(options))
    names = [index.find(_name(text)).filename for text in options.wheels]  # all are there, or nothing is done
    word = "unyanked" if reason is None else "yanked"
    if options.dry_run:
        return _finish([Done(name, f"would be {word}") for name in names], store.location, options, console)

    def change(entry: Entry) -> Entry | None:
        if entry.yanked == reason:
            return None
        event = index.event("unyank" if reason is None else "yank", reason or "")
        return entry.with_event(event, yanked=reason)

    with store.lock(console):
        done = [Done(name, word if index.change(name, change) else "unchanged") for name in names]
        index.refresh()
        VariantIndex(store, console).refresh(index.entries)
    return _finish(done, store.location, options, console)


def _promote(arguments: Sequence[str], console: Console) -> int:
    command = _parser("promote", "FROM", "TO")
    command.add_argument("--key", type=user_path, metavar="PUB", help="refuse wheels that this key has not signed")
    add_store_options(command)
    add_cache_option(command)
    options = command.parse_args(arguments)
    source, target = open_store(getattr(options, "from")), _target(options.to, options)
    if source.location == target.location:
        raise UsageError(f"FROM and TO are both {source.location}", fix="name two indexes")
    wishes = Wishes(who(options), dry_run=options.dry_run)
    key = load_key(options.key) if options.key else None
    names = [_name(text) for text in options.wheels]
    done = promote(source, target, names, wishes, open_access(options, console), key=key)
    return _finish(done, target.location, options, console)


def _mirror(arguments: Sequence[str], console: Console) -> int:
    command = _parser("mirror", "URL", "TO", wheels="its file name, or all wheels of a version: vllm==0.15.1")
    command.add_argument(
        "--sign-key", type=user_path, metavar="PEM", help="sign where they come from, with this private key"
    )
    command.add_argument("--no-audit", action="store_true", help="take wheels in without looking at their GPU code")
    add_store_options(command)
    add_cache_option(command)
    options = command.parse_args(arguments)
    if not options.url.startswith(("http://", "https://")):
        raise UsageError(
            f"URL {redacted(options.url)} is not the URL of an index",
            fix=["https://host/simple/", "out of a directory or a bucket: nox -s index -- promote FROM TO WHEEL"],
        )
    url, target = check_url_syntax(options.url, "URL"), _target(options.to, options)
    wishes = Wishes(who(options), audit=not options.no_audit, dry_run=options.dry_run)
    if options.sign_key:
        signer = load_signer(options.sign_key, os.environ.get("WHEELSMITH_KEY_PASSWORD", ""))
        wishes = replace(wishes, signer=signer)
    access = open_access(options, console)
    with SimpleClient(url, access) as client:
        done = mirror(client, url, options.wheels, target, wishes, access)
    return _finish(done, target.location, options, console)


def _log(arguments: Sequence[str], console: Console) -> int:
    command = _parser("log", "INDEX", wheels="file names of those to tell of (default: all)", number="*")
    options = command.parse_args(arguments)
    index = StaticIndex(open_store(options.index), console)
    history = index.history()
    names = {index.among(_name(text), history).filename for text in options.wheels}
    events = [
        {"wheel": entry.filename, **event.model_dump()}
        for entry in history
        for event in entry.history
        if not names or entry.filename in names
    ]
    events.sort(key=lambda row: (row["when"], row["wheel"]))
    if options.json:
        write_json(options.json, events)
    rows = [
        [row["when"][:19].replace("T", " "), row["who"], row["action"], row["wheel"], row["note"]] for row in events
    ]
    console.grid(["when (UTC)", "who", "did", "to", ""], rows)
    return 0


def _target(text: str, options: Any) -> Store:
    return open_store(text, public=options.public_cache, wait=options.wait)


def _name(text: str) -> str:
    return Path(text).name


def _finish(done: Sequence[Done], location: str, options: Any, console: Console) -> int:
    if options.json:
        write_json(options.json, {"schema": 1, "index": location, "wheels": [item.row() for item in done]})
    show(done, location, console)
    return 0


ACTIONS: dict[str, Callable[[Sequence[str], Console], int]] = {
    "yank": _yank,
    "unyank": _unyank,
    "promote": _promote,
    "mirror": _mirror,
    "log": _log,
}

if __name__ == "__main__":
    run(main)
