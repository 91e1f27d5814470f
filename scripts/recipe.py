"""Recipes: what to build, from which pinned sources, with which toolchain, for which archs.

A recipe is a TOML file in recipes/. It is read into frozen models that refuse unknown keys; every error names the
file, the key, the value, what is allowed, and the nearest valid name. `extends = "other"` takes another recipe and
changes what the file names: tables are merged key by key, lists and values replaced.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Iterable, Mapping
from enum import Enum
from pathlib import Path
from typing import Annotated, Any, Literal

from packaging.version import InvalidVersion, Version
from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, ValidationError, model_validator
from pydantic.json_schema import SkipJsonSchema

from scripts.archs import Arch, check_cuda_can, parse_arch, parse_arch_list
from scripts.cache import digest
from scripts.errors import UsageError, nearest
from scripts.labels import version_label

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

ROOT = Path(__file__).resolve().parent.parent
RECIPES = ROOT / "recipes"
SCHEMA_FILE = ROOT / "docs" / "recipe.schema.json"
DEFAULT_RECIPE = "vllm-0.15.1-cu128"


class Component(str, Enum):
    """Parts of vLLM that are built and packaged on their own: the names of upstream's CMake targets."""

    CUMEM_ALLOCATOR = "cumem_allocator"
    CORE = "_C"
    CORE_STABLE = "_C_stable_libtorch"
    MOE = "_moe_C"
    FLASH_ATTENTION_2 = "_vllm_fa2_C"
    FLASH_ATTENTION_3 = "_vllm_fa3_C"
    FLASH_ATTENTION_4 = "_vllm_fa4_cutedsl_C"
    FLASHMLA = "_flashmla_C"
    FLASHMLA_EXTENSION = "_flashmla_extension_C"
    DEEP_GEMM = "_deep_gemm_C"
    TRITON_KERNELS = "triton_kernels"

    @property
    def python_only(self) -> bool:
        """Whether it brings Python files and no shared object."""
        return self in {Component.FLASH_ATTENTION_4, Component.TRITON_KERNELS}

    @property
    def member(self) -> str:
        """Path prefix of its shared object in the wheel, up to the ABI suffix: `vllm/_C`."""
        flash = {Component.FLASH_ATTENTION_2, Component.FLASH_ATTENTION_3, Component.FLASH_ATTENTION_4}
        if self is Component.DEEP_GEMM:
            return "vllm/third_party/deep_gemm/_C"
        return f"vllm/vllm_flash_attn/{self.value}" if self in flash else f"vllm/{self.value}"


def _version(text: str) -> str:
    try:
        Version(text)
    except InvalidVersion as error:
        raise ValueError("not a version (PEP 440), such as 0.20.1") from error
    return text


def _relative(text: str) -> str:
    if text.startswith("/") or ".." in text.split("/"):
        raise ValueError("not a relative path without '..'")
    return text


def _arch(value: Any) -> Any:
    if isinstance(value, Arch):
        return value
    if not isinstance(value, str):
        raise ValueError('an arch is a string such as "9.0"')  # noqa: TRY004  (pydantic collects ValueErrors)
    try:
        return parse_arch(value)
    except UsageError as error:
        raise ValueError(f"{error.what} {' '.join(error.fix)}") from error


def _arch_list(value: Any) -> Any:
    if not isinstance(value, str) or not value:
        return value or ()
    try:
        return parse_arch_list(value)
    except UsageError as error:
        raise ValueError(f"{error.what} {' '.join(error.fix)}") from error


VersionText = Annotated[str, AfterValidator(_version)]
Sha256 = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$", description="sha256 of the file, 64 lower-case hex digits")]
CommitSha = Annotated[str, Field(pattern=r"^[0-9a-f]{40}$", description="full git commit id, 40 hex digits")]
CudaVersion = Annotated[str, Field(pattern=r"^\d{2}\.\d$", description="CUDA toolkit as MAJOR.MINOR, such as 12.8")]
EnvName = Annotated[str, Field(pattern=r"^[A-Z_][A-Z0-9_]*$")]
RelativePath = Annotated[str, Field(pattern=r"^[\w.+/-]+$"), AfterValidator(_relative)]
ArchText = Annotated[
    Arch, BeforeValidator(_arch, json_schema_input_type=str), Field(json_schema_extra={"examples": ["9.0"]})
]
ArchListText = Annotated[
    tuple[Arch, ...],
    BeforeValidator(_arch_list, json_schema_input_type=str),
    Field(json_schema_extra={"examples": ["8.0+PTX;9.0a"]}),
]


