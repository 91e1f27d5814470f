"""`--split`: after a wheel for several archs, one slim wheel per arch cut out of it, audited, without compiling."""

from __future__ import annotations

import tempfile
from pathlib import Path

from scripts.audit.collect import audit_wheel
from scripts.audit.reasons import failures, in_short
from scripts.audit.subjects import matching_recipe
from scripts.core.console import Console
from scripts.core.errors import AuditError
from scripts.cuda.archs import Arch, normalised
from scripts.cuda.drivers import default_targets
from scripts.report.models import BuildReport, CutFrom
from scripts.report.slim_report import slim_report
from scripts.report.wheelhouse import enter
from scripts.slim.wheel import slim_wheel


def split_wheel(
    fat: Path, report: BuildReport, archs: tuple[Arch, ...], wheelhouse: Path, *, cuda: str, console: Console
) -> list[Path]:
    """Write a slim wheel (and its reports) per GPU arch beside the fat one; return them. Raises AuditError.

    Each is judged for a driver of `cuda`, the CUDA whose compiler wrote the PTX.
    """
    made = []
    for arch in normalised(Arch(arch.major, arch.minor) for arch in archs):
        with tempfile.TemporaryDirectory(prefix=".split-", dir=wheelhouse) as folder:
            slim = slim_wheel(fat, [arch], Path(folder))
            audit = audit_wheel(slim, default_targets([arch], cuda), optional=matching_recipe(slim))
            if not audit.ok:
                raise AuditError(f"{slim.name} is not what it should be", why=in_short(failures(audit)))
            full = slim_report(slim, CutFrom(**report.wheel.model_dump()), [arch], audit, report)
            made.append(enter(slim, full, wheelhouse))
        console.stage("slim", f"{made[-1].name}: {audit.targets[0].summary}")
    return made
