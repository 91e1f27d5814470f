from __future__ import annotations

from pathlib import Path

import pytest

from scripts.audit_targets import How, Library, choose, cover, judge
from scripts.drivers import parse_target
from scripts.fatbin import Compression, Container, DeviceCode, Kind, read_device_code
from tests.fatbins import container, entry, ptx_entry, sass, shared_object


def read(tmp_path: Path, name: str, **units: bytes) -> Library:
    path = shared_object(tmp_path / name.replace("/", "_"), {f"{unit}.cu": data for unit, data in units.items()})
    return Library(name, read_device_code(path), 12)


def one(tmp_path: Path, *entries: bytes) -> Container:
    return read(tmp_path, "one.so", a=container(*entries)).code.containers[0]


@pytest.mark.parametrize(
    ("entries", "cc", "how", "target"),
    [
        ([sass("80"), sass("86")], (8, 6), How.NATIVE, "sm_86"),
        ([sass("80"), sass("90")], (8, 9), How.COMPATIBLE, "sm_80"),
        ([sass("80"), sass("86"), sass("89")], (8, 9), How.NATIVE, "sm_89"),
        ([sass("89"), ptx_entry("80")], (8, 6), How.JIT, "compute_80"),
        ([sass("90a"), sass("90")], (9, 0), How.NATIVE, "sm_90a"),
        ([sass("100a")], (10, 3), How.MISSING, ""),
        ([sass("100f")], (10, 3), How.COMPATIBLE, "sm_100f"),
        ([sass("100f")], (12, 0), How.MISSING, ""),
        ([sass("120f")], (12, 1), How.COMPATIBLE, "sm_120f"),
        ([ptx_entry("80"), ptx_entry("90")], (12, 0), How.JIT, "compute_90"),
        ([ptx_entry("90a")], (10, 0), How.MISSING, ""),
        ([ptx_entry("90a")], (9, 0), How.JIT, "compute_90a"),
        ([ptx_entry("100f")], (10, 3), How.JIT, "compute_100f"),
        ([ptx_entry("100f")], (12, 0), How.MISSING, ""),
        ([sass("87")], (8, 9), How.MISSING, ""),
        ([sass("80"), sass("87")], (8, 7), How.NATIVE, "sm_87"),
        ([sass("80")], (8, 7), How.MISSING, ""),
        ([entry(Kind.LTO_IR, "90", b"x" * 8)], (9, 0), How.MISSING, ""),
    ],
)
def test_the_driver_takes_the_most_specific_code_that_runs(
    tmp_path: Path, entries: list[bytes], cc: tuple[int, int], how: How, target: str
) -> None:
    choice = choose(one(tmp_path, *entries), cc)
    assert choice.how is how
    assert (choice.entry.target if choice.entry else "") == target


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> list[Library]:
    tmp_path = tmp_path_factory.mktemp("wheel")
    attention = {f"flash_fwd_{n}": container(sass("80", "a", "b"), ptx_entry("80", "a", "b")) for n in range(3)}
    core = {
        "cache": container(sass("80", "c"), sass("120", "c")),
        "sm80_kernel_half": container(sass("80", "m"), ptx_entry("80", "m")),
        "marlin": container(sass("80", "m"), ptx_entry("80", "m")),
        "bindings": container(sass("52"), ptx_entry("52")),
        "sm75_kernel_half": container(sass("75", "t")),
    }
    return [
        read(tmp_path, "vllm/_vllm_fa2_C.abi3.so", **attention),
        read(tmp_path, "vllm/_C.abi3.so", **core),
        read(tmp_path, "vllm/_vllm_fa3_C.abi3.so", hopper=container(sass("90a", "h"))),
    ]


def test_ptx_newer_than_the_driver_is_not_ok_and_said_in_one_line(wheel: list[Library]) -> None:
    verdict = judge(parse_target("rtx5090@12.8"), wheel)
    assert not verdict.ok
    assert verdict.summary == (
        "RTX 5090 with a CUDA 12.8 driver (570.x): NOT OK: 6 of 7 kernel containers need a CUDA 12.9 driver: "
        "FlashAttention 2 (all 3), Marlin (2), bindings (1)"
    )
    assert (verdict.native, verdict.compatible, verdict.jit, verdict.missing) == (1, 0, 6, 2)
    assert (verdict.lowest_cuda, verdict.lowest_driver, verdict.lowest_driver_without_jit) == (
        "12.9",
        "575.51.03",
        "570.26",
    )


