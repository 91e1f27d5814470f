from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path

import lz4.block
import pytest
import zstandard

from scripts.audit.coverage import How, Library, choose, cover
from scripts.audit.targets import judge
from scripts.cuda.drivers import parse_target
from scripts.formats.fatbin import read_device_code
from scripts.formats.fatbin_types import Compression, Container, DeviceCode, Kind
from tests.fatbins import container, entry, ptx, ptx_entry, sass, shared_object


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
    assert verdict.summary.endswith("(575.x): OK: 1 native, 0 compatible, 6 JIT, 2 missing")


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
    general = [Library(item.member.replace("_vllm_fa2_C", "_general_C"), item.code, 12) for item in wheel]
    verdict = judge(parse_target("T4@12.8"), general)
    assert verdict.reasons == ["_general_C: no code for it"]
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


def test_where_nothing_could_be_judged_no_target_is_ok(tmp_path: Path) -> None:
    verdict = judge(parse_target("A100@12.8"), [read(tmp_path, "plain.so")])
    assert verdict.summary.startswith("A100 with a CUDA 12.8 driver (570.x): NOT JUDGED: there is no GPU code")
    assert not verdict.ok
    assert not verdict.judged


def test_a_library_that_a_rule_names_as_optional_is_a_warning_with_what_is_lost(wheel: list[Library]) -> None:
    verdict = judge(parse_target("T4@12.8"), wheel)
    assert verdict.ok
    assert verdict.warnings[0].startswith("it goes without FlashAttention 2")
    assert judge(parse_target("A100@12.8"), wheel).warnings == []


@pytest.mark.parametrize("driver", ["590", "13.1", "640", "13.5"])
@pytest.mark.parametrize("gpu", ["V100", "P100", "M60"])
def test_a_driver_that_dropped_the_gpu_is_not_ok(tmp_path: Path, gpu: str, driver: str) -> None:
    code = [sass("52", "k"), sass("60", "k"), sass("70", "k")]
    library = read(tmp_path, "x.so", a=container(*code))
    assert judge(parse_target(f"{gpu}@580"), [library]).ok
    verdict = judge(parse_target(f"{gpu}@{driver}"), [library])
    assert "drivers after 580.x no longer support" in verdict.reasons[0]


def test_of_drivers_and_ptx_beyond_the_table_nothing_is_claimed(tmp_path: Path) -> None:
    new = read(tmp_path, "x.so", a=container(sass("80", "k"), ptx_entry("80", "k", isa=(9, 6))))
    old = read(tmp_path, "y.so", a=container(sass("80", "k"), ptx_entry("80", "k", isa=(9, 5))))
    assert judge(parse_target("H100@640"), [old]).ok
    assert judge(parse_target("H100@640"), [new]).reasons[0].startswith("unknown: 1 of 1 kernel containers need")
    assert (
        "newer than CUDA 13.5's (the last that wheelsmith knows): x" in judge(parse_target("H100@13.5"), [new]).summary
    )
    assert judge(parse_target("A100@640"), [new]).ok


@pytest.mark.parametrize("compression", [Compression.NONE, Compression.ZSTD, Compression.LZ4])
def test_small_ptx_is_looked_into_for_kernels(tmp_path: Path, compression: Compression) -> None:
    def packed(*kernels: str, body: str = "add.s32 %r, %r, 1;") -> bytes:
        text = ptx("52", *kernels, body=body)
        pack: dict[Compression, Callable[[bytes], bytes]] = {
            Compression.ZSTD: zstandard.compress,
            Compression.LZ4: partial(lz4.block.compress, store_size=False),
        }
        data = pack[compression](text) if compression in pack else text
        return entry(
            Kind.PTX,
            "52",
            data,
            version=(8, 8),
            compression=compression,
            size=len(text) * (data != text),
            header_size=80,
        )

    stub = read(tmp_path, "stub.so", a=container(sass("80", "k"), packed()), b=container(sass("70", "k")))
    nop = read(tmp_path, "nop.so", a=container(sass("80", "k"), packed("k", body="ret;")), b=container(sass("70", "k")))
    real = read(tmp_path, "real.so", a=container(sass("80", "k"), packed("k")), b=container(sass("70", "k")))
    for library in (stub, nop):
        verdict = judge(parse_target("V100@12.8"), [library])
        assert verdict.summary.endswith("OK: 1 native, 0 compatible, 0 JIT, 1 missing")
    assert "1 of 2 kernel containers need a CUDA 12.9 driver" in judge(parse_target("V100@12.8"), [real]).summary


def alternative(tmp_path: Path, name: str, *archs: str, isa: tuple[int, int] = (8, 0)) -> Library:
    code = container(*(sass(arch, "k") for arch in archs), ptx_entry(archs[-1], "k", isa=isa))
    return Library(name, read(tmp_path, name, a=code).code, isa[0] + 4)


