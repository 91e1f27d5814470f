"""`--split`: after a wheel for several archs, one slim wheel per arch cut out of it, audited, without compiling."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from scripts.audit.collect import audit_wheel
from scripts.audit.show import failures
from scripts.audit.subjects import matching_recipe
from scripts.core.console import Console
from scripts.core.errors import AuditError
from scripts.cuda.archs import Arch, normalised
from scripts.cuda.drivers import default_targets
from scripts.formats.wheel import wheel_name
from scripts.report.wheelhouse import SCHEMA, enter
from scripts.slim.wheel import slim_wheel


def split_wheel(
    fat: Path, report: Mapping[str, Any], archs: tuple[Arch, ...], wheelhouse: Path, *, console: Console
) -> list[Path]:
    """Write a slim wheel (and its reports) per GPU arch beside the fat one; return them. Raises AuditError."""
    made = []
    for arch in normalised(Arch(arch.major, arch.minor) for arch in archs):
        with tempfile.TemporaryDirectory(prefix=".split-", dir=wheelhouse) as folder:
            slim = slim_wheel(fat, [arch], Path(folder))
            audit = audit_wheel(slim, default_targets([arch], report["torch"]["cuda"]), optional=matching_recipe(slim))
            if not audit.ok:
                raise AuditError(f"{slim.name} is not what it should be", why="; ".join(failures(audit)[:5]))
            about = {
                "name": slim.name,
                "sha256": audit.sha256,
                "size": audit.size,
                "version": wheel_name(slim).version,
                "platform": report["wheel"]["platform"],
            }
            kept = {key: report[key] for key in ("recipe", "sources", "patches", "toolchain", "torch")}
            page = {"schema": SCHEMA, "wheel": about, "build": "", "slimmed_from": report["wheel"], **kept}
            full = {**page, "archs": str(arch), "audit": audit.model_dump(mode="json")}
            made.append(enter(slim, full, wheelhouse))
        console.stage("slim", f"{made[-1].name}: {audit.targets[0].summary}")
    return made
