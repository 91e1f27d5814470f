"""What the audit found, baked into the image, held against GPUs: a libcuda of our own stands in for cards."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from runtime.image import gpu
from scripts.audit.collect import audit_wheel
from scripts.core.paths import ROOT
from scripts.image.gpus import NO_HAZARDS, gpu_table, gpu_targets, hazard_label
from tests.fatbins import container, ptx_entry, sass, shared_object
from tests.wheels import make_wheel

ENTRY = ROOT / "runtime" / "image" / "entrypoint.sh"
_LIBCUDA = """
#include <string.h>
int cuInit(int flags) {{ return {init}; }}
int cuDriverGetVersion(int *version) {{ *version = {driver}; return 0; }}
int cuDeviceGetCount(int *count) {{ *count = {count}; return 0; }}
int cuDeviceGet(int *device, int index) {{ *device = index; return 0; }}
int cuDeviceGetName(char *name, int size, int device) {{ strncpy(name, "{name}", size); return 0; }}
int cuDeviceGetAttribute(int *value, int attribute, int device) {{
    *value = attribute == 75 ? {major} : attribute == 76 ? {minor} : -1; return 0;
}}
"""


def libcuda(folder: Path, **changes: Any) -> Path:
    """Compile a driver with the GPUs that are asked for; return its folder."""
    folder.mkdir(exist_ok=True)
    values = {"init": 0, "driver": 13000, "count": 1, "name": "NVIDIA GeForce RTX 5090", "major": 12, "minor": 0}
    (folder / "cuda.c").write_text(_LIBCUDA.format(**{**values, **changes}))
    subprocess.run(["gcc", "-shared", "-fPIC", "-o", folder / "libcuda.so.1", folder / "cuda.c"], check=True)
    return folder


@pytest.fixture(scope="module")
def table(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """A wheel whose Marlin MoE and repack are 8.0 code and PTX of CUDA 12.9, as upstream's are."""
    folder = tmp_path_factory.mktemp("wheel")
    old = [sass("80", "k"), sass("86", "k"), sass("90", "k"), sass("120", "k")]
    units = {
        "_moe_C": {"sm80_kernel_half.cu": container(sass("80", "m"), ptx_entry("80", "m")), "moe": container(*old)},
        "_C": {"gptq_marlin_repack": container(sass("80", "m"), ptx_entry("80", "m")), "core": container(*old)},
    }
    files = {
        f"vllm/{name}.abi3.so": shared_object(folder / f"{name}.so", items).read_bytes()
        for name, items in units.items()
    }
    wheel = make_wheel(folder, files, version="0.15.1+cu129")
    verdicts = audit_wheel(wheel, lambda subject: list(gpu_targets(subject))).targets
    return gpu_table(wheel.name, verdicts, version="0.15.1+cu129", torch="2.9.1", cuda="12.9", driver="575.51.03")


@pytest.fixture
def image(tmp_path: Path, table: dict[str, Any]) -> Path:
    """The folder /opt/wheelsmith as an image has it, and a `vllm` and worker that only say that they were started."""
    folder = tmp_path / "opt"
    shutil.copytree(ROOT / "runtime" / "image", folder)
    (folder / "gpus.json").write_text(json.dumps(table))
    program = tmp_path / "bin" / "vllm"
    program.parent.mkdir()
    program.write_text('#!/bin/sh\necho "started vllm $*, check $WHEELSMITH_GPU_CHECK"\n')
    program.chmod(0o755)
    (tmp_path / "bin" / "python3").symlink_to(sys.executable)
    return folder


def enter(image: Path, *words: str, cuda: Path | None = None, **variables: str) -> subprocess.CompletedProcess[str]:
    cache = str(image.parent / "cache")
    names = ("HF_HOME", "VLLM_CACHE_ROOT", "VLLM_CONFIG_ROOT", "TRITON_CACHE_DIR", "TORCHINDUCTOR_CACHE_DIR")
    environment = dict.fromkeys(names, cache) | {"PATH": f"{image.parent}/bin:/usr/bin:/bin", "HOME": cache}
    if cuda:
        environment["LD_LIBRARY_PATH"] = str(cuda)
    words = (str(image / "entrypoint.sh"), *words)
    return subprocess.run(words, env=environment | variables, capture_output=True, text=True, check=False)


