"""Command lines: options that say what was meant, errors as one screen, exit codes of their kind."""

from __future__ import annotations

import argparse
import os
import re
import sys
import traceback
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NoReturn

from scripts.core import interrupt
from scripts.core.console import Console
from scripts.core.errors import (
    BROKEN_PIPE,
    BUG,
    INTERRUPTED,
    DoctorError,
    UsageError,
    WheelsmithError,
    from_os_error,
    nearest,
)
from scripts.failures.recognise import recognised

INVOKED_FROM = "WHEELSMITH_INVOKED_FROM"  # set by the noxfile: where the user typed the command


class Parser(argparse.ArgumentParser):
    """An ArgumentParser whose mistakes are UsageErrors with the nearest valid option."""

    def __init__(self, command: str, description: str) -> None:
        super().__init__(
            prog=f"nox -s {command} --",
            description=description,
            allow_abbrev=False,
            formatter_class=argparse.RawDescriptionHelpFormatter,
        )
        self.command = command
        self.add_argument("--debug", action="store_true", help="show tracebacks")

    def error(self, message: str) -> NoReturn:
        """Raise UsageError instead of printing argparse's usage."""
        options = [option for action in self._actions for option in action.option_strings if option.startswith("--")]
        unknown = re.sub(r"^unrecognized arguments: |[ =].*", "", message) if "unrecognized" in message else ""
        raise UsageError(
            f"nox -s {self.command}: {message}.{nearest(unknown, options) if unknown else ''}",
            fix=f"nox -s {self.command} -- --help lists the options: {', '.join(options)}",
        )


def user_path(text: str) -> Path:
    """Read a path that the user typed, relative to where they typed it (nox changes the directory)."""
    if not text:
        raise UsageError("a path is empty", fix="give the path of a file or folder")
    try:
        path = Path(text).expanduser()
    except RuntimeError as error:
        raise UsageError(f"there is no home directory for {text!r}", fix="give the whole path") from error
    return (Path(os.environ.get(INVOKED_FROM, ".")) / path).absolute()


def _open_closed_streams() -> None:
    """Give results and messages somewhere to go where the caller closed stdout or stderr (`>&-`)."""
    for name in ("stdout", "stderr"):
        if getattr(sys, name) is None:
            setattr(sys, name, os.fdopen(os.open(os.devnull, os.O_WRONLY), "w"))


def run(main: Callable[[Sequence[str], Console], int]) -> NoReturn:
    """Run a command's main with sys.argv and leave with its exit code."""
    _open_closed_streams()
    console = Console()
    arguments = sys.argv[1:]
    interrupt.take_over()
    try:
        code = main(arguments, console)
        interrupt.check()
    except WheelsmithError as error:
        code = error.exit_code
        if "--debug" in arguments:
            traceback.print_exc()
        console.error(recognised(error))
    except KeyboardInterrupt as error:
        code = 128 + error.number if isinstance(error, interrupt.Interrupted) else INTERRUPTED
        console.warn("interrupted: what was finished is kept; the same command goes on from there")
    except BrokenPipeError:
        code = BROKEN_PIPE
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    except OSError as error:  # a full disk or a missing right that no stage has named itself
        code = DoctorError.exit_code
        if "--debug" in arguments:
            traceback.print_exc()
        console.error(from_os_error(DoctorError, error, doing="a file operation", path=Path(error.filename or ".")))
    except Exception as error:
        code = BUG
        if "--debug" in arguments:
            traceback.print_exc()
        console.bug(error)
    sys.exit(code)
