"""What builds and runs images: the engine's face, and what Docker, Podman and Buildah have in common."""

from __future__ import annotations

import json
import re
import shutil
import time
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, suppress
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import Any, ClassVar

from rich.text import Text

from scripts.core.console import human_seconds
from scripts.core.errors import ImageError
from scripts.core.process import TOO_LATE, call, capture, run_logged
from scripts.downloads.access import Access

_BUILDKIT = {"DOCKER_BUILDKIT": "1", "BUILDKIT_PROGRESS": "plain"}
USER_DIRS = ("/tmp", "/cache")  # noqa: S108 - the image's only writable places


@dataclass(frozen=True)
class Layer:
    """One layer of an image: its size in bytes, unpacked, and what made it."""

    size: int
    made_by: str


@dataclass(frozen=True)
class Plan:
    """What to build. `arguments` are build arguments; `secrets` files that no layer may hold, by id."""

    context: Path
    target: str
    tag: str
    arguments: Mapping[str, str]
    secrets: Mapping[str, Path] = field(default_factory=dict)
    labels: Mapping[str, str] = field(default_factory=dict)
    timestamp: int = 0
    """SOURCE_DATE_EPOCH of layers, in seconds."""


@dataclass(frozen=True)
class Program:
    """What to run inside an image, with a file on stdin."""

    command: Sequence[str]
    script: Path
    user: str
    read_only: bool = False
    """Whether only USER_DIRS can be written."""
    limit: float = 600
    """Seconds."""


def layers_folder(environment: Mapping[str, str]) -> Path:
    """Return where engines write layers before they store them: TMPDIR, else their own default."""
    return Path(environment.get("TMPDIR") or "/var/tmp")  # noqa: S108 - a folder of its own is made there


@dataclass(frozen=True)
class Engine(ABC):
    """A usable engine. All methods raise ImageError."""

    log: Path
    access: Access
    name: ClassVar[str]
    steps: list[tuple[str, float]] = field(default_factory=list)
    """Steps of the builds so far, with their seconds."""

    def _run(self, arguments: Sequence[str | Path], doing: str, **variables: str) -> None:
        """Run a long command with its output in the log, and the time beside it; explain its failure."""
        clock = StepClock(self.log)

        def line() -> str:
            return f"{'':<10}{doing}: {clock.line()}"

        def tick() -> None:
            clock.look()
            progress.tick()

        with self.access.console.progress(lambda: Text(line()), lambda: line().strip()) as progress:
            done = run_logged(
                [self.name, *arguments],
                log=self.log,
                cwd=Path.cwd(),
                environment={
                    **self.access.environment,
                    "DOCKER_BUILDKIT": "1",
                    "BUILDKIT_PROGRESS": "plain",
                    **variables,
                },
                tick=tick,
            )
        self.steps.extend(clock.finish())
        if done.code:
            raise explained(doing, done.tail(60), self.log)
        self.access.console.note(f"{doing} took {human_seconds(done.seconds)}")

    def _ask(self, *arguments: str, doing: str) -> str:
        code, text = capture([self.name, *arguments], timeout=120)
        if code:
            raise explained(doing, text, self.log)
        return text

    @abstractmethod
    def build(self, plan: Plan) -> None:
        """Build the plan's target and give it the plan's tag."""

    def pull(self, image: str) -> None:
        """Have an image here: nothing is fetched when it is."""
        if not self.has(image):
            self._run(["pull", image], f"pulling {image}")

    _inspect: ClassVar[tuple[str, ...]] = ("inspect", "--type", "image")

    def has(self, image: str) -> bool:
        """Tell whether an image is here."""
        return capture([self.name, *self._inspect, image])[0] == 0

    def inspect(self, image: str) -> dict[str, Any]:
        """Return the engine's own description of an image."""
        found = json.loads(self._ask(*self._inspect, image, doing=f"inspecting {image}"))
        return dict(found[0] if isinstance(found, list) else found)

    def digest(self, image: str) -> str:
        """Return what pins an image: its registry digest, else its own id."""
        about = self.inspect(image)
        digests = about.get("RepoDigests") or []
        if digests:
            return str(digests[0]).rpartition("@")[2]
        return str(about.get("FromImageDigest") or about.get("Digest") or about.get("Id", ""))

    def image_id(self, image: str) -> str:
        """Return the sha256 of an image's configuration, which no registry changes."""
        about = self.inspect(image)
        return str(about.get("FromImageID") or about.get("Id", "")).removeprefix("sha256:")

    def tag(self, image: str, name: str) -> None:
        """Give an image another name."""
        self._ask("tag", image, name, doing=f"tagging {name}")

    @abstractmethod
    def untag(self, name: str, other: str) -> None:
        """Take a name away; never fails. The image's layers stay for the next build; `other` is an image that stays."""

    @abstractmethod
    def push(self, image: str, reference: str) -> None:
        """Push an image; who may is the engine's own login."""

    @abstractmethod
    def import_tar(self, tar: Path, name: str) -> None:
        """Make an image of one layer from a root filesystem."""

    @abstractmethod
    def run(self, image: str, program: Program) -> tuple[int, str]:
        """Run a program in a container of its own, without network; return code and output."""

    @abstractmethod
    def layers(self, image: str) -> list[Layer]:
        """Return the image's layers, the base first, without those that hold nothing."""

    @abstractmethod
    def folder(self, image: str, path: str) -> AbstractContextManager[Path]:
        """Give a folder of the image as one of this machine, to read."""

    @abstractmethod
    def storage(self) -> Path:
        """Return the folder that layers are stored in."""

    def trouble(self) -> str | None:
        """Return why the engine cannot be used here, None when it can."""
        if shutil.which(self.name) is None:
            return "not installed"
        for question in (self._version, ["info"]):
            code, text = capture([self.name, *question], timeout=30)
            if code:
                return (text.strip().splitlines() or ["no answer"])[-1][:200]
        return None

    _version: ClassVar[Sequence[str]] = ("--version",)


