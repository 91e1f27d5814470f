"""NAME.whl.report.json: what is written is read back, what is not a report is refused in words."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import jsonschema
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from scripts.core.cache import Cache
from scripts.core.errors import PublishError, UsageError
from scripts.core.paths import ROOT
from scripts.downloads.access import Access
from scripts.report.models import SCHEMA_FILE, BuildReport, ComponentFacts, json_schema, report_of
from scripts.report.timeline import read_timeline
from scripts.report.wheelhouse import audit_problem, find_built, find_wheels, read_local
from tests.builds import audit_data, end_event, put_report, report_data, write_lines
from tests.wheels import make_wheel

TEXT = (ROOT / "docs/report.md").read_text()


def a_report(folder: Path) -> dict[str, Any]:
    """Return a report with all that a build's has."""
    record = {"unit": "a.o", "source": "a.cu", "seconds": 9.5, "cpu_seconds": 9.0, "peak_mb": 100.5, "code": 0}
    timeline = read_timeline(write_lines(folder / "events.jsonl", end_event("moe/a.cu", 0, 10, cache="miss")))
    return report_data(
        timeline,
        wheelsmith={"version": "0.2.0", "commit": None},
        units={
            "total": 1,
            "compiled_in_this_run": 1,
            "stock_headers": [],
            "records": [{**record, "archs": 2, "cache": "miss", "headers": None}],
        },
        compiler_cache=None,
        doctor=[{"id": "a", "verdict": "warning", "measured": "3 GB"}],
        sources=[
            {
                "name": "source",
                "version": "1",
                "repository": "https://x/v",
                "commit": "8" * 40,
                "file": "v",
                "received": 7,
            },
            {"name": "cutlass", "version": "4", "kind": "sdist", "project": "c 4", "sha256": "cd" * 32},
        ],
    )


def test_a_report_is_written_with_the_keys_it_was_read_with(tmp_path: Path) -> None:
    data = a_report(tmp_path)
    again = report_of(json.dumps(data), "x").data()
    again["audit"] = {key: value for key, value in again["audit"].items() if key in data["audit"]}
    assert again == data


def test_a_slim_wheels_report_has_no_keys_of_a_build(tmp_path: Path) -> None:
    data = a_report(tmp_path)
    for key in ("components", "timeline", "stages", "units", "compiler_cache", "doctor", "toolchain", "sources"):
        del data[key]
    assert report_of(json.dumps(data), "x").data().keys() == data.keys()


def test_the_published_schema_is_what_the_models_say(tmp_path: Path) -> None:
    schema = json.loads(SCHEMA_FILE.read_text())
    jsonschema.Draft202012Validator.check_schema(schema)
    assert schema == json_schema(), "renew it: nox -s upgrade -- schema"
    validator = jsonschema.Draft202012Validator(schema)
    assert list(validator.iter_errors(a_report(tmp_path))) == []
    assert list(validator.iter_errors({**a_report(tmp_path), "unknown": 1}))


def test_every_key_of_the_report_is_documented() -> None:
    names = [field.alias or name for name, field in BuildReport.model_fields.items()]
    assert [name for name in [*names, *ComponentFacts.model_fields] if f"`{name}" not in TEXT] == []


@pytest.mark.parametrize(
    ("change", "key"),
    [
        ({"units": {"total": 1, "compiled_in_this_run": [{"unit": "a.o"}]}}, "units.compiled_in_this_run"),
        ({"schema": 2}, "schema"),
        ({"wheel": {"sha256": "ab" * 32}}, "wheel.name"),
        ({"audit": {"ok": True}}, "audit.subject"),
        ({"from the future": 1}, "from the future"),
        ({"sources": [{"name": "source", "commit": "abc"}]}, "sources.0.git.version"),
    ],
)
def test_a_report_of_another_version_is_refused_with_the_key_that_differs(change: dict[str, Any], key: str) -> None:
    with pytest.raises(UsageError, match="cannot be read as a wheel's report") as raised:
        report_of(json.dumps(report_data(**change)), "x.whl.report.json")
    assert raised.value.why.startswith(f"{key}: ")
    assert "nox -s audit" in raised.value.fix[0]


def test_reports_from_before_wheelsmith_named_itself_and_nvcc_are_read() -> None:
    report = report_of(json.dumps(report_data()), "x")
    assert report.wheelsmith is None
    assert report.toolchain
    assert report.toolchain.nvcc is None


@settings(max_examples=80, deadline=None)
@given(st.data())
def test_no_damage_to_a_report_gets_past_the_reader(data: st.DataObject) -> None:
    text = json.dumps(report_data())
    at = data.draw(st.integers(0, len(text) - 1))
    put = data.draw(st.text(max_size=4))
    try:
        report_of(text[:at] + put + text[at + data.draw(st.integers(0, 40)) :], "x")
    except UsageError as error:
        assert error.why  # noqa: PT017


def test_a_wheel_whose_report_cannot_be_read_says_so_when_it_is_to_be_published(tmp_path: Path, access: Access) -> None:
    wheel = make_wheel(tmp_path, {"vllm/__init__.py": b""}, version="1.0")
    put_report(wheel, units=[])
    local = read_local(wheel, access.cache)
    assert local.audit is None
    assert "cannot be read as a wheel's report (units: " in audit_problem(local)
    with pytest.raises(PublishError, match="another version of wheelsmith") as raised:
        find_wheels([wheel], tmp_path, access, audit=True)
    assert "nox -s audit" in raised.value.fix[0]


def test_an_audits_report_alone_serves_when_it_is_about_these_bytes(tmp_path: Path) -> None:
    wheel = make_wheel(tmp_path, {"vllm/__init__.py": b""}, version="1.0")
    cache = Cache(tmp_path / "cache")
    digest = read_local(wheel, cache).sha256
    path = wheel.with_name(wheel.name + ".report.json")
    path.write_text(json.dumps(audit_data(sha256=digest)))
    assert audit_problem(read_local(wheel, cache)) == ""
    path.write_text(json.dumps(audit_data(sha256="0" * 64)))
    assert "no audit report about these bytes" in audit_problem(read_local(wheel, cache))


def test_a_built_wheel_is_found_by_its_build_and_only_while_it_is_whole(tmp_path: Path) -> None:
    wheel = make_wheel(tmp_path, {"vllm/__init__.py": b""}, version="1.0")
    (tmp_path / "other.whl").write_bytes(b"")
    (tmp_path / "other.whl.report.json").write_text("{}")
    put_report(wheel)
    found = find_built(tmp_path, "b1", "7a")
    assert found
    assert found[0] == wheel
    assert find_built(tmp_path, "b2", "7a") is None
    wheel.write_bytes(wheel.read_bytes() + b"x")
    assert find_built(tmp_path, "b1", "7a") is None