SERVE = ("vllm", "serve", "openai/gpt-oss-20b")


def test_the_table_says_for_every_gpu_what_the_audit_says(table: dict[str, Any]) -> None:
    gpus = table["gpus"]
    assert gpus["8.0"] == {"ok": True, "cuda": "12.0", "driver": "525.60.13", "why": "", "hazards": []}
    assert [(row["id"], row["level"], row["below_cuda"]) for row in gpus["12.0"]["hazards"]] == [
        ("marlin-moe-jit", "error", ""),
        ("marlin-moe-c-tmp", "warning", ""),
    ]
    assert [(row["id"], row["below_cuda"]) for row in gpus["9.0"]["hazards"]] == [("marlin-repack-jit", "12.9")]
    assert not gpus["7.5"]["ok"]
    assert "marlin-moe-jit: 12.0, 12.1" in hazard_label(table)
    assert "marlin-repack-jit: 9.0 below CUDA 12.9" in hazard_label(table)
    assert hazard_label({"gpus": {"8.0": gpus["8.0"]}}) == NO_HAZARDS


@pytest.mark.skipif(gpu.find_gpus().trouble == "", reason="there is a GPU here")
@pytest.mark.parametrize("words", [SERVE, ("python3", "-m", "worker.handler")])
def test_without_a_gpu_the_entry_point_says_so_in_two_lines_and_stops(image: Path, words: tuple[str, ...]) -> None:
    done = enter(image, *words)
    assert done.returncode == 11
    first, second = done.stderr.splitlines()
    assert "no NVIDIA" in first
    assert "--gpus all" in first
    assert "CUDA 12.9 (575.51.03)" in second
    assert done.stdout == ""


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"count": 0}, "sees no NVIDIA GPU"),
        ({"init": 100}, "sees no NVIDIA GPU"),
        ({"init": 803}, "the NVIDIA driver answers error 803"),
    ],
)
def test_a_driver_without_gpus_or_one_that_fails_is_named(
    image: Path, tmp_path: Path, changes: dict[str, int], words: str
) -> None:
    done = enter(image, *SERVE, cuda=libcuda(tmp_path / "cuda", **changes))
    assert done.returncode == 11
    assert words in done.stderr
    assert len(done.stderr.splitlines()) == 2


def test_a_gpu_that_would_run_a_hazard_stops_unless_it_is_accepted(image: Path, tmp_path: Path) -> None:
    cuda = libcuda(tmp_path / "cuda")
    for words in (SERVE, ("python3", "-m", "worker.handler")):
        done = enter(image, *words, cuda=cuda)
        assert done.returncode == 11
        assert "error: NVIDIA GeForce RTX 5090 (compute capability 12.0): Marlin MoE" in done.stderr
        assert "pull/40923" in done.stderr
        assert "WHEELSMITH_ACCEPT_HAZARDS=marlin-moe-jit" in done.stderr
    other = enter(image, *SERVE, cuda=cuda, WHEELSMITH_ACCEPT_HAZARDS="another")
    assert other.returncode == 11
    for accepted in ("marlin-moe-jit", "x, marlin-moe-jit", "all"):
        done = enter(image, *SERVE, cuda=cuda, WHEELSMITH_ACCEPT_HAZARDS=accepted)
        assert done.stdout == "started vllm serve openai/gpt-oss-20b, check 0\n"
        assert "warning: NVIDIA GeForce RTX 5090 (compute capability 12.0): Marlin MoE" in done.stderr
    unlooked = enter(image, *SERVE, cuda=cuda, WHEELSMITH_GPU_CHECK="0")
    assert (unlooked.returncode, unlooked.stderr) == (0, "")


@pytest.mark.parametrize(
    ("changes", "code", "words"),
    [
        ({"name": "H100", "major": 9, "driver": 12080}, 11, "newer than this driver"),
        ({"name": "H100", "major": 9, "driver": 12080}, 11, "need one for 12.9 here"),
        ({"name": "H100", "major": 9, "driver": 12090}, 0, ""),
        ({"name": "T4", "major": 7, "minor": 5}, 11, "does not run on 7.5"),
        ({"name": "A100", "major": 8}, 0, ""),
        ({"name": "X", "major": 99}, 0, "was not known when this image was built"),
        ({"name": "A100", "major": 8, "count": 8}, 0, ""),
    ],
)
def test_each_gpu_and_driver_gets_the_audits_word(
    image: Path, tmp_path: Path, changes: dict[str, Any], code: int, words: str
) -> None:
    done = enter(image, *SERVE, cuda=libcuda(tmp_path / "cuda", **changes))
    assert done.returncode == code
    assert words in done.stderr
    assert bool(done.stderr) is bool(words)