def plan_words(plan: Plan) -> list[str | Path]:
    """Return the part of a build's command line that all engines share."""
    words: list[str | Path] = []
    for name, value in plan.arguments.items():
        words += ["--build-arg", f"{name}={value}"]
    for name, path in plan.secrets.items():
        words += ["--secret", f"id={name},src={path}"]
    for name, value in plan.labels.items():
        words += ["--label", f"{name}={value}"]
    dockerfile = plan.context / "Dockerfile.runtime"
    return [*words, "--target", plan.target, "--tag", plan.tag, "--file", dockerfile, plan.context]


class StepClock:
    """Follows a build's log: when each step began; writes the time since the start into the log, beside each step."""

    def __init__(self, log: Path) -> None:
        self._log, self._started = log, time.monotonic()
        self._read = log.stat().st_size if log.exists() else 0
        self._rest = b""
        self._begun: list[tuple[str, float]] = []
        self._notes: list[str] = []

    def look(self) -> None:
        """Read what the log has got since."""
        with suppress(OSError), self._log.open("rb") as file:
            file.seek(self._read)
            new = file.read()
            self._read += len(new)
            *lines, self._rest = (self._rest + new).split(b"\n")
            for line in lines:
                if _STEP.match(line):
                    step, elapsed = " ".join(line.decode("utf-8", "replace").split()), time.monotonic() - self._started
                    self._begun.append((step, elapsed))
                    self._notes.append(f"wheelsmith: {human_seconds(elapsed)} after the start: {step[:60]}\n")
            if self._notes and not self._rest:  # not into the middle of a line of the engine's
                with self._log.open("ab") as log:
                    log.write("".join(self._notes).encode())
                self._notes.clear()

    def line(self) -> str:
        """Return what is being done now, and for how long."""
        whole = human_seconds(time.monotonic() - self._started)
        if not self._begun:
            return f"starting, {whole}"
        step, begun = self._begun[-1]
        return f"{whole}, of it {human_seconds(time.monotonic() - self._started - begun)} in {step[:90]}"

    def finish(self) -> list[tuple[str, float]]:
        """Return the steps with their seconds, and write them to the log."""
        self.look()
        marks = [*self._begun, ("", time.monotonic() - self._started)]
        steps = [(step, round(end - begun, 1)) for (step, begun), (_, end) in pairwise(marks)]
        with suppress(OSError), self._log.open("ab") as file:
            for step, seconds in steps:
                file.write(f"wheelsmith: {human_seconds(seconds)} in {step[:100]}\n".encode())
        return steps


_STEP = re.compile(rb"(?:\[\S+\] )?STEP \d+/\d+: |#\d+ \[")


def fed(words: Sequence[str], program: Program) -> tuple[int, str]:
    """Run an engine's words with a program's script on stdin; return the exit code (124: too late) and the output."""
    with program.script.open("rb") as stdin:
        done = call(words, stdin=stdin, limit=program.limit, merged=True)
    return done.code, done.text if done.code != TOO_LATE else f"no answer within {program.limit:.0f} s"


_CAUSES = (
    (r"no space left|disk quota", "no space left on the filesystem of the layers", "free space there: {store}"),
    (
        r"Hash mismatch",
        "the index serves other bytes than the lock file pins",
        "do not install from it; check the index (PIP_INDEX_URL)",
    ),
    (
        r"UnknownIssuer|certificate",
        "the index's certificate is not trusted inside the build",
        "point PIP_CERT (or SSL_CERT_FILE) at the certificates to trust",
    ),
    (
        r"Failed to fetch|dns error|Could not connect|Temporary failure resolving|error sending request|dial tcp",
        "a registry or package index cannot be reached",
        "check the network and HTTPS_PROXY; --base debootstrap needs no registry",
    ),
    (r"python3: not found|python3\": executable|exec: \"python3\"", "the base has no python3", "choose another --base"),
    (
        r"only-binary|no wheels with a matching|has no wheels",
        "a package has no wheel for the base's Python",
        "choose another --base",
    ),
)


def explained(doing: str, text: str, log: Path) -> ImageError:
    """Return the error for an engine's failure by what it said; the end of its output is shown."""
    clean = re.sub(r"(https?://)[^/\s@]+@", r"\1", text)
    unknown = ("the engine failed", f"read {log}")
    why, fix = next(((w, f) for pattern, w, f in _CAUSES if re.search(pattern, clean, re.IGNORECASE)), unknown)
    lines = [line[:400] for line in clean.strip().splitlines()[-12:]]
    return ImageError(f"{doing} failed", why=why, fix=fix.format(store="docker system df"), detail="\n".join(lines))
