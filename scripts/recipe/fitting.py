"""What of a recipe a CUDA toolkit and an arch list leave: the rest is not built, and the plan says so.

Device code of any CUDA of torch's major version runs beside torch's own libraries (minor version compatibility, CUDA
Compatibility guide); another major version's does not load. So `toolchain.cuda` may be newer, as in upstream's own
wheel of 0.15.1 (12.9 beside a torch of 12.8), or older, which costs archs and kernels.
"""

from __future__ import annotations

from collections.abc import Sequence

from scripts.core.errors import UsageError
from scripts.cuda.archs import Arch, arch_list, check_cuda_can, loose_intersection, natively, normalised
from scripts.recipe.model import Component, Recipe

# Upstream compiles all kernels of these for one family's archs. Without any it would pass nvcc no arch at all, and so
# compile them for the oldest GPU that nvcc knows.
ONE_FAMILY = frozenset(
    {
        Component.FLASH_ATTENTION_2,
        Component.FLASH_ATTENTION_3,
        Component.FLASHMLA,
        Component.DEEP_GEMM,
        Component.DEEP_SELECT,
        Component.FLASH_KDA,
        Component.QUTLASS,
    }
)


def without_what_is_too_new(recipe: Recipe) -> Recipe:
    """Return the recipe without the archs and components that its CUDA, older than torch's, cannot compile.

    `Recipe.lost` says what they are, and which kernel families go with them. A recipe whose CUDA is torch's or newer
    is returned as it is: there, an arch that cannot be compiled is a mistake.
    """
    cuda = recipe.toolchain.cuda
    if _numbers(cuda) >= _numbers(recipe.torch.cuda):
        return recipe
    archs = tuple(arch for arch in recipe.archs if _compiles(arch, cuda))
    present = {item.value for item in recipe.components}.union(*(recipe.families.get(c, {}) for c in recipe.components))
    needs = {name: first for name, first in recipe.needs_cuda.items() if name in present}
    late = {name: first for name, first in needs.items() if _numbers(first) > _numbers(cuda)}
    components = tuple(item for item in recipe.components if item.value not in late)
    if not archs or not components:
        return recipe  # all of it: an error, said where archs and components are checked
    gone = [arch for arch in recipe.archs if arch not in archs]
    lost = [f"no code for {arch_list(gone)}, which CUDA {cuda} does not know"] if gone else []
    lost += [f"no {name}, which needs CUDA {first}" for name, first in late.items()]
    return recipe.model_copy(update={"archs": archs, "components": components, "lost": tuple(lost)})


def for_archs(recipe: Recipe, archs: Sequence[Arch]) -> Recipe:
    """Return the recipe without the components that have no kernels for any of `archs`.

    FlashAttention 3 without 9.0, say. `Recipe.lost` names them. vLLM's Python code asks whether they are there.
    """
    idle = {item for item in recipe.components if item in ONE_FAMILY and not _has_kernels(recipe, item, archs)}
    if Component.FLASHMLA in idle:
        idle.add(Component.FLASHMLA_EXTENSION)
    left = tuple(item for item in recipe.components if item not in idle)
    if not idle or not left:
        return recipe
    names = ", ".join(item.value for item in recipe.components if item in idle)
    lost = (*recipe.lost, f"no {names}: there are no kernels in it for {arch_list(archs)}")
    return recipe.model_copy(update={"components": left, "lost": lost})


def _has_kernels(recipe: Recipe, component: Component, archs: Sequence[Arch]) -> bool:
    families = recipe.families.get(component, {})
    return not families or any(loose_intersection(built, archs) for built in families.values() if built)


def _compiles(arch: Arch, cuda: str) -> bool:
    try:
        check_cuda_can([arch], cuda)
    except UsageError:
        return False
    return True


def _numbers(version: str) -> tuple[int, ...]:
    return tuple(int(part) for part in version.split("."))


def native_archs(recipe: Recipe, archs: Sequence[Arch]) -> tuple[Arch, ...]:
    """Return the archs that some kernel family is compiled for in this recipe, and is not as upstream does it."""
    ours, theirs = (kernel_archs(item, archs) for item in (recipe, recipe.model_copy(update={"native": False})))
    return normalised(arch for name, gets in ours.items() for arch in gets if arch not in theirs[name])


def kernel_archs(recipe: Recipe, archs: Sequence[Arch]) -> dict[str, tuple[Arch, ...]]:
    """Return what each kernel family of the recipe's components is compiled for, `native_families` included.

    A family that the recipe gives no archs (it follows the list) is left out; () is a family without code for `archs`.
    """
    found = {}
    for component in recipe.components:
        for name, built in recipe.families.get(component, {}).items():
            if built:
                gets = tuple(loose_intersection(built, archs))
                found[name] = natively(gets, archs) if recipe.native and name in recipe.native_families else gets
    return found
