"""The official vLLM 0.15.1 wheel (509 MB): run with `-m large`.

The wheel is downloaded once into WHEELSMITH_TEST_CACHE (default: the platform's cache directory). cuobjdump is
compared with when it is on PATH, or named in WHEELSMITH_TEST_CUOBJDUMP (several with `:` between).
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import platformdirs
import pytest

from scripts.audit.collect import audit_path, audit_wheel
from scripts.audit.models import Level
from scripts.core.files import file_sha256
from scripts.cuda.archs import parse_arch_list
from scripts.cuda.drivers import parse_target
from scripts.formats.fatbin import read_device_code
from scripts.formats.fatbin_types import Kind
from scripts.slim.wheel import slim_wheel
from tests.support import cpu_seconds

pytestmark = pytest.mark.large

NAME = "vllm-0.15.1-cp38-abi3-manylinux_2_31_x86_64.whl"
SHA256 = "d3810299d331fc1031c8a2a9886f1f0e0cc2f14ddad284d337174324b1c83e92"
CONTENTS = {
    "vllm/_C.abi3.so": (
        107,
        {"52": 1, "70": 30, "75": 43, "80": 53, "89": 38, "90": 38, "90a": 21}
        | {"100": 30, "100a": 17, "120": 35, "120a": 16},
        {"52": 1, "80": 20, "89": 1, "90": 8},
    ),
    "vllm/_moe_C.abi3.so": (33, {"70": 6, "75": 14, "80": 21, "89": 11, "90": 6, "100": 6, "120": 11}, {"80": 15}),
    "vllm/_flashmla_C.abi3.so": (22, {"90a": 22, "100f": 22}, {}),
    "vllm/_flashmla_extension_C.abi3.so": (2, {"90a": 2, "100f": 2}, {}),
    "vllm/vllm_flash_attn/_vllm_fa2_C.abi3.so": (60, {"80": 60}, {"80": 60}),
    "vllm/vllm_flash_attn/_vllm_fa3_C.abi3.so": (222, {"90a": 222}, {}),
    "vllm/cumem_allocator.abi3.so": (0, {}, {}),
}
COVERAGE = {
    "8.0": {"_C": (53, 0, 1, 53), "_moe_C": (21, 0, 0, 12), "_vllm_fa2_C": (60, 0, 0, 0)},
    "8.6": {"_C": (0, 53, 1, 53), "_moe_C": (0, 21, 0, 12), "_vllm_fa2_C": (0, 60, 0, 0)},
    "8.9": {"_C": (38, 20, 1, 48), "_moe_C": (11, 15, 0, 7), "_vllm_fa2_C": (0, 60, 0, 0)},
    "9.0": {
        "_C": (59, 0, 14, 34),
        "_moe_C": (6, 0, 15, 12),
        "_vllm_fa2_C": (0, 0, 60, 0),
        "_vllm_fa3_C": (222, 0, 0, 0),
    },
    "10.0": {"_C": (47, 0, 22, 38), "_moe_C": (6, 0, 15, 12), "_flashmla_C": (22, 0, 0, 0)},
    "10.3": {"_C": (0, 30, 22, 55), "_moe_C": (0, 6, 15, 12), "_flashmla_C": (0, 22, 0, 0)},
    "12.0": {"_C": (51, 0, 22, 34), "_moe_C": (11, 0, 15, 7), "_vllm_fa2_C": (0, 0, 60, 0)},
    "12.1": {"_C": (0, 35, 22, 50), "_moe_C": (0, 11, 15, 7), "_vllm_fa2_C": (0, 0, 60, 0)},
}


def cache() -> Path:
    default = platformdirs.user_cache_dir("wheelsmith-tests", appauthor=False)
    path = Path(os.environ.get("WHEELSMITH_TEST_CACHE", default))
    path.mkdir(parents=True, exist_ok=True)
    return path


@pytest.fixture(scope="module")
def wheel() -> Path:
    path = cache() / NAME
    if not path.exists():
        command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--only-binary", ":all:"]
        subprocess.run([*command, "--dest", str(cache()), "vllm==0.15.1"], check=True)
    assert file_sha256(path) == SHA256
    return path


@pytest.fixture(scope="module")
def unpacked(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("unpacked")
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(folder, [name for name in archive.namelist() if name.endswith(".so")])
    return folder


def cuobjdumps() -> list[str]:
    named = os.environ.get("WHEELSMITH_TEST_CUOBJDUMP", "").split(os.pathsep)
    return [path for path in [*named, shutil.which("cuobjdump")] if path]


@pytest.mark.parametrize("member", CONTENTS)
def test_every_library_holds_the_published_counts(unpacked: Path, member: str) -> None:
    containers, elf, ptx = CONTENTS[member]
    code = read_device_code(unpacked / member)
    assert len(code.containers) == containers
    assert code.count(Kind.ELF) == elf
    assert code.count(Kind.PTX) == ptx
    assert {entry.version for entry in code.entries if entry.kind is Kind.PTX} <= {(8, 8)}
    assert all(container.unit and container.wrapper == 1 for container in code.containers)


@pytest.mark.skipif(not cuobjdumps(), reason="cuobjdump is not installed")
@pytest.mark.parametrize("member", CONTENTS)
@pytest.mark.parametrize("tool", cuobjdumps())
def test_cuobjdump_lists_the_same_entries_in_the_same_order(unpacked: Path, member: str, tool: str) -> None:
    code = read_device_code(unpacked / member)
    for option, kind in (("--list-elf", Kind.ELF), ("--list-ptx", Kind.PTX)):
        done = subprocess.run([tool, option, str(unpacked / member)], check=False, capture_output=True, text=True)
        listed = re.findall(r"\.sm_(\d+[af]?)\.(?:cubin|ptx)", done.stdout)
        # cuobjdump prints no f for cubins.
        assert listed == [entry.label.replace("f", "") for entry in code.entries if entry.kind is kind]


@pytest.mark.parametrize("number", COVERAGE)
def test_each_gpu_gets_at_the_code_as_measured(unpacked: Path, number: str) -> None:
    verdict = audit_path(unpacked, [parse_target(number)]).targets[0]
    for stem, expected in COVERAGE[number].items():
        item = next(item for member, item in verdict.components.items() if member.split("/")[-1] == f"{stem}.abi3.so")
        assert (item.native, item.compatible, item.jit, item.missing) == expected


def test_the_three_verdicts(wheel: Path) -> None:
    started = cpu_seconds()
    report = audit_wheel(wheel, [parse_target(text) for text in ("rtx5090@12.8", "rtx5090@12.9", "A40@12.0")])
    assert cpu_seconds() - started < 30
    assert [item.ok for item in report.targets] == [False, False, True]
    assert [item.id for item in report.targets[1].hazards] == ["marlin-moe-jit", "marlin-moe-c-tmp"]
    assert report.targets[1].reasons[0].startswith("Marlin MoE reaches this GPU only as 8.0 PTX")
    assert (report.targets[0].jit, report.targets[0].native) == (97, 62)
    assert report.targets[0].summary.startswith(
        "RTX 5090 with a CUDA 12.8 driver (570.x): NOT OK: 97 of 159 kernel containers need a CUDA 12.9 driver: "
        "FlashAttention 2 (all 60), Marlin (33)"
    )
    assert [item.code for item in report.findings if item.level is not Level.NOTE] == ["tags-differ"]
    assert any("machete_pytorch (no kernels inside)" in item.text for item in report.findings)


MEASURED = """
import re, sys
from scripts.commands import audit
from scripts.core.console import Console
audit.main(sys.argv[1:], Console())
# Not getrusage: its ru_maxrss starts with what the process that started this one had.
print(re.search(r"VmHWM:\\s+(\\d+)", open("/proc/self/status").read())[1])
"""


def test_an_unpacked_wheel_takes_under_2_seconds_and_100_mb(unpacked: Path) -> None:
    command = [sys.executable, "-c", MEASURED, str(unpacked), "--target", "H100@12.9"]
    started = cpu_seconds()
    done = subprocess.run(command, check=True, capture_output=True, text=True, cwd=Path(__file__).parents[3])
    assert cpu_seconds() - started < 2
    assert int(done.stdout.split()[-1]) * 1024 < 100_000_000


@pytest.mark.parametrize(("arch", "limit", "target"), [("8.6", 130, "A40@12.0"), ("9.0", 257, "H100@12.9")])
def test_slim_wheels_are_small_quick_and_keep_their_verdict(
    wheel: Path, tmp_path: Path, arch: str, limit: int, target: str
) -> None:
    started = cpu_seconds()
    slim = slim_wheel(wheel, parse_arch_list(arch), tmp_path)
    assert cpu_seconds() - started < 60
    assert slim.stat().st_size <= limit * 1_000_000
    before = audit_wheel(wheel, [parse_target(target)])
    after = audit_wheel(slim, [parse_target(target)])
    assert after.targets[0].summary == before.targets[0].summary
    assert [item.code for item in after.findings if item.level is Level.ERROR] == []
