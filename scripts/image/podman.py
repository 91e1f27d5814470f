"""Podman: like Docker on the command line, without a daemon, with cgroups."""

from __future__ import annotations

import json
from contextlib import suppress
from pathlib import Path
from typing import ClassVar

from scripts.core.errors import ImageError
from scripts.image.docker import ContainerEngine
from scripts.image.engine import Plan, plan_words


class Podman(ContainerEngine):
    """podman."""

    name: ClassVar[str] = "podman"

    def build(self, plan: Plan) -> None:
        """Build the plan's target in Docker's format: OCI's has no HEALTHCHECK."""
        words = ["build", "--format", "docker", "--timestamp", str(plan.timestamp)]
        self._run([*words, *plan_words(plan)], f"building target {plan.target}")

    def untag(self, name: str, other: str) -> None:  # noqa: ARG002 - untagging removes nothing
        """Take a name away; never fails."""
        with suppress(ImageError):
            self._ask("untag", name, doing=f"untagging {name}")

    def storage(self) -> Path:
        """Return the store's folder."""
        about = json.loads(self._ask("info", "--format", "json", doing="asking podman"))
        return Path(about["store"].get("GraphRoot") or about["store"]["graphRoot"])

    def trouble(self) -> str | None:
        """Return why the engine cannot be used here, None when it can."""
        return super().trouble() or (None if Path("/sys/fs/cgroup").exists() else "no cgroups")
