"""nvcc's steps as read from --dryrun, their keys, and the store of their results."""

from __future__ import annotations

import json
import os
import re
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from scripts.compile.device_steps import PROGRAMS, STANDALONE, DeviceSteps, bytes_of, put_programs
from scripts.compile.standalone.step_plan import NotUnderstoodError, Plan, Step, make_plan, read_plan
from scripts.compile.standalone.step_store import Store

# What nvcc 13.0 says for two archs, one of them with PTX; options are cut.
DRYRUN = """\
nvcc warning : something
#$ _NVVM_BRANCH_=nvvm
#$ TOP=/cuda/bin/..
#$ CICC_PATH=/cuda/bin/../nvvm/bin
#$ INCLUDES="-I/cuda/include"
#$ PATH=/cuda/bin:/usr/bin
#$ gcc -std=c++17 -D__CUDA_ARCH__=900 -D__CUDA_ARCH_LIST__=900,1200 -E -x c++ "-I/cuda/include" "x.cu" -o "K/x.compute_90.cpp1.ii"
#$ gcc -std=c++17 -D__CUDA_ARCH__=1200 -D__CUDA_ARCH_LIST__=900,1200 -E -x c++ "x.cu" -o "K/x.compute_120.cpp1.ii"
#$ gcc -std=c++17 -D__CUDA_ARCH_LIST__=900,1200 -E -x c++ "x.cu" -o "K/x.cpp4.ii"
#$ -- Filter Dependencies -- > x.o.d
#$ cudafe++ --c++17 --orig_src_path_name "/src/x.cu" --m64 --gen_c_file_name "K/x.compute_120.cudafe1.cpp" --stub_file_name "x.compute_120.cudafe1.stub.c" --gen_module_id_file --module_id_file_name "K/x.module_id" "K/x.cpp4.ii"
#$ "$CICC_PATH/cicc" --c++17 --orig_src_path_name "/src/x.cu" -arch compute_90 -m64 -ftz=0 --include_file_name "x.fatbin.c" -tused --module_id_file_name "K/x.module_id" --gen_c_file_name "K/x.compute_90.cudafe1.c" --stub_file_name "K/x.compute_90.cudafe1.stub.c" --gen_device_file_name "K/x.compute_90.cudafe1.gpu"  "K/x.compute_90.cpp1.ii" -o "K/x.compute_90.ptx"
#$ ptxas -arch=sm_90 -m64  "K/x.compute_90.ptx"  -o "K/x.compute_90.cubin"
#$ "$CICC_PATH/cicc" --c++17 --orig_src_path_name "/src/x.cu" -arch compute_120 -m64 -ftz=0 --include_file_name "x.fatbin.c" -tused --module_id_file_name "K/x.module_id" --gen_c_file_name "K/x.compute_120.cudafe1.c" --stub_file_name "K/x.compute_120.cudafe1.stub.c" --gen_device_file_name "K/x.compute_120.cudafe1.gpu"  "K/x.compute_120.cpp1.ii" -o "K/x.compute_120.ptx"
#$ ptxas -arch=sm_120 -m64  "K/x.compute_120.ptx"  -o "K/x.compute_120.sm_120.cubin"
#$ fatbinary --create="K/x.fatbin" -64 --cicc-cmdline="-ftz=0 -prec_div=1 " "--image3=kind=elf,sm=90,file=K/x.compute_90.cubin" "--image3=kind=ptx,sm=120,file=K/x.compute_120.ptx" "--image3=kind=elf,sm=120,file=K/x.compute_120.sm_120.cubin" --embedded-fatbin="K/x.fatbin.c"
#$ rm K/x.fatbin
#$ gcc -std=c++17 -D__CUDA_ARCH__=1200 -c -x c++ "K/x.compute_120.cudafe1.cpp" -o "x.o"
"""  # noqa: E501


def planned(folder: Path, text: str = DRYRUN) -> Plan:
    return read_plan(text.replace('"K/', f'"{folder}/').replace("=K/", f"={folder}/"), str(folder))


def step(plan: Plan, program: str, number: int = 0) -> Step:
    return [item for item in plan.steps if item.program == program][number]


