"""A packaged wheel against its recipe: scripts.audit reads it, once in a run; what we ask of our own is here."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from packaging.metadata import ExceptionGroup, InvalidMetadata, Metadata
from packaging.specifiers import SpecifierSet
from packaging.utils import canonicalize_name
from packaging.version import Version

from scripts.audit.collect import read_wheel
from scripts.audit.models import Level
from scripts.audit.subject import AuditSubject
from scripts.core.errors import AuditError, PackageError
from scripts.cuda.archs import Arch
from scripts.formats.fatbin_types import DeviceCode
from scripts.formats.wheel import open_wheel
from scripts.recipe.model import Recipe
from scripts.recipe.torch_pin import torch_requirement

# What makes a file no wheel of the recipe; the rest of the audit's findings are judged in its own stage.
OF_THE_FILE = frozenset({"record-mismatch", "metadata-mismatch", "bad-tag", "tags-differ", "not-elf"})
MAX_NAMED = 6  # problems in a message


@dataclass(frozen=True)
class Wheel:
    """A packaged and checked wheel."""

    path: Path
    sha256: str
    size: int
    """Bytes."""
    version: str
    platform: str
    """What auditwheel measured: `manylinux_2_34_x86_64`."""
    components: dict[str, int]
    """Size in bytes of each component's shared object, by component."""
    contents: AuditSubject
    """What the audit read of it: nobody reads its GPU code again in this run."""

    @property
    def device(self) -> Mapping[str, DeviceCode]:
        """The GPU code of each shared object, by member."""
        return self.contents.codes


def check_wheel(
    path: Path,
    recipe: Recipe,
    version: str,
    *,
    requires: str = "",
    archs: Sequence[Arch] = (),
    site: Path | None = None,
    libraries: Sequence[Path] = (),
) -> Wheel:
    """Read a wheel and check its RECORD, metadata, torch pin and components. Raises PackageError naming all faults.

    `requires`: the specifier of torch where it is not the recipe's version alone. `site` and `libraries`: where the
    audit finds torch and further libraries.
    """
    try:
        contents = read_wheel(path, recipe=recipe, archs=archs, torch=site, libraries=libraries)
        problems = [*_of_the_file(contents), *_invalid_metadata(path), *_against(contents, recipe, version, requires)]
    except AuditError as error:
        raise PackageError(f"{path.name} cannot be read", why=f"{error.what} {error.why}".strip()) from error
    components, wrong = component_sizes(contents, recipe)
    problems += wrong
    if problems:
        text = "; ".join(problems[:MAX_NAMED])
        raise PackageError(f"{path.name} is not what the recipe {recipe.name} says", why=text)
    platforms = contents.tags[-1].split(".")
    platform = max(platforms, key=lambda name: (name.startswith("manylinux_"), name))
    return Wheel(path, contents.sha256 or "", contents.size, version, platform, components, contents)


def _of_the_file(contents: AuditSubject) -> Iterator[str]:
    for item in contents.findings:
        if item.code in OF_THE_FILE and item.level is not Level.NOTE:
            yield f"{item.where}: {item.text}"


def _invalid_metadata(path: Path) -> Iterator[str]:
    """Yield what indexes refuse in METADATA, of which installers make nothing."""
    with open_wheel(path) as wheel:
        data = wheel.read(f"{wheel.dist_info}/METADATA") or b""
    try:
        Metadata.from_email(data, validate=True)
    except (InvalidMetadata, ExceptionGroup) as error:
        yield f"METADATA is not valid: {error}"


def _against(contents: AuditSubject, recipe: Recipe, version: str, requires: str) -> Iterator[str]:
    if canonicalize_name(contents.name or "") != recipe.package.name:
        yield f"it is a wheel of {contents.name}, not {recipe.package.name}"
    if Version(contents.version or "0") != Version(version):
        yield f"it is of version {contents.version}, not {version}"
    wanted = requires or torch_requirement(recipe.torch.version)
    if SpecifierSet(contents.torch or "") != SpecifierSet(wanted):
        yield f"METADATA does not pin torch{wanted}"


def component_sizes(contents: AuditSubject, recipe: Recipe) -> tuple[dict[str, int], list[str]]:
    """Return (bytes per component's shared object, problems: components missing, other shared objects inside)."""
    objects = {member: item.size for member, item in contents.components.items()}
    sizes: dict[str, int] = {}
    problems = []
    for component in recipe.shared_objects:
        stems = {name.split(".", 1)[0]: name for name in objects}
        name = stems.get(component.stem_in(stems))
        if name is None:
            problems.append(f"component {component.value} is missing ({component.member}.*.so)")
        else:
            sizes[component.value] = objects.pop(name)
    return sizes, problems + [f"{name} is not of a component of the recipe" for name in sorted(objects)]