class Model(BaseModel):
    """Base: frozen, no unknown keys, attribute docstrings become the schema's descriptions."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True, allow_inf_nan=False)


class SdistSource(Model):
    """A source distribution on the package index. Never executed to be fetched."""

    kind: Literal["sdist"]
    name: str
    """Project name on the index."""
    version: VersionText
    sha256: Sha256


class WheelSource(Model):
    """A wheel on the package index of which one folder is used (headers, say). Only unpacked, never installed."""

    kind: Literal["wheel"]
    name: str
    """Project name on the index."""
    version: VersionText
    sha256: Sha256
    path: RelativePath
    """Folder inside the wheel that is the dependency's root."""


class GitSource(Model):
    """A commit of a git repository."""

    kind: Literal["git"]
    repository: str = Field(pattern=r"^(https|ssh|file)://\S+$")
    """URL of the repository; mirrors are set outside recipes (WHEELSMITH_MIRROR)."""
    commit: CommitSha
    tag: str = ""
    """Label for people; checked to name the commit when the server is asked."""
    subdirectories: tuple[RelativePath, ...] = ()
    """Fetch only these folders or files (all when empty); one inside a submodule restricts that submodule only."""
    path: RelativePath = "."
    """Folder inside the repository that is the dependency's root."""
    submodules: dict[RelativePath, CommitSha] = {}
    """Submodules to fetch, by path, with the commit each must be at."""
    skip_submodules: tuple[RelativePath, ...] = ()
    """Submodules that are knowingly left out."""
    files_sha256: RelativePath | None = None
    """File beside the recipe that lists `sha256  path` of every file the dependency must consist of."""


Source = Annotated[SdistSource | WheelSource | GitSource, Field(discriminator="kind")]


class Package(Model):
    """What the wheel is called and what it is not."""

    name: Literal["vllm"]
    version: VersionText
    """Upstream's version; the label is added to it."""
    label: str = Field(default="", pattern=r"^([a-z0-9]+(\.[a-z0-9]+)*)?$")
    """Last part of the version label, for wheels that lack components of a full vLLM."""
    notice: str = ""
    """One sentence printed with the result: what this wheel is not."""


class Dependency(Model):
    """Something upstream's CMake would clone, given to it as a directory instead."""

    version: str
    """Version for people and reports: `4.4.2`."""
    source: Source
    variable: EnvName
    """Environment variable with which upstream takes a directory: `VLLM_CUTLASS_SRC_DIR`."""
    cmake: dict[str, RelativePath] = {}
    """CMake variables that name folders inside it, for a copy without its own CMakeLists.txt."""
    components: tuple[Component, ...] = ()
    """Components that need it; empty means that configuring needs it whatever is built."""


class Torch(Model):
    """The torch the wheel is compiled against and pinned to."""

    version: VersionText
    cuda: CudaVersion
    """What `torch.version.cuda` must report."""


class Redist(Model):
    """NVIDIA's redistributable archives: which release, and which of its components a torch extension build needs."""

    release: str = Field(pattern=r"^\d+\.\d+\.\d+$")
    """Release as in the manifest's name: `12.8.1`."""
    base_url: str = Field(
        default="https://developer.download.nvidia.com/compute/cuda/redist/", pattern=r"^https?://\S+$"
    )
    """Folder of `redistrib_<release>.json`; a mirror keeps the same layout."""
    components: tuple[str, ...] = Field(
        default=(
            "cuda_nvcc", "cuda_cudart", "cuda_cccl", "cuda_nvrtc", "cuda_nvtx", "cuda_profiler_api", "cuda_cuobjdump",
            "libcublas", "libcufft", "libcurand", "libcusolver", "libcusparse", "libnvjitlink",
        ),
        min_length=1,
    )  # fmt: skip
    """Components by their manifest names."""
    sha256: dict[str, Sha256] = {}
    """Digests of components' archives that the manifest must have."""