def test_nvccs_words_become_steps_with_what_they_read_and_write(tmp_path: Path) -> None:
    plan = planned(tmp_path)
    assert [item.kind for item in plan.steps] == [
        *["host"] * 3,
        "cudafe++",
        *["cicc", "ptxas"] * 2,
        "fatbinary",
        "host",
    ]
    assert plan.warnings == ["nvcc warning : something"]
    assert plan.dependencies == "x.o.d"
    assert plan.environment["PATH"] == "/cuda/bin:/usr/bin"
    cicc = step(plan, "cicc", 1)
    assert cicc.words[0] == "/cuda/bin/../nvvm/bin/cicc"
    assert [Path(path).name for path in cicc.reads] == ["x.module_id", "x.compute_120.cpp1.ii"]
    assert [Path(path).name for path in cicc.results] == ["x.compute_120.cudafe1.stub.c", "x.compute_120.ptx"]
    assert [Path(path).name for path in step(plan, "cudafe++").writes] == ["x.compute_120.cudafe1.cpp", "x.module_id"]
    assert [Path(path).name for path in step(plan, "fatbinary").writes] == ["x.fatbin", "x.fatbin.c"]
    assert plan.steps[-1].writes == ["x.o"]


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("#$ ptxas -arch=sm_90", "#$ nvlink -arch=sm_90"),  # another program
        ('-o "K/x.compute_90.ptx"', '-o "K/x.compute_90.ltoir"'),  # ptxas reads what nobody writes
        ('--stub_file_name "K/', '--new_file_name "K/'),  # an option that is not known
        ("#$ fatbinary", "#$ true\n#$ fatbinary"),  # a step that writes nothing
        (' -o "x.o"', ' -o "x.o" > log'),
        (' -o "x.o"', " -o $OUT/x.o"),
        (' -o "x.o"', ' -o "x.o'),  # a quote that does not end
        ("#$ gcc -std=c++17 -D__CUDA_ARCH__=1200 -c", "#$ gcc -std=c++17 -D__CUDA_ARCH__=1200 -E"),
    ],
)
def test_any_other_form_is_not_understood(tmp_path: Path, old: str, new: str) -> None:
    assert old in DRYRUN
    with pytest.raises(NotUnderstoodError):
        planned(tmp_path, DRYRUN.replace(old, new))


@given(st.lists(st.sampled_from(DRYRUN.splitlines()), max_size=20), st.integers(0, 400), st.text(max_size=3))
def test_whatever_nvcc_says_is_read_or_not_understood(chosen: list[str], at: int, new: str) -> None:
    text = "\n".join(chosen)
    try:
        read_plan(text[:at] + new + text[at:], "K")
    except NotUnderstoodError:
        return


def test_an_nvcc_that_fails_or_odd_options_are_not_understood(tmp_path: Path) -> None:
    nvcc = tmp_path / "nvcc"
    nvcc.write_text("#!/bin/sh\nexit 3\n")
    nvcc.chmod(0o755)
    with pytest.raises(NotUnderstoodError, match="fails"):
        make_plan([str(nvcc), "-c", "x.cu"], str(tmp_path))
    for word in ("-lineinfo", "-DNAME=a b", '-DNAME="a"', "-DNAME=$HOME", "-dlto"):
        with pytest.raises(NotUnderstoodError, match="not taken apart"):
            make_plan([str(nvcc), word, "-c", "x.cu"], str(tmp_path))


def fill(plan: Plan, **contents: str) -> None:
    for item in plan.steps:
        for path in item.reads:
            Path(path).write_text(contents.get(Path(path).suffix[1:], "text"))


def key(folder: Path, number: int = 0, program: str = "cicc", text: str = DRYRUN, **contents: str) -> str:
    folder.mkdir(exist_ok=True, parents=True)
    plan = planned(folder, text)
    fill(plan, **contents)
    return step(plan, program, number).key("toolkit")


def test_a_key_is_the_same_wherever_and_in_whichever_list_of_archs(tmp_path: Path) -> None:
    of_120 = ("#$ gcc -std=c++17 -D__CUDA_ARCH__=1200 -E", "#$ ptxas -arch=sm_120")
    kept = [line for line in DRYRUN.splitlines(keepends=True) if not line.startswith(of_120)]
    images = re.compile(r' "--image3=kind=\w+,sm=120,file=[^"]+"')
    alone = "".join(images.sub("", line) for line in kept if "-arch compute_120" not in line)
    alone = alone.replace("x.compute_120.cudafe1", "x.cudafe1").replace("x.compute_90.", "x.")  # as nvcc names one arch
    assert key(tmp_path / "a") == key(tmp_path / "b" / "c") == key(tmp_path / "d", text=alone)
    assert key(tmp_path / "a", program="ptxas") == key(tmp_path / "d", program="ptxas", text=alone)


def test_a_key_changes_with_all_that_can_change_the_result(tmp_path: Path) -> None:
    keys = [
        key(tmp_path),
        key(tmp_path, 1),
        key(tmp_path, ii="another text"),
        key(tmp_path, module_id="another unit"),
        key(tmp_path, text=DRYRUN.replace("-ftz=0 --include", "-ftz=1 --include")),
        key(tmp_path, text=DRYRUN.replace('"/src/x.cu"', '"/src/y.cu"')),
        key(tmp_path, program="ptxas"),
        key(tmp_path, program="ptxas", ptx="another text"),
        key(tmp_path, program="ptxas", text=DRYRUN.replace("-arch=sm_90 -m64", "-arch=sm_90 -m64 -O1")),
    ]
    assert len(set(keys)) == len(keys)
    plan = planned(tmp_path)
    fill(plan)
    assert step(plan, "cicc").key("another toolkit") not in keys
    assert step(plan, "cudafe++").key("toolkit") == ""  # nothing of it is kept


words = st.lists(st.text(st.characters(codec="ascii", exclude_characters="/\0"), max_size=8), max_size=5)