def test_the_driver_of_the_ptxs_cuda_makes_it_ok(wheel: list[Library]) -> None:
    verdict = judge(parse_target("rtx5090@12.9"), wheel)
    assert verdict.ok
    assert verdict.summary.endswith("(575.x): OK: 1 native, 0 compatible, 6 JIT")


def test_containers_without_kernels_alarm_nobody(wheel: list[Library]) -> None:
    verdict = judge(parse_target("A40@12.0"), wheel)
    assert verdict.ok
    assert (verdict.compatible, verdict.jit, verdict.kernels.jit) == (6, 1, 0)


def test_a_target_without_driver_is_told_the_lowest_one(wheel: list[Library]) -> None:
    assert "RTX 5090: needs a CUDA 12.9 driver (575.51.03) or later" in (judge(parse_target("rtx5090"), wheel).summary)
    assert judge(parse_target("A40"), wheel).lowest_driver == "525.60.13"


def test_a_general_library_with_nothing_for_a_gpu_is_not_ok_but_a_specialised_one_may_be_absent(
    wheel: list[Library],
) -> None:
    verdict = judge(parse_target("T4@12.8"), wheel)
    assert verdict.reasons == ["FlashAttention 2: no code for it"]
    assert verdict.lowest_driver is None
    assert judge(parse_target("A100@12.8"), wheel).components["vllm/_vllm_fa3_C.abi3.so"].missing == 1


def test_ptx_without_kernels_does_not_make_a_library_useful(tmp_path: Path) -> None:
    library = read(tmp_path, "x.so", real=container(sass("80", "k")), host=container(sass("52"), ptx_entry("52")))
    assert judge(parse_target("H100@12.9"), [library]).reasons == ["x: no code for it"]
    assert judge(parse_target("A100@12.9"), [library]).ok


def test_a_wheel_of_specialised_libraries_only_is_not_ok_for_another_gpu(tmp_path: Path) -> None:
    library = read(tmp_path, "fa3.so", hopper=container(sass("90a", "h")))
    assert judge(parse_target("A100"), [library]).reasons == ["nothing in it has code for this GPU"]


@pytest.mark.parametrize(
    ("target", "part"),
    [
        ("A100@11.8", "at least a CUDA 12.0 driver (525.60.13): older ones do not run code of CUDA 12"),
        ("rtx5090@550", "at least a CUDA 12.8 driver (570.26): older ones do not know this GPU"),
    ],
)
def test_a_driver_below_the_floor_is_not_ok_with_its_cause(tmp_path: Path, target: str, part: str) -> None:
    library = read(tmp_path, "x.so", a=container(sass("80", "k"), sass("120", "k")))
    verdict = judge(parse_target(target), [library])
    assert not verdict.ok
    assert part in verdict.summary


def test_without_gpu_code_every_target_is_ok(tmp_path: Path) -> None:
    verdict = judge(parse_target("A100@12.8"), [read(tmp_path, "plain.so")])
    assert verdict.summary == "A100 with a CUDA 12.8 driver (570.x): OK: there is no GPU code inside"


def test_compressed_code_of_unknown_size_is_taken_to_have_kernels(tmp_path: Path) -> None:
    packed = entry(Kind.PTX, "80", b"z" * 40, version=(8, 8), compression=Compression.ZSTD, size=4000, header_size=80)
    library = read(tmp_path, "x.so", a=container(packed))
    assert cover(library, (9, 0)).kernels.uncounted_containers == 1
    assert cover(library, (9, 0)).jit_units[0].kernels is None
    assert not judge(parse_target("H100@12.8"), [library]).ok


def test_many_units_are_cut_short_in_words(tmp_path: Path) -> None:
    units = {f"unit{n}": container(sass("80", "k"), ptx_entry("80", "k")) for n in range(7)}
    library = read(tmp_path, "x.so", native=container(sass("90", "k")), **units)
    assert judge(parse_target("H100@12.8"), [library]).summary.endswith("unit3 (1), 3 more")


def test_jit_units_say_what_they_need(wheel: list[Library]) -> None:
    unit = cover(wheel[0], (12, 0)).jit_units[0]
    assert (unit.unit, unit.arch, unit.ptx, unit.cuda, unit.kernels) == (
        "flash_fwd_0.cu",
        "compute_80",
        "8.8",
        "12.9",
        2,
    )


def test_relocatable_code_is_listed_and_not_judged(tmp_path: Path) -> None:
    code = read(tmp_path, "x.so", a=container(sass("80", "k"))).code
    moved = DeviceCode(
        code.name, tuple(Container("__nv_relfatbin", c.offset, 0, c.size, c.entries) for c in code.containers), ()
    )
    assert cover(Library("x.so", moved, 12), (9, 0)).missing == 0
