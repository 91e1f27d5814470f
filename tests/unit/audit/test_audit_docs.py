from __future__ import annotations

import re

import pytest

from scripts.audit.models import AuditReport, TargetVerdict
from scripts.audit.rules import hazards, optionals
from scripts.core.paths import ROOT

TEXT = (ROOT / "docs/audit.md").read_text()


def codes() -> set[str]:
    sources = [path.read_text() for path in (ROOT / "scripts/audit").glob("*.py")]
    found = {code for text in sources for code in re.findall(r'code="([a-z-]+)"', text)}
    return found | {code for text in sources for code in re.findall(r'_(?:error|warning)\("([a-z-]+)"', text)}


def test_every_finding_is_explained() -> None:
    assert len(codes()) > 10
    assert {code for code in codes() if f"`{code}`" not in TEXT} == set()


@pytest.mark.parametrize("model", [AuditReport, TargetVerdict])
def test_every_key_of_the_report_is_documented(model: type[AuditReport] | type[TargetVerdict]) -> None:
    assert [name for name in model.model_fields if f"`{name}" not in TEXT] == []


def test_the_example_of_the_reader_as_a_library_names_what_exists() -> None:
    import scripts.formats.fatbin

    example = (ROOT / "docs/fatbin.md").read_text().split("```python")[1].split("```")[0]
    imported = re.findall(r"from scripts\.formats\.fatbin import (.*)", example)[0].split(", ")
    assert all(hasattr(scripts.formats.fatbin, name) for name in imported)


def test_every_rule_is_in_the_list_with_its_source() -> None:
    section = TEXT.split("## Rules", 1)[1].split("\n## ", 1)[0]
    rows = {item.split("`")[0]: item for item in section.split("\n- `")[1:]}
    for rule in (*optionals(), *hazards()):
        assert f"`{rule.library.split('|')[0]}`" in rows[rule.id]
    for rule in hazards():
        assert f"hazard, {rule.level.value}" in rows[rule.id]
        assert rule.source.rsplit("/", 1)[1] in rows[rule.id]
    for optional in optionals():
        assert "optional" in rows[optional.id]