def test_of_libraries_per_cuda_version_the_one_that_would_be_loaded_is_judged(tmp_path: Path) -> None:
    group = [
        alternative(tmp_path, "b/lib_cuda118.so", "70", "80", isa=(7, 8)),
        alternative(tmp_path, "b/lib_cuda128.so", "70", "80", "120", isa=(8, 7)),
        alternative(tmp_path, "b/lib_cuda132.so", "80", "120", isa=(9, 2)),
    ]
    for target, member in [
        ("A100@12.4", "lib_cuda118.so"),
        ("RTX 5090@12.8", "lib_cuda128.so"),
        ("RTX 5090@13.2", "lib_cuda132.so"),
        ("V100@13.0", "lib_cuda128.so"),
        ("RTX 5090@640", "lib_cuda132.so"),
    ]:
        verdict = judge(parse_target(target), group)
        assert verdict.ok, verdict.summary
        assert f"({member} of 3)" in verdict.summary
        assert f"b/{member}" not in verdict.alternatives
        assert len(verdict.alternatives) == 2
        assert verdict.native + verdict.compatible + verdict.jit + verdict.missing == 1
    assert not judge(parse_target("B200@12.4"), group).ok


def test_of_libraries_per_gpu_generation_the_nearest_is_judged(tmp_path: Path) -> None:
    group = [alternative(tmp_path, f"k/sm{arch}/ops.so", arch) for arch in ("90", "100")]
    assert judge(parse_target("H100@12.8"), group).alternatives == ["k/sm100/ops.so"]
    assert judge(parse_target("B200@12.8"), group).alternatives == ["k/sm90/ops.so"]
    assert not judge(parse_target("A100@12.8"), group).ok


MARLIN = {"sm80_kernel_half": container(sass("80", "m"), ptx_entry("80", "m", isa=(8, 7)))}
NATIVE = {"sm80_kernel_half": container(sass("80", "m"), sass("120", "m"), sass("90", "m"))}


def test_marlin_moe_that_reaches_12_x_by_jit_is_a_hazard_whatever_the_driver(tmp_path: Path) -> None:
    bad = [read(tmp_path, "vllm/_moe_C.abi3.so", **MARLIN)]
    good = [read(tmp_path, "good/vllm/_moe_C.abi3.so", **NATIVE)]
    for target in ("rtx5090@13.4", "rtx5090", "12.1@13.0", "RTX PRO 6000@640"):
        verdict = judge(parse_target(target), bad)
        assert not verdict.ok
        assert verdict.hazards[0].id == "marlin-moe-jit"
        assert verdict.hazards[0].units == ["sm80_kernel_half.cu"]
        assert "known to compute wrong results" in verdict.summary
        assert "pull/40923" in verdict.summary
        cured = judge(parse_target(target), good)
        assert cured.ok
        assert [item.id for item in cured.hazards] == ["marlin-moe-c-tmp"]
    assert judge(parse_target("H100@12.8"), bad).ok
    assert judge(parse_target("A100@12.8"), bad).hazards == []


def test_the_same_kernels_elsewhere_and_dense_marlin_are_no_hazard(tmp_path: Path) -> None:
    library = read(tmp_path, "vllm/_C.abi3.so", **MARLIN)
    assert judge(parse_target("rtx5090@12.8"), [library]).ok


def test_marlin_repack_ptx_newer_than_the_h100s_driver_is_told_with_its_source(tmp_path: Path) -> None:
    unit = {"gptq_marlin_repack": container(sass("80", "m"), ptx_entry("80", "m"))}
    library = read(tmp_path, "vllm/_C.abi3.so", **unit)
    verdict = judge(parse_target("H100@12.8"), [library])
    assert [item.id for item in verdict.hazards] == ["marlin-repack-jit"]
    assert "pull/38669" in verdict.summary
    assert judge(parse_target("H100@12.9"), [library]).ok
    assert judge(parse_target("A100@12.8"), [library]).ok


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


@pytest.mark.parametrize(
    ("member", "unit", "rule"),
    [
        ("vllm/_C.abi3.so", "activation_kernels", "core-kernels-missing"),
        ("vllm/_C_stable_libtorch.abi3.so", "layernorm_kernels", "core-kernels-missing"),
        ("vllm/_moe_C.abi3.so", "moe_align_sum_kernels", "moe-kernels-missing"),
    ],
)
def test_kernels_that_every_model_calls_must_be_there_though_the_library_has_others(
    tmp_path: Path, member: str, unit: str, rule: str
) -> None:
    """A real wheel for 8.6: Marlin's 8.0 code runs on an A100, nothing else of the library does."""
    marlin = container(sass("80", "m"), ptx_entry("80", "m"))
    library = read(tmp_path, member, **{unit: container(sass("86", "k")), "marlin": marlin})
    for target in ("A100@12.8", "H100@12.8"):
        verdict = judge(parse_target(target), [library])
        assert not verdict.ok
        assert [item.id for item in verdict.hazards] == [rule]
        assert "no code for this GPU" in verdict.summary
    for target in ("A40@12.8", "L40S@12.8"):
        assert judge(parse_target(target), [library]).ok


def test_a_family_for_one_generation_may_be_missing_elsewhere(tmp_path: Path) -> None:
    units = {
        "machete_mm": container(sass("90a", "w")),
        "activation_kernels": container(sass("80", "k"), sass("90", "k")),
    }
    library = read(tmp_path, "vllm/_C.abi3.so", **units)
    assert judge(parse_target("A100@12.8"), [library]).ok
    assert not judge(parse_target("rtx5090@12.8"), [library]).ok
