"""Command lines: options that say what was meant, errors as one screen, exit codes of their kind."""

from __future__ import annotations

import argparse
import codecs
import io
import os
import re
import sys
import traceback
from collections.abc import Callable, Sequence
from difflib import get_close_matches
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
from scripts.recipe.files import recipe_names

INVOKED_FROM = "WHEELSMITH_INVOKED_FROM"  # set by the noxfile: where the user typed the command


class Parser(argparse.ArgumentParser):
    """An ArgumentParser whose mistakes are UsageErrors with the nearest valid option."""

    def __init__(self, command: str, description: str) -> None:
        super().__init__(
            prog=f"nox -s {command}" if " -- " in command else f"nox -s {command} --",  # `index -- yank`: of an action
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
        meant = nearest(unknown, options) if unknown else ""
        if unknown and not unknown.startswith("-") and "--recipe" in options:  # `wheel -- quickstart`
            name = unknown.split()[0]
            known = [*recipe_names(), name] if name.endswith(".toml") else recipe_names()
            meant = "".join(f" Did you mean --recipe {near}?" for near in get_close_matches(name, known, 1, 0.7))
        raise UsageError(
            f"nox -s {self.command}: {message}.{meant}",
            fix=f"{self.prog} --help lists the options: {', '.join(options)}",
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
    """Give results and messages somewhere to go where the caller closed stdout or stderr (`>&-`).

    What a stream cannot encode (ASCII, Latin-1) is written in signs that it can.
    """
    codecs.register_error("wheelsmith", _plainer)
    for name in ("stdout", "stderr"):
        if getattr(sys, name) is None:
            setattr(sys, name, os.fdopen(os.open(os.devnull, os.O_WRONLY), "w"))
        stream = getattr(sys, name)
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="wheelsmith")


_PLAIN = {0x2026: "...", 0x2192: "->", 0x2014: "-", 0x2013: "-", 0xD7: "x", 0xB7: "-", 0x2501: "-"}
_PLAIN |= dict.fromkeys((0x2018, 0x2019), "'") | dict.fromkeys((0x201C, 0x201D), '"')


def _plainer(error: UnicodeError) -> tuple[str, int]:
    """Return what stands for the characters that a stream cannot encode."""
    if not isinstance(error, UnicodeEncodeError):
        raise error
    text = error.object[error.start : error.end].translate(_PLAIN)
    return text.encode("ascii", "replace").decode("ascii"), error.end


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
        from scripts.failures.recognise import recognised  # noqa: PLC0415  (0.1 s that only a failure needs)

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
