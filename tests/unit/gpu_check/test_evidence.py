from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from scripts.commands import evidence as command
from scripts.core.console import Console
from scripts.core.errors import UsageError
from scripts.gpu_check import evidence as gpu_check_evidence
from scripts.gpu_check.evidence import FOLDER, README, evidence, join, page, pages, replaced, table
from scripts.recipe.files import recipe_names

LINE = {"dtype": "float32", "error": "nan", "limit": 1e-5, "cases": 1, "ok": False}


def report(**changes: Any) -> dict[str, Any]:
    machine = {
        "gpu": "GPU X",
        "capability": "9.0",
        "driver": "1.2",
        "torch": "2",
        "cuda": "13",
        "python": "3",
        "kernel": "6",
    }
    rows = [
        {"operator": "_C::a", "state": "wrong", "reason": "", "image": "SASS", "lines": [LINE]},
        {
            "operator": "_C::b",
            "state": "ok",
            "reason": "",
            "image": "JIT",
            "lines": [{**LINE, "error": 0.0, "ok": True}],
        },
        {"operator": "_C::c", "state": "not covered", "reason": "no reference"},
    ]
    base = {"schema_version": 1, "date": "2026-01-02", "wheel": {"name": "v.whl", "sha256": "aa", "size": 5}, "seed": 1}
    return {**base, "machine": machine, "operators": rows, "problems": ["_C::a: wrong"], **changes}


ENGINE = {
    "llama eager": {"ok": True, "judged": {"tokens": 8, "best": 7, "ties": 1, "wrong": 0, "largest_gap": 0.1},
                    "equal_for_batch_1_and_8": 8, "prompts": 8},
    "llama serve": {"ok": False, "exit_code": 1},
}  # fmt: skip


def joined(**changes: Any) -> dict[str, Any]:
    return {**join([report(**changes)]), "recipe": "quickstart", "command": "c"}


def test_reports_of_one_wheel_are_joined() -> None:
    other = report(seed=2, engine=ENGINE, problems=["p"], machine={"cores": 4, "gpu": "GPU X"}, finished=False)
    checks = {"a": {"state": "ok", "lines": [1], "sha256": "s", "reason": ""}}
    both = join([report(checks=checks), other])
    assert both["seed"] == [1, 2]
    assert both["problems"] == ["_C::a: wrong", "p"]
    assert both["machine"]["cores"] == 4
    assert both["machine"]["driver"] == "1.2"
    assert both["checks"] == {"a": {"state": "ok", "sha256": "s"}}
    assert (both["ok"], both["finished"]) == (False, False)
    with pytest.raises(UsageError, match="another wheel"):
        join([report(), report(wheel={"name": "w.whl", "sha256": "bb", "size": 5})])


def test_the_page_keeps_failures_and_what_was_not_covered() -> None:
    slim = {"name": "s.whl", "sha256": "cc", "arch": "9.0", "equal": ["a"], "different": [], "not_comparable": ["b"]}
    audit = {"agrees": False, "disagreements": ["native ran"], "target": "9.0", "summary": "OK"}
    text = page("x", joined(
        engine=ENGINE, engine_as_it_is={"ok": False, "error": "E"}, engine_changed="a line", slim=slim, audit=audit,
        notes=["a note"], later=[{"what": "w", "seen": "right"}],
        speed={"rows": [{"operator": "rms", "us": 1.0, "against": "torch", "torch_us": 2.0, "limit": 1.5}]},
    ))  # fmt: skip
    for part in (
        "1 findings", "- _C::a: wrong", "| _C::a | float32 | nan | 1e-05 | SASS | **WRONG** |",
        "not covered: no reference",
        "loads no model: `E`", "a line", "| llama serve | | | | | | | no: ended with 1 |", "differs: native ran",
        "1 not repeatable", "- w: right", "- a note", "| rms | 1.0 | torch | 2.0 | 1.5 times |",
    ):  # fmt: skip
        assert part in text
    text = page("x", joined(engine_not_covered="no _C", problems=[]))
    assert "Not run: no _C." in text
    assert "all right" in text


