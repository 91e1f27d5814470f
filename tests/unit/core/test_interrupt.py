"""Signals set a flag; who waits or works in a loop looks at it; a thread ends what nobody ends."""

from __future__ import annotations

import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from scripts.core import interrupt
from scripts.core.paths import ROOT
from tests.support import wait_for

SCRIPT = """
import socket, sys, time
from scripts.core import interrupt
from scripts.commands.cli import run
def main(arguments, console):
    print("ready", flush=True)
    {body}
    return 0
run(main)
"""


def start(body: str, *, ignore: str = "") -> subprocess.Popen[str]:
    """Run a command whose main has this body; return when it is in it."""
    code = SCRIPT.format(body=body.replace("\n", "\n    "))
    shell = ["sh", "-c", f'trap "" {ignore}; exec "$0" "$@"'] if ignore else []
    child = subprocess.Popen(
        [*shell, sys.executable, "-c", code], cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    assert child.stdout
    assert child.stdout.readline() == "ready\n"
    return child


WAITS = {
    "a pause": "interrupt.pause(60)",
    "nothing that looks": "time.sleep(60)",
    "a silent server": "server = socket.create_server(('127.0.0.1', 0))\n"
    "socket.create_connection(server.getsockname()).recv(1)",
    "code that swallows interruptions": "while True:\n  try: interrupt.pause(9)\n  except BaseException: pass",
    "a command": "from scripts.core.process import capture\n"
    "capture(['sleep', '60'], environment={'PATH': '/bin:/usr/bin'})",
    "a stubborn command": "from scripts.core.process import capture\n"
    "capture(['sh', '-c', 'trap \"\" TERM INT HUP; sleep 60; sleep 60'], environment={'PATH': '/bin:/usr/bin'})",
    "a long command": "from scripts.core.process import capture\n"
    "capture(['sh', '-c', 'trap \"\" TERM; sleep 60; sleep 9'], environment={'PATH': '/bin:/usr/bin'}, timeout=90)",
}


@pytest.mark.parametrize(
    ("number", "where"),
    [*((signal.SIGTERM, where) for where in WAITS), (signal.SIGINT, "a pause"), (signal.SIGHUP, "a command")],
)
def test_a_command_ends_in_time_with_the_code_of_the_signal(number: signal.Signals, where: str) -> None:
    child = start(WAITS[where])
    started = time.monotonic()
    child.send_signal(number)
    _, said = child.communicate(timeout=20)
    assert time.monotonic() - started < 5
    assert child.returncode == 128 + number
    assert "interrupted: what was finished is kept" in said
    assert "Traceback" not in said


def test_nohup_means_that_sighup_is_ignored() -> None:
    child = start("time.sleep(1)", ignore="HUP")
    child.send_signal(signal.SIGHUP)
    assert child.wait(20) == 0
    child.communicate()


def test_a_background_job_of_a_script_ends_on_sigint_though_its_shell_ignores_it() -> None:
    child = start("interrupt.pause(60)", ignore="INT")
    child.send_signal(signal.SIGINT)
    assert child.wait(20) == 130
    child.communicate()


def test_a_signal_that_came_while_nobody_looked_decides_the_exit_code() -> None:
    child = start("time.sleep(1.5)")
    child.send_signal(signal.SIGTERM)
    child.communicate(timeout=20)
    assert child.returncode == 143


def test_tidying_up_is_not_interrupted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(interrupt._flag, "number", signal.SIGTERM)
    assert interrupt.told() == signal.SIGTERM
    with interrupt.tidying():
        interrupt.check()
        interrupt.pause(0)
    with pytest.raises(interrupt.Interrupted) as raised:
        interrupt.check()
    assert raised.value.number == signal.SIGTERM


def test_a_command_that_is_still_loading_ends_without_a_traceback() -> None:
    words = [sys.executable, "-m", "scripts.commands.wheel", "--list"]
    child = subprocess.Popen(words, cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
    wait_for(lambda: "psutil" in Path(f"/proc/{child.pid}/maps").read_text())  # ours is loaded before it
    child.send_signal(signal.SIGINT)
    _, said = child.communicate(timeout=20)
    assert child.returncode in {-signal.SIGINT, 130}
    assert b"Traceback" not in said
