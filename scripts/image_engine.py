"""What builds and runs images: docker (buildx), podman or buildah, found by itself.

buildah works with `--isolation chroot` where containers cannot be started (a sandbox without cgroups or namespaces).
"""

from __future__ import annotations

import json
import os
import re
import shutil
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from rich.text import Text

from scripts import interrupt
from scripts.console import Console, human_seconds
from scripts.errors import ImageError, UsageError
from scripts.process import TOO_LATE, call, capture, run_logged

NAMES = ("docker", "podman", "buildah")
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


def layers_folder() -> Path:
    """Return where engines write layers before they store them: TMPDIR, else their own default."""
    return Path(os.environ.get("TMPDIR") or "/var/tmp")  # noqa: S108 - a folder of its own is made there


@dataclass(frozen=True)
class Engine:
    """A usable engine. All methods raise ImageError."""

    name: str
    log: Path
    console: Console

    def _run(self, arguments: Sequence[str | Path], doing: str, **variables: str) -> None:
        """Run a long command with its output in the log; explain its failure."""

        def line() -> str:
            return f"{'':<10}{doing}: {_step(self.log)}"

        with self.console.progress(lambda: Text(line()), lambda: line().strip()) as progress:
            done = run_logged(
                [self.name, *arguments],
                log=self.log,
                cwd=Path.cwd(),
                environment={**os.environ, "DOCKER_BUILDKIT": "1", "BUILDKIT_PROGRESS": "plain", **variables},
                tick=progress.tick,
            )
        if done.code:
            raise explained(doing, done.tail(60), self.log)
        self.console.note(f"{doing} took {human_seconds(done.seconds)}")

    def _ask(self, *arguments: str, doing: str) -> str:
        code, text = capture([self.name, *arguments], environment=os.environ, timeout=120)
        if code:
            raise explained(doing, text, self.log)
        return text

    def build(self, plan: Plan) -> None:
        """Build the plan's target and give it the plan's tag."""
        words: list[str | Path] = ["build" if self.name == "docker" else "bud"] if self.name != "podman" else ["build"]
        if self.name == "buildah":
            words += ["--isolation", "chroot", "--layers", "--force-rm"]
        if self.name != "docker":  # OCI's format has no HEALTHCHECK
            words += ["--format", "docker", "--timestamp", str(plan.timestamp)]
        else:
            words += ["--build-arg", f"SOURCE_DATE_EPOCH={plan.timestamp}"]
        for name, value in plan.arguments.items():
            words += ["--build-arg", f"{name}={value}"]
        for name, path in plan.secrets.items():
            words += ["--secret", f"id={name},src={path}"]
        for name, value in plan.labels.items():
            words += ["--label", f"{name}={value}"]
        words += [
            "--target",
            plan.target,
            "--tag",
            plan.tag,
            "--file",
            plan.context / "Dockerfile.runtime",
            plan.context,
        ]
        before = self._containers()
        # buildah writes layers as files before it stores them, and leaves them there (18 GB) when it is interrupted.
        with tempfile.TemporaryDirectory(dir=layers_folder(), prefix="wheelsmith-layers-") as spare:
            try:
                self._run(words, f"building target {plan.target}", TMPDIR=spare)
            except BaseException:
                with interrupt.tidying():
                    self._remove_containers(self._containers() - before)
                raise

    def _containers(self) -> set[str]:
        """Return buildah's working containers: the other engines keep none of a build."""
        if self.name != "buildah":
            return set()
        code, text = capture(["buildah", "containers", "--quiet"], environment=os.environ)
        return set() if code else set(text.split())

    def _remove_containers(self, names: set[str]) -> None:
        if names:
            capture(["buildah", "rm", *sorted(names)], environment=os.environ, timeout=300)

    def pull(self, image: str) -> None:
        """Have an image here: nothing is fetched when it is."""
        if self.has(image):
            return
        self._run(["pull", image], f"pulling {image}")

    def has(self, image: str) -> bool:
        """Tell whether an image is here."""
        kind = ["inspect", "--type", "image"] if self.name != "docker" else ["image", "inspect"]
        return capture([self.name, *kind, image], environment=os.environ)[0] == 0

    def inspect(self, image: str) -> dict[str, Any]:
        """Return the engine's own description of an image."""
        kind = ["inspect", "--type", "image"] if self.name != "docker" else ["image", "inspect"]
        found = json.loads(self._ask(*kind, image, doing=f"inspecting {image}"))
        return dict(found[0] if isinstance(found, list) else found)

    def digest(self, image: str) -> str:
        """Return what pins an image: its registry digest, else its own id."""
        about = self.inspect(image)
        digests = about.get("RepoDigests") or []
        if digests:
            return str(digests[0]).rpartition("@")[2]
        return str(about.get("FromImageDigest") or about.get("Digest") or about.get("Id", ""))

    def tag(self, image: str, name: str) -> None:
        """Give an image another name."""
        self._ask("tag", image, name, doing=f"tagging {name}")

    def untag(self, name: str, other: str | None = None) -> None:
        """Take a name away; never fails.

        buildah would remove an image with its last name, and its layers, which the next build wants: with `other`,
        an image that stays, the name first goes there.
        """
        words = ["rmi", name] if self.name != "podman" else ["untag", name]
        with suppress(ImageError):
            if other and self.name == "buildah" and self.has(name):
                self._ask("tag", other, name, doing=f"untagging {name}")
            self._ask(*words, doing=f"untagging {name}")

    def push(self, image: str, reference: str) -> None:
        """Push an image; who may is the engine's own login."""
        if self.name == "buildah":
            self._run(["push", image, f"docker://{reference}"], f"pushing {reference}")
            return
        self.tag(image, reference)
        self._run(["push", reference], f"pushing {reference}")

    def import_tar(self, tar: Path, name: str) -> None:
        """Make an image of one layer from a root filesystem."""
        if self.name != "buildah":
            self._run(["import", tar, name], f"importing {name}")
            return
        container = self._ask("from", "scratch", doing="making a base").strip().splitlines()[-1]
        try:
            self._run(["add", "--quiet", container, tar, "/"], f"importing {name}")
            self._ask("config", "--cmd", "bash", container, doing="making a base")
            self._run(
                ["commit", "--quiet", "--format", "docker", "--timestamp", "0", container, name], f"storing {name}"
            )
        finally:
            self._remove_containers({container})

    def run(
        self,
        image: str,
        command: Sequence[str],
        *,
        script: Path,
        user: str,
        read_only: bool = False,
        timeout: float = 600,
    ) -> tuple[int, str]:
        """Run `command` with `script` on stdin in a container of its own, without network; return code and output."""
        if self.name == "buildah":
            return self._run_buildah(image, command, script=script, user=user, read_only=read_only, timeout=timeout)
        words = ["run", "--rm", "-i", "--network", "none", "--user", user, "--entrypoint", command[0]]
        if read_only:
            words.append("--read-only")
            for folder in USER_DIRS:
                words += ["--tmpfs", folder]
        return _fed([self.name, *words, image, *command[1:]], script, timeout)

    def _run_buildah(
        self, image: str, command: Sequence[str], *, script: Path, user: str, read_only: bool, timeout: float
    ) -> tuple[int, str]:
        container = self._ask("from", "--pull-never", image, doing=f"starting {image}").strip().splitlines()[-1]
        try:
            if not read_only:
                words = ["buildah", "run", "--isolation", "chroot", "--user", user, container, "--", *command]
                return _fed(words, script, timeout)
            root = self._ask("mount", container, doing=f"mounting {image}").strip().splitlines()[-1]
            settings = self.inspect(image).get("Docker", {}).get("config", {}).get("Env") or []
            return _fed(
                ["unshare", "-m", "sh", "-c", _READ_ONLY, "sh", root, user, *settings, *command], script, timeout
            )
        finally:
            self._remove_containers({container})

    def layers(self, image: str) -> list[Layer]:
        """Return the image's layers, the base first, without those that hold nothing."""
        if self.name == "buildah":
            return self._buildah_layers(image)
        form = "{{.Size}}\t{{.CreatedBy}}"
        listing = self._ask("history", "--no-trunc", "--human=false", "--format", form, image, doing="reading layers")
        rows = [line.split("\t", 1) for line in listing.splitlines() if "\t" in line]
        return [Layer(int(size), text) for size, text in reversed(rows) if size.isdigit() and int(size)]

    def _buildah_layers(self, image: str) -> list[Layer]:
        about = self.inspect(image)["Docker"]
        store = json.loads(self._ask("info", doing="reading the store"))["store"]
        table = Path(store["GraphRoot"]) / f"{store['GraphDriverName']}-layers" / "layers.json"
        sizes = {item.get("diff-digest"): int(item.get("diff-size", 0)) for item in json.loads(table.read_text())}
        made = [item.get("created_by", "") for item in about["history"] if not item.get("empty_layer")]
        return [
            Layer(sizes.get(digest, 0), text) for digest, text in zip(about["rootfs"]["diff_ids"], made, strict=True)
        ]

    @contextmanager
    def folder(self, image: str, path: str) -> Iterator[Path]:
        """Give a folder of the image as one of this machine, to read."""
        doing = f"reading {path} of {image}"
        if self.name == "buildah":
            container = self._ask("from", "--pull-never", image, doing=doing).strip().splitlines()[-1]
            try:
                root = self._ask("mount", container, doing=doing).strip().splitlines()[-1]
                yield Path(root + path)
            finally:
                with interrupt.tidying():
                    self._remove_containers({container})
            return
        container = self._ask("create", image, doing=doing).strip().splitlines()[-1]
        try:
            with tempfile.TemporaryDirectory(prefix="wheelsmith-") as name:
                self._ask("cp", f"{container}:{path}", name, doing=doing)
                yield Path(name) / Path(path).name
        finally:
            with interrupt.tidying():
                capture([self.name, "rm", container], environment=os.environ)

    def storage(self) -> Path:
        """Return the folder that layers are stored in."""
        if self.name == "docker":
            return Path(self._ask("info", "--format", "{{.DockerRootDir}}", doing="asking docker").strip())
        about = json.loads(self._ask("info", *(["--format", "json"] * (self.name == "podman")), doing="asking it"))
        return Path(about["store"].get("GraphRoot") or about["store"]["graphRoot"])


