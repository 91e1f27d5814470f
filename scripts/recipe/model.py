"""Recipes: what to build, from which pinned sources, with which toolchain, for which archs.

A recipe is a TOML file in recipes/. It is read into frozen models that refuse unknown keys; every error names the
file, the key, the value, what is allowed, and the nearest valid name. `extends = "other"` takes another recipe and
changes what the file names: tables are merged key by key, lists and values replaced.
"""

from __future__ import annotations

from collections.abc import Container, Iterable
from enum import Enum
from pathlib import Path
from typing import Annotated, Literal

from pydantic import AfterValidator, Field, model_validator
from pydantic.json_schema import SkipJsonSchema

from scripts.core.errors import nearest
from scripts.core.files import digest
from scripts.core.models import Model, Sha256
from scripts.core.paths import RECIPES, ROOT
from scripts.cuda.archs import Arch
from scripts.cuda.labels import version_label
from scripts.recipe.families import FAMILIES
from scripts.recipe.fields import ArchListText, ArchText, CudaVersion, EnvName, RelativePath, VersionText
from scripts.recipe.sources import SdistSource, Source
from scripts.recipe.torch_pin import torch_label

SCHEMA_FILE = ROOT / "docs" / "recipe.schema.json"


class Component(str, Enum):
    """Parts of vLLM that are built and packaged on their own: the names of upstream's CMake targets."""

    CUMEM_ALLOCATOR = "cumem_allocator"
    CORE = "_C"
    CORE_STABLE = "_C_stable_libtorch"
    MOE = "_moe_C"
    MOE_STABLE = "_moe_C_stable_libtorch"
    SPINLOOP = "spinloop"
    FS_IO = "fs_io_C"
    FLASH_ATTENTION_2 = "_vllm_fa2_C"
    FLASH_ATTENTION_3 = "_vllm_fa3_C"
    FLASH_ATTENTION_4 = "_vllm_fa4_cutedsl_C"
    FLASHMLA = "_flashmla_C"
    FLASHMLA_EXTENSION = "_flashmla_extension_C"
    DEEP_GEMM = "_deep_gemm_C"
    DEEP_SELECT = "_deepselect_C"
    FLASH_KDA = "_flashkda_C"
    QUTLASS = "_qutlass_C"
    TRITON_KERNELS = "triton_kernels"
    FMHA_SM100 = "fmha_sm100"
    TML_FA4 = "tml_fa4"

    @property
    def has_device_code(self) -> bool:
        """Whether a GPU's compiler makes a part of it: the others are C++, such as the allocator."""
        return not self.python_only and not self.is_plain_module

    @property
    def is_plain_module(self) -> bool:
        """Whether it is a Python extension module in C++ that registers no operator of torch."""
        return self in {Component.CUMEM_ALLOCATOR, Component.SPINLOOP, Component.FS_IO}

    @property
    def python_only(self) -> bool:
        """Whether it brings Python files and no shared object."""
        return self in _FOLDERS

    @property
    def member(self) -> str:
        """Path prefix in the wheel: of its shared object, up to the ABI suffix (`vllm/_C`), or its folder."""
        return self.members[0]

    @property
    def members(self) -> tuple[str, ...]:
        """Path prefixes in wheels of any version of vLLM; a wheel has one of them."""
        if self in _FOLDERS:
            return (_FOLDERS[self],)
        if self is Component.DEEP_GEMM:  # the second since 0.33
            return "vllm/third_party/deep_gemm/_C", "vllm/third_party/deep_gemm/_C_extension"
        flash = {Component.FLASH_ATTENTION_2, Component.FLASH_ATTENTION_3}
        return (f"vllm/vllm_flash_attn/{self.value}" if self in flash else f"vllm/{self.value}",)

    def stem_in(self, stems: Container[str]) -> str:
        """Return which of its prefixes is among the stems of a wheel's shared objects, the first when none is."""
        return next((member for member in self.members if member in stems), self.member)


_FOLDERS = {
    Component.FLASH_ATTENTION_4: "vllm/vllm_flash_attn/cute/",
    Component.TRITON_KERNELS: "vllm/third_party/triton_kernels/",
    Component.FMHA_SM100: "vllm/third_party/fmha_sm100/",
    Component.TML_FA4: "vllm/third_party/tml_fa4/",
}
"""Components that are Python files (and sources for compilers at run time), with their folders in the wheel."""


