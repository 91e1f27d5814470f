"""The report beside a wheel that was cut out of another one: NAME.whl.report.json."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from scripts.audit.models import AuditReport
from scripts.core.files import file_sha256
from scripts.core.version import commit, version
from scripts.cuda.archs import Arch, arch_list
from scripts.formats.wheel import wheel_name
from scripts.report.models import SCHEMA, BuildReport, CutFrom, RecipeFacts, WheelIdentity, Wheelsmith

_OF_THE_BUILD = ("recipe", "sources", "patches", "toolchain", "torch")


def slim_report(
    slim: Path, source: CutFrom, archs: Sequence[Arch], audit: AuditReport, built: BuildReport | None, **said: Any
) -> BuildReport:
    """Return the report of a wheel that was cut out of another one, so that it can be published and signed.

    Of a wheel that wheelsmith `built`, the build's facts (recipe, sources, patches, toolchain, torch) go along.
    """
    kept: dict[str, Any] = {"recipe": RecipeFacts(name="", digest="")}
    if built:
        kept = {key: getattr(built, key) for key in _OF_THE_BUILD if key in built.model_fields_set}
    return BuildReport(
        schema_version=SCHEMA,
        wheelsmith=Wheelsmith(version=version(), commit=commit()),
        wheel=WheelIdentity(
            name=slim.name,
            sha256=audit.sha256 or file_sha256(slim),
            size=audit.size,
            version=wheel_name(slim).version,
            platform=audit.tags[-1],
        ),
        build="",
        archs=arch_list(archs),
        slimmed_from=source,
        audit=audit,
        **kept,
        **said,
    )
