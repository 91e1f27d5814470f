"""A base image from Debian's packages alone, for places without a registry: `--base debootstrap`."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

from rich.text import Text

from scripts.cache import Cache, digest
from scripts.console import Console, human_seconds
from scripts.errors import ImageError
from scripts.image_engine import Engine, explained
from scripts.process import run_logged

SUITE = "bookworm"
PACKAGES = ("ca-certificates", "python3")
EXCLUDED = ("/usr/share/doc/*", "/usr/share/man/*", "/usr/share/info/*", "/usr/share/locale/*", "/usr/share/lintian/*")
KEPT = ("/usr/share/doc/*/copyright",)


def debian_base(engine: Engine, *, cache: Cache, console: Console, log: Path) -> str:
    """Return the name of a base of Debian's packages, made with mmdebstrap unless it is there. Raises ImageError."""
    command = ["mmdebstrap", "--variant=minbase", f"--include={','.join(PACKAGES)}"]
    command += [f"--dpkgopt=path-exclude={path}" for path in EXCLUDED]
    command += [f"--dpkgopt=path-include={path}" for path in KEPT]
    key = digest([*command, SUITE])
    name = f"localhost/wheelsmith-base:{SUITE}-{key[:12]}"
    if engine.has(name):
        return name
    if shutil.which("mmdebstrap") is None:
        raise ImageError("mmdebstrap is not installed", fix=["apt-get install mmdebstrap", "--base IMAGE"])

    def make(folder: Path) -> None:
        line = f"installing {SUITE} with mmdebstrap"
        with console.progress(lambda: Text(f"{'':<10}{line}"), lambda: line) as progress:
            environment = {**os.environ, "SOURCE_DATE_EPOCH": os.environ.get("SOURCE_DATE_EPOCH", "0")}
            words = [*command, SUITE, str(folder / "base.tar")]
            done = run_logged(words, log=log, cwd=folder, environment=environment, tick=progress.tick)
        if done.code:
            raise explained("making the base with mmdebstrap", done.tail(40), log)
        console.note(f"mmdebstrap took {human_seconds(done.seconds)}")

    tar = cache.once("bases", key, make, console=console) / "base.tar"
    engine.import_tar(tar, name)
    return name