@given(words, words)
def test_no_two_lists_of_options_have_one_key(one: list[str], other: list[str]) -> None:
    def made(options: list[str]) -> list[str]:
        return Step(["ptxas", *[f"-{word}" for word in options], "K/in.ptx", "-x", "-o", "K/out.cubin"], "K").shape

    assert (made(one) == made(other)) is (one == other)


def stored(folder: Path, files: list[bytes], said: bytes = b"said") -> Store:
    store = Store(str(folder / "store"))
    sources = []
    for number, content in enumerate(files):
        path = folder / f"source-{number}"
        path.write_bytes(content)
        sources.append(str(path))
    store.put("ab" + "0" * 62, sources, said, 1.5)
    return store


@given(st.lists(st.binary(max_size=200), max_size=4), st.binary(max_size=50))
def test_what_is_kept_comes_back(tmp_path_factory: pytest.TempPathFactory, files: list[bytes], said: bytes) -> None:
    folder = tmp_path_factory.mktemp("store")
    store = stored(folder, files, said)
    targets = [str(folder / f"target-{number}") for number in range(len(files))]
    assert store.get("ab" + "0" * 62, targets) == (said, 1.5)
    assert [Path(path).read_bytes() for path in targets] == files
    assert store.get("ab" + "1" * 62, targets) is None
    assert store.get("ab" + "0" * 62, [*targets, "more"]) is None


def test_a_file_that_names_itself_names_its_new_place(tmp_path: Path) -> None:
    store = stored(tmp_path, [f'# 1 "{tmp_path}/source-0"\nx "{tmp_path}/source-0"'.encode()])
    store.get("ab" + "0" * 62, [str(tmp_path / "elsewhere")])
    assert (tmp_path / "elsewhere").read_text() == f'# 1 "{tmp_path}/elsewhere"\nx "{tmp_path}/elsewhere"'


@given(at=st.integers(0, 10_000), change=st.integers(1, 255), cut=st.booleans())
def test_a_damaged_entry_is_never_taken(
    tmp_path_factory: pytest.TempPathFactory, at: int, change: int, *, cut: bool
) -> None:
    folder = tmp_path_factory.mktemp("store")
    store = stored(folder, [b"cubin" * 40, b"stub"])
    path = next((folder / "store").glob("??/*"))
    data = bytearray(path.read_bytes())
    at %= len(data)
    if cut:
        del data[at:]
    else:
        data[at] ^= change
    path.write_bytes(data)
    assert store.get("ab" + "0" * 62, [str(folder / "a"), str(folder / "b")]) is None
    assert not path.exists()


def test_an_entry_under_another_key_is_not_taken(tmp_path: Path) -> None:
    store = stored(tmp_path, [b"x"])
    path = next((tmp_path / "store").glob("??/*"))
    path.rename(path.with_name("1" * 62))
    assert store.get("ab" + "1" * 62, [str(tmp_path / "a")]) is None


@pytest.mark.parametrize(
    ("text", "size"),
    [("10G", 10e9), ("500M", 5e8), ("2.5 GiB", 2.5 * 2**30), ("1Ti", 2**40), ("7", 7e9), ("many", 10e9)],
)
def test_sizes_are_read_as_ccache_reads_them(text: str, size: float) -> None:
    assert bytes_of(text) == size


def test_the_oldest_entries_go_first(tmp_path: Path) -> None:
    steps = DeviceSteps(Path("steps.py"), tmp_path, "x")
    for age, name in ((30, "aa/old"), (20, "ab/middle"), (10, "ac/new")):
        path = tmp_path / name
        path.parent.mkdir()
        path.write_bytes(b"x" * 1000)
        os.utime(path, (1_000_000 - age, 1_000_000 - age))
    assert steps.prune("0.000002G") == 2000
    assert [path.name for path in sorted(tmp_path.glob("??/*"))] == ["middle", "new"]
    assert json.loads(steps.variables()["WHEELSMITH_STEPS"]) == {"store": str(tmp_path), "identity": "x"}


def test_programs_that_are_given_again_leave_every_unit_up_to_date(tmp_path: Path) -> None:
    put_programs(tmp_path, Path("/python"))
    assert (tmp_path / "steps.py").read_text().startswith("#!/python -SE\n")
    (tmp_path / "reach.py").write_text("of an earlier wheelsmith")
    for name in PROGRAMS:
        os.utime(tmp_path / name, (1, 1))
    (tmp_path / "steps.py").chmod(0o644)
    put_programs(tmp_path, Path("/python"))
    times = {name: (tmp_path / name).stat().st_mtime for name in PROGRAMS}
    assert {name for name, time in times.items() if time != 1} == {"reach.py"}
    assert (tmp_path / "reach.py").read_bytes() == (STANDALONE / "reach.py").read_bytes()
    assert os.access(tmp_path / "steps.py", os.X_OK)
    put_programs(tmp_path, Path("/another/python"))
    assert (tmp_path / "steps.py").read_text().startswith("#!/another/python -SE\n")