class Toolchain(Model):
    """Where nvcc, torch and the build requirements come from."""

    kind: Literal["auto", "pypi", "system", "redist"]
    """`pypi`: the whole CUDA toolkit from wheels (CUDA 13); `system`: an installed one; `redist`: NVIDIA's archives."""
    cuda: CudaVersion
    lock: RelativePath
    """Hash-locked requirements of the build environment, relative to recipes/."""
    redist: Redist | None = None
    """For `redist` and `auto`: the archives to take."""
    cuda_packages: tuple[str, ...] = ()
    """For `pypi`: requirement of the compiler wheels, `cuda-toolkit[nvcc,…]==13.0.2`."""
    build_requirements: tuple[str, ...]
    """Upstream's build requirements, as in its pyproject.toml."""


class Cost(Model):
    """Measured needs, for the plan: see docs/performance.md for how and where."""

    units: int = Field(ge=1)
    """Compile units for the recipe's components (one arch or all: the number hardly differs)."""
    cpu_seconds: float = Field(gt=0)
    """Core-seconds for the first arch."""
    cpu_seconds_per_arch: float = Field(ge=0)
    """Core-seconds for each further arch."""
    unit_memory_gb: float = Field(gt=0)
    """Peak memory of the largest unit, GB."""
    download_gb: float = Field(ge=0)
    """Downloads with an empty cache, GB."""
    disk_gb: float = Field(gt=0)
    """Disk for cache, trees and wheel, GB."""
    measured: str
    """Where and how these figures were measured."""


class Recipe(Model):
    """Everything that decides what comes out of a build."""

    name: str = Field(pattern=r"^[a-z0-9][a-z0-9.-]*$", description="name of the recipe: its file name without .toml")
    description: str
    """One line for `--list`."""
    package: Package
    source: Source
    """Where vLLM's source comes from."""
    dependencies: dict[str, Dependency] = {}
    """Things upstream's CMake would clone, by name."""
    torch: Torch
    toolchain: Toolchain
    archs: tuple[ArchText, ...] = Field(min_length=1)
    """GPU architectures to compile for."""
    components: tuple[Component, ...] = Field(min_length=1)
    """Parts of vLLM to build and package; no others get into the wheel."""
    families: dict[Component, dict[str, ArchListText]] = {}
    """By component, kernel families that upstream does not compile for every arch, with the archs it has for them at
    this CUDA; "" for a family that the recipe leaves out."""
    patches: tuple[RelativePath, ...] = ()
    """Patches to apply, in order, relative to patches/."""
    cmake: dict[str, str] = {}
    """CMake cache variables: `VLLM_MOE_MARLIN = "OFF"`."""
    environment: dict[EnvName, str] = {}
    """Environment variables for configuring and compiling."""
    import_requirements: tuple[str, ...] = ()
    """What `import vllm` needs beside torch: installed for the proof, locked with the build environment."""
    mirrors: dict[str, str] = {}
    """URL prefixes of git hosts and what to fetch from instead; WHEELSMITH_MIRROR and --mirror come first."""
    cost: Cost | None = None
    folder: SkipJsonSchema[Path] = Field(default=RECIPES, exclude=True, repr=False)

    @model_validator(mode="after")
    def _consistent(self) -> Recipe:
        if self.torch.cuda != self.toolchain.cuda:
            raise ValueError(
                f"torch.cuda is {self.torch.cuda} but toolchain.cuda is {self.toolchain.cuda}: "
                "extensions must be compiled with the CUDA that torch was built with"
            )
        if isinstance(self.source, SdistSource) and self.source.version != self.package.version:
            raise ValueError(f"package.version {self.package.version} differs from source.version")
        return self

    @property
    def digest(self) -> str:
        """sha256 prefix over all that decides the result (not description, cost, families and mirrors)."""
        return digest(self.model_dump(mode="json", exclude={"description", "cost", "families", "mirrors"}))

    @property
    def lock_file(self) -> Path:
        """The build environment's lock file: beside the recipe, else in recipes/."""
        beside = self.folder / self.toolchain.lock
        return beside if beside.is_file() else RECIPES / self.toolchain.lock

    @property
    def shared_objects(self) -> tuple[Component, ...]:
        """Components that come as a shared object."""
        return tuple(component for component in self.components if not component.python_only)

    def needed_dependencies(self) -> dict[str, Dependency]:
        """Return the dependencies that the recipe's components need."""
        chosen = set(self.components)
        return {
            name: item
            for name, item in self.dependencies.items()
            if not item.components or chosen & set(item.components)
        }

    def version(self, archs: Iterable[Arch]) -> str:
        """Return the version of a wheel of this recipe for `archs`: `0.20.1+cu130.quickstart`."""
        return version_label(
            self.package.version,
            cuda=self.torch.cuda,
            archs=tuple(archs),
            recipe_archs=self.archs,
            note=self.package.label,
        )


