"""Small real wheels for tests."""

from __future__ import annotations

import base64
import hashlib
import zipfile
from collections.abc import Mapping
from pathlib import Path

METADATA = "Metadata-Version: 2.4\nName: {name}\nVersion: {version}\nRequires-Dist: torch==2.9.1\n\nA description.\n"
WHEEL = "Wheel-Version: 1.0\nGenerator: tests\nRoot-Is-Purelib: false\n{tags}\n"


def digest(data: bytes) -> str:
    """Return a digest as RECORD has it."""
    return "sha256=" + base64.urlsafe_b64encode(hashlib.sha256(data).digest()).rstrip(b"=").decode()


def make_wheel(
    folder: Path,
    members: Mapping[str, bytes],
    *,
    name: str = "vllm",
    version: str = "0.15.1",
    tags: str = "cp38-abi3-manylinux_2_31_x86_64",
    metadata: str = METADATA,
    stated_tags: str = "",
    record: Mapping[str, str] | None = None,
) -> Path:
    """Write a wheel with valid metadata; `record` replaces rows of RECORD by member."""
    info = f"{name}-{version}.dist-info"
    tag_lines = "\n".join(f"Tag: {tag}" for tag in (stated_tags or tags).split(" "))
    contents = {
        **members,
        f"{info}/METADATA": metadata.format(name=name, version=version).encode(),
        f"{info}/WHEEL": WHEEL.format(tags=tag_lines).encode(),
    }
    rows = {member: f"{digest(data)},{len(data)}" for member, data in contents.items()} | dict(record or {})
    lines = [f"{member},{row}" for member, row in rows.items() if row != "absent"]
    contents[f"{info}/RECORD"] = "\n".join([*lines, f"{info}/RECORD,,", ""]).encode()
    path = folder / f"{name}-{version}-{tags}.whl"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for member, data in contents.items():
            entry = zipfile.ZipInfo(member, (2026, 2, 4, 19, 3, 0))
            entry.compress_type = zipfile.ZIP_DEFLATED
            entry.external_attr = (0o100755 if member.endswith(".so") else 0o100644) << 16
            archive.writestr(entry, data)
    return path