def _once(values: tuple[Component, ...]) -> tuple[Component, ...]:
    twice = sorted({value.value for value in values if values.count(value) > 1})
    if twice:
        raise ValueError(f"{', '.join(twice)} is named twice")
    return values


def _has_device_code(values: tuple[Component, ...]) -> tuple[Component, ...]:
    if not any(value.has_device_code for value in values):
        raise ValueError(
            "none of these has code for a GPU, so there is nothing to compile for the archs; add one that has, "
            "such as _C or _moe_C"
        )
    return values


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
    instead_of: str = ""
    """Upstream's own pin, where the recipe knowingly takes another version; label and notice must then say so."""
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


class Host(Model):
    """What upstream's own files want of the machine that compiles."""

    python: str = ""
    """`requires-python` of pyproject.toml: `>=3.11,<3.15`."""
    cxx: int = 17
    """C++ standard of all units."""
    gcc: dict[Component | Literal["all"], VersionText] = {}
    """Oldest GCC, by the component that CMake refuses to configure with an older one, or `all`."""


class Toolchain(Model):
    """Where nvcc, torch and the build requirements come from."""

    kind: Literal["auto", "pypi", "system", "redist", "installed"]
    """`pypi`: the whole CUDA toolkit from wheels (CUDA 13); `system`: an installed one; `redist`: NVIDIA's archives;
    `installed`: an installed torch, and the toolkit that fits it."""
    cuda: CudaVersion
    """CUDA of nvcc. It may be another minor version than torch's: what older ones lack is left out, and said."""
    lock: RelativePath
    """Hash-locked requirements of the build environment, relative to recipes/."""
    python: str = ""
    """For `installed`: the interpreter whose torch it is; the first on PATH that has one when empty."""
    redist: Redist | None = None
    """For `redist` and `auto`: the archives to take."""
    cuda_packages: tuple[str, ...] = ()
    """For `pypi`: requirement of the compiler wheels, `cuda-toolkit[nvcc,…]==13.0.2`."""
    build_requirements: tuple[str, ...]
    """Upstream's build requirements, as in its pyproject.toml."""
    host: Host = Host()
    """What upstream wants of the machine that compiles."""


class OptionalLibrary(Model):
    """GPUs for which a library may be without code: the audit warns of what is lost, and the wheel is still OK."""

    archs: Annotated[ArchListText, Field(min_length=1)]
    """The GPUs, by compute capability: `7.0;7.5`."""
    lost: Annotated[str, Field(min_length=1)]
    """What is missing there, and what stands in: `FlashAttention 2; attention runs on FlashInfer`."""


class UnitGroup(Model):
    """Units that a build has only for some archs or with some component, such as FlashAttention 3's for 9.0."""

    archs: ArchListText = ()
    """Any of these asks for the group; their numbers count. Empty: every arch does."""
    component: Component | None = None
    """The component that the units belong to: a recipe without it has none of them."""
    units: int = Field(ge=1)
    cpu_seconds: float = Field(ge=0)
    """Core-seconds of the whole group."""


class Cost(Model):
    """Measured needs, for the plan: see docs/performance.md for how and where."""

    units: int = Field(ge=1)
    """Compile units of no group (one arch or all: the number hardly differs)."""
    cpu_seconds: float = Field(gt=0)
    """Core-seconds of these for the first arch."""
    cpu_seconds_per_arch: float = Field(ge=0)
    """Core-seconds for each further arch."""
    native_cpu_seconds: float = Field(default=0, ge=0)
    """Core-seconds for each arch that only `native` has the `native_families` compiled for; 0 where not estimated."""
    unit_memory_gb: float = Field(gt=0)
    """Peak memory to expect of units that were never measured, GB; what `data` has comes first."""
    download_gb: float = Field(ge=0)
    """Downloads with an empty cache, GB."""
    disk_gb: float = Field(gt=0)
    """Disk for cache, trees and wheel, GB."""
    measured: str
    """Where and how these figures were measured."""
    groups: tuple[UnitGroup, ...] = ()
    """What comes on top of `units` and `cpu_seconds` for some archs."""
    data: RelativePath | None = None
    """File with the measured cost of each compile unit, relative to recipes/; made by `nox -s costs`."""


