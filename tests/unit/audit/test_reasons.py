"""Why an audit failed, short enough for a message."""

from __future__ import annotations

from scripts.audit.models import AuditReport
from scripts.audit.reasons import errors, failures, in_short
from tests.builds import audit_data


def test_the_first_three_reasons_are_told_short_and_the_others_counted() -> None:
    findings = [{"level": "error", "code": "x", "where": f"{place}.so", "text": "no GPU code"} for place in "abcde"]
    findings += [{"level": "warning", "code": "y", "where": "", "text": "fine"}]
    report = AuditReport(**audit_data(ok=False, findings=findings))
    assert in_short(failures(report)) == "a.so: no GPU code; b.so: no GPU code; c.so: no GPU code; and 2 more"
    assert in_short(failures(report)[:3]).endswith("c.so: no GPU code")
    assert in_short(["x" * 500]) == "x" * 119 + "…"
    assert in_short([]) == ""


def test_what_is_wrong_with_the_whole_wheel_has_no_place() -> None:
    finding = {"level": "error", "code": "x", "where": "", "text": "its tag is not true"}
    assert errors(AuditReport(**audit_data(ok=False, findings=[finding]))) == ["its tag is not true"]
