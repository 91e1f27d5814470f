from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from scripts.commands.cli import INVOKED_FROM, Parser, run, user_path
from scripts.core.console import PLAIN_INTERVAL, Console, human_bytes, human_seconds
from scripts.core.errors import CompileError, DoctorError, FetchError, UsageError, WheelsmithError, a_few, from_os_error
from scripts.core.paths import ROOT


@pytest.mark.parametrize(
    ("arguments", "shown"),
    [
        (["--recpie", "x"], "'--recipe'"),
        (["--recpie=x"], "'--recipe'"),
        ([""], "unrecognized"),
        (["x"], "unrecognized"),
        (["quickstart"], "--recipe quickstart?"),
        (["quikstart"], "--recipe quickstart?"),
        (["my.toml"], "--recipe my.toml?"),
    ],
)
def test_an_unknown_option_is_refused_with_the_nearest(arguments: list[str], shown: str) -> None:
    parser = Parser("wheel", "")
    parser.add_argument("--recipe")
    with pytest.raises(UsageError, match="nox -s wheel") as raised:
        parser.parse_args(arguments)
    assert shown in raised.value.what
    assert "--recipe" in raised.value.fix[0]


def test_an_option_without_its_value_is_refused() -> None:
    parser = Parser("wheel", "")
    parser.add_argument("--recipe")
    with pytest.raises(UsageError, match="expected one argument"):
        parser.parse_args(["--recipe"])


def test_a_home_directory_of_nobody_is_refused() -> None:
    with pytest.raises(UsageError, match="no home directory"):
        user_path("~no-such-user-here/x.whl")


@pytest.mark.parametrize("closed", [">&-", "2>&-"])
def test_a_closed_stream_changes_no_exit_code(closed: str) -> None:
    command = f"{sys.executable} -m scripts.commands.wheel --recipe nope {closed}"
    assert subprocess.run(command, shell=True, cwd=ROOT, check=False, capture_output=True).returncode == 2


