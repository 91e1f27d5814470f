"""Virtual environments made by uv from hash-locked files, with the indexes that the user set up for pip."""

from __future__ import annotations

import base64
import csv
import io
import os
import re
import sys
import time
from collections.abc import Collection, Iterator
from contextlib import suppress
from pathlib import Path

from rich.text import Text

from scripts.cache import Cache
from scripts.console import Console, human_seconds
from scripts.errors import ToolchainError
from scripts.indexes import Indexes
from scripts.process import run_logged


def uv_variables(cache: Cache, indexes: Indexes, *, offline: bool) -> dict[str, str]:
    """Return the environment for uv: our cache (unless UV_CACHE_DIR is set), pip's indexes, no Python downloads."""
    base = {**os.environ, "UV_PYTHON_DOWNLOADS": "never", "UV_NO_CONFIG": "1", "NO_COLOR": "1"}
    base.setdefault("UV_CACHE_DIR", str(cache.root / "uv"))
    base.setdefault("UV_HTTP_TIMEOUT", "120")
    base.pop("VIRTUAL_ENV", None)
    if offline:
        base["UV_OFFLINE"] = "1"
    return indexes.uv_environment(base)


def make_environment(
    venv: Path, lock: Path, *, cache: Cache, console: Console, indexes: Indexes, offline: bool
) -> float:
    """Create a relocatable environment with exactly what `lock` pins. Returns seconds; raises ToolchainError."""
    started = time.monotonic()
    python = venv / "bin" / "python"
    run_uv(
        ["venv", "--quiet", "--relocatable", "--python", sys.executable, venv], cache, console, indexes, offline=offline
    )
    install: list[str | Path] = ["pip", "install", "--python", python, "--require-hashes", "--no-deps", "-r", lock]
    run_uv(install, cache, console, indexes, offline=offline)
    return time.monotonic() - started


def recorded_digests(site: Path) -> dict[tuple[int, int], str]:
    """Return sha256 of installed files by device and inode, as the RECORDs of their distributions say."""
    found = {}
    for path, sha256, _ in _records(site):
        with suppress(OSError):
            about = path.lstat()
            found[about.st_dev, about.st_ino] = sha256
    return found


def owners(site: Path, paths: Collection[Path]) -> list[str]:
    """Return the distributions that installed some of these files."""
    return sorted({name for path, _, name in _records(site) if path in paths})


def _records(site: Path) -> Iterator[tuple[Path, str, str]]:
    """Yield (file, sha256 in hex, name of its distribution) of all that is installed in a site-packages folder."""
    for file in site.glob("*.dist-info/RECORD"):
        name = file.parent.name.partition("-")[0]
        for row in csv.reader(io.StringIO(file.read_text(errors="surrogateescape"))):
            if len(row) == 3 and row[1].startswith("sha256="):
                sha256 = base64.urlsafe_b64decode(row[1].removeprefix("sha256=") + "=").hex()
                yield Path(os.path.normpath(site / row[0])), sha256, name


def forget_damaged(
    site: Path, damaged: Collection[Path], *, cache: Cache, console: Console, indexes: Indexes, offline: bool
) -> None:
    """Remove distributions from uv's cache whose files there are the damaged ones: the same files under two names."""
    shared = {path for path in damaged if path.exists() and path.stat().st_nlink > 1}
    if names := owners(site, shared) if shared else []:
        run_uv(["cache", "clean", *names], cache, console, indexes, offline=offline)


def run_uv(arguments: list[str | Path], cache: Cache, console: Console, indexes: Indexes, *, offline: bool) -> None:
    """Run uv with its output in the cache's log and its progress on the terminal. Raises ToolchainError."""
    uv = Path(sys.executable).with_name("uv")
    log = cache.place("logs", "uv.log")
    started = time.monotonic()

    def line() -> str:
        return f"{'':<10}installing the build environment ({human_seconds(time.monotonic() - started)})"

    begin = log.stat().st_size if log.exists() else 0
    with console.progress(lambda: Text(line()), lambda: line().strip()) as progress:
        done = run_logged(
            [uv, *arguments],
            log=log,
            cwd=cache.root,
            environment=uv_variables(cache, indexes, offline=offline),
            tick=progress.tick,
        )
    if done.code:
        with log.open("rb") as file:
            file.seek(begin)
            raise _uv_error(file.read().decode("utf-8", "replace"), log)


def _uv_error(text: str, log: Path) -> ToolchainError:
    """Explain uv's failure by what it said; the end of its output is shown."""
    lines = [re.sub(r"https?://[^/\s@]+@", "https://", line) for line in text.strip().splitlines()[1:]]
    said = "\n".join(lines)  # without the command, whose paths could be taken for a cause
    causes = (
        (r"No space left", "no space left on the filesystem", "free space, or point WHEELSMITH_CACHE at a larger disk"),
        (r"Permission denied", "permission denied", "make the cache writable, or set WHEELSMITH_CACHE (UV_CACHE_DIR)"),
        (
            r"network.*disabled",
            "--offline forbids downloads and uv's cache lacks a package",
            "run once without --offline",
        ),
        (
            r"Hash mismatch",
            "the index serves other bytes than the lock file pins",
            "do not install from it; check the index (PIP_INDEX_URL)",
        ),
        (
            r"Connection refused|dns error|timed out|Could not connect|Failed to fetch|error sending request",
            "the package index cannot be reached",
            "check the network, HTTPS_PROXY, PIP_INDEX_URL and certificates (PIP_CERT)",
        ),
    )
    unknown = ("uv could not install it", f"read {log}")
    why, fix = next(((w, f) for pattern, w, f in causes if re.search(pattern, said, re.IGNORECASE)), unknown)
    return ToolchainError(
        "the build environment could not be installed", why=why, fix=fix, detail="\n".join(lines[-12:])
    )
