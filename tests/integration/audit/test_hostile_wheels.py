from __future__ import annotations

import random
import sys
import time
from pathlib import Path

import pytest

from scripts.audit.collect import audit_wheel
from scripts.core.errors import AuditError, UsageError
from scripts.cuda.drivers import parse_target
from scripts.formats.elf import Elf
from scripts.slim.wheel import slim_wheel
from tests.bounded import MEGABYTES, SECONDS, pace, peak_megabytes, run_bounded
from tests.hostile import ELVES, damaged, hostile_wheel, odd_metadata, wheel_of

LARGE = 3_000_000  # bytes of table: what took minutes and gigabytes before there were bounds
TARGETS = [parse_target(text) for text in ("H100@12.8", "RTX 5090", "V100@640")]


@pytest.mark.parametrize("name", ELVES)
@pytest.mark.parametrize(
    "seed", [0, pytest.param(1, marks=pytest.mark.large), pytest.param(2, marks=pytest.mark.large)]
)
def test_a_large_hostile_file_in_a_wheel_is_audited_or_refused_within_the_bounds(
    tmp_path: Path, name: str, seed: int
) -> None:
    data = ELVES[name](random.Random(seed), LARGE)
    run_bounded("scripts.commands.audit", wheel_of(tmp_path, {"vllm/_moe_C.abi3.so": data})).check()


_MIB = 1 << 20
LATER = {"record-one-line", "metadata-one-line", "tag-lines", "metadata-description"}  # their like is in the others
GIANTS: dict[str, tuple[str, bytes, bytes, int]] = {  # file, its start, what is repeated, how often
    "record-rows": ("record", b"", b"a,,\n", 16 * _MIB),
    "record-one-line": ("record", b"", b"a", 64 * _MIB),
    "metadata-headers": ("metadata", b"", b"a:b\n", 16 * _MIB),
    "metadata-one-line": ("metadata", b"Name: ", b"a", 63 * _MIB),
    "metadata-description": ("metadata", b"Name: vllm\nVersion: 0.15.1\n\n", b"a b\n", 16 * _MIB),
    "tag-lines": ("wheel", b"", b"Tag: py3-none-any\n", 4 * _MIB),
    "tag-product": (
        "wheel",
        ("Tag: " + "-".join(".".join(f"{letter}{i}" for i in range(400)) for letter in "pam")).encode(),
        b"\n",
        1,
    ),
}


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=pytest.mark.large) if name in LATER else name for name in GIANTS]
)
def test_giant_metadata_is_read_as_a_stream_or_refused(tmp_path: Path, name: str) -> None:
    file, start, row, count = GIANTS[name]
    path = wheel_of(tmp_path, {}, **{file: start + row * count})  # type: ignore[arg-type]
    assert path.stat().st_size < 1_000_000
    run_bounded("scripts.commands.audit", path, "--target", "H100@12.8").check()


@pytest.mark.parametrize(
    "name", ["shared_names", *(pytest.param(name, marks=pytest.mark.large) for name in sorted(ELVES))]
)
def test_slimming_a_hostile_file_stays_within_the_bounds(tmp_path: Path, name: str) -> None:
    path = wheel_of(tmp_path, {"vllm/_C.abi3.so": ELVES[name](random.Random(1), LARGE)})
    run_bounded("scripts.commands.slim", path, "--arch", "9.0", "--out", tmp_path / "out").check()
    assert list((tmp_path / "out").glob("*.whl")) == []


def test_many_small_members_and_a_file_name_of_many_tags_stay_within_the_bounds(tmp_path: Path) -> None:
    members = {f"vllm/{index}.cubin": b"\x7fELF\x02\x01" for index in range(8_000)}
    run_bounded("scripts.commands.audit", wheel_of(tmp_path, members, record=b""), "--target", "H100@12.8").check()
    many = ".".join(f"p{i}" for i in range(20))
    run_bounded("scripts.commands.audit", wheel_of(tmp_path, {}, name=f"vllm-0.15.1-{many}-{many}-{many}.whl")).check()


def attempt(folder: Path, seed: int) -> str:
    """Audit, and sometimes slim, a hostile wheel; return what came of it. Anything but a refusal is a defect."""
    rng = random.Random(seed)
    path = hostile_wheel(folder, rng, rng.choices([0, 24, 200, 1_000, 8_000], [20, 30, 35, 14, 1])[0])
    try:
        report = audit_wheel(path, TARGETS)
        report.model_dump_json()
        if rng.random() < 0.2:
            slim_wheel(path, [TARGETS[0].arch], folder / "out")
    except (AuditError, UsageError) as error:
        return type(error).__name__
    finally:
        path.unlink()
    return "report"


def fuzz(folder: Path, seeds: range) -> None:
    """Try many seeds; say which one failed, took long or took memory."""
    seen: set[str] = set()
    allowed = SECONDS * pace()
    for seed in seeds:
        started = time.process_time()
        try:
            seen.add(attempt(folder, seed))
        except Exception as error:
            raise AssertionError(f"seed {seed}: {type(error).__name__}: {error}") from error
        assert time.process_time() - started < allowed, f"seed {seed} took too long"
    peak = peak_megabytes()
    assert peak < MEGABYTES, f"{peak:.0f} MB after seeds {seeds}"
    assert {"report", "AuditError"} <= seen


def test_structured_hostile_wheels_give_a_report_or_a_refusal(tmp_path: Path) -> None:
    run = run_bounded("tests.integration.audit.test_hostile_wheels", tmp_path, 0, 300)
    assert run.code == 0, run.text[-2000:]


@pytest.mark.large
@pytest.mark.parametrize("part", range(100))
def test_a_hundred_thousand_structured_hostile_wheels(tmp_path: Path, part: int) -> None:
    run = run_bounded("tests.integration.audit.test_hostile_wheels", tmp_path, 1_000 * (part + 1), 1_000 * (part + 2))
    assert run.code == 0, run.text[-2000:]


@pytest.mark.parametrize("name", ELVES)
def test_damaged_structures_are_read_or_refused_in_memory_too(name: str) -> None:
    for seed in range(40):
        rng = random.Random(seed)
        try:
            Elf(damaged(ELVES[name](rng, 2_000), rng), "x.so")
        except AuditError:
            continue


def test_odd_metadata_covers_every_file() -> None:
    assert {key for seed in range(200) for key in odd_metadata(random.Random(seed), 100)} == {
        "record",
        "metadata",
        "wheel",
    }


if __name__ == "__main__":
    fuzz(Path(sys.argv[1]), range(int(sys.argv[2]), int(sys.argv[3])))
