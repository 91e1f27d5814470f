"""What each unit can read: which files, which macros, and that a command without the others compiles the same text."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from scripts.compile.standalone.launcher import reach_of, without_macros
from scripts.compile.standalone.reach import Text, _says, main, reach

NAMES = ("ENABLE_A_SM90", "ENABLE_B_SM120", "ENABLE_C")
GIVEN = " ".join(f"-D{name}=1" for name in NAMES)


def write(folder: Path, files: dict[str, str]) -> Path:
    for name, text in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return folder


def found(folder: Path, files: dict[str, str], flags: str = "") -> dict[str, dict[str, object]]:
    """Return what reach says; files of the folder `dependency` lie outside of the sources."""
    source = folder / "source"
    paths = {name: folder / name if name.startswith("dependency/") else source / name for name in files}
    write(folder, {str(path.relative_to(folder)): files[name] for name, path in paths.items()})
    units = " ".join(str(path) for name, path in paths.items() if name.endswith((".cu", ".cpp")))
    known = reach(f"build x.o: CUDA {units}\n  FLAGS = {GIVEN} {flags}\n", str(source), [str(folder / "dependency")])
    return {name: known[str(path)] for name, path in paths.items() if str(path) in known}


def unseen(folder: Path, files: dict[str, str], flags: str = "") -> dict[str, object]:
    return {unit: facts["unseen"] for unit, facts in found(folder, files, flags).items()}


def test_a_macro_of_one_unit_is_only_for_that_unit(tmp_path: Path) -> None:
    said = unseen(tmp_path, {"csrc/a.cu": "#ifdef ENABLE_A_SM90\n#endif\n", "csrc/b.cu": "int b;\n"})
    assert said == {"csrc/a.cu": ["ENABLE_B_SM120", "ENABLE_C"], "csrc/b.cu": list(NAMES)}


SEES_A = [
    {"a.h": "#if ENABLE_A_SM90\n", "b.cu": '#include "a.h"\n'},
    {"a.h": "#if ENABLE_A_SM90\n", "b.cu": '#include "c.h"\n', "d/c.h": "#include <x/../a.h>\n"},
    {"a.cu": "#if ENABLE_A_SM90\n", "b.cu": '# include "../csrc/a.cu"\n'},
    {"a.h": "#if ENABLE_\\\nA_SM90\n", "b.cu": "#inc\\ \nlude <a.h>\n"},
    {"kernels.tmpl": "ENABLE_A_SM90\n", "b.cu": '#include "kernels.tmpl"\n'},
    {"a.h": "#if ENABLE_A_SM90\n", "b.cu": '%: /* the\n next */ include "a.h"\n'},
    {"a.h": "#if ENABLE_A_SM90\n", "b.cu": "#if __has_include(<a.h>)\n"},
    {"a.h": "ENABLE_A_SM90", "b.cu": "#import <a.h>\n"},
]


@pytest.mark.parametrize("files", SEES_A)
def test_what_a_unit_can_read_is_in_its_digest_and_its_macros_stay(files: dict[str, str], tmp_path: Path) -> None:
    first = found(tmp_path / "1", {**files, "other.h": "ENABLE_C 1"})
    assert first["b.cu"]["unseen"] == ["ENABLE_B_SM120", "ENABLE_C"]
    changed = {name: text + " // another\n" if name.startswith(("a.", "k")) else text for name, text in files.items()}
    assert found(tmp_path / "2", changed)["b.cu"]["digest"] != first["b.cu"]["digest"]
    assert found(tmp_path / "3", {**files, "other.h": "2"})["b.cu"] == first["b.cu"]


def test_a_new_file_with_an_included_name_is_another_digest(tmp_path: Path) -> None:
    files = {"csrc/a.cu": '#include "x.h"\n', "csrc/x.h": "1"}
    first = found(tmp_path / "1", files)["csrc/a.cu"]["digest"]
    assert found(tmp_path / "2", {**files, "lean/x.h": "1"})["csrc/a.cu"]["digest"] != first


@pytest.mark.parametrize("text", ["#include WHICH\n", "#include /* which */ WHICH\n", 'asm(".incbin \\"x\\"");\n'])
def test_a_unit_that_reads_what_its_text_does_not_tell_is_left_out(text: str, tmp_path: Path) -> None:
    assert list(found(tmp_path, {"a.cu": '#include "a.h"\n', "a.h": text, "b.cu": "\n"})) == ["b.cu"]


@pytest.mark.parametrize("text", ["#define E(x) ENABLE_##x\n", "#define E(x) x ## ENABLE_C\n"])
def test_names_put_together_from_pieces_keep_all_macros(text: str, tmp_path: Path) -> None:
    assert unseen(tmp_path, {"a.cu": text, "b.cu": ""}) == {"a.cu": [], "b.cu": list(NAMES)}


@pytest.mark.parametrize("option", ["-I", "-isystem ", "-I "])
def test_headers_outside_count_for_all_units(option: str, tmp_path: Path) -> None:
    text = '#ifdef ENABLE_A_SM90\n#include "ours.h"\n'
    outside = write(tmp_path / "cutlass", {"include/x": text, "b": "CUTLASS_ENABLE_C\n"})
    flags = f"{option}{outside}/include -I{outside} -I{tmp_path}/none"
    first = found(tmp_path / "1", {"a.cu": "\n", "ours.h": "1"}, flags)["a.cu"]
    assert first["unseen"] == ["ENABLE_B_SM120", "ENABLE_C"]
    assert found(tmp_path / "2", {"a.cu": "\n", "ours.h": "2"}, flags)["a.cu"]["digest"] != first["digest"]


@pytest.mark.parametrize(
    ("outside", "ours"),
    [
        ("#include CONFIG\n", '#define CONFIG "ours.h"\n'),
        ("#  include FOLDER(x)\n", "#define FOLDER(x) <folder/ours.h>\n"),
        ('#inc\\\nlude "ours.h"\n', ""),
        ("#include \\\n  <ours.h>\n", ""),
        ('#include /* "it" \n */ "ours.h"\n', ""),
        ("%:import <ours.h>\n", ""),
        ('/* include < */ #include "ours.h"\n', ""),
    ],
)
def test_what_a_header_outside_may_include_counts(outside: str, ours: str, tmp_path: Path) -> None:
    flags = "-I" + str(write(tmp_path / "cutlass", {"x.h": outside}))
    first, second = ({"a.cu": ours, "folder/ours.h": text} for text in ("1", "2"))
    digests = {found(tmp_path / files["folder/ours.h"], files, flags)["a.cu"]["digest"] for files in (first, second)}
    assert len(digests) == 2


@pytest.mark.parametrize("flag", ['-DCONFIG=\\"x/ours.h\\"', "-DCONFIG=<ours.h>", "'-DA=1' -DCONFIG='\"ours.h\"'"])
def test_a_file_that_a_flag_names_counts_for_all(flag: str, tmp_path: Path) -> None:
    digests = {found(tmp_path / text, {"a.cu": "", "ours.h": text}, flag)["a.cu"]["digest"] for text in "12"}
    assert len(digests) == 2


DEPENDENCY = {"dependency/src/u.cu": '#include "near.h"\n', "dependency/include/near.h": '#include "ours.h"\n'}


def test_a_unit_of_a_dependency_can_read_what_the_dependencies_may_include(tmp_path: Path) -> None:
    files = {
        **DEPENDENCY,
        "csrc/a.cu": "\n",
        "csrc/ours.h": '#include "next.h"\n',
        "csrc/next.h": "ENABLE_C",
        "other.h": "1",
    }
    first = found(tmp_path / "1", files)
    assert first["dependency/src/u.cu"]["unseen"] == ["ENABLE_A_SM90", "ENABLE_B_SM120"]
    assert first["csrc/a.cu"]["unseen"] == list(NAMES)
    unit = "dependency/src/u.cu"
    assert found(tmp_path / "2", {**files, "csrc/next.h": "ENABLE_C 2"})[unit] != first[unit]
    assert found(tmp_path / "3", {**files, "other.h": "2", "csrc/a.cu": "int a;\n"})[unit] == first[unit]


@pytest.mark.parametrize(
    ("text", "kept"),
    [
        ("ENABLE_A_SM90\n", ["ENABLE_B_SM120", "ENABLE_C"]),
        ("#define E(x) ENABLE_##x\n", []),
        ('asm(".incbin x");', None),
    ],
)
def test_what_another_file_of_a_dependency_says_counts_for_its_units(
    text: str, kept: list[str] | None, tmp_path: Path
) -> None:
    said = unseen(tmp_path, {**DEPENDENCY, "dependency/src/v.h": text, "a.cu": "\n"})
    assert said == {"a.cu": list(NAMES), **({"dependency/src/u.cu": kept} if kept is not None else {})}


WORDS = '# %: include import embed __has_include( <a.h> "b/c.h" /* */ // ENABLE_C inc lude d.h < " define \\ \''
PIECES = st.sampled_from([*WORDS.split(), " ", "\t", "\\\n", "\\ \r\n", "\n"])


@settings(max_examples=500, deadline=None)
@given(pieces=st.lists(PIECES, max_size=12))
def test_the_quick_look_at_headers_outside_sees_at_least_what_the_careful_one_sees(pieces: list[str]) -> None:
    raw = "".join(pieces).encode()
    macros, names = _says(raw)
    careful = Text(raw)
    assert careful.macros <= macros
    assert careful.included <= names


def test_a_header_that_all_units_are_told_to_include_counts_for_all(tmp_path: Path) -> None:
    flags = f"-include {tmp_path}/source/all.h"
    said = unseen(tmp_path, {"a.cu": "\n", "all.h": "ENABLE_A_SM90"}, flags)
    assert said == {"a.cu": ["ENABLE_B_SM120", "ENABLE_C"]}


def table(folder: Path, files: dict[str, str]) -> str:
    source = write(folder / "source", files)
    units = " ".join(str(source / name) for name in files if name.endswith((".cu", ".cpp")))
    ninja = folder / "build.ninja"
    ninja.write_text(f"build x.o: CUDA {units}\n  FLAGS = {GIVEN} -I{source}\n")
    main(str(ninja), str(source), str(folder / "reach.json"))
    return str(folder / "reach.json")


def test_a_unit_loses_what_it_cannot_see_and_nothing_else(tmp_path: Path) -> None:
    path = table(tmp_path, {"a.cu": "ENABLE_A_SM90\n", "b.cu": "\n"})
    command = ["nvcc", *GIVEN.split(), "-DENABLE_A_SM900", "-DNDEBUG", "-c", f"{tmp_path}/source/a.cu", "-o", "a.o"]
    digest, macros = reach_of(command, path)
    assert len(digest) == 64
    assert without_macros(command, macros) == [word for word in command if "_SM120" not in word and "_C=" not in word]
    elsewhere = [word.replace("/source/", "/other/") for word in command]
    assert reach_of(elsewhere, path) == ("", frozenset())
    assert reach_of(command[:5], path) == ("", frozenset())  # no compile command


@pytest.mark.parametrize(
    "text",
    [
        "",
        "[]",
        "{}",
        '{"/a.cu": []}',
        '{"/a.cu": {"digest": 1, "unseen": []}}',
        '{"/a.cu": {"digest": "1", "unseen": [1]}}',
    ],
)
def test_a_damaged_table_changes_no_command_and_no_key(text: str, tmp_path: Path) -> None:
    command = ["nvcc", "-DENABLE_C=1", "-c", "/a.cu", "-o", "a.o"]
    (tmp_path / "t").write_text(text)
    assert reach_of(command, str(tmp_path / "t")) == ("", frozenset())
    assert reach_of(command, str(tmp_path / "none")) == ("", frozenset())


FILES = ("a.cpp", "b.cpp", "c.h", "d/e.hpp", "d/f.inc", "g.txt")
LINES = st.sampled_from(
    [*(f"#ifdef {name}\nint x{at};\n#endif\n" for at, name in enumerate(NAMES)), "int ENABLE_C\\\n;\n"]
    + [f'#include "{name}"\n' for name in FILES]
    + ["#  include <c.h>\n", "#include\\\n <d/f.inc>\n", "// ENABLE_A_SM90\n", "#include /* */ <d/e.hpp>\n"]
)
TREES = st.fixed_dictionaries({name: st.lists(LINES, max_size=3) for name in FILES})


@settings(max_examples=30, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(texts=TREES, other=st.sampled_from(FILES))
def test_the_preprocessor_says_the_same_without_the_macros_and_where_the_digest_is_the_same(
    texts: dict[str, list[str]], other: str, tmp_path: Path
) -> None:
    guard = "#if __INCLUDE_LEVEL__ < 4\n{}\n#endif\n"
    files = {name: guard.format("".join(lines)) for name, lines in texts.items()}
    said: dict[str, list[tuple[str, bytes]]] = {"a.cpp": [], "b.cpp": []}
    for version in (files, {**files, other: files[other] + "int another;\n"}):
        path = table(tmp_path, version)
        for unit, seen in said.items():
            full = ["g++", *GIVEN.split(), f"-I{tmp_path}/source", "-E", "-P", "-c", f"{tmp_path}/source/{unit}"]
            digest, macros = reach_of(full, path)
            text = subprocess.check_output(full)
            if macros:
                assert subprocess.check_output(without_macros(full, macros)) == text
            seen.append((digest or path, text))  # without a digest: another each time
    for (before, first), (after, second) in said.values():
        assert before != after or first == second or "/" in before
