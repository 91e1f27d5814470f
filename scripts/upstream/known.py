"""What wheelsmith knows of upstream's fetches beyond what upstream's CMake says of them."""

from __future__ import annotations

from dataclasses import dataclass, field

from scripts.recipe.model import Component
from scripts.upstream.fetches import Fetch


@dataclass(frozen=True)
class Known:
    """What a recipe must say of a fetch that CMake does not say."""

    name: str
    """Name of the dependency in recipes."""
    components: tuple[Component, ...] = ()
    """Components that need it; empty: configuring needs it."""
    subdirectories: tuple[str, ...] = ()
    """Folders of its own that are wanted; empty: all."""
    path: str = "."
    submodules: tuple[str, ...] = ()
    """Those that its own CMakeLists.txt needs."""
    skip_submodules: tuple[str, ...] = ()
    cutlass_parts: tuple[str, ...] = ("include", "tools/util/include")
    """Folders that are wanted of its own copy of CUTLASS; empty: all."""
    cmake: dict[str, str] = field(default_factory=dict)
    """CMake variables that its own CMakeLists.txt, which is not fetched, would set: folders of it."""

    def submodules_of(self, fetch: Fetch) -> tuple[str, ...]:
        """Return the submodules that are wanted: those that upstream lists, or else includes headers of."""
        wanted = fetch.submodules or dict.fromkeys((*self.submodules, *fetch.cutlass))
        return tuple(path for path in wanted if path not in self.skip_submodules)

    def folders_of(self, fetch: Fetch) -> tuple[str, ...]:
        """Return the folders to fetch, those inside submodules included; none for all."""
        copies = [path for path in self.submodules_of(fetch) if path.rsplit("/", 1)[-1] == "cutlass"]
        return (*self.subdirectories, *(f"{path}/{part}" for path in copies for part in self.cutlass_parts))


_TRITON = "python/triton_kernels/triton_kernels"

KNOWN = {
    "cutlass": Known(
        "cutlass",
        subdirectories=(
            "include",
            "tools/util/include",
            "python/cutlass_library",
            "examples/77_blackwell_fmha",
            "examples/common",
        ),
        cmake={
            "CUTLASS_DIR": ".",
            "CUTLASS_INCLUDE_DIR": "include",
            "CUTLASS_TOOLS_UTIL_INCLUDE_DIR": "tools/util/include",
        },
    ),
    "triton_kernels": Known("triton_kernels", (Component.TRITON_KERNELS,), (_TRITON,), _TRITON),
    "flashmla": Known("flashmla", (Component.FLASHMLA, Component.FLASHMLA_EXTENSION)),
    "qutlass": Known(
        "qutlass",
        (Component.CORE, Component.QUTLASS),
        ("qutlass",),
        skip_submodules=("qutlass/third_party/cutlass", "third_party/cutlass"),
    ),
    "vllm-flash-attn": Known(
        "flash-attention",
        (Component.FLASH_ATTENTION_2, Component.FLASH_ATTENTION_3, Component.FLASH_ATTENTION_4),
        submodules=("csrc/cutlass",),
        skip_submodules=("csrc/composable_kernel",),
    ),
    "deepgemm": Known("deepgemm", (Component.DEEP_GEMM,), cutlass_parts=()),
    "deepselect": Known("deepselect", (Component.DEEP_SELECT,)),
    "flashkda": Known(
        "flashkda", (Component.FLASH_KDA,), cutlass_parts=("include", "tools/util/include", "examples/common")
    ),
    "fmha_sm100": Known("fmha_sm100", (Component.FMHA_SM100,), ("python/fmha_sm100",)),
    "tml_fa4": Known("tml_fa4", (Component.TML_FA4,), ("flash_attn/cute",)),
}