def recipe_names(folder: Path = RECIPES) -> list[str]:
    """Return the names of all recipes in a folder."""
    return sorted(path.stem for path in folder.glob("*.toml"))


def load_recipe(name: str, *, folder: Path = RECIPES) -> Recipe:
    """Read, merge and check the recipe `name` of a folder, or a recipe file `some/where/NAME.toml`.

    A file of one's own may extend the recipes of `folder`, and bring its lock file and patches beside it.
    Raises UsageError.
    """
    if name.endswith(".toml"):
        path = Path(name)
        if not path.is_file():
            raise UsageError(f"there is no recipe file {name}", fix=f"or name one of: {', '.join(recipe_names())}")
        name, folder = path.stem, path.parent
    return check_recipe(_merged(name, folder, seen=()), folder / f"{name}.toml")


def check_recipe(data: Mapping[str, Any], path: Path) -> Recipe:
    """Return what was read from the recipe file `path` (and what it extends) as a Recipe. Raises UsageError."""
    try:
        recipe = Recipe.model_validate({**data, "name": path.stem, "folder": path.parent})
    except ValidationError as error:
        raise _explain(error, path) from error
    try:
        check_cuda_can(recipe.archs, recipe.toolchain.cuda)
    except UsageError as error:
        raise UsageError(f"{_shown(path)}: archs: {error.what}", why=error.why, fix=error.fix) from error
    return recipe


def _merged(name: str, folder: Path, *, seen: tuple[Path, ...]) -> dict[str, Any]:
    known = recipe_names(folder)
    # What a recipe elsewhere extends may be one of ours, even one of its own name.
    if seen and folder != RECIPES and (name not in known or seen[-1].stem == name):
        folder, known = RECIPES, recipe_names()
    path = folder / f"{name}.toml"
    if path in seen:
        circle = " -> ".join(step.stem for step in (*seen, path))
        raise UsageError(f"recipe {name!r} extends itself ({circle})", fix="remove one `extends`")
    if name not in known:
        who = f" (extended by {seen[-1].stem!r})" if seen else ""
        raise UsageError(
            f"unknown recipe {name!r}{who}.{nearest(name, known)}", fix=f"choose one of: {', '.join(known)}"
        )
    data = _read(path)
    parent = data.pop("extends", None)
    if parent is None:
        return data
    if not isinstance(parent, str):
        raise UsageError(f"{_shown(path)}: extends: {parent!r} is not the name of a recipe")
    return merge(_merged(parent, folder, seen=(*seen, path)), data)


def merge(base: Mapping[str, Any], change: Mapping[str, Any]) -> dict[str, Any]:
    """Return `base` with `change` on top: tables key by key, everything else replaced."""
    merged = dict(base)
    for key, value in change.items():
        if isinstance(value, Mapping) and isinstance(merged.get(key), Mapping):
            merged[key] = merge(merged[key], value)
        else:
            merged[key] = value
    return merged


def _read(path: Path) -> dict[str, Any]:
    try:
        data: dict[str, Any] = tomllib.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:  # ValueError: TOML, UTF-8, and integers of thousands of digits
        raise UsageError(f"{_shown(path)} is not valid TOML", why=str(error), fix="correct the line named") from error
    except OSError as error:
        raise UsageError(f"{_shown(path)} cannot be read", why=error.strerror or str(error)) from error
    for key in set(_NOT_IN_FILES) & set(data):
        raise UsageError(f"{_shown(path)}: unknown key {key!r}", fix="a recipe is named by its file; remove the key")
    return data


def _shown(path: Path) -> str:
    return str(path.relative_to(ROOT)) if path.is_relative_to(ROOT) else str(path)


