"""What a wheel says about itself against what is inside: RECORD, metadata, tags, components, triton_kernels."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping

from packaging.requirements import InvalidRequirement, Requirement
from packaging.tags import parse_tag
from packaging.utils import canonicalize_name
from packaging.version import InvalidVersion, Version

from scripts.audit.host import Site
from scripts.audit.models import ComponentReport, Finding, Level
from scripts.audit.torch_abi import ONE_RELEASE
from scripts.cuda.archs import Arch
from scripts.cuda.drivers import numbers
from scripts.formats.wheel import MAX_TAGS, TAG, Hash, WheelFile, WheelName, read_record, tag_count
from scripts.recipe.model import Component, Recipe
from scripts.recipe.sources import GitSource

MAX_REQUIREMENT = 1_000  # characters
TRITON_KERNELS = "vllm/third_party/triton_kernels/"
ONLY_FOR: Mapping[Component, frozenset[str]] = {
    Component.FLASH_ATTENTION_3: frozenset({"9.0"}),
    Component.FLASHMLA: frozenset({"9.0", "10.0"}),
    Component.FLASHMLA_EXTENSION: frozenset({"9.0", "10.0"}),
    Component.DEEP_GEMM: frozenset({"9.0", "10.0"}),
    Component.DEEP_SELECT: frozenset({"10.0"}),
    Component.FLASH_KDA: frozenset({"9.0", "10.0", "12.0"}),
    Component.QUTLASS: frozenset({"10.0", "12.0"}),
}
"""Components that upstream's CMake builds for these archs only; the others are built for every arch."""


def _error(code: str, where: str, text: str) -> Finding:
    return Finding(level=Level.ERROR, code=code, where=where, text=text)


def _warning(code: str, where: str, text: str) -> Finding:
    return Finding(level=Level.WARNING, code=code, where=where, text=text)


def record_findings(wheel: WheelFile, digests: Mapping[str, Hash]) -> Iterator[Finding]:
    """Compare RECORD with the digests of all members."""
    record = read_record(wheel)
    exempt = {f"{wheel.dist_info}/{name}" for name in ("RECORD", "RECORD.jws", "RECORD.p7s")}
    wrong = [
        name for name, digest in digests.items() if name in record and name not in exempt and record[name] != digest
    ]
    unlisted = [name for name in digests if name not in record and name not in exempt]
    absent = [name for name in record if name not in digests]
    problems = (
        (wrong, "content differs from RECORD"),
        (unlisted, "not listed in RECORD"),
        (absent, "listed in RECORD and missing"),
    )
    for names, what in problems:
        if names:
            more = f" and {len(names) - 3} more" if len(names) > 3 else ""
            yield _error("record-mismatch", names[0], f"{what}: {', '.join(names[:3])}{more}")


def metadata_findings(wheel: WheelFile, name: WheelName) -> Iterator[Finding]:
    """Compare METADATA and WHEEL with the file name."""
    metadata = wheel.message("METADATA")
    own, version = str(metadata.get("Name", ""))[:200], str(metadata.get("Version", ""))[:200]
    if canonicalize_name(own) != canonicalize_name(name.name) or not _same_version(version, name.version):
        yield _error(
            "metadata-mismatch", "METADATA", f"it says {own} {version}, the file name {name.name} {name.version}"
        )
    if wheel.dist_info != f"{name.name}-{name.version}.dist-info":
        yield _warning("metadata-mismatch", wheel.dist_info, "the folder is not named as the wheel is")
    tags, odd = _stated_tags(wheel.message("WHEEL").get_all("Tag", []))
    if odd:
        yield _error("bad-tag", "WHEEL", f"{odd[:100]!r} is not a tag: installers refuse the wheel")
    stated = {str(tag) for tag in parse_tag(name.tags)}
    if tags != stated:
        text = f"it says {', '.join(sorted(tags)) or 'no tags'}, the file name {', '.join(sorted(stated))}"
        yield _warning("tags-differ", "WHEEL", text)


def _stated_tags(lines: Iterable[object]) -> tuple[set[str], str]:
    """Return the tags of the file WHEEL, and the first line that is none or stands for too many."""
    tags: set[str] = set()
    for line in map(str, lines):
        if not TAG.fullmatch(line) or tag_count(line) + len(tags) > MAX_TAGS:
            return tags, line or "an empty line"
        tags |= {str(tag) for tag in parse_tag(line)}
    return tags, ""


def _same_version(one: str, two: str) -> bool:
    try:
        return Version(one) == Version(two)
    except InvalidVersion:
        return False


def torch_pin(wheel: WheelFile) -> str | None:
    """Return what METADATA requires of torch (`==2.9.1`), None when it does not require it."""
    for line in wheel.message("METADATA").get_all("Requires-Dist", []):
        try:
            requirement = Requirement(str(line)[:MAX_REQUIREMENT])
        except InvalidRequirement:
            continue
        if canonicalize_name(requirement.name) == "torch" and requirement.marker is None:
            return str(requirement.specifier)
    return None


