"""What users see: stages, notes, warnings, tables, errors; progress live on a terminal, plain lines on a pipe."""

from __future__ import annotations

import os
import sys
import time
import traceback
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager

from rich.console import Console as RichConsole
from rich.console import Group, RenderableType
from rich.live import Live
from rich.markup import escape
from rich.table import Table
from rich.text import Text

from scripts.core import interrupt
from scripts.core.errors import WheelsmithError

PLAIN_INTERVAL = 15.0  # seconds between progress lines on a pipe or in CI


class Console:
    """Writes messages to stderr and results to stdout; honours NO_COLOR, CI and pipes."""

    def __init__(self, *, quiet: bool = False) -> None:
        in_ci = os.environ.get("CI", "").lower() not in {"", "0", "false"}
        self.live = sys.stderr.isatty() and not in_ci
        wide = None if sys.stderr.isatty() else 120
        self._err = RichConsole(stderr=True, highlight=False, emoji=False, width=wide)
        self._out = RichConsole(highlight=False, emoji=False, width=None if sys.stdout.isatty() else 120)
        self._quiet = quiet

    def stage(self, name: str, text: str = "") -> None:
        """Announce a stage: `fetch  vllm 0.20.1 (33.5 MB)`."""
        if not self._quiet:
            self._err.print(f"[bold cyan]{name:<10}[/]{escape(text)}", soft_wrap=True)

    def note(self, text: str) -> None:
        """Say something about the current stage."""
        if not self._quiet:
            self._err.print(f"{'':<10}{escape(text)}", soft_wrap=True)

    def warn(self, text: str) -> None:
        """Say something that does not stop the run but should be read."""
        self._err.print(f"[bold yellow]{'warning':<10}[/]{escape(text)}", soft_wrap=True)

    def detail(self, text: str) -> None:
        """Show text of a tool exactly as it came (a compiler's output)."""
        self._err.print(Text(text.rstrip("\n")), soft_wrap=True)

    def result(self, text: str) -> None:
        """Print a result line to stdout."""
        self._out.print(escape(text), soft_wrap=True)

    def table(self, title: str, rows: Iterable[tuple[str, str]]) -> None:
        """Print a two-column table to stdout; long values wrap."""
        table = Table(title=title, title_justify="left", show_header=False, box=None, pad_edge=False)
        table.add_column(style="bold", no_wrap=True)
        table.add_column(overflow="fold")
        for name, value in rows:
            table.add_row(name, escape(value))
        self._out.print(table)

    @property
    def width(self) -> int:
        """Characters that a line of results may have."""
        return self._out.width

    def grid(self, columns: Sequence[str], rows: Iterable[Sequence[str]]) -> None:
        """Print a table with a header row to stdout."""
        table = Table(box=None, pad_edge=False, header_style="bold")
        for column in columns:
            table.add_column(column, overflow="fold")
        for row in rows:
            table.add_row(*(escape(cell) for cell in row))
        self._out.print(table)

    def error(self, error: WheelsmithError) -> None:
        """Print what happened, why, what to do and where to read more, on one screen."""
        if error.detail:
            self.detail(error.detail)
        self._err.print(f"[bold red]error:[/] {escape(error.what)}", soft_wrap=True)
        if error.why:
            self._err.print(f"  why: {escape(error.why)}", soft_wrap=True)
        for index, fix in enumerate(error.fix):
            self._err.print(f"  {'fix:' if not index else ' or:'} {escape(fix)}", soft_wrap=True)
        self._err.print(f"  see: {error.docs} (exit code {error.exit_code})", soft_wrap=True)

    def bug(self, error: BaseException) -> None:
        """Report a failure nobody foresaw, without a traceback."""
        place = traceback.extract_tb(error.__traceback__)[-1:]
        where = f" at {place[0].filename}:{place[0].lineno}" if place else ""
        self._err.print(f"[bold red]error:[/] {escape(f'{type(error).__name__}: {error}')}{escape(where)}")
        self._err.print("  why: wheelsmith did not foresee this: please report it")
        self._err.print("  fix: run again with --debug for the traceback (exit code 1)")

    @contextmanager
    def progress(self, render: Callable[[], RenderableType], plain: Callable[[], str]) -> Iterator[Progress]:
        """Show `render()` live on a terminal, or `plain()` as a line at least every 15 s elsewhere."""
        progress = Progress(self._err, render, plain, live=self.live and not self._quiet, quiet=self._quiet)
        with progress:
            yield progress


class Progress:
    """A live region on a terminal; a plain line now and then elsewhere. Call `tick()` often."""

    def __init__(
        self,
        console: RichConsole,
        render: Callable[[], RenderableType],
        plain: Callable[[], str],
        *,
        live: bool,
        quiet: bool,
    ) -> None:
        self._console, self._render, self._plain, self._quiet = console, render, plain, quiet
        self._live = Live(console=console, auto_refresh=False, transient=True) if live else None
        self._last = time.monotonic()

    def __enter__(self) -> Progress:
        """Start the live region."""
        if self._live:
            self._live.start()
        return self

    def __exit__(self, *_: object) -> None:
        """Remove the live region."""
        if self._live:
            self._live.stop()

    def tick(self) -> None:
        """Redraw; on a pipe, print a line when one is due. Raises Interrupted when we were told to end."""
        interrupt.check()
        now = time.monotonic()
        if self._live:
            if now - self._last >= 0.1:
                self._last = now
                self._live.update(self._render(), refresh=True)
        elif not self._quiet and now - self._last >= PLAIN_INTERVAL:
            self._last = now
            self._console.print(Text(f"{'':<10}{self._plain()}"), soft_wrap=True)


def lines(*rows: str) -> Group:
    """Return rows of text as one renderable, cut (not wrapped) at the terminal's width."""
    return Group(*(Text(row, no_wrap=True, overflow="ellipsis") for row in rows))


def human_bytes(count: float) -> str:
    """Return a size in decimal units, as disks and package indexes do: `33.5 MB`."""
    for unit in ("B", "kB", "MB", "GB"):
        if abs(count) < 1000:
            return f"{count:.0f} {unit}" if unit == "B" else f"{count:.1f} {unit}"
        count /= 1000
    return f"{count:.1f} TB"


def human_seconds(seconds: float) -> str:
    """Return a duration: `8 s`, `3 min 05 s`, `2 h 10 min`."""
    whole = int(seconds + 0.5)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02d} s"
    return f"{whole // 3600} h {whole % 3600 // 60:02d} min"
