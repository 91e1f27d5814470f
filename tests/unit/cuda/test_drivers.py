from __future__ import annotations

from itertools import pairwise

import pytest

from scripts.core.errors import UsageError
from scripts.cuda.archs import TABLE, Arch, parse_arch
from scripts.cuda.drivers import RELEASES, default_targets, floor, numbers, parse_target, release, release_for_ptx
from scripts.cuda.nvml import LocalGpu


def test_releases_rise_in_cuda_driver_and_ptx_together() -> None:
    for older, newer in pairwise(RELEASES):
        assert numbers(older.cuda) < numbers(newer.cuda)
        assert not newer.driver or numbers(older.driver) < numbers(newer.driver)
        assert numbers(older.ptx) <= numbers(newer.ptx)


def test_every_arch_of_the_table_has_a_release_for_its_first_cuda() -> None:
    assert all(release(row.first_cuda).driver for row in TABLE)


@pytest.mark.parametrize(
    ("ptx", "cuda"),
    [((9, 4), "13.4"), ((9, 5), "13.5"), ((8, 8), "12.9"), ((8, 7), "12.8"), ((9, 0), "13.0"), ((8, 5), "12.5")],
)
def test_a_ptx_version_names_the_first_cuda_whose_driver_compiles_it(ptx: tuple[int, int], cuda: str) -> None:
    assert release_for_ptx(ptx).cuda == cuda


def test_ptx_newer_than_the_table_is_put_in_a_cuda_of_its_line_without_a_driver() -> None:
    assert (release_for_ptx((9, 7)).cuda, release_for_ptx((9, 7)).driver) == ("13.7", "")


@pytest.mark.parametrize(
    ("arch", "major", "driver"),
    [("8.0", 12, "525.60.13"), ("9.0", 13, "580.65.06"), ("12.0", 12, "570.26"), ("10.3", 12, "575.51.03")],
)
def test_sass_needs_the_driver_of_its_cuda_major_or_of_the_gpus_first_cuda(arch: str, major: int, driver: str) -> None:
    assert floor(parse_arch(arch), major).driver == driver


@pytest.mark.parametrize(
    ("text", "gpu", "number", "cuda"),
    [
        ("rtx5090@12.8", "RTX 5090", "12.0", "12.8"),
        ("NVIDIA GeForce RTX 5090", "RTX 5090", "12.0", ""),
        ("sm_90@570.86.10", "GPU 9.0", "9.0", "12.8"),
        ("a40@525", "A40", "8.6", "12.0"),
        ("H100@535.104.05", "H100", "9.0", "12.2"),
        ("L4@999", "L4", "8.9", ""),
        ("11.0@610", "GPU 11.0", "11.0", "13.3"),
        ("NVIDIA A100-SXM4-80GB@13.5", "A100", "8.0", "13.5"),
    ],
)
def test_targets_take_gpus_by_name_or_number_and_drivers_by_cuda_or_own_version(
    text: str, gpu: str, number: str, cuda: str
) -> None:
    target = parse_target(text)
    assert (target.gpu, target.arch.number, target.cuda) == (gpu, number, cuda)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("rtx5090@12.8", "RTX 5090 with a CUDA 12.8 driver (570.x)"),
        ("A40@570.86.10", "A40 with driver 570.86.10 (CUDA 12.8)"),
        ("A40@14.0", "A40 with a CUDA 14.0 driver"),
        ("A40@700.1", "A40 with driver 700.1 (newer than CUDA 13.4's, the last known)"),
        ("A40", "A40"),
    ],
)
def test_targets_read_as_words(text: str, words: str) -> None:
    assert str(parse_target(text)) == words
    assert parse_target(text).label == text.replace("rtx5090", "RTX 5090")


@pytest.mark.parametrize(
    ("text", "part"),
    [
        ("9.0a", "is not a GPU"),
        ("8.0+PTX", "is not a GPU"),
        ("RTX 5091", "Perhaps you meant"),
        ("A40@new", "'new' is not a driver"),
        ("A40@12", "has no minor version"),
        ("A40@304.1", "older than CUDA 6.5"),
        ("h100@", "names no driver behind the @"),
        ("H100@99.9", "there is no CUDA 99.9"),
        ("H100@12.10", "there is no CUDA 12.10"),
    ],
)
def test_what_is_no_target_is_refused_with_a_reason(text: str, part: str) -> None:
    with pytest.raises(UsageError) as caught:
        parse_target(text)
    assert part in caught.value.what


def test_default_targets_are_one_gpu_per_arch_at_the_recipes_cuda() -> None:
    targets = default_targets([parse_arch("9.0"), parse_arch("9.0a"), parse_arch("12.0+PTX")], "12.8")
    assert [(t.gpu, t.arch, t.driver) for t in targets] == [
        ("H100", Arch(9, 0), "12.8"),
        ("RTX 5090", Arch(12, 0), "12.8"),
    ]


def test_a_driver_newer_than_the_table_is_said_to_be_so_and_not_put_in_the_last_row() -> None:
    for text in ("L4@999", "L4@13.6", "L4@14.0"):
        assert parse_target(text).newer
        assert parse_target(text).branch > 580
    assert not parse_target("L4@13.5").newer
    assert not parse_target("L4").newer
    assert "the last that wheelsmith knows" in str(release_for_ptx((9, 6)))
    assert str(release_for_ptx((8, 8))) == "a CUDA 12.9 driver (575.51.03)"


def test_default_targets_take_the_first_driver_that_knows_the_gpu() -> None:
    assert [item.label for item in default_targets([parse_arch("8.0"), parse_arch("12.0")], "12.4")] == [
        "A100@12.4",
        "RTX 5090@12.8",
    ]


def test_a_major_version_alone_means_its_first_release() -> None:
    for major in ("12", "13"):
        assert default_targets([parse_arch("9.0")], major) == default_targets([parse_arch("9.0")], f"{major}.0")


def test_a_native_target_is_the_gpu_here_with_its_driver(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        "scripts.cuda.drivers.local_gpus", lambda: (LocalGpu("NVIDIA H100 80GB HBM3", "9.0", "580.159.04"),)
    )
    assert parse_target("native").label == "H100@580.159.04"
    assert parse_target("native@12.8").label == "H100@12.8"
    monkeypatch.setattr(
        "scripts.cuda.drivers.local_gpus", lambda: (LocalGpu("NVIDIA Graphics Device", "12.0", "615.1"),)
    )
    assert parse_target("native").label == "NVIDIA Graphics Device@615.1"
