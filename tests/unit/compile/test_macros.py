"""Macros of other archs: which units can see them, and that a command without the others compiles the same text."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from scripts.compile.standalone.launcher import without_unseen_macros
from scripts.compile.standalone.macros import main, rare_macros

NAMES = ("ENABLE_A_SM90", "ENABLE_B_SM120", "ENABLE_C")
GIVEN = " ".join(f"-D{name}=1" for name in NAMES)


def write(folder: Path, files: dict[str, str]) -> Path:
    for name, text in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return folder


def rare(folder: Path, files: dict[str, str], flags: str = "") -> dict[str, list[str]]:
    source = write(folder / "source", files)
    found = rare_macros(f"  FLAGS = {GIVEN} {flags}\n", str(source))
    return {name: [str(Path(path).relative_to(source)) for path in paths] for name, paths in found.items()}


def test_a_macro_of_one_unit_is_only_for_that_unit(tmp_path: Path) -> None:
    found = rare(tmp_path, {"csrc/a.cu": "#ifdef ENABLE_A_SM90\n#endif\n", "csrc/b.cu": "int b;\n"})
    assert found == {"ENABLE_A_SM90": ["csrc/a.cu"], "ENABLE_B_SM120": [], "ENABLE_C": []}


@pytest.mark.parametrize(
    "files",
    [
        {"csrc/a.h": "#if ENABLE_A_SM90\n#endif\n"},
        {"csrc/a.cu": "#if ENABLE_A_SM90\n#endif\n", "csrc/b.cu": '# include "../csrc/a.cu"\n'},
        {"csrc/a.cu": "#if ENABLE_\\\nA_SM90\n#endif\n", "csrc/b.cu": "#inc\\\nlude <a.cu>\n"},
        {"csrc/kernels.tmpl": "ENABLE_A_SM90\n", "csrc/b.cu": '#include "kernels.tmpl"\n'},
    ],
    ids=["header", "included unit", "joined lines", "another suffix"],
)
def test_a_macro_that_others_can_see_stays(files: dict[str, str], tmp_path: Path) -> None:
    assert "ENABLE_A_SM90" not in rare(tmp_path, files)
    assert "ENABLE_B_SM120" in rare(tmp_path, files)


@pytest.mark.parametrize("text", ["#include WHICH\n", "#define E(x) ENABLE_##x\n", "#define E(x) x ## ENABLE_C\n"])
def test_what_is_put_together_from_pieces_stops_it(text: str, tmp_path: Path) -> None:
    assert rare(tmp_path, {"csrc/a.cu": text}) == {}


@pytest.mark.parametrize("option", ["-I", "-isystem ", "-I "])
def test_a_macro_that_a_dependencys_header_names_stays(option: str, tmp_path: Path) -> None:
    outside = write(tmp_path / "cutlass", {"include/x": "#ifdef ENABLE_A_SM90\n#endif\n", "b": "CUTLASS_ENABLE_C\n"})
    found = rare(tmp_path, {"csrc/a.cu": "\n"}, f"{option}{outside}/include -I{outside} -I{tmp_path}/none")
    assert sorted(found) == ["ENABLE_B_SM120", "ENABLE_C"]


def table(folder: Path, files: dict[str, str]) -> str:
    source = write(folder / "source", files)
    ninja = folder / "build.ninja"
    ninja.write_text(f"  FLAGS = {GIVEN} -I{source}\n")
    main(str(ninja), str(source), str(folder / "macros.json"))
    return str(folder / "macros.json")


def test_a_unit_loses_what_it_cannot_see_and_nothing_else(tmp_path: Path) -> None:
    path = table(tmp_path, {"a.cu": "ENABLE_A_SM90\n", "b.cu": "\n"})
    command = ["nvcc", *GIVEN.split(), "-DENABLE_A_SM900", "-DNDEBUG", "-c", f"{tmp_path}/source/a.cu", "-o", "a.o"]
    assert without_unseen_macros(command, path) == [
        word for word in command if "_SM120" not in word and "_C=" not in word
    ]
    elsewhere = [word.replace("/source/", "/other/") for word in command]
    assert without_unseen_macros(elsewhere, path) == elsewhere
    assert without_unseen_macros(command[:-4], path) == command[:-4]  # no compile command


@pytest.mark.parametrize(
    "text", ["", "[]", "{}", '{"macros": [], "sources": "/"}', '{"macros": {"a": 1}, "sources": 2}']
)
def test_a_damaged_table_changes_no_command(text: str, tmp_path: Path) -> None:
    command = ["nvcc", "-DENABLE_C=1", "-c", "/a.cu", "-o", "a.o"]
    (tmp_path / "t").write_text(text)
    assert without_unseen_macros(command, str(tmp_path / "t")) == command
    assert without_unseen_macros(command, str(tmp_path / "none")) == command


FILES = ("a.cpp", "b.cpp", "c.h", "d/e.hpp", "d/f.inc", "g.txt")
LINES = st.sampled_from(
    [*(f"#ifdef {name}\nint x{at};\n#endif\n" for at, name in enumerate(NAMES)), "int ENABLE_C\\\n;\n"]
    + [f'#include "{name}"\n' for name in FILES]
    + ["#  include <c.h>\n", "#include\\\n <d/f.inc>\n", "// ENABLE_A_SM90\n"]
)


@settings(max_examples=30, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(texts=st.fixed_dictionaries({name: st.lists(LINES, max_size=3) for name in FILES}))
def test_the_preprocessor_says_the_same_with_and_without(texts: dict[str, list[str]], tmp_path: Path) -> None:
    guard = "#if __INCLUDE_LEVEL__ < 4\n{}\n#endif\n"
    path = table(tmp_path, {name: guard.format("".join(lines)) for name, lines in texts.items()})
    for unit in ("a.cpp", "b.cpp"):
        source = f"{tmp_path}/source/{unit}"
        full = ["g++", *GIVEN.split(), f"-I{tmp_path}/source", "-E", "-P", "-c", source]
        lean = without_unseen_macros(full, path)
        if lean != full:
            assert subprocess.check_output(lean) == subprocess.check_output(full)
    assert set(json.loads(Path(path).read_text())["macros"]) <= set(NAMES)