_DESCRIPTIVE = {"description", "cost", "families", "mirrors", "native_families", "needs_cuda", "optional_libraries"}


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
    components: Annotated[
        tuple[Component, ...], Field(min_length=1), AfterValidator(_once), AfterValidator(_has_device_code)
    ]
    """Parts of vLLM to build and package; no others get into the wheel."""
    families: dict[Component, dict[str, ArchListText]] = {}
    """By component, kernel families that upstream does not compile for every arch, with the archs it has for them at
    this CUDA; "" for a family that the recipe leaves out."""
    patches: tuple[RelativePath, ...] = ()
    """Patches to apply, in order, relative to patches/."""
    native: bool = True
    """Whether `native_families` are compiled for each arch that no cubin of theirs runs on. Upstream leaves such an
    arch to the driver's compiler, which makes wrong code of Marlin MoE on 12.x."""
    native_families: tuple[str, ...] = ()
    """Families of `families` that the recipe's patches can compile natively."""
    needs_cuda: dict[str, CudaVersion] = {}
    """By component or family, the first CUDA that upstream builds it with."""
    optional_libraries: dict[Component, OptionalLibrary] = {}
    """By component, GPUs for which its library may be without code; the audit knows some by itself (rules.toml)."""
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
    lost: SkipJsonSchema[tuple[str, ...]] = Field(default=(), exclude=True, repr=False)
    """What was left out because `toolchain.cuda` is older than torch's (fitting.py), one sentence each."""
    pinned_torch: SkipJsonSchema[str] = Field(default="", exclude=True, repr=False)
    """The recipe's own torch, where `torch` is an installed one that takes its place (toolchain/adopt.py)."""

    @model_validator(mode="after")
    def _consistent(self) -> Recipe:
        if self.torch.cuda.split(".")[0] != self.toolchain.cuda.split(".")[0]:
            raise ValueError(
                f"torch.cuda is {self.torch.cuda} but toolchain.cuda is {self.toolchain.cuda}: "
                "extensions must be compiled with a CUDA of torch's major version"
            )
        if isinstance(self.source, SdistSource) and self.source.version != self.package.version:
            raise ValueError(f"package.version {self.package.version} differs from source.version")
        for component in self.optional_libraries:
            if not component.has_device_code:
                raise ValueError(
                    f"optional_libraries.{component.value}: it has no code for a GPU that could be missing"
                )
        for component, families in self.families.items():
            known = FAMILIES.get(component.value, frozenset())
            for name in families:
                if name not in known:
                    allowed = f"known: {', '.join(sorted(known))}" if known else "it has none"
                    raise ValueError(
                        f"families.{component.value}: {name!r} is no kernel family.{nearest(name, known)} {allowed}"
                    )
        return self

    @model_validator(mode="after")
    def _stand_ins_are_named(self) -> Recipe:
        for name, dependency in self.dependencies.items():
            said = f"{name}{dependency.version}" in self.package.label and dependency.version in self.package.notice
            if dependency.instead_of and not said:
                raise ValueError(
                    f"dependencies.{name}: {dependency.version} stands in for {dependency.instead_of}: package.label "
                    f"must contain {name}{dependency.version}, and package.notice {dependency.version}"
                )
        return self

    @property
    def digest(self) -> str:
        """sha256 prefix over all that decides the result (not what only describes it)."""
        return digest(self.model_dump(mode="json", exclude=_DESCRIPTIVE))

    @property
    def lock_file(self) -> Path:
        """The build environment's lock file."""
        return self.file(self.toolchain.lock)

    def file(self, name: str) -> Path:
        """Return a file that the recipe names: beside the recipe, else in recipes/ (as `extends` needs it)."""
        return recipe_file(name, self.folder)

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
        """Return the version of a wheel of this recipe for `archs`: `0.20.1+cu130.quickstart`.

        One that is compiled against an installed torch names it: `0.20.1+cu130.torch2.10.0.quickstart`.
        """
        torch = torch_label(self.torch.version) if self.pinned_torch else ""
        return version_label(
            self.package.version,
            cuda=self.toolchain.cuda,
            archs=tuple(archs),
            recipe_archs=self.archs,
            note=".".join(filter(None, (torch, self.package.label))),
        )


def recipe_file(name: str, folder: Path) -> Path:
    """Return a file named by a recipe in `folder`: beside it, or in recipes/ where only that one exists."""
    beside, ours = folder / name, RECIPES / name
    return ours if ours.is_file() and not beside.is_file() else beside
