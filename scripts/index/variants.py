"""Wheel variants (PEPs 817, 825 and 850, drafts): what the format says of a published wheel, and the wheel it makes.

A variant wheel is the published one under its public version, with `.dist-info/variant.json` and a label in its file
name. variantlib writes both. `variant_index.py` keeps an index of them.
"""

from __future__ import annotations

import re
import zipfile
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from packaging.version import Version
from variantlib.api import VariantDescription, VariantProperty, make_variant_dist_info
from variantlib.models.variant_info import ProviderInfo, VariantInfo
from variantlib.variant_dist_info import VariantDistInfo

from scripts.core.errors import PublishError
from scripts.cuda.archs import TABLE, TEGRA
from scripts.formats.sbom import FOLDER as SBOM_FOLDER
from scripts.formats.sbom import NAME as SBOM_NAME
from scripts.formats.sbom import renamed
from scripts.formats.wheel import WheelFile, WheelWriter, one_block, open_wheel, wheel_name
from scripts.index.entry import Entry, Served

MAX_LABEL = 16  # characters, as PEP 825 has it
_PROVIDER = {
    "nvidia": ProviderInfo(
        requires=["nvidia-variant-provider>=0.0.1,<1.0.0"],
        plugin_api="nvidia_variant_provider.plugin:NvidiaVariantPlugin",
    )
}


@dataclass(frozen=True)
class Variant:
    """What the format says of a wheel."""

    label: str
    dist_info: str
    """Content of variant.json."""


def describe(entry: Entry) -> Variant:
    """Return what the format can say of a published wheel: its GPUs and the driver it needs.

    `sm_arch 90_real` means every GPU of 9.0 and of later minors of that major. Raises PublishError where that would be
    untrue: code for 12.0 alone (`120a`) would be installed on a 12.1, too.
    """
    ours = {item.arch: item for item in entry.serves or () if item.native + item.compatible}
    first = [arch for arch in ours if ours[arch].native and ours[arch].cuda and _pair(arch) not in TEGRA]
    if not first:
        raise PublishError(
            f"{entry.filename} cannot be a wheel variant: its audit names no GPU that has native code in it",
            fix="publish it with its audit, or without --variants",
        )
    for arch in first:
        for other in _later(arch):
            if other not in ours:
                raise PublishError(
                    f"{entry.filename} cannot be a wheel variant",
                    why=f"its code for {arch} does not run on {other}; the format knows no such code, and would "
                    f"install it there (no word for {arch.replace('.', '')}a)",
                    fix="publish it without --variants: label and sub-index say it exactly",
                )
    properties = [VariantProperty("nvidia", "cuda_version_lower_bound", _highest(ours[arch] for arch in first))]
    properties += [VariantProperty("nvidia", "sm_arch", f"{arch.replace('.', '')}_real") for arch in first]
    label = re.sub(r"[^0-9a-z._]", "_", (Version(entry.version).local or "").lower().replace(".", "_"))
    description = VariantDescription(sorted(properties), label=label if len(label) <= MAX_LABEL else "")
    info = VariantInfo(namespace_priorities=["nvidia"], providers=_PROVIDER)
    text = make_variant_dist_info(description, info)
    return Variant(VariantDistInfo(text).variant_label, text)


def _later(arch: str) -> list[str]:
    """Return the GPU generations to which the format gives code for `arch`; Tegra's are not x86-64."""
    major, minor = _pair(arch)
    numbers = [_pair(row.number) for row in TABLE]
    return [f"{a}.{b}" for a, b in numbers if a == major and b > minor and (a, b) not in TEGRA]


def _pair(number: str) -> tuple[int, int]:
    major, minor = number.split(".")
    return int(major), int(minor)


def _highest(served: Iterable[Served]) -> str:
    return max((item.cuda for item in served), key=Version)


def make_variant(wheel: Path, variant: Variant, folder: Path) -> tuple[Path, bytes]:
    """Write the variant of a wheel into a folder; return it and its METADATA."""
    name = wheel_name(wheel)
    public = Version(name.version).public
    dist_info = f"{name.name}-{public}.dist-info"
    with open_wheel(wheel) as source:
        path = folder / f"{name.name}-{public}-{name.tags}-{variant.label}.whl"
        writer = WheelWriter(path, dist_info)
        try:
            metadata = _copy(source, writer, public, dist_info)
            like = next(item for item in source.members if item.filename == f"{source.dist_info}/METADATA")
            text = variant.dist_info.encode()
            writer.add(like, f"{dist_info}/variant.json", one_block(text), len(text))
            return writer.finish(), metadata
        except BaseException:
            writer.abandon()
            raise


def _copy(source: WheelFile, writer: WheelWriter, public: str, dist_info: str) -> bytes:
    """Copy all members but RECORD under the public version; return METADATA."""
    metadata = b""
    for member in source.members:
        folder, _, rest = member.filename.partition("/")
        if folder != source.dist_info:
            writer.add(member, member.filename, source.blocks(member), member.file_size)
        elif rest != "RECORD":
            data = _of_version(rest, _read(source, member), public)
            metadata = data if rest == "METADATA" else metadata
            writer.add(member, f"{dist_info}/{rest}", one_block(data), len(data))
    return metadata


def _read(source: WheelFile, member: zipfile.ZipInfo) -> bytes:
    return b"".join(source.blocks(member))


def _of_version(name: str, data: bytes, public: str) -> bytes:
    if name == "METADATA":
        return re.sub(rb"(?m)^Version:[^\r\n]*", f"Version: {public}".encode(), data, count=1)
    return renamed(data, public) if name == f"{SBOM_FOLDER}/{SBOM_NAME}" else data
