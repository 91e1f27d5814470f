"""The report beside each wheel, NAME.whl.report.json: what it is made of, how, and what was seen of it."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from scripts.audit.models import AuditReport
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
from scripts.package.check import Wheel
from scripts.package.prove import Proof
from scripts.recipe.model import Recipe
from scripts.recipe.sources import GitSource, Source
from scripts.report.models import (
    SCHEMA,
    BuildReport,
    ComponentFacts,
    DoctorRow,
    GitPin,
    IndexPin,
    PatchFacts,
    PinnedTorch,
    RecipeFacts,
    StageFacts,
    ToolchainFacts,
    UnitsFacts,
    WheelIdentity,
    Wheelsmith,
)
from scripts.report.timeline import read_timeline
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
    recipe: Recipe,
    fetched: Fetched,
    tree: BuildTree,
    compiled: Compiled,
    wheel: Wheel,
    proof: Proof,
    stages: Stages,
    audit: AuditReport,
) -> BuildReport:
    """Return the report of a wheel that was built. Documented in docs/report.md."""
    return BuildReport(
        schema_version=SCHEMA,
        wheelsmith=Wheelsmith(version=version(), commit=commit()),
        wheel=WheelIdentity(
            name=wheel.path.name,
            sha256=wheel.sha256,
            size=wheel.size,
            version=wheel.version,
            platform=wheel.platform,
        ),
        recipe=RecipeFacts(name=recipe.name, digest=recipe.digest, notice=recipe.package.notice),
        build=tree.key,
        sources=tuple(_sources(recipe, fetched)),
        patches=tuple(PatchFacts(name=patch.name, sha256=patch.sha256) for patch in tree.source.patches),
        toolchain=ToolchainFacts(**toolchain_report(tree.toolchain), nvcc=recipe.toolchain.cuda),
        torch=PinnedTorch(version=recipe.torch.version, cuda=recipe.torch.cuda),
        archs=arch_list(tree.archs),
        components=_components(recipe, wheel, proof),
        units=UnitsFacts(
            total=len(compiled.units),
            compiled_in_this_run=compiled.units_now,
            stock_headers=tuple(unit.source for unit in compiled.units if unit.headers == "stock"),
            records=compiled.units,
        ),
        compiler_cache=compiled.cache,
        timeline=read_timeline(tree.events),
        stages={
            name: StageFacts(seconds=round(seconds, 2), peak_bytes=stages.peak_bytes.get(name, 0))
            for name, seconds in stages.seconds.items()
        },
        doctor=tuple(DoctorRow(**row) for row in stages.doctor),
        audit=audit,
    )


def _components(recipe: Recipe, wheel: Wheel, proof: Proof) -> tuple[ComponentFacts, ...]:
    facts = {member.split(".", 1)[0]: item for member, item in device_facts(wheel.device).items()}
    of_component = {item.value: facts.get(item.stem_in(facts)) for item in recipe.shared_objects}
    return tuple(
        ComponentFacts(
            name=name,
            size=size,
            cubins=proof.cubins[name],
            ptx=proof.ptx[name],
            operators=tuple(proof.operators[name]),
            **_device(of_component[name]),
        )
        for name, size in wheel.components.items()
    )


def _device(facts: DeviceFacts | None) -> dict[str, Any]:
    return {"bytes_per_arch": facts.bytes_per_arch, "containers": tuple(facts.units)} if facts else {}


def _sources(recipe: Recipe, fetched: Fetched) -> Iterator[GitPin | IndexPin]:
    said = {"file": fetched.source.path.name}
    yield _pin("source", recipe.package.version, recipe.source, said | _received("source", fetched))
    for name, item in recipe.needed_dependencies().items():
        yield _pin(name, item.version, item.source, _received(name, fetched))


def _received(name: str, fetched: Fetched) -> dict[str, Any]:
    return {"received": fetched.received[name]} if name in fetched.received else {}


def _pin(name: str, version: str, source: Source, said: Mapping[str, Any]) -> GitPin | IndexPin:
    if isinstance(source, GitSource):
        return GitPin(name=name, version=version, repository=source.repository, commit=source.commit, **said)
    project = f"{source.name} {source.version}"
    return IndexPin(name=name, version=version, project=project, kind=source.kind, sha256=source.sha256, **said)
