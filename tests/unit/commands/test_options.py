"""The options of every command: each is explained, and an action of `index` offers those that it uses."""

from __future__ import annotations

import argparse
import importlib
from pathlib import Path
from typing import Any

import pytest

from scripts.commands import index
from scripts.commands.cli import Parser
from scripts.core.console import Console
from scripts.core.paths import ROOT

MODULES = sorted(path.stem for path in (ROOT / "scripts" / "commands").glob("*.py"))
COMMON = {"-h", "--help", "--debug", "--json"}
WRITES = {"--dry-run", "--who", "--wait", "--public-cache"}


def parser_of(module: Any, arguments: list[str], monkeypatch: pytest.MonkeyPatch) -> Parser | None:
    """Return the parser that a command reads its arguments with, None where it reads none."""
    found: list[Parser] = []

    def parse_args(parser: Parser, *_: object) -> None:
        found.append(parser)
        raise SystemExit

    monkeypatch.setattr(Parser, "parse_args", parse_args)
    if hasattr(module, "main"):
        with pytest.raises(SystemExit):
            module.main(arguments, Console(quiet=True))
    return found[0] if found else None


def unexplained(parser: argparse.ArgumentParser) -> list[str]:
    return [action.dest for action in parser._actions if not (action.help or "").strip()]


@pytest.mark.parametrize("name", [name for name in MODULES if not name.startswith("_")])
def test_every_argument_of_every_command_is_explained(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    text = Path(ROOT / "scripts" / "commands" / f"{name}.py").read_text()
    if "parse_args(" not in text:
        return
    parser = parser_of(importlib.import_module(f"scripts.commands.{name}"), ["--help"], monkeypatch)
    assert parser
    assert unexplained(parser) == []


@pytest.mark.parametrize(
    ("action", "places", "own"),
    [
        ("yank", ["INDEX"], WRITES | {"--reason"}),
        ("unyank", ["INDEX"], WRITES),
        ("promote", ["FROM", "TO"], WRITES | {"--key", "--cache"}),
        ("mirror", ["URL", "TO"], WRITES | {"--sign-key", "--no-audit", "--cache"}),
        ("log", ["INDEX"], set()),
    ],
)
def test_an_action_of_index_offers_the_options_it_uses_and_explains_them(
    action: str, places: list[str], own: set[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    parser = parser_of(index, [action, "--help"], monkeypatch)
    assert parser
    options = {text for item in parser._actions for text in item.option_strings}
    assert options == COMMON | own
    assert unexplained(parser) == []
    assert [item.metavar for item in parser._actions if not item.option_strings] == [*places, "WHEEL"]
    assert set(index.ACTIONS) == set(index.ABOUT)