_TAGS = {"sdist", "wheel", "git"}
_NOT_IN_FILES = ("name", "folder")  # the file's own path says them


def _fields_at(location: tuple[int | str, ...]) -> list[str]:
    """Return the keys allowed in the table that holds the key at `location`."""
    model: Any = Recipe
    parts = location[:-1]
    if parts[:1] == ("dependencies",):
        model, parts = Dependency, parts[2:]  # after the dependency's own name
    for part in parts:
        if part in _TAGS and model is None:
            model = {"sdist": SdistSource, "wheel": WheelSource, "git": GitSource}[str(part)]
            continue
        field = model.model_fields.get(str(part)) if model is not None else None
        kind = field.annotation if field else None
        known = isinstance(kind, type) and issubclass(kind, BaseModel)
        model = kind if known else Cost if part == "cost" else None
    hidden = _NOT_IN_FILES if model is Recipe else ()
    return sorted(set(model.model_fields) - set(hidden))


def _explain(error: ValidationError, path: Path) -> UsageError:
    items = error.errors()
    # A list all of whose members are wrong is also reported as empty: say it once.
    inside = {item["loc"][: depth + 1] for item in items for depth in range(len(item["loc"]) - 1)}
    messages = [_explain_one(item) for item in items if item["loc"] not in inside]
    whats = [message for message, _ in messages]
    fixes = [fix for _, fix in messages if fix]
    what = f"{_shown(path)}: {whats[0]}"
    more = f"and {len(whats) - 1} more: " + "; ".join(whats[1:4]) if len(whats) > 1 else ""
    return UsageError(what, why=more, fix=list(dict.fromkeys(fixes))[:4])


def _explain_one(item: Any) -> tuple[str, str]:
    """Return (what, what is allowed) for one of pydantic's errors."""
    location = tuple(item["loc"])
    tags = {i for i, part in enumerate(location) if part in _TAGS and location[i - 1] == "source"}
    shown = ".".join(str(part) for i, part in enumerate(location) if i not in tags) or "recipe"
    key, value = str(location[-1]) if location else "", item.get("input")
    if item["type"] == "extra_forbidden":
        allowed = _fields_at(location)
        return f"{shown}: unknown key {key!r}.{nearest(key, allowed)}", f"allowed here: {', '.join(allowed)}"
    if item["type"] == "missing":
        return f"{shown}: missing", f"add the key {key!r}"
    if item["type"] in {"enum", "literal_error"}:
        allowed = re.findall(r"'([^']+)'", str(item["ctx"]["expected"]))
        hint = nearest(str(value), allowed)
        return f"{shown}: {value!r} is not known.{hint}", f"allowed: {', '.join(allowed)}"
    if item["type"] in {"union_tag_invalid", "union_tag_not_found"}:
        kind = value.get("kind") if isinstance(value, dict) else value
        hint = nearest(str(kind), _TAGS)
        return f"{shown}.kind: {kind!r} is not known.{hint}", f"allowed: {', '.join(sorted(_TAGS))}"
    message = str(item["msg"]).removeprefix("Value error, ")
    given = "" if isinstance(value, dict) else f" {value!r}:"
    return f"{shown}:{given} {message}", ""


def json_schema() -> dict[str, Any]:
    """Return the JSON Schema of recipe files, for editors: `extends` allowed, nothing required beside it."""
    schema = Recipe.model_json_schema(mode="validation")
    schema["$schema"] = "https://json-schema.org/draft/2020-12/schema"
    schema["title"] = "wheelsmith recipe"
    del schema["properties"]["name"]
    schema["properties"].pop("folder", None)
    schema["properties"]["extends"] = {
        "type": "string",
        "description": "Name of the recipe this one changes: tables are merged, values and lists replaced.",
    }
    required = [key for key in schema.pop("required") if key != "name"]
    schema["anyOf"] = [{"required": ["extends"]}, {"required": required}]
    schema["$defs"] = {name: _relaxed(name, part) for name, part in schema["$defs"].items()}
    return schema


def _relaxed(name: str, part: dict[str, Any]) -> dict[str, Any]:
    # A recipe that extends another may give single keys of a table, so tables cannot require theirs.
    return {key: value for key, value in part.items() if key != "required" or name.endswith("Source")}
