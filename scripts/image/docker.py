"""Docker (buildx) and what it shares with Podman: a daemon or cgroups, containers of their own for what runs."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import ClassVar

from scripts.core.errors import ImageError
from scripts.core.process import capture
from scripts.image.engine import USER_DIRS, Engine, Layer, Plan, Program, fed, plan_words


class ContainerEngine(Engine):
    """An engine that starts containers."""

    def push(self, image: str, reference: str) -> None:
        """Push an image; who may is the engine's own login."""
        self.tag(image, reference)
        self._run(["push", reference], f"pushing {reference}")

    def import_tar(self, tar: Path, name: str) -> None:
        """Make an image of one layer from a root filesystem."""
        self._run(["import", tar, name], f"importing {name}")

    def run(self, image: str, program: Program) -> tuple[int, str]:
        """Run a program in a container of its own, without network; return code and output."""
        words = ["run", "--rm", "-i", "--network", "none", "--user", program.user, "--entrypoint", program.command[0]]
        if program.read_only:
            words.append("--read-only")
            for folder in USER_DIRS:
                words += ["--tmpfs", folder]
        return fed([self.name, *words, image, *program.command[1:]], program)

    def layers(self, image: str) -> list[Layer]:
        """Return the image's layers, the base first, without those that hold nothing."""
        form = "{{.Size}}\t{{.CreatedBy}}"
        listing = self._ask("history", "--no-trunc", "--human=false", "--format", form, image, doing="reading layers")
        rows = [line.split("\t", 1) for line in listing.splitlines() if "\t" in line]
        return [Layer(int(size), text) for size, text in reversed(rows) if size.isdigit() and int(size)]

    @contextmanager
    def folder(self, image: str, path: str) -> Iterator[Path]:
        """Give a copy of a folder of the image."""
        doing = f"reading {path} of {image}"
        container = self._ask("create", image, doing=doing).strip().splitlines()[-1]
        try:
            with tempfile.TemporaryDirectory(prefix="wheelsmith-") as name:
                self._ask("cp", f"{container}:{path}", name, doing=doing)
                yield Path(name) / Path(path).name
        finally:
            capture([self.name, "rm", container])


class Docker(ContainerEngine):
    """docker with buildx."""

    name: ClassVar[str] = "docker"
    _inspect: ClassVar[tuple[str, ...]] = ("image", "inspect")
    _version: ClassVar[Sequence[str]] = ("buildx", "version")

    def build(self, plan: Plan) -> None:
        """Build the plan's target; layers' times are set by BuildKit."""
        words = ["build", "--build-arg", f"SOURCE_DATE_EPOCH={plan.timestamp}"]
        self._run([*words, *plan_words(plan)], f"building target {plan.target}")

    def untag(self, name: str, other: str) -> None:  # noqa: ARG002 - BuildKit keeps its layers anyway
        """Take a name away; never fails."""
        with suppress(ImageError):
            self._ask("rmi", name, doing=f"untagging {name}")

    def storage(self) -> Path:
        """Return the daemon's folder."""
        return Path(self._ask("info", "--format", "{{.DockerRootDir}}", doing="asking docker").strip())