def test_version_needs_neither_gpu_nor_caches_and_help_no_gpu(image: Path, tmp_path: Path) -> None:
    done = enter(image, "vllm", "serve", "--version", HF_HOME="/proc/nowhere")
    assert done.returncode == 0
    assert done.stdout.splitlines()[:2] == ["vLLM 0.15.1+cu129", "torch 2.9.1"]
    site = tmp_path / "site" / "vllm"
    for folder in (site / "platforms", site / "entrypoints" / "cli"):
        folder.mkdir(parents=True)
    (site / "platforms" / "__init__.py").write_text("_current_platform = None\n")
    (site / "platforms" / "cuda.py").write_text("class NonNvmlCudaPlatform: pass\n")
    (site / "platforms" / "interface.py").write_text("DeviceCapability = tuple\n")
    (site / "entrypoints" / "cli" / "main.py").write_text(
        "import sys\nfrom vllm import platforms\n"
        "def main(): print(type(platforms._current_platform).__mro__[1].__name__, sys.argv)\n"
    )
    done = enter(image, "vllm", "serve", "--help", PYTHONPATH=str(site.parent))
    assert done.stdout == "NonNvmlCudaPlatform ['vllm', 'serve', '--help']\n"
    with_gpu = enter(image, "vllm", "serve", "--help", cuda=libcuda(tmp_path / "cuda"))
    assert with_gpu.stdout == "started vllm serve --help, check \n"


def test_somebodys_own_command_is_not_checked(image: Path) -> None:
    assert enter(image, "sh", "-c", "echo mine --help").stdout == "mine --help\n"


def test_the_worker_checks_itself_where_the_entry_point_was_left_out(image: Path, tmp_path: Path) -> None:
    shutil.copytree(ROOT / "runtime" / "worker", image / "worker")
    cuda = libcuda(tmp_path / "cuda")
    environment = {**os.environ, "PYTHONPATH": str(image), "LD_LIBRARY_PATH": str(cuda)}
    words = [sys.executable, "-m", "worker.handler"]
    done = subprocess.run(words, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 11
    assert "pull/40923" in done.stderr
    shown = subprocess.run([*words, "--help"], env=environment, capture_output=True, text=True, check=False)
    assert "MODEL_REVISION" in shown.stdout
    assert shown.returncode == 0


def test_a_machine_with_two_kinds_of_gpus_is_told_about_each_once(
    image: Path,
    tmp_path: Path,
    table: dict[str, Any],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    old = libcuda(tmp_path / "old", name="T4", major=7, minor=5, count=2, driver=12040)
    found = gpu.find_gpus(str(old / "libcuda.so.1"))
    assert found == gpu.Found((gpu.Gpu("T4", "7.5"), gpu.Gpu("T4", "7.5")), "12.4", "")
    both = gpu.Found((*found.gpus, gpu.Gpu("A100", "8.0"), gpu.Gpu("New", "99.0")), "13.0", "")
    lines, stop = gpu.judge(table, both, ["no-code"])
    assert not stop
    assert [line.split(":")[0] for line in lines] == ["warning", "  fix", "warning"]
    monkeypatch.setattr(gpu, "TABLE", image / "gpus.json")
    for answer, arguments, code in (
        (found, [], gpu.STOP),
        (both._replace(trouble="no GPU"), [], gpu.STOP),
        (both, ["--quiet"], 0),
        (both._replace(trouble="no GPU"), ["--quiet"], gpu.STOP),
    ):
        monkeypatch.setattr(gpu, "find_gpus", lambda answer=answer: answer)
        assert gpu.main(arguments) == code
    assert gpu.main(["--version"]) == 0
    assert "vLLM 0.15.1+cu129" in capsys.readouterr().out
