"""NAME.whl.report.json as frozen models (schema version 1): what a wheel is made of, how, and what was seen of it.

Sizes are in bytes, times in seconds. docs/report.md explains the keys, docs/build-report.schema.json is their schema.
Keys that a report has nothing to say of are left out of the file: a slim wheel has no stages of its own.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import (
    ConfigDict,
    Discriminator,
    Field,
    SerializerFunctionWrapHandler,
    Tag,
    ValidationError,
    model_serializer,
)

from scripts.audit.models import AuditReport
from scripts.compile.compiler_cache import CacheSummary
from scripts.compile.units import UnitRecord
from scripts.core.errors import UsageError
from scripts.core.models import CommitSha, Model, Sha256
from scripts.core.paths import ROOT
from scripts.report.timeline import Timeline

SCHEMA_FILE = ROOT / "docs" / "build-report.schema.json"
SCHEMA: Literal[1] = 1


class _Said(Model):
    """A part of the report whose optional keys are in the file only when they were given."""

    model_config = ConfigDict(strict=True, populate_by_name=True)

    @model_serializer(mode="wrap")
    def _what_was_said(self, handler: SerializerFunctionWrapHandler) -> dict[str, Any]:
        kept = {type(self).model_fields[name].alias or name for name in self.model_fields_set}
        return {key: value for key, value in handler(self).items() if key in kept}


class Wheelsmith(_Said):
    """The wheelsmith that built the wheel."""

    version: str
    commit: str | None
    """`-dirty` at its end: with changed files; null outside git."""


class WheelIdentity(_Said):
    """The wheel's file."""

    name: str
    sha256: Sha256
    size: int = Field(ge=0)
    version: str
    platform: str
    """What auditwheel measured: `manylinux_2_34_x86_64`."""


class RecipeFacts(_Said):
    """The recipe; its name is "" where a wheel was slimmed of which no recipe is known."""

    name: str
    digest: str
    """Over all that decides the result."""
    notice: str = ""
    """What people must know before they use the wheel."""


class _Pin(_Said):
    name: str
    """`source`, or the dependency's name."""
    version: str
    file: str = ""
    """Name of the archive or folder it came as."""
    received: int = 0
    """Bytes received for a git commit; 0 out of the cache."""


class IndexPin(_Pin):
    """A source distribution or wheel of a package index."""

    kind: Literal["sdist", "wheel", "wheel-members"]
    project: str
    """Project and version: `vllm 0.20.1`."""
    sha256: Sha256


class GitPin(_Pin):
    """A commit."""

    repository: str
    commit: CommitSha


def _kind_of_pin(value: Any) -> str:
    return "git" if isinstance(value, GitPin) or (isinstance(value, Mapping) and "commit" in value) else "index"


SourcePin = Annotated[
    Annotated[IndexPin, Tag("index")] | Annotated[GitPin, Tag("git")],
    Discriminator(_kind_of_pin),
]


class PatchFacts(_Said):
    """A patch of the series."""

    name: str
    sha256: Sha256


class ToolchainFacts(_Said):
    """With what was compiled."""

    key: str
    python: str
    host_compiler: str
    cuda: str
    """Where CUDA came from."""
    packages: dict[str, str]
    """Version by package."""
    nvcc: str | None = None
    """CUDA of nvcc: `13.0`."""


class PinnedTorch(_Said):
    """The torch that the wheel was compiled against and is pinned to."""

    version: str
    cuda: str


class ComponentFacts(_Said):
    """A shared object of the recipe."""

    name: str
    size: int = Field(ge=0)
    cubins: dict[str, int]
    """Containers with SASS, per arch: `{"90a": 3}`."""
    ptx: dict[str, int]
    """Containers with PTX, per arch."""
    operators: tuple[str, ...]
    """Registered with torch."""
    bytes_per_arch: dict[str, int] = {}
    """Stored bytes of GPU code: `sm_90` is SASS, `compute_90` is PTX."""
    containers: tuple[str, ...] = ()
    """The unit of each kernel container, "" where it is not known."""


class UnitsFacts(_Said):
    """The compiler calls."""

    total: int
    compiled_in_this_run: int
    stock_headers: tuple[str, ...] = ()
    """Sources that the lean headers did not fit."""
    records: tuple[UnitRecord, ...]
    """Of all units, those of earlier runs too."""


class StageFacts(_Said):
    """A stage, added up over the runs of an interrupted build."""

    seconds: float
    peak_bytes: int
    """Most memory of all its processes together; 0 where it was not measured."""


class DoctorRow(_Said):
    """A check of doctor that warned or was skipped."""

    id: str
    verdict: str
    measured: str


class CutFrom(_Said):
    """The wheel that a slim one was cut out of."""

    name: str
    sha256: Sha256
    size: int = Field(ge=0)
    version: str = ""
    platform: str = ""


class BuildReport(_Said):
    """The report beside a wheel, NAME.whl.report.json."""

    schema_version: Literal[1] = Field(alias="schema")
    wheelsmith: Wheelsmith | None = None
    wheel: WheelIdentity
    recipe: RecipeFacts
    build: str
    """Key of the build tree, "" for a slim wheel."""
    sources: tuple[SourcePin, ...] = ()
    """The source first, then the dependencies."""
    patches: tuple[PatchFacts, ...] = ()
    toolchain: ToolchainFacts | None = None
    torch: PinnedTorch | None = None
    archs: str
    """As TORCH_CUDA_ARCH_LIST."""
    components: tuple[ComponentFacts, ...] = ()
    units: UnitsFacts | None = None
    compiler_cache: CacheSummary | None = None
    """What the cache did in this run; null without one."""
    timeline: Timeline | None = None
    stages: dict[str, StageFacts] = {}
    doctor: tuple[DoctorRow, ...] = ()
    drop_empty: bool = False
    """Whether shared objects without code for the archs were left out of a slim wheel."""
    slimmed_from: CutFrom | None = None
    audit: AuditReport

    def data(self) -> dict[str, Any]:
        """Return it as the file has it."""
        return self.model_dump(mode="json", by_alias=True)


def report_of(text: str | bytes, name: str) -> BuildReport:
    """Read a report; `name` is its file's, for messages. Raises UsageError for text that is not one."""
    try:
        return BuildReport.model_validate_json(text)
    except ValidationError as error:
        first = error.errors()[0]
        key = ".".join(map(str, first["loc"]))
        raise UsageError(
            f"{name} cannot be read as a wheel's report",
            why=f"{key + ': ' if key else ''}{first['msg']}; another version of wheelsmith may have written it",
            fix="build the wheel again, or audit it: nox -s audit -- WHEEL --json WHEEL.report.json",
            docs="docs/report.md",
        ) from error


def json_schema() -> dict[str, Any]:
    """Return the JSON Schema of the report, which docs/build-report.schema.json holds."""
    schema = BuildReport.model_json_schema(mode="validation", by_alias=True)
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", **schema, "title": "wheelsmith build report"}
