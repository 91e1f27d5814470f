"""The docs against the tree: what they link to, name and tell people to type must be there."""

from __future__ import annotations

import contextlib
import functools
import importlib.util
import io
import re
import sys
from pathlib import Path

import pytest

import noxfile
from scripts.core.console import Console
from scripts.core.paths import ROOT

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

WIDTH = 120

GENERATED = {ROOT / "docs/failures.md", *(ROOT / "docs/evidence").glob("*.md")}
PAGES = sorted(
    [
        *ROOT.glob("*.md"),
        *(ROOT / "docs").rglob("*.md"),
        *(ROOT / "patches").rglob("*.md"),
        *(ROOT / "wheelhouse").glob("*.md"),
        *(ROOT / ".github").rglob("*.md"),
    ]
)
TOP = "docs|scripts|tests|recipes|patches|requirements|runtime|wheelhouse|\\.github|\\.ci"
UPSTREAMS = {"requirements/cuda.txt"}  # a file of vLLM's own tree


def name(page: Path) -> str:
    return str(page.relative_to(ROOT))


each_page = pytest.mark.parametrize("page", PAGES, ids=name)


def anchors(page: Path) -> set[str]:
    """Return the places of a page that a link can name: headings as GitHub spells them, and <a id="...">."""
    text = re.sub(r"```.*?```", "", page.read_text(), flags=re.DOTALL)
    headings = re.findall(r"^#+ (.*)$", text, re.MULTILINE)
    slugs = {re.sub(r"[^\w\- ]", "", heading.strip().lower()).replace(" ", "-") for heading in headings}
    return slugs | set(re.findall(r'<a id="([^"]+)"', text))


@each_page
def test_every_link_leads_to_a_file_and_a_heading_that_exist(page: Path) -> None:
    broken = []
    for target in re.findall(r"\]\(([^)\s]+)\)", page.read_text()):
        path, _, anchor = target.partition("#")
        if re.match(r"[a-z]+:", target):
            continue
        other = (page.parent / path) if path else page
        if not other.exists() or (anchor and anchor not in anchors(other)):
            broken.append(target)
    assert broken == []


@each_page
def test_every_file_that_is_named_exists(page: Path) -> None:
    named = re.findall(
        rf"(?<![\w/.-])((?:{TOP})/[\w./*{{}}+-]*[\w*}}]|noxfile\.py|Dockerfile\.runtime)", page.read_text()
    )
    gone = [
        path
        for path in named
        if not re.search(r"[A-Z]{4}|^wheelhouse/.*whl$", path)  # NAME and VERSION stand for any; results are not kept
        and path not in UPSTREAMS
        and not any(True for _ in ROOT.glob(path))
        and not any(True for _ in ROOT.glob(f"{path}.*"))  # patches are named without .patch
        and not any(True for _ in page.parent.glob(path))
    ]
    assert gone == []


@functools.cache
def help_of(session: str) -> str:
    """Return what `nox -s SESSION -- --help` prints."""
    module = importlib.import_module(f"scripts.commands.{session.replace('-', '_')}")
    written = io.StringIO()
    with contextlib.redirect_stdout(written), pytest.raises(SystemExit):
        module.main(["--help"], Console())
    return written.getvalue()


def sessions() -> dict[str, bool]:
    """Return the noxfile's sessions, and whether each is a command of ours (else it takes pytest's options)."""
    text = Path(noxfile.__file__).read_text()
    found = re.findall(r'@nox\.session(?:\(name="([^"]+)"\))?\ndef (\w+).*?\n    (_?\w+)\(session', text, re.DOTALL)
    return {dashed or function: first == "_command" for dashed, function, first in found}


@each_page
def test_every_command_that_is_named_exists_and_takes_the_options_that_are_shown(page: Path) -> None:
    text = page.read_text().replace("\\|", "|")
    wrong = []
    for session, rest in re.findall(r"nox -s ([\w-]+)((?: (?:(?!nox -s )[^`\n])*)?)", text):
        if session not in sessions():
            wrong.append(f"nox -s {session}")
        elif sessions()[session] and " -- " in rest:
            options = re.findall(r"(?<![\w-])--[a-z][\w-]+", rest.split(" -- ", 1)[1].split("#")[0])
            wrong += [f"{session}: {option}" for option in options if option not in help_of(session)]
    assert wrong == []


@each_page
def test_every_module_that_is_run_exists(page: Path) -> None:
    modules = re.findall(r"python3? -m ((?:scripts|tests|runtime)[\w.]*)", page.read_text())
    assert [module for module in modules if importlib.util.find_spec(module) is None] == []


@pytest.mark.parametrize("page", [page for page in PAGES if page not in GENERATED], ids=name)
def test_lines_are_short_enough_to_read(page: Path) -> None:
    lines = enumerate(page.read_text().splitlines(), 1)
    assert [f"{number}: {len(line)}" for number, line in lines if len(line) >= WIDTH] == []


def test_the_readme_has_every_command_and_the_architecture_every_layer() -> None:
    readme = (ROOT / "README.md").read_text()
    assert [session for session in sessions() if f"`nox -s {session}" not in readme] == []
    layers = (ROOT / "docs/architecture.md").read_text().split("## The layers")[1].split("```")[1]
    drawn = [{name.strip() for name in line.split("  ")[0].split("|")} for line in layers.strip().splitlines()]
    (contract,) = [
        contract
        for contract in tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["importlinter"]["contracts"]
        if contract["type"] == "layers"
    ]
    assert drawn == [{name.strip() for name in line.split("|")} for line in contract["layers"]]


def test_the_index_names_every_page() -> None:
    index = (ROOT / "docs/README.md").read_text()
    pages = {path.name for path in (ROOT / "docs").glob("*.md")} - {"README.md"}
    assert {page for page in pages if f"({page}" not in index} == set()