def test_the_table_says_what_has_never_run() -> None:
    text = read(table({"x": joined(engine=ENGINE, engine_changed="y", later=[{"what": "", "seen": ""}])}))
    assert "1 operators right against float64, 1 not" in text
    assert "engine: 1 of 2 runs right, after a change" in text
    never = text.split("**Never run:** wheels of ")[1].split(";")[0].split(", ")
    assert never == [f"`{name}`" for name in recipe_names() if name != "quickstart"]
    assert "any code for 8.0, 8.6, 8.9, 12.0" in text
    assert "any driver but 1.2" in text
    assert "no RTX 5090" in text
    audited = joined(audit={"agrees": True, "disagreements": [], "target": "", "summary": ""})
    assert "audit agrees" in read(table({"x": audited}))
    assert all(len(line) < 120 for line in table({"x": audited}).splitlines())


def read(text: str) -> str:
    """Return a text as one line: where it is wrapped does not matter."""
    return " ".join(text.split())


def test_what_lies_in_the_repository_is_up_to_date(tmp_path: Path) -> None:
    folder, readme = tmp_path / "evidence", tmp_path / "README.md"
    folder.mkdir()
    for path in FOLDER.glob("*.json"):
        (folder / path.name).write_bytes(path.read_bytes())
    readme.write_bytes(README.read_bytes())
    assert list(pages(folder, readme))
    assert readme.read_text() == README.read_text(), "run: python -m scripts.commands.evidence"
    for path in folder.glob("*.md"):
        assert path.read_text() == (FOLDER / path.name).read_text(), "run: python -m scripts.commands.evidence"


def test_the_evidence_is_of_real_runs() -> None:
    for value in evidence().values():
        assert len(value["wheel"]["sha256"]) == 64
        assert value["finished"] is True
        assert value["machine"]["driver"]
        assert value["ok"] is (not value["problems"])
        states = {row["state"] for row in value["operators"]}
        assert states <= {"ok", "wrong", "crashed", "error", "not covered", "other arch", "not compiled"}


def test_the_command_adds_and_renews(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder, readme, given = tmp_path / "docs", tmp_path / "README.md", tmp_path / "check.json"
    folder.mkdir()
    readme.write_text(f"a\n{gpu_check_evidence.BEGIN}\nold\n{gpu_check_evidence.END}\nb\n")
    given.write_text(json.dumps(report()))
    monkeypatch.setattr(gpu_check_evidence, "FOLDER", folder)
    monkeypatch.setattr(gpu_check_evidence, "README", readme)
    monkeypatch.setattr(command, "FOLDER", folder)
    monkeypatch.setattr(command, "README", readme)
    monkeypatch.setattr(command, "pages", lambda: pages(folder, readme))
    assert command.main([str(given), "--add", "x", "--recipe", "quickstart"], Console()) == 0
    assert json.loads((folder / "x.json").read_text())["recipe"] == "quickstart"
    assert (folder / "x.md").read_text().startswith("# quickstart, 9.0: seen on GPU X")
    assert "old" not in readme.read_text()
    assert readme.read_text().endswith(f"{gpu_check_evidence.END}\nb\n")
    assert command.main([], Console()) == 0


@pytest.mark.parametrize("text", ["", "{", "[]", '{"schema_version": 9}'])
def test_files_that_are_no_reports_are_refused(tmp_path: Path, text: str) -> None:
    given = tmp_path / "check.json"
    given.write_text(text)
    with pytest.raises(UsageError, match="is not a report"):
        command.main([str(given), "--add", "x", "--recipe", "quickstart"], Console())
    with pytest.raises(UsageError, match="is not a report"):
        command.main([str(tmp_path / "none"), "--add", "x", "--recipe", "quickstart"], Console())


def test_half_a_command_and_a_readme_without_marks_are_refused() -> None:
    with pytest.raises(UsageError, match="go together"):
        command.main(["--add", "x"], Console())
    with pytest.raises(UsageError, match="no place"):
        replaced("nothing", "x")
