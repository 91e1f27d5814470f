from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from scripts.core.errors import UsageError
from scripts.cuda.archs import (
    TABLE,
    Arch,
    arch_list,
    architecture,
    check_cuda_can,
    loose_intersection,
    normalised,
    parse_arch,
    parse_arch_list,
)
from scripts.cuda.nvml import LocalGpu
from tests.support import archs


@given(archs())
def test_every_spelling_of_an_arch_reads_back_as_the_same_arch(arch: Arch) -> None:
    ptx = "+PTX" if arch.ptx else ""
    assert parse_arch(str(arch)) == arch
    assert parse_arch(str(arch).upper()) == arch
    assert parse_arch(arch.sm + ptx) == arch
    assert parse_arch(arch.sm.replace("_", "") + ptx.lower()) == arch
    assert parse_arch(f" {arch.compute}{ptx} ") == arch


@given(st.lists(archs(), min_size=1), st.sampled_from([";", ",", " ", "; ", " , "]))
def test_a_list_in_any_separator_reads_back_sorted_and_without_repeats(items: list[Arch], separator: str) -> None:
    read = parse_arch_list(separator.join(str(item) for item in items))
    assert read == normalised(items)
    assert list(read) == sorted(set(read))
    assert parse_arch_list(arch_list(read)) == read


@given(st.text())
def test_any_text_is_an_arch_list_or_a_usage_error(text: str) -> None:
    try:
        read = parse_arch_list(text)
    except UsageError:
        return
    assert read == parse_arch_list(arch_list(read))


@pytest.mark.parametrize("gpu", [gpu for row in TABLE for gpu in row.gpus])
def test_every_gpu_of_the_table_names_its_arch_alone_and_in_a_list(gpu: str) -> None:
    row = next(row for row in TABLE if gpu in row.gpus)
    for spelling in (gpu, gpu.lower(), gpu.replace(" ", ""), f"NVIDIA {gpu}", f"NVIDIA GeForce {gpu} Laptop GPU"):
        assert parse_arch(spelling).number == row.number
        assert [arch.number for arch in parse_arch_list(spelling)] == [row.number]
    assert parse_arch_list(f"{gpu};{gpu}+PTX") == (parse_arch(f"{gpu}+PTX"),)
    assert parse_arch(f"{gpu}+PTX").ptx


def test_gpu_names_with_blanks_stand_beside_numbers_in_a_list() -> None:
    assert arch_list(parse_arch_list("RTX 3090 9.0, RTX PRO 6000 sm_80")) == "8.0;8.6;9.0;12.0"


def test_ptx_swallows_the_plain_arch_but_not_the_specific_one() -> None:
    assert arch_list(parse_arch_list("9.0;9.0+PTX;9.0a")) == "9.0+PTX;9.0a"


@pytest.mark.parametrize(
    ("text", "hint"),
    [("9.5", "9.0"), ("H10O", "H100"), ("rtx 509O", "RTX 5090"), ("sm_99", ""), ("", ""), ("9", ""), ("8.0PTX", "8.0")],
)
def test_an_unknown_arch_is_refused_with_what_is_allowed(text: str, hint: str) -> None:
    with pytest.raises(UsageError, match="unknown arch") as raised:
        parse_arch(text)
    assert repr(text) in raised.value.what
    assert ("Perhaps you meant" in raised.value.what) >= bool(hint)
    assert "12.0" in raised.value.fix[0]


@pytest.mark.parametrize(("text", "first"), [("8.0a", "9.0a"), ("9.0f", "10.0f")])
def test_a_suffix_that_the_arch_does_not_have_is_refused(text: str, first: str) -> None:
    with pytest.raises(UsageError, match="does not exist") as raised:
        parse_arch(text)
    assert first in raised.value.why


@pytest.mark.parametrize("text", ["", " ", ";", " ; , "])
def test_an_empty_list_is_refused(text: str) -> None:
    with pytest.raises(UsageError, match="empty"):
        parse_arch_list(text)


