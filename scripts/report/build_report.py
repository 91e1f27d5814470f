"""The report beside each wheel, NAME.whl.report.json: what it is made of, how, and what was seen of it."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from scripts.compile.build import Compiled
from scripts.compile.tree import BuildTree
from scripts.core import interrupt
from scripts.core.errors import (
    AuditError,
    CompileError,
    FetchError,
    PackageError,
    PatchError,
    ToolchainError,
    WheelsmithError,
    from_os_error,
)
from scripts.core.files import write_json
from scripts.core.version import commit, version
from scripts.cuda.archs import arch_list
from scripts.formats.unit_names import DeviceFacts, device_facts
from scripts.package.build import Wheel
from scripts.package.prove import Proof
from scripts.recipe.model import Recipe
from scripts.recipe.sources import GitSource, Source
from scripts.report.timeline import read_timeline
from scripts.report.wheelhouse import SCHEMA
from scripts.sources.types import Fetched
from scripts.toolchain.provide import toolchain_report

STAGE_ERRORS: Mapping[str, type[WheelsmithError]] = {
    "fetch": FetchError,
    "patch": PatchError,
    "toolchain": ToolchainError,
    "configure": CompileError,
    "compile": CompileError,
    "package": PackageError,
    "prove": AuditError,
    "audit": AuditError,
}


@dataclass
class Stages:
    """Seconds and peak memory per stage."""

    seconds: dict[str, float] = field(default_factory=dict)
    peak_bytes: dict[str, int] = field(default_factory=dict)
    doctor: list[Mapping[str, str]] = field(default_factory=list)
    """Checks of doctor that warned or were skipped."""

    @contextmanager
    def timed(self, name: str) -> Iterator[None]:
        """Add the time of the block to the stage `name`, also when it fails.

        An OSError that nobody in it has explained, a full disk say, becomes an error of the stage's own kind. Raises
        Interrupted when we were told to end.
        """
        interrupt.check()
        started = time.monotonic()
        try:
            yield
            interrupt.check()
        except BrokenPipeError:  # whoever reads our messages has gone
            raise
        except OSError as error:
            where = Path(error.filename or Path.cwd())
            raise from_os_error(STAGE_ERRORS[name], error, doing=f"writing in stage {name}", path=where) from error
        finally:
            self.seconds[name] = self.seconds.get(name, 0.0) + time.monotonic() - started

    @contextmanager
    def kept_in(self, path: Path) -> Iterator[None]:
        """Add up stages over runs: a build that was interrupted took all its runs' time, not the last one's."""
        with suppress(OSError, ValueError, AttributeError):
            earlier = json.loads(path.read_text())
            self.seconds.update(earlier["seconds"])
            self.peak_bytes.update(earlier["peak_bytes"])
        try:
            yield
        finally:
            with suppress(OSError):
                write_json(path, {"seconds": self.seconds, "peak_bytes": self.peak_bytes})


def make_report(
    recipe: Recipe, fetched: Fetched, tree: BuildTree, compiled: Compiled, wheel: Wheel, proof: Proof, stages: Stages
) -> dict[str, Any]:
    """Return the report as JSON-able data; sizes in bytes, times in seconds. Documented in docs/report.md."""
    facts = {member.split(".", 1)[0]: item for member, item in device_facts(proof.device).items()}
    of_component = {item.value: facts.get(item.member) for item in recipe.shared_objects}
    return {
        "schema": SCHEMA,
        "wheelsmith": {"version": version(), "commit": commit()},
        "wheel": {
            "name": wheel.path.name,
            "sha256": wheel.sha256,
            "size": wheel.size,
            "version": wheel.version,
            "platform": wheel.platform,
        },
        "recipe": {"name": recipe.name, "digest": recipe.digest, "notice": recipe.package.notice},
        "build": tree.key,
        "sources": _sources(recipe, fetched),
        "patches": [{"name": patch.name, "sha256": patch.sha256} for patch in tree.source.patches],
        "toolchain": {**toolchain_report(tree.toolchain), "nvcc": recipe.toolchain.cuda},
        "torch": {"version": recipe.torch.version, "cuda": recipe.torch.cuda},
        "archs": arch_list(tree.archs),
        "components": [
            {
                "name": name,
                "size": size,
                "cubins": proof.cubins[name],
                "ptx": proof.ptx[name],
                "operators": proof.operators[name],
                **_device(of_component[name]),
            }
            for name, size in wheel.components.items()
        ],
        "units": {
            "total": len(compiled.units),
            "compiled_in_this_run": compiled.units_now,
            "stock_headers": [unit.source for unit in compiled.units if unit.headers == "stock"],
            "records": [asdict(unit) for unit in compiled.units],
        },
        "compiler_cache": compiled.cache.data() if compiled.cache else None,
        "timeline": read_timeline(tree.events).data(),
        "stages": {
            name: {"seconds": round(seconds, 2), "peak_bytes": stages.peak_bytes.get(name, 0)}
            for name, seconds in stages.seconds.items()
        },
        "doctor": stages.doctor,
    }


def _device(facts: DeviceFacts | None) -> dict[str, Any]:
    return {"bytes_per_arch": facts.bytes_per_arch, "containers": facts.units} if facts else {}


def _sources(recipe: Recipe, fetched: Fetched) -> list[dict[str, Any]]:
    rows = [_pin("source", recipe.package.version, recipe.source)]
    rows += [_pin(name, item.version, item.source) for name, item in recipe.needed_dependencies().items()]
    rows[0]["file"] = fetched.source.path.name
    for row in rows:
        if row["name"] in fetched.received:
            row["received"] = fetched.received[row["name"]]
    return rows


def _pin(name: str, version: str, source: Source) -> dict[str, Any]:
    if isinstance(source, GitSource):
        return {"name": name, "version": version, "repository": source.repository, "commit": source.commit}
    taken = {"name": name, "version": version, "project": f"{source.name} {source.version}"}
    return {**taken, "kind": source.kind, "sha256": source.sha256}
