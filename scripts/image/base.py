"""A base image from Debian's packages alone, for places without a registry: `--base debootstrap`.

It is pinned by a date of snapshot.debian.org (runtime/base.toml); `debootstrap@now` takes what Debian's mirrors have.
"""

from __future__ import annotations

import re
import shutil
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from rich.text import Text

from scripts.core.console import human_seconds
from scripts.core.errors import ImageError, UsageError
from scripts.core.files import digest
from scripts.core.paths import ROOT
from scripts.core.process import run_logged
from scripts.downloads.access import Access
from scripts.downloads.download import http_errors, open_client
from scripts.downloads.indexes import redacted
from scripts.downloads.mirrors import VARIABLE, Mirror, address, rewrite
from scripts.image.engine import Engine, explained

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

FILE = ROOT / "runtime" / "base.toml"
NOW = "now"
PACKAGES = ("ca-certificates", "python3")
EXCLUDED = ("/usr/share/doc/*", "/usr/share/man/*", "/usr/share/info/*", "/usr/share/locale/*", "/usr/share/lintian/*")
KEPT = ("/usr/share/doc/*/copyright",)


@dataclass(frozen=True)
class Debian:
    """Which packages: a suite, and the date of the snapshot that has them."""

    suite: str
    snapshot: str
    """`20261120T000000Z`, or `now` for Debian's mirrors as they are."""
    archive: str

    @property
    def title(self) -> str:
        """Name for the label of the image."""
        return f"debian:{self.suite} {'as it was when it was made' if self.snapshot == NOW else self.snapshot}"

    def sources(self, mirrors: Sequence[Mirror]) -> list[str]:
        """Return lines of sources.list; none for Debian's mirrors, which mmdebstrap knows.

        They stay in the image. Raises UsageError for a mirror with a password.
        """
        if self.snapshot == NOW:
            return []
        place = rewrite(self.archive, mirrors).rstrip("/")
        if address(place).username:
            raise UsageError(
                f"{VARIABLE}: a mirror of {self.archive} must not need a password",
                why="its URL stays in the image's sources.list",
                fix=f"a mirror without one, or --base debootstrap@{NOW}",
            )
        return [
            f"deb {place}/archive/{part}/{self.snapshot} {suite} main"
            for part, suite in (("debian", self.suite), ("debian-security", f"{self.suite}-security"))
        ]


def parse_debian(wanted: str, file: Path = FILE) -> Debian:
    """Read `debootstrap[@DATE]`: DATE as `20261120T000000Z` or `now`, else that of runtime/base.toml. UsageError."""
    pinned = Debian(**tomllib.loads(file.read_text()))
    _, _, date = wanted.partition("@")
    if date and date != NOW and not re.fullmatch(r"20\d{6}T\d{6}Z", date):
        raise UsageError(
            f"--base {wanted}: {date!r} is not the date of a snapshot",
            fix=f"--base debootstrap@{pinned.snapshot}, or debootstrap@{NOW}",
        )
    return Debian(pinned.suite, date or pinned.snapshot, pinned.archive)


def reachable(debian: Debian, access: Access, *, wanted: str) -> Debian:
    """Return what to install: Debian's mirrors, with a warning, where the archive cannot be reached.

    Raises ImageError when the date was asked for by name.
    """
    if debian.snapshot == NOW or access.offline:  # offline only one that was made before will do
        return debian
    place = rewrite(debian.archive, access.mirrors).rstrip("/")
    url = f"{place}/archive/debian/{debian.snapshot}/dists/{debian.suite}/InRelease"
    try:
        with open_client(access) as client:
            client.get(url).raise_for_status()
    except http_errors() as error:
        why = f"{redacted(url)}: {error}"
    else:
        return debian
    if "@" in wanted:
        raise ImageError(
            f"the snapshot of Debian {debian.snapshot} could not be fetched",
            why=why,
            fix=[f"{VARIABLE}='{debian.archive}=https://a.mirror/of/it/'", f"--base debootstrap@{NOW}: not pinned"],
        )
    access.console.warn(f"the base is not pinned, and takes what Debian's mirrors have now: {why}")
    return Debian(debian.suite, NOW, debian.archive)


def mmdebstrap_words(debian: Debian, tar: str, mirrors: Sequence[Mirror]) -> list[str]:
    """Return the command that installs the base into a tar."""
    words = ["mmdebstrap", "--variant=minbase", f"--include={','.join(PACKAGES)}"]
    words += [f"--dpkgopt=path-exclude={path}" for path in EXCLUDED]
    words += [f"--dpkgopt=path-include={path}" for path in KEPT]
    words += ["--dpkgopt=force-unsafe-io"]  # a base that was cut off is thrown away: nothing must be on the disk early
    if debian.snapshot != NOW:
        words += ['--aptopt=Acquire::Check-Valid-Until "false"']  # an old snapshot's index has expired
    return [*words, debian.suite, tar, *debian.sources(mirrors)]


def debian_base(engine: Engine, debian: Debian, access: Access) -> str:
    """Return the name of a base of Debian's packages, made with mmdebstrap unless it is there. Raises ImageError."""
    key = digest(mmdebstrap_words(debian, "", ()))
    name = f"localhost/wheelsmith-base:{debian.suite}-{debian.snapshot.lower()}-{key[:12]}"
    if engine.has(name):
        return name
    if shutil.which("mmdebstrap") is None:
        raise ImageError("mmdebstrap is not installed", fix=["apt-get install mmdebstrap", "--base IMAGE"])

    def make(folder: Path) -> None:
        if access.offline:
            raise ImageError(
                f"{debian.title} is not in the cache", why="--offline forbids downloads", fix="--base IMAGE"
            )
        line = f"installing {debian.title} with mmdebstrap"
        with access.console.progress(lambda: Text(f"{'':<10}{line}"), lambda: line) as progress:
            environment = {"SOURCE_DATE_EPOCH": "0", **access.environment}
            words = mmdebstrap_words(debian, str(folder / "base.tar"), access.mirrors)
            done = run_logged(words, log=engine.log, cwd=folder, environment=environment, tick=progress.tick)
        if done.code:
            raise explained("making the base with mmdebstrap", done.tail(40), engine.log)
        access.console.note(f"mmdebstrap took {human_seconds(done.seconds)}")

    tar = access.cache.once("bases", key, make, console=access.console) / "base.tar"
    engine.import_tar(tar, name)
    return name
