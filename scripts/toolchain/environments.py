"""Virtual environments made by uv from hash-locked files, with the indexes that the user set up for pip."""

from __future__ import annotations

import base64
import codecs
import csv
import io
import os
import re
import shlex
import sys
import time
from collections.abc import Collection, Iterator
from contextlib import suppress
from pathlib import Path
from typing import ClassVar

from scripts.core.errors import ToolchainError
from scripts.core.process import call
from scripts.downloads.access import Access
from scripts.downloads.download import Transfer


def uv_variables(access: Access) -> dict[str, str]:
    """Return the environment for uv: our cache (unless UV_CACHE_DIR is set), pip's indexes, no Python downloads."""
    base = {**access.environment, "UV_PYTHON_DOWNLOADS": "never", "UV_NO_CONFIG": "1", "NO_COLOR": "1"}
    base.setdefault("UV_CACHE_DIR", str(access.cache.root / "uv"))
    base.setdefault("UV_HTTP_TIMEOUT", "120")
    base.pop("VIRTUAL_ENV", None)
    if access.offline:
        base["UV_OFFLINE"] = "1"
    return access.indexes.uv_environment(base)


def make_environment(venv: Path, lock: Path, access: Access, *, base: Path = Path(sys.executable)) -> float:
    """Create a relocatable environment of the interpreter `base` with exactly what `lock` pins.

    Returns seconds; raises ToolchainError.
    """
    started = time.monotonic()
    python = venv / "bin" / "python"
    run_uv(["venv", "--quiet", "--relocatable", "--python", base, venv], access)
    install: list[str | Path] = ["pip", "install", "--python", python, "--require-hashes", "--no-deps", "-r", lock]
    run_uv(install, access)
    return time.monotonic() - started


def site_packages(venv: Path) -> Path:
    """Return where an environment's packages are: of whatever Python 3 it is, else of the one that runs this."""
    found = sorted(venv.glob("lib/python3.*/site-packages"))
    return found[0] if found else venv / "lib" / f"python{sys.version_info[0]}.{sys.version_info[1]}" / "site-packages"


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


def forget_damaged(site: Path, damaged: Collection[Path], access: Access) -> None:
    """Remove distributions from uv's cache whose files there are the damaged ones: the same files under two names."""
    shared = {path for path in damaged if path.exists() and path.stat().st_nlink > 1}
    if names := owners(site, shared) if shared else []:
        run_uv(["cache", "clean", *names], access)


def run_uv(arguments: list[str | Path], access: Access) -> None:
    """Run uv with its output in the cache's log and its progress on the terminal. Raises ToolchainError."""
    uv = Path(sys.executable).with_name("uv")
    log = access.cache.place("logs", "uv.log", kind=ToolchainError)
    heard = UvProgress()
    with access.console.progress(heard.transfer.render, heard.transfer.text) as progress:
        done = call(
            [uv, *arguments],
            environment={**uv_variables(access), "TERM": "xterm"},
            limit=None,
            cwd=access.cache.root,
            terminal=True,
            on_output=heard.take,
            tick=progress.tick,
        )
    with suppress(OSError), log.open("a") as file:
        file.write(f"\n$ {shlex.join(map(str, [uv, *arguments]))}\n{heard.text()}\n")
    if done.code:
        raise _uv_error(heard.text(), log)


class UvProgress:
    """What uv writes on a terminal: its lines, and the bytes of all that it downloads, out of its progress bars."""

    _BAR = re.compile(r"(\S+) +-+ +([\d.]+) ([KMG]?i?B)/([\d.]+) ([KMG]?i?B)")
    _UNITS: ClassVar = {"B": 1, "KiB": 1 << 10, "MiB": 1 << 20, "GiB": 1 << 30}

    def __init__(self) -> None:
        self.transfer = Transfer("installing packages", started=time.monotonic())
        self._lines: list[str] = []
        self._rest = ""
        self._bars: dict[str, tuple[float, float]] = {}
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")

    def take(self, block: bytes) -> None:
        """Hear the next bytes."""
        text = re.sub(r"\x1b\[[\d;?]*[A-Za-z]", "", self._rest + self._decoder.decode(block))
        *pieces, self._rest = re.split(r"(?<=[\r\n])(?=[^\n])", text)
        for piece in pieces:
            self._hear(piece)

    def _hear(self, piece: str) -> None:
        if bars := self._BAR.findall(piece):
            self._bars = {name: (total, total) for name, (_, total) in self._bars.items()}  # what is not shown is done
            for name, done, unit, total, of in bars:
                self._bars[name] = float(done) * self._UNITS[unit], float(total) * self._UNITS[of]
            self.transfer.done = int(sum(done for done, _ in self._bars.values()))
            self.transfer.total = int(sum(total for _, total in self._bars.values()))
        elif piece.endswith("\n") and piece.strip():
            self._lines.append(piece.rstrip())

    def text(self) -> str:
        """Return uv's lines without its progress."""
        return "\n".join([*self._lines, *([self._rest.strip()] if self._rest.strip() else [])])


def _uv_error(text: str, log: Path) -> ToolchainError:
    """Explain uv's failure by what it said; the end of its output is shown."""
    lines = [re.sub(r"https?://[^/\s@]+@", "https://", line) for line in text.strip().splitlines()]
    said = "\n".join(lines)
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