@pytest.mark.parametrize(
    ("arch", "cuda", "why"),
    [
        ("12.0", "12.6", "from CUDA 12.8 on"),
        ("10.0f", "12.8", "from CUDA 12.9 on"),
        ("7.0", "13.0", "ended with CUDA 12.9"),
        ("11.0", "12.9", "from CUDA 13.0 on"),
    ],
)
def test_an_arch_outside_the_toolkit_s_range_is_refused(arch: str, cuda: str, why: str) -> None:
    with pytest.raises(UsageError) as raised:
        check_cuda_can([parse_arch(arch)], cuda)
    assert arch in raised.value.what
    assert why in raised.value.why


@given(archs())
def test_an_arch_compiles_from_its_first_to_its_last_toolkit(arch: Arch) -> None:
    row = architecture(arch)
    check_cuda_can([arch], "12.9" if arch.suffix == "f" and row.first_cuda == "12.8" else row.first_cuda)
    check_cuda_can([arch], row.last_cuda or "13.5")


def test_the_table_is_ascending_and_names_each_arch_and_gpu_once() -> None:
    numbers = [tuple(int(part) for part in row.number.split(".")) for row in TABLE]
    assert numbers == sorted(set(numbers))
    gpus = [gpu for row in TABLE for gpu in row.gpus]
    assert len(gpus) == len(set(gpus))


@pytest.mark.parametrize(
    ("built", "wanted", "compiled"),
    [  # what CMake printed while configuring vLLM 0.20.1 with CUDA 13.0 for 9.0;12.0 and for 9.0
        ("8.0+PTX", "9.0;12.0", "8.0+PTX"),
        ("10.0f;11.0f;12.0f", "9.0;12.0", "12.0f"),
        ("9.0a;10.0f;11.0f", "9.0;12.0", "9.0a"),
        ("9.0a;10.0f;11.0f;12.0f", "9.0;12.0", "9.0a;12.0f"),
        ("7.5;8.0;8.7;8.9+PTX", "9.0;12.0", "8.9+PTX"),
        ("8.0;8.6;8.7;8.9", "9.0;12.0", ""),
        ("8.0+PTX;9.0+PTX", "9.0", "9.0+PTX"),
        # the examples in upstream's own comments
        ("7.5;8.0;8.6;9.0;9.0a", "8.0;8.9;9.0", "8.0;8.6;9.0a"),
        ("12.0f", "12.1a", "12.1a"),
        ("9.0", "9.0a", "9.0a"),
    ],
)
def test_a_kernel_family_is_compiled_for_what_upstreams_cmake_chooses(built: str, wanted: str, compiled: str) -> None:
    assert arch_list(loose_intersection(parse_arch_list(built), parse_arch_list(wanted))) == compiled


