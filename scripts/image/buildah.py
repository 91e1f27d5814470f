"""Buildah with chroot isolation: works as root where containers cannot be started (no daemon, cgroups, namespaces)."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import ClassVar

from scripts.core.errors import ImageError
from scripts.core.process import capture
from scripts.image.engine import Engine, Layer, Plan, Program, fed, layers_folder, plan_words

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


class Buildah(Engine):
    """buildah."""

    name: ClassVar[str] = "buildah"

    def build(self, plan: Plan) -> None:
        """Build the plan's target in Docker's format: OCI's has no HEALTHCHECK."""
        words = ["bud", "--isolation", "chroot", "--layers", "--force-rm"]
        words += ["--format", "docker", "--timestamp", str(plan.timestamp)]
        before = self._containers()
        # Layers are written as files before they are stored, and stay there (twice the largest) after an interruption.
        place = layers_folder(self.access.environment)
        with tempfile.TemporaryDirectory(dir=place, prefix="wheelsmith-layers-") as spare:
            try:
                self._run([*words, *plan_words(plan)], f"building target {plan.target}", TMPDIR=spare)
            except BaseException:
                self._remove(self._containers() - before)
                raise

    def _containers(self) -> set[str]:
        """Return the working containers."""
        code, text = capture(["buildah", "containers", "--quiet"])
        return set() if code else set(text.split())

    def _remove(self, names: set[str]) -> None:
        if names:
            capture(["buildah", "rm", *sorted(names)], timeout=300)

    def untag(self, name: str, other: str) -> None:
        """Take a name away; never fails.

        buildah would remove an image with its last name, and its layers, which the next build wants: the name first
        goes to `other`.
        """
        with suppress(ImageError):
            if self.has(name):
                self._ask("tag", other, name, doing=f"untagging {name}")
            self._ask("rmi", name, doing=f"untagging {name}")

    def push(self, image: str, reference: str) -> None:
        """Push an image; who may is buildah's own login."""
        self._run(["push", image, f"docker://{reference}"], f"pushing {reference}")

    def import_tar(self, tar: Path, name: str) -> None:
        """Make an image of one layer from a root filesystem."""
        container = self._ask("from", "scratch", doing="making a base").strip().splitlines()[-1]
        try:
            self._run(["add", "--quiet", container, tar, "/"], f"importing {name}")
            self._ask("config", "--cmd", "bash", container, doing="making a base")
            self._run(
                ["commit", "--quiet", "--format", "docker", "--timestamp", "0", container, name], f"storing {name}"
            )
        finally:
            self._remove({container})

    def run(self, image: str, program: Program) -> tuple[int, str]:
        """Run a program in a container of its own; return code and output.

        chroot isolation knows no read-only root: that is a chroot of our own in a mount namespace.
        """
        with self._container(image, f"starting {image}") as container:
            if not program.read_only:
                words = ["buildah", "run", "--isolation", "chroot", "--user", program.user, container, "--"]
                return fed([*words, *program.command], program)
            root = self._mounted(container, image)
            settings = self.inspect(image).get("Docker", {}).get("config", {}).get("Env") or []
            words = ["unshare", "-m", "sh", "-c", _READ_ONLY, "sh", root, program.user, *settings]
            return fed([*words, *program.command], program)

    @contextmanager
    def _container(self, image: str, doing: str) -> Iterator[str]:
        container = self._ask("from", "--pull-never", image, doing=doing).strip().splitlines()[-1]
        try:
            yield container
        finally:
            self._remove({container})

    def _mounted(self, container: str, image: str) -> str:
        return self._ask("mount", container, doing=f"mounting {image}").strip().splitlines()[-1]

    def layers(self, image: str) -> list[Layer]:
        """Return the image's layers, the base first, without those that hold nothing."""
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
        with self._container(image, f"reading {path} of {image}") as container:
            yield Path(self._mounted(container, image) + path)

    def storage(self) -> Path:
        """Return the store's folder."""
        return Path(json.loads(self._ask("info", doing="asking buildah"))["store"]["GraphRoot"])
