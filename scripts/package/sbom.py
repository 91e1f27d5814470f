"""The SBOM inside a wheel (PEP 770): CycloneDX JSON of what was compiled in and what it was compiled with.

The same inputs give the same bytes: no clock and no random numbers, so that two builds stay bit-identical.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from cyclonedx.model import ExternalReference, ExternalReferenceType, HashAlgorithm, HashType, Property, XsUri
from cyclonedx.model.bom import Bom
from cyclonedx.model.component import Component, ComponentScope, ComponentType, Pedigree
from cyclonedx.output.json import JsonV1Dot6
from packageurl import PackageURL

from scripts.core.errors import PackageError, from_os_error
from scripts.core.version import version as wheelsmith_version
from scripts.formats.sbom import FOLDER, NAME, _text
from scripts.formats.wheel import WheelWriter, one_block, open_wheel, wheel_name
from scripts.recipe.fields import FROM_TREE
from scripts.recipe.model import Recipe
from scripts.recipe.sources import GitSource, Source

_COMPILED_WITH = ("nvidia-cuda-nvcc", "nvidia-nvvm", "cmake", "ninja", "setuptools")


def make_sbom(
    recipe: Recipe, version: str, *, patches: Sequence[tuple[str, str]], packages: Mapping[str, str]
) -> bytes:
    """Return the SBOM of a wheel of `version`: CycloneDX 1.6 JSON.

    `patches` are names with sha256, `packages` the installed distributions of the build environment by name.
    """
    wheel = _distribution(recipe.package.name, version)
    wheel.pedigree = Pedigree(ancestors=[_from_source(recipe.package.name, recipe.package.version, recipe.source)])
    for name, sha256 in patches:
        wheel.properties.add(Property(name="wheelsmith:patch", value=f"{name} sha256:{sha256}"))
    wheel.properties.add(Property(name="wheelsmith:recipe", value=f"{recipe.name} {recipe.digest}"))
    inside = [_from_source(name, item.version, item.source) for name, item in recipe.needed_dependencies().items()]
    torch = _distribution("torch", recipe.torch.version)
    cuda = Component(
        name="cuda-toolkit",
        version=recipe.toolchain.cuda,
        type=ComponentType.PLATFORM,
        bom_ref=f"cuda-toolkit@{recipe.toolchain.cuda}",
        purl=PackageURL("generic", None, "cuda-toolkit", recipe.toolchain.cuda),
    )
    tools = [_distribution(name, packages[name]) for name in _COMPILED_WITH if name in packages]
    for tool in tools:
        tool.scope = ComponentScope.EXCLUDED  # was used, is not in the wheel
    bom = Bom(components=[*inside, torch, cuda, *tools])
    bom.metadata.component = wheel
    bom.metadata.tools.components.add(_wheelsmith())
    bom.register_dependency(wheel, [*inside, torch, cuda])
    return _text(json.loads(JsonV1Dot6(bom).output_as_string()))


def _wheelsmith() -> Component:
    """Return ourselves: the version only, since a commit would give each commit other bytes."""
    return Component(
        name="wheelsmith", version=wheelsmith_version(), type=ComponentType.APPLICATION, bom_ref="wheelsmith"
    )


def _distribution(name: str, version: str) -> Component:
    return Component(
        name=name,
        version=version,
        type=ComponentType.LIBRARY,
        bom_ref=f"{name}@{version}",
        purl=PackageURL("pypi", None, name, version),
    )


def _from_source(name: str, version: str, source: Source) -> Component:
    """Return what was fetched: a commit of a repository, or an archive with its digest."""
    component = Component(
        name=name,
        version=version,
        type=ComponentType.LIBRARY,
        bom_ref=f"{name}@{version}",
        scope=ComponentScope.REQUIRED,
    )
    if isinstance(source, GitSource):
        component.bom_ref.value = f"{name}@{source.commit}"
        component.purl = PackageURL(
            "generic", None, name, version, {"vcs_url": f"git+{source.repository}@{source.commit}"}
        )
        component.external_references.add(
            ExternalReference(type=ExternalReferenceType.VCS, url=XsUri(source.repository))
        )
        component.properties.add(Property(name="wheelsmith:commit", value=source.commit))
        for path, commit in source.submodules.items():
            pin = f"as the tree of {source.commit} names it" if commit == FROM_TREE else commit
            component.properties.add(Property(name=f"wheelsmith:submodule:{path}", value=pin))
        return component
    component.purl = PackageURL("pypi", None, source.name, source.version)
    component.bom_ref.value = f"{name}@{version}#{source.kind}"
    component.hashes.add(HashType(alg=HashAlgorithm.SHA_256, content=source.sha256))
    component.properties.add(
        Property(name="wheelsmith:taken-from", value=f"{source.name} {source.version} ({source.kind})")
    )
    return component


def add_sbom(wheel: Path, sbom: bytes, out: Path, metadata: Callable[[bytes], bytes] = lambda text: text) -> Path:
    """Write the wheel again, with the SBOM inside and METADATA changed, into another folder. Raises PackageError."""
    name = wheel_name(wheel)
    try:
        out.mkdir(parents=True, exist_ok=True)
        with open_wheel(wheel) as source:
            writer = WheelWriter(out / str(name), source.dist_info)
            try:
                like = next(item for item in source.members if item.filename == f"{source.dist_info}/METADATA")
                for member in source.members:
                    if member is like:
                        text = metadata(b"".join(source.blocks(member)))
                        writer.add(member, member.filename, one_block(text), len(text))
                    elif member.filename != f"{source.dist_info}/RECORD":
                        writer.add(member, member.filename, source.blocks(member), member.file_size)
                writer.add(like, f"{source.dist_info}/{FOLDER}/{NAME}", one_block(sbom), len(sbom))
                return writer.finish()
            except BaseException:
                writer.abandon()
                raise
    except OSError as error:
        raise from_os_error(PackageError, error, doing="putting the SBOM into", path=wheel) from error