# Bind-mounts the root read-only in a mount namespace of its own, with memory over the writable places.
_READ_ONLY = """\
set -e
root=$1 user=$2; shift 2
mount --make-rprivate /
mount --bind "$root" "$root"
for place in /tmp /cache; do mount -t tmpfs -o mode=1777 tmpfs "$root$place"; done
mount --rbind /proc "$root/proc"; mount --rbind /dev "$root/dev"
mount -o remount,bind,ro "$root"
exec chroot --userspec="$user" "$root" /usr/bin/env -i "$@"
"""


def _fed(words: Sequence[str], script: Path, timeout: float) -> tuple[int, str]:
    with script.open("rb") as stdin:
        done = call(words, environment=os.environ, stdin=stdin, limit=timeout, merged=True)
    return done.code, done.text if done.code != TOO_LATE else f"no answer within {timeout:.0f} s"


def find_engine(wanted: str, *, log: Path, console: Console) -> Engine:
    """Return the engine that was asked for, or with `auto` the first that works. Raises ImageError, UsageError."""
    if wanted not in {*NAMES, "auto"}:
        raise UsageError(f"there is no engine {wanted!r}", fix=f"choose from: {', '.join(NAMES)}, auto")
    said = []
    for name in NAMES if wanted == "auto" else (wanted,):
        trouble = _unusable(name)
        if trouble is None:
            return Engine(name, log, console)
        said.append(f"{name}: {trouble}")
    raise ImageError(
        "no engine can build an image here" if wanted == "auto" else f"{wanted} cannot build an image here",
        why="; ".join(said),
        fix=["apt-get install buildah (needs no daemon, and works as root in a sandbox)", "start the docker daemon"],
    )


def _unusable(name: str) -> str | None:
    if shutil.which(name) is None:
        return "not installed"
    questions = {"docker": ["buildx", "version"], "podman": ["--version"], "buildah": ["--version"]}
    for question in (questions[name], ["info"]):
        code, text = capture([name, *question], environment=os.environ, timeout=30)
        if code:
            return (text.strip().splitlines() or ["no answer"])[-1][:200]
    if name == "podman" and not Path("/sys/fs/cgroup").exists():
        return "no cgroups"
    return None


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


def _step(log: Path) -> str:
    """Return the build step that the log told last."""
    with suppress(OSError):
        with log.open("rb") as file:
            file.seek(max(0, log.stat().st_size - 20_000))
            steps = re.findall(rb"^(?:\[\S+\] )?STEP \d+/\d+: .*|^#\d+ \[.*", file.read(), re.MULTILINE)
        if steps:
            return str(steps[-1].decode("utf-8", "replace")[:90])
    return "starting"
