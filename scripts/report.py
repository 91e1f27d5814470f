"""The report beside each wheel, NAME.whl.report.json: what it is made of, how, and what was seen of it."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from scripts.archs import arch_list
from scripts.cache import file_sha256, install_file, write_atomic, write_json
from scripts.compile import BuildTree, Compiled
from scripts.errors import PackageError, from_os_error
from scripts.fetch import Fetched
from scripts.package import Wheel
from scripts.prove import Proof
from scripts.recipe import GitSource, Recipe, Source
from scripts.report_html import report_page
from scripts.timeline import Timeline, read_timeline
from scripts.toolchain import toolchain_report
from scripts.trace import trace
from scripts.unit_names import DeviceFacts, device_facts

SCHEMA = 1


@dataclass
class Stages:
    """Seconds and peak memory per stage."""

    seconds: dict[str, float] = field(default_factory=dict)
    peak_bytes: dict[str, int] = field(default_factory=dict)
    doctor: list[Mapping[str, str]] = field(default_factory=list)
    """Checks of doctor that warned or were skipped."""

    @contextmanager
    def timed(self, name: str) -> Iterator[None]:
        """Add the time of the block to the stage `name`, also when it fails."""
        started = time.monotonic()
        try:
            yield
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


def report_path(wheel: Path) -> Path:
    """Return where the report of a wheel is: `NAME.whl.report.json`."""
    return wheel.with_name(wheel.name + ".report.json")


def make_report(
    recipe: Recipe, fetched: Fetched, tree: BuildTree, compiled: Compiled, wheel: Wheel, proof: Proof, stages: Stages
) -> dict[str, Any]:
    """Return the report as JSON-able data; sizes in bytes, times in seconds. Documented in docs/report.md."""
    facts = {member.split(".", 1)[0]: item for member, item in device_facts(proof.device).items()}
    of_component = {item.value: facts.get(item.member) for item in recipe.shared_objects}
    return {
        "schema": SCHEMA,
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
        "toolchain": toolchain_report(tree.toolchain),
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


def enter(wheel: Path, report: Mapping[str, Any], wheelhouse: Path) -> Path:
    """Put the reports and then the wheel into the wheelhouse, each by rename: a wheel there always has its report.

    Raises PackageError.
    """
    final = wheelhouse / wheel.name
    try:
        write_json(report_path(final), report)
        write_atomic(final.with_name(final.name + ".report.html"), report_page(report).encode())
        if report.get("timeline"):
            events = trace(Timeline.of(report["timeline"]), final.name)
            write_atomic(final.with_name(final.name + ".trace.json"), json.dumps(events).encode())
    except OSError as error:
        raise from_os_error(PackageError, error, doing="writing", path=wheelhouse, variable="--wheelhouse") from error
    install_file(wheel, final, kind=PackageError, variable="--wheelhouse")
    return final


def read_report(wheel: Path) -> dict[str, Any] | None:
    """Return the report of a wheel when both are whole: readable, and about this very file. Else None."""
    try:
        report = json.loads(report_path(wheel).read_text())
        if report["schema"] == SCHEMA and report["wheel"]["sha256"] == file_sha256(wheel):
            return dict(report)
    except (OSError, ValueError, KeyError, TypeError):
        pass
    return None


def find_built(wheelhouse: Path, build: str, recipe_digest: str) -> tuple[Path, Mapping[str, Any]] | None:
    """Return the wheel (and its report) that this recipe's build has left in the wheelhouse, if it is whole."""
    for path in sorted(wheelhouse.glob("*.whl")):
        report = read_report(path)
        if report and report.get("build") == build and report["recipe"]["digest"] == recipe_digest:
            return path, report
    return None