def test_paths_are_relative_to_where_the_user_typed_them(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv(INVOKED_FROM, str(tmp_path))
    assert user_path("x/y") == tmp_path / "x" / "y"
    assert user_path("/x") == Path("/x")
    monkeypatch.setenv("HOME", "/home/me")
    assert user_path("~/x") == Path("/home/me/x")


@pytest.mark.parametrize(
    ("error", "code", "shown"),
    [
        (UsageError("bad", why="because", fix=["this", "that"]), 2, "  fix: this\n   or: that\n"),
        (DoctorError("bad"), 3, "docs/errors.md#doctor (exit code 3)"),
        (CompileError("bad", detail="[red]as it came[/]:100:"), 7, "[red]as it came[/]:100:\nerror: bad"),
        (FetchError("a.cu:100: [bold]"), 4, "error: a.cu:100: [bold]\n"),
        (KeyboardInterrupt(), 130, "interrupted"),
        (ValueError("odd"), 1, "ValueError: odd at "),
    ],
)
def test_a_failure_is_one_message_and_the_exit_code_of_its_kind(
    error: BaseException, code: int, shown: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def main(_arguments: object, _console: Console) -> int:
        raise error

    monkeypatch.setattr(sys, "argv", ["x"])
    monkeypatch.setattr("scripts.core.interrupt.take_over", lambda: None)
    with pytest.raises(SystemExit) as raised:
        run(main)
    said = capsys.readouterr().err
    assert raised.value.code == code
    assert shown in said
    assert "Traceback" not in said


@pytest.mark.parametrize("error", [UsageError("bad"), ValueError("odd")])
def test_debug_adds_the_traceback(
    error: Exception, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def main(_arguments: object, _console: Console) -> int:
        raise error

    monkeypatch.setattr(sys, "argv", ["x", "--debug"])
    monkeypatch.setattr("scripts.core.interrupt.take_over", lambda: None)
    with pytest.raises(SystemExit):
        run(main)
    assert "Traceback" in capsys.readouterr().err


def test_a_command_ends_with_what_its_main_returns() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "scripts.commands.wheel", "--recpie", "x"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 2
    assert done.stdout == ""
    assert "Perhaps you meant '--recipe'?" in done.stderr
    assert "Traceback" not in done.stderr


def test_every_kind_of_failure_has_its_own_exit_code() -> None:
    codes = [kind.exit_code for kind in WheelsmithError.__subclasses__()]
    assert sorted(set(codes)) == sorted(codes)
    assert min(codes) == 2


@pytest.mark.parametrize(("number", "cause"), [(28, "no space left"), (13, "permission denied"), (30, "read-only")])
def test_an_os_error_becomes_a_cause_and_a_remedy(number: int, cause: str) -> None:
    error = from_os_error(FetchError, OSError(number, "x"), doing="writing", path=Path("/p"), variable="V")
    assert (error.what, error.exit_code) == ("writing failed: /p", 4)
    assert cause in error.why
    assert "V" in error.fix[0]
    other = from_os_error(FetchError, OSError("odd"), doing="writing", path=Path("/p"))
    assert other.why == "odd"


def test_on_a_pipe_a_plain_line_comes_at_least_every_fifteen_seconds(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    now = [0.0]
    monkeypatch.setattr("scripts.core.console.time.monotonic", lambda: now[0])
    assert PLAIN_INTERVAL <= 15
    with Console().progress(lambda: "live", lambda: f"at {now[0]:.0f}") as progress:
        for now[0] in range(61):
            progress.tick()
    said = capsys.readouterr().err
    assert [line.strip() for line in said.splitlines()] == ["at 15", "at 30", "at 45", "at 60"]


def test_a_quiet_console_keeps_warnings_and_results(capsys: pytest.CaptureFixture[str]) -> None:
    console = Console(quiet=True)
    console.stage("fetch", "x")
    console.note("x")
    console.warn("careful")
    console.result("done: [x]")
    out, err = capsys.readouterr()
    assert (out, err) == ("done: [x]\n", "warning   careful\n")


def test_tables_keep_brackets_and_wrap_nothing_away(capsys: pytest.CaptureFixture[str]) -> None:
    Console().table("", [("name", "[a] " + "x" * 200)])
    Console().grid(["one", "two"], [("[b]", "2")])
    out = capsys.readouterr().out
    assert out.count("x") == 200
    assert "[a]" in out
    assert "[b]" in out


@pytest.mark.parametrize(
    ("count", "text"), [(0, "0 B"), (999, "999 B"), (1000, "1.0 kB"), (33_500_000, "33.5 MB"), (2e12, "2.0 TB")]
)
def test_sizes_are_decimal(count: float, text: str) -> None:
    assert human_bytes(count) == text


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0, "0 s"), (59.4, "59 s"), (59.5, "1 min 00 s"), (185, "3 min 05 s"), (7800, "2 h 10 min")],
)
def test_durations_are_for_people(seconds: float, text: str) -> None:
    assert human_seconds(seconds) == text


def test_an_os_error_that_no_stage_named_is_of_the_machine(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def main(_arguments: object, _console: Console) -> int:
        raise OSError(28, "No space left on device", "/full/x")

    monkeypatch.setattr(sys, "argv", ["x", "--debug"])
    monkeypatch.setattr("scripts.core.interrupt.take_over", lambda: None)
    with pytest.raises(SystemExit) as raised:
        run(main)
    said = capsys.readouterr().err
    assert raised.value.code == DoctorError.exit_code
    assert "a file operation failed: /full/x" in said
    assert "Traceback" in said


def test_a_reader_that_went_away_ends_the_command_silently() -> None:
    code = "from scripts.commands.cli import run\ndef main(*_):\n    raise BrokenPipeError\nrun(main)"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (141, "", "")


@pytest.mark.parametrize("encoding", ["ascii", "latin-1", "utf-8"])
def test_a_stream_that_cannot_write_a_character_writes_another(encoding: str) -> None:
    code = (
        "from scripts.commands.cli import run\n"
        "def main(arguments, console):\n"
        "    console.result('caf\\xe9 \\u2026 \\u2192 \\u4e2d \\udc80'); console.warn('\\u201cx\\u201d'); return 0\n"
        "run(main)"
    )
    environment = {**os.environ, "PYTHONIOENCODING": encoding}
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, env=environment, capture_output=True, check=False)
    assert (done.returncode, b"Traceback" in done.stderr) == (0, False)
    shown = done.stdout.decode(encoding)
    assert shown.startswith(
        {"ascii": "caf? ... -> ? ?", "latin-1": "caf\xe9 ... -> ? ?"}.get(encoding, "caf\xe9 \u2026")
    )


def test_of_many_names_the_first_are_told_and_the_others_counted() -> None:
    assert a_few(["a", "b", "c"], 2) == "a, b and 1 more"
    assert a_few(["a", "b"], 2) == "a, b"
    assert a_few([]) == ""