SMI_NAMES = [
    ("NVIDIA H100 80GB HBM3", "9.0"),
    ("NVIDIA H100 PCIe", "9.0"),
    ("NVIDIA H100 NVL", "9.0"),
    ("NVIDIA GH200 480GB", "9.0"),
    ("NVIDIA GH200 144G HBM3e", "9.0"),
    ("Tesla T4", "7.5"),
    ("Tesla V100-SXM2-32GB-LS", "7.0"),
    ("Tesla V100-DGXS-32GB", "7.0"),
    ("Tesla P100-PCIE-16GB", "6.0"),
    ("Tesla M60", "5.2"),
    ("NVIDIA A100-SXM4-80GB", "8.0"),
    ("NVIDIA A100 80GB PCIe", "8.0"),
    ("NVIDIA A100-SXM4-40GB MIG 1g.5gb", "8.0"),
    ("GRID A100-10C", "8.0"),
    ("NVIDIA A800-SXM4-80GB", "8.0"),
    ("NVIDIA A10G", "8.6"),
    ("NVIDIA RTX A2000 12GB", "8.6"),
    ("NVIDIA RTX 6000 Ada Generation", "8.9"),
    ("NVIDIA RTX 4000 SFF Ada Generation", "8.9"),
    ("NVIDIA RTX 2000 Ada Generation Laptop GPU", "8.9"),
    ("NVIDIA RTX PRO 6000 Blackwell Server Edition", "12.0"),
    ("NVIDIA RTX PRO 6000 Blackwell Max-Q Workstation Edition", "12.0"),
    ("NVIDIA GeForce RTX 4070 Laptop GPU", "8.9"),
    ("NVIDIA GeForce RTX 4070 SUPER", "8.9"),
    ("NVIDIA GeForce GTX 1660 SUPER", "7.5"),
    ("NVIDIA GeForce RTX 2050", "8.6"),
    ("Quadro RTX 6000", "7.5"),
    ("Quadro P4000 with Max-Q Design", "6.1"),
    ("NVIDIA TITAN RTX", "7.5"),
    ("NVIDIA TITAN X (Pascal)", "6.1"),
    ("GeForce GTX TITAN X", "5.2"),
    ("NVIDIA T1000 8GB", "7.5"),
    ("NVIDIA B200", "10.0"),
    ("NVIDIA GB10", "12.1"),
    ("Orin (nvgpu)", "8.7"),
    ("NVIDIA Thor", "11.0"),
    ("NVIDIA L40S-48Q", "8.9"),
    ("h100 sxm", "9.0"),
    *((name, "8.6") for name in ("A6000", "A4000", "RTX 3060", "RTX 3070")),
    *((name, "8.9") for name in ("L20", "RTX 4060", "RTX 4070", "RTX 4070 Ti", "ada")),
    *((name, "12.0") for name in ("RTX 5060", "RTX 5060 Ti", "RTX 5070 Ti")),
    *((name, "7.5") for name in ("RTX 2060", "RTX 2070", "Titan RTX", "turing")),
    *((name, "6.1") for name in ("GTX 1080", "P40")),
    *((name, "8.9") for name in ("4090", "4070 Ti", "4060Ti")),
    ("1080", "6.1"),
    ("P100", "6.0"),
    ("hopper", "9.0"),
]


@pytest.mark.parametrize(("name", "number"), SMI_NAMES)
def test_what_nvidia_smi_and_people_call_a_gpu_names_its_arch(name: str, number: str) -> None:
    assert parse_arch(name).number == number
    assert [arch.number for arch in parse_arch_list(name)] == [number]


@pytest.mark.parametrize("family", ["ampere", "Blackwell", "pascal"])
def test_a_family_of_several_archs_is_answered_with_them(family: str) -> None:
    with pytest.raises(UsageError, match="is a family of") as raised:
        parse_arch(family)
    rows = [row for row in TABLE if row.family.lower() == family.lower()]
    assert all(f"{row.number} ({row.gpus[0]}" in raised.value.why for row in rows)
    offered = raised.value.fix[0].split("'")[1]
    assert arch_list(parse_arch_list(offered)) == offered


@pytest.mark.parametrize("name", ["RTX 4099", "RTX 6000", "P101", "RTX 5071 Ti", "H101"])
def test_a_suggestion_says_its_arch(name: str) -> None:
    with pytest.raises(UsageError) as raised:
        parse_arch(name)
    suggested = raised.value.what.split("Perhaps you meant '")[1]
    gpu, rest = suggested.split("' (")
    assert rest.split(")")[0] == parse_arch(gpu).number


@given(st.sampled_from([gpu for row in TABLE for gpu in row.gpus]), st.sampled_from(["80GB", "PCIe", "SXM5", "GPU"]))
def test_decorations_never_change_the_arch(gpu: str, word: str) -> None:
    assert parse_arch(f"NVIDIA {gpu} {word}") == parse_arch(gpu)


def test_native_without_a_driver_is_an_error_that_says_so() -> None:
    with pytest.raises(UsageError, match="none was found") as raised:
        parse_arch_list("native")
    assert "driver" in raised.value.why


def test_native_is_the_archs_of_the_gpus_here(monkeypatch: pytest.MonkeyPatch) -> None:
    gpus = (LocalGpu("NVIDIA H100 80GB HBM3", "9.0", "580.159.04"), LocalGpu("NVIDIA L4", "8.9", "580.159.04"))
    monkeypatch.setattr("scripts.cuda.archs.local_gpus", lambda: gpus)
    assert arch_list(parse_arch_list("native")) == "8.9;9.0"
    assert arch_list(parse_arch_list("12.0;NATIVE")) == "8.9;9.0;12.0"
