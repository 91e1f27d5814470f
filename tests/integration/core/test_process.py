from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from scripts.core.paths import ROOT
from scripts.core.process import capture, run_logged
from tests.support import alive

ENVIRONMENT = dict(os.environ)
# A child and a grandchild that ignore Ctrl-C; each writes its process id.
STUBBORN = 'trap "" INT; echo $$ > child; sh -c \'trap "" INT; echo $$ > grandchild; sleep 60\' & wait; sleep 60'


def wait_for(paths: list[Path]) -> list[int]:
    deadline = time.monotonic() + 20
    while not all(path.exists() and path.read_text().strip() for path in paths):
        assert time.monotonic() < deadline, f"none of {paths} after 20 s"
        time.sleep(0.05)
    return [int(path.read_text()) for path in paths]


def gone(pids: list[int], *, within: float) -> bool:
    deadline = time.monotonic() + within
    while time.monotonic() < deadline:
        if not any(alive(pid) for pid in pids):
            return True
        time.sleep(0.05)
    return False


def test_output_and_command_are_appended_to_the_log(tmp_path: Path) -> None:
    log = tmp_path / "log"
    log.write_text("before\n")
    done = run_logged(["sh", "-c", "echo out; echo err >&2; exit 3"], log=log, cwd=tmp_path, environment=ENVIRONMENT)
    assert done.code == 3
    assert log.read_text() == f"before\n\n$ cd {tmp_path} && sh -c 'echo out; echo err >&2; exit 3'\nout\nerr\n"
    assert done.tail(1) == "err"
    assert done.seconds > 0


def test_memory_of_the_whole_tree_is_sampled_while_ticks_go_on(tmp_path: Path) -> None:
    ticks: list[float] = []
    code = "import time; x = bytearray(150_000_000); time.sleep(2.5)"
    done = run_logged(
        ["sh", "-c", f"{sys.executable} -c '{code}'; true"],
        log=tmp_path / "log",
        cwd=tmp_path,
        environment=ENVIRONMENT,
        tick=lambda: ticks.append(time.monotonic()),
    )
    assert done.code == 0
    assert done.peak_bytes > 150_000_000
    assert len(ticks) > 5


def test_ctrl_c_ends_children_and_grandchildren_that_ignore_it_within_five_seconds(tmp_path: Path) -> None:
    pids: list[int] = []
    before = signal.getsignal(signal.SIGINT)

    def interrupt() -> None:
        if (tmp_path / "grandchild").exists():
            pids.extend(wait_for([tmp_path / "child", tmp_path / "grandchild"]))
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run_logged(["sh", "-c", STUBBORN], log=tmp_path / "log", cwd=tmp_path, environment=ENVIRONMENT, tick=interrupt)
    assert len(pids) == 2
    assert gone(pids, within=2.5)
    assert signal.getsignal(signal.SIGINT) is before


RUNNER = """
import os, sys
from pathlib import Path
from scripts.core.process import run_logged
run_logged(sys.argv[2:], log=Path(sys.argv[1], "log"), cwd=Path(sys.argv[1]), environment=os.environ)
"""


@pytest.mark.parametrize(("number", "within"), [(signal.SIGINT, 5.0), (signal.SIGKILL, 3.0)])
def test_the_command_ends_with_the_run_however_that_ends(tmp_path: Path, number: signal.Signals, within: float) -> None:
    words = ["sh", "-c", "echo $$ > child; exec sleep 60"]
    run = subprocess.Popen([sys.executable, "-c", RUNNER, str(tmp_path), *words], cwd=ROOT, stderr=subprocess.PIPE)
    pids = wait_for([tmp_path / "child"])
    run.send_signal(number)
    run.communicate()
    assert run.returncode != 0
    assert gone(pids, within=within)


def test_a_command_that_is_not_there_is_a_failure_and_not_an_exception(tmp_path: Path) -> None:
    assert run_logged(["/none/x"], log=tmp_path / "log", cwd=tmp_path, environment=ENVIRONMENT).code != 0
    assert capture(["/none/x"], environment=ENVIRONMENT)[0] == 127


def test_a_short_command_s_output_is_returned_and_its_time_limited() -> None:
    assert capture(["sh", "-c", "echo out; echo err >&2; exit 4"], environment=ENVIRONMENT) == (4, "out\nerr\n")
    code, text = capture(["sleep", "60"], environment=ENVIRONMENT, timeout=0.2)
    assert code == 124
    assert "no answer" in text


LAUNCHER = ROOT / "scripts" / "compile" / "standalone" / "launcher.py"


def launch(folder: Path, *command: str) -> subprocess.CompletedProcess[str]:
    (folder / "failures").mkdir(exist_ok=True)
    environment = {
        **ENVIRONMENT,
        "WHEELSMITH_EVENTS": str(folder / "events"),
        "WHEELSMITH_FAILURES": str(folder / "failures"),
    }
    return subprocess.run(
        [sys.executable, "-S", "-E", str(LAUNCHER), *command],
        cwd=folder,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )


def test_a_compile_is_recorded_with_its_time_and_memory(tmp_path: Path) -> None:
    (tmp_path / "x.cpp").write_text("int main() { return 0; }\n")
    assert launch(tmp_path, "g++", "-c", "x.cpp", "-o", "x.o").returncode == 0
    start, end = (json.loads(line) for line in (tmp_path / "events").read_text().splitlines())
    assert (start["event"], start["source"], end["event"], end["unit"], end["code"]) == (
        *("start", "x.cpp", "end", "x.o", 0),
    )
    assert end["peak_kb"] > 1000
    assert end["seconds"] >= 0
    assert (tmp_path / "x.o").is_file()
    assert list((tmp_path / "failures").iterdir()) == []


def test_a_failed_compile_is_kept_with_what_it_said_and_how_to_repeat_it(tmp_path: Path) -> None:
    (tmp_path / "x.cpp").write_text("nonsense;\n")
    done = launch(tmp_path, "g++", "-c", "x.cpp", "-o", "x.o")
    assert done.returncode == 1
    assert "nonsense" in done.stdout
    [kept] = (tmp_path / "failures").iterdir()
    data = json.loads(kept.read_text())
    assert data["command"] == ["g++", "-c", "x.cpp", "-o", "x.o"]
    assert (data["directory"], data["unit"]) == (str(tmp_path), "x.o")
    assert "nonsense" in data["output"]


def test_a_killed_compiler_has_the_code_that_shells_give_it(tmp_path: Path) -> None:
    assert launch(tmp_path, "sh", "-c", "kill -9 $$").returncode == 137
    [kept] = (tmp_path / "failures").iterdir()
    assert json.loads(kept.read_text())["output"] == ""
    assert launch(tmp_path, "sh", "-c", "kill -15 $$").returncode == 143
    assert list((tmp_path / "failures").iterdir()) == [kept]