def torch_findings(pin: str | None, components: Mapping[str, ComponentReport], site: Site | None) -> Iterator[Finding]:
    """Compare the pin on torch with what the libraries are linked to, and with the torch at hand."""
    linked = [name for name, item in components.items() if any(s.startswith("libtorch") for s in item.host.needed)]
    # one that uses no symbol of torch, or the stable ABI's alone, fits every torch that the requirement admits
    pinned = [name for name in linked if not pin or components[name].torch.startswith(ONE_RELEASE)]
    if pinned and (pin is None or not pin.startswith("==")):
        said = f"only says torch{pin}" if pin else "does not require torch"
        text = f"{len(pinned)} libraries are linked to torch, whose ABI changes with each release, but METADATA {said}"
        yield _warning("torch-pin", "METADATA", text)
    if pin and linked and site is None:
        text = f"symbols were not checked against torch{pin}: it is not at hand (--torch DIR)"
        yield Finding(level=Level.NOTE, code="torch-not-at-hand", where="", text=text)
    if (
        pin
        and site
        and site.torch_version
        and not Requirement(f"torch{pin}").specifier.contains(site.torch_version, prereleases=True)
    ):
        text = f"symbols were checked against torch {site.torch_version}, but the wheel requires torch{pin}"
        yield _warning("torch-differs", "METADATA", text)


def platform_findings(name: WheelName, components: Mapping[str, ComponentReport]) -> Iterator[Finding]:
    """Compare the platform tag with the glibc and machine the libraries really need."""
    stated = re.search(r"manylinux_(\d+)_(\d+)_(\w+?)(?:\.|$)", name.tags)
    legacy = re.search(r"manylinux(2014|2010|1)_(\w+?)(?:\.|$)", name.tags)
    if stated:
        limit, machine = (int(stated[1]), int(stated[2])), stated[3]
    elif legacy:
        limit, machine = {"2014": (2, 17), "2010": (2, 12), "1": (2, 5)}[legacy[1]], legacy[2]
    else:
        return
    for member, item in components.items():
        if not item.host.machine:
            continue
        if item.host.glibc and numbers(item.host.glibc) > limit:
            text = f"it needs glibc {item.host.glibc}, the platform tag promises {limit[0]}.{limit[1]}"
            yield _error("platform-tag", member, text)
        if item.host.machine != machine:
            yield _error("platform-tag", member, f"it is for {item.host.machine}, the platform tag says {machine}")


def component_findings(recipe: Recipe, archs: Iterable[Arch], members: Iterable[str]) -> Iterator[Finding]:
    """Find the recipe's components that are not in the wheel: upstream lets optional extensions vanish silently."""
    names, numbers_wanted = list(members), {arch.number for arch in archs}
    for component in recipe.components:
        only = ONLY_FOR.get(component)
        if only is not None and not only & numbers_wanted:
            continue
        prefixes = tuple(member if component.python_only else f"{member}." for member in component.members)
        found = any(name.startswith(prefixes) for name in names)
        if not found:
            text = (
                f"{component.value} is in recipe {recipe.name} and not in the wheel: it did not build, or was dropped"
            )
            yield _error("missing-component", component.value, text)


def triton_findings(recipe: Recipe | None, digests: Mapping[str, str]) -> Iterator[Finding]:
    """Compare the wheel's triton_kernels (gpt-oss needs them) with the pin; `digests` are hex sha256 by member."""
    inside = {name.removeprefix(TRITON_KERNELS): digest for name, digest in digests.items()}
    listed = _pinned_triton(recipe)
    if not inside:
        if recipe is not None and Component.TRITON_KERNELS not in recipe.components:
            text = "triton_kernels is not inside: gpt-oss models need it"
            yield Finding(level=Level.NOTE, code="triton-kernels", where="", text=text)
        return
    if not listed:
        text = f"triton_kernels is inside ({len(inside)} files); no pin at hand to compare it with"
        yield Finding(level=Level.NOTE, code="triton-kernels", where=TRITON_KERNELS, text=text)
        return
    wrong = sorted(name for name in inside.keys() | listed.keys() if inside.get(name) != listed.get(name))
    if wrong:
        text = f"{len(wrong)} of {len(listed)} files of triton_kernels are not the pinned ones, such as {wrong[0]}"
        yield _error("triton-kernels", TRITON_KERNELS + wrong[0], text)
    else:
        text = f"triton_kernels is inside and all {len(listed)} files are the pinned ones"
        yield Finding(level=Level.NOTE, code="triton-kernels", where=TRITON_KERNELS, text=text)


def _pinned_triton(recipe: Recipe | None) -> dict[str, str]:
    dependency = recipe.dependencies.get("triton_kernels") if recipe else None
    if (
        recipe is None
        or dependency is None
        or not isinstance(dependency.source, GitSource)
        or not dependency.source.files_sha256
    ):
        return {}
    path = recipe.file(dependency.source.files_sha256)
    rows = [line.split(maxsplit=1) for line in path.read_text().splitlines() if line.strip() and line[0] != "#"]
    return {name.strip().removeprefix("./").rpartition("triton_kernels/")[2]: digest for digest, name in rows}
