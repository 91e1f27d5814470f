from __future__ import annotations

import json
import time
from pathlib import Path

from scripts.compile.forecast import Forecast
from scripts.compile.schedule import Task
from scripts.compile.units import UnitWatch, read_failures
from scripts.recipe.costs import short_name


def start(name: str, at: float) -> str:
    return json.dumps({"event": "start", "unit": f"{name}.o", "source": f"/t/csrc/{name}", "time": at}) + "\n"


def end(name: str, code: int = 0, seconds: float = 10) -> str:
    data = {"event": "end", "unit": f"{name}.o", "source": f"/t/csrc/{name}", "time": 0, "code": code}
    return json.dumps({**data, "seconds": seconds, "cpu_seconds": seconds, "peak_kb": 5000}) + "\n"


def forecast(*names: str, jobs: int = 2) -> Forecast:
    return Forecast([Task(f"{name}.o", 10.0, 0) for name in names], jobs=jobs, memory=0)


def add(path: Path, text: str) -> None:
    with path.open("a") as file:
        file.write(text)


def test_a_watch_follows_units_from_start_to_end(tmp_path: Path) -> None:
    events = tmp_path / "events.jsonl"
    add(events, start("old.cu", 0) + end("old.cu"))
    watch = UnitWatch(events, total=10, todo=4, forecast=forecast("a.cu", "b.cu", "c.cu", "d.cu"))
    watch.begin()
    watch.update()
    assert (watch.done, watch.finished) == (6, [])
    add(events, start("a.cu", time.time()) + start("b.cu", time.time() - 100))
    watch.update()
    assert "longest running: b.cu (1 min 40 s)" in watch.plain()
    assert "6/10 units (60 %)" in watch.plain()
    add(events, end("a.cu") + end("b.cu", code=1))
    watch.update()
    assert watch.done == 7
    assert watch.running == {}
    assert [record.peak_mb for record in watch.finished] == [5.12, 5.12]  # of 5000 KiB
    assert watch.eta() == 10.0  # two left of 10 s each, two at a time
    assert watch.render() is not None


def test_half_written_and_torn_lines_do_not_stop_a_watch(tmp_path: Path) -> None:
    events = tmp_path / "events.jsonl"
    watch = UnitWatch(events, total=2, todo=2, forecast=forecast("a.cu", "b.cu", jobs=1))
    watch.begin()
    watch.update()  # no file yet
    whole = end("a.cu")
    add(events, "torn{\n" + whole[:20])
    watch.update()
    assert watch.done == 0
    add(events, whole[20:])
    watch.update()
    assert watch.done == 1


def test_failures_say_how_to_repeat_the_unit(tmp_path: Path) -> None:
    failure = {"unit": "/t/csrc/x y.o", "command": ["g++", "x y.cu"], "directory": "/a b", "output": "bad\n"}
    (tmp_path / "1.json").write_text(json.dumps(failure))
    (tmp_path / "2.json").write_text(json.dumps({**failure, "output": ""}))
    (tmp_path / "3.json").write_text("{")
    found = sorted(read_failures(tmp_path), key=lambda item: item.killed)
    assert [item.killed for item in found] == [False, True]
    assert (found[0].command, found[0].output) == ("cd '/a b' && g++ 'x y.cu'", "bad")


def test_names_are_those_below_csrc_or_the_last_parts() -> None:
    assert short_name("/t/csrc/moe/x.cu") == "moe/x.cu"
    assert short_name("/t/other/dir/x.cu") == "dir/x.cu"
