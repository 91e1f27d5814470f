"""Layers of the requirements, and what is trimmed out of them."""

from __future__ import annotations

import csv
import ctypes
import json
import re
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from runtime.build import stub, trim
from scripts.core.errors import ImageError
from scripts.core.paths import ROOT
from scripts.image.context import LOCKS, find_lock
from scripts.image.layers import LayerRule, layer_rules, lock_entries, lock_hashes, split_lock


def test_every_package_of_a_shipped_lock_is_in_one_layer_with_its_hashes() -> None:
    for lock in sorted(LOCKS.glob("vllm-*.txt")):
        text = lock.read_text()
        parts = split_lock(text, layer_rules())
        entries = [lock_entries(part) for part in parts]
        names = [name for part in entries for name in part]
        pinned = re.findall(r"^([A-Za-z0-9][\w.-]*)==", text, re.MULTILINE)
        assert sorted(names) == sorted(lock_entries("\n".join(f"{name}==" for name in pinned)))
        assert sum(part.count("--hash=sha256:") for part in parts) == text.count("--hash=sha256:")
        math, cuda, torch, python = entries
        assert set(math) >= {"nvidia-cublas-cu12", "nvidia-cudnn-cu12"}
        assert "nvidia-nccl-cu12" in cuda
        assert {"torch", "triton"} <= set(torch)
        assert {"nvidia-cudnn-frontend", "nvidia-ml-py", "nvidia-cutlass-dsl", "transformers"} <= set(python)


def test_the_dockerfile_has_a_step_for_each_layer() -> None:
    dockerfile = (ROOT / "Dockerfile.runtime").read_text()
    steps = re.findall(r"install\.sh /context/requirements-(\d)\.txt", dockerfile)
    assert steps == [str(number) for number in range(1, len(layer_rules()) + 1)]


def test_a_package_that_no_layer_takes_is_an_error() -> None:
    with pytest.raises(ImageError, match="no layer takes b"):
        split_lock("a==1 --hash=sha256:1\nb==2\n", [LayerRule("first", ("a*",))])
    assert split_lock("A_b==1\n", [LayerRule("x", ("*", "!a-b")), LayerRule("y", ("*",))]) == ["", "A_b==1\n"]


@given(st.text(max_size=300))
def test_any_text_for_a_lock_is_read_or_refused_without_losing_a_package(text: str) -> None:
    entries = lock_entries(text)
    assert set().union(*(lock_entries(part) for part in split_lock(text, layer_rules())), set()) == set(entries)


def test_the_hashes_of_a_lock_are_read_by_package() -> None:
    hashes = lock_hashes(find_lock("0.15.1", None).read_text())
    assert all(len(item) == 64 for item in hashes["torch"])
    assert hashes["torch"]


def environment(folder: Path) -> Path:
    """Return a site-packages folder with what torch and a CUDA package leave there."""
    site = folder / "lib" / "python3.12" / "site-packages"
    files = {
        "torch/__init__.py": "",
        "torch/lib/libtorch.so": "",
        "torch/lib/libx.a": "archive",
        "torch/include/torch/csrc/inductor/cpp_prefix.h": '#include <c10/a.h>\n  # include "b.h"\n#include <omp.h>\n',
        "torch/include/torch/csrc/inductor/b.h": "#include <torch/csrc/inductor/cpp_prefix.h>\n",
        "torch/include/c10/a.h": "",
        "torch/include/ATen/c.h": "",
        "torch/share/cmake/Torch/TorchConfig.cmake": "",
        "nvidia/cuda_runtime/lib/libcudart_static.a": "archive",
        "nvidia/cuda_runtime/include/cuda_fp16.h": "",
    }
    for name, text in files.items():
        (site / name).parent.mkdir(parents=True, exist_ok=True)
        (site / name).write_text(text)
    record = site / "torch-2.9.1.dist-info" / "RECORD"
    record.parent.mkdir()
    rows = [[name, "sha256=x", "7"] for name in files if name.startswith("torch")]
    with record.open("w", newline="") as file:
        csv.writer(file, lineterminator="\n").writerows([*rows, ["../../../bin/torchrun", "sha256=y", "8"]])
    return site


def test_only_what_compilers_need_is_trimmed_and_records_name_what_is_there(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    site = environment(tmp_path)
    for _ in range(2):  # the second time there is nothing to do
        trim.main(tmp_path)
        left = {str(path.relative_to(site)) for path in site.rglob("*") if path.is_file()}
        assert left == {
            "torch/__init__.py",
            "torch/lib/libtorch.so",
            "torch/include/torch/csrc/inductor/cpp_prefix.h",
            "torch/include/torch/csrc/inductor/b.h",
            "torch/include/c10/a.h",
            "nvidia/cuda_runtime/include/cuda_fp16.h",
            "torch-2.9.1.dist-info/RECORD",
        }
        assert not (site / "torch" / "share").exists()
        with (site / "torch-2.9.1.dist-info" / "RECORD").open() as file:
            named = {row[0] for row in csv.reader(file)}
        assert named == {name for name in left if name.startswith("torch/")} | {"../../../bin/torchrun"}
    assert capsys.readouterr().out == "wheelsmith: 4 files that only compilers need left out, 14 bytes\n"


def compiler_files(environment: Path) -> list[str]:
    """Return what the check inside an image finds in an environment that lies elsewhere than there."""
    functions = (ROOT / "runtime" / "checks" / "facts.py").read_text().split("json.dump(")[0]
    program = functions.replace("/opt/vllm", str(environment)) + "print(json.dumps(compiler_files()))\n"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, check=True)
    found: list[str] = json.loads(done.stdout)
    return found


def test_the_check_inside_an_image_finds_what_trimming_takes_out_and_nothing_after_it(tmp_path: Path) -> None:
    site = environment(tmp_path)
    for number in range(1200):
        (site / "torch" / "include" / "ATen" / f"x{number}.h").write_text("")
    found = [name.removeprefix(f"{site}/") for name in compiler_files(tmp_path)]
    assert found[0].endswith(" headers of torch")
    archives = {"torch/lib/libx.a", "nvidia/cuda_runtime/lib/libcudart_static.a"}
    assert set(found[1:]) == archives | {"torch/share/cmake"}
    trim.main(tmp_path)
    assert compiler_files(tmp_path) == []


def test_the_stub_of_libcuda_has_the_functions_that_vllms_libraries_want(tmp_path: Path) -> None:
    library = tmp_path / "lib" / "python3.12" / "site-packages" / "vllm" / "_C.abi3.so"
    library.parent.mkdir(parents=True)
    code = 'int cuMemMap(void); int puts(const char *); int f(void) { puts(""); return cuMemMap(); }'
    words = ["gcc", "-x", "c", "-shared", "-fPIC", "-o", str(library), "-"]
    subprocess.run(words, input=code, text=True, check=True)
    for _ in range(2):  # again over itself, with the same bytes
        stub.main(tmp_path, tmp_path / "stub")
    made = (tmp_path / "stub" / "libcuda.so.1").read_bytes()
    stub.main(tmp_path, tmp_path / "again")
    assert (tmp_path / "again" / "libcuda.so.1").read_bytes() == made
    driver = ctypes.CDLL(str(tmp_path / "stub" / "libcuda.so"))
    assert driver.cuMemMap() == stub.STUB_LIBRARY
