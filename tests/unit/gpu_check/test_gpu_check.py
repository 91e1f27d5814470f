from __future__ import annotations

import ast
import json
import os
import re
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from scripts.commands import gpu_check
from scripts.core.console import Console
from scripts.core.errors import GpuError, NoGpuError, UsageError
from scripts.core.paths import ROOT
from scripts.gpu_check import families
from scripts.gpu_check.compare import compare_digests, disagreements
from scripts.gpu_check.families import FAMILIES, Kernels, Place, check_families, operator_table, run_lines
from scripts.gpu_check.parts import find_python, gpu_driver
from tests.fake_gpu import install
from tests.fatbins import container, ptx_entry, sass, shared_object
from tests.support import wait_for
from tests.wheels import make_wheel

REFUSAL = "if not (FA2_AVAILABLE or FA3_AVAILABLE):\n    raise ImportError('no')\n"
GOOD: dict[str, Any] = {"ok": True, "judged": {"tokens": 8, "wrong": 0, "largest_gap": 0.0}}
RUNS = ("llama eager", "llama graphs", "llama serve", "gpt-oss eager", "gpt-oss graphs", "gpt-oss float32")


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("wheel")
    code = {
        "a.cu": container(sass("90", "a"), sass("120", "a")),
        "b.cu": container(sass("80", "b"), ptx_entry("80", "b")),
    }
    library = shared_object(folder / "_C.abi3.so", code).read_bytes()
    members = {"vllm/_C.abi3.so": library, "vllm/vllm_flash_attn/__init__.py": REFUSAL.encode()}
    return make_wheel(folder, members, version="0.20.1+cu130", stated_tags="cp38-abi3-linux_x86_64")


def alive(number: int) -> bool:
    """Return whether a process runs; one that waits for its parent does not."""
    try:
        return "\nState:\tZ" not in Path(f"/proc/{number}/status").read_text()
    except OSError:
        return False


def plan(**changes: Any) -> dict[str, Any]:
    speed = {"rows": [{"operator": "rms", "us": 1.0, "against": "torch's", "torch_us": 2.0, "ok": True}], "ok": True}
    return {
        "families": {"norm": {"a": "ok", "b": "jit"}},
        "engine": dict.fromkeys(RUNS, GOOD),
        "speed": speed,
        **changes,
    }


def check(
    folder: Path, wheel: Path, monkeypatch: pytest.MonkeyPatch, told: dict[str, Any], *words: str
) -> tuple[dict[str, Any], GpuError | None]:
    python = install(folder, told)
    monkeypatch.setenv("PATH", f"{folder}{os.pathsep}{os.environ['PATH']}")
    report = folder / "check.json"
    failure = None
    try:
        assert gpu_check.main([str(wheel), "--json", str(report), "--python", str(python), *words], Console()) == 0
    except GpuError as error:
        failure = error
    return json.loads(report.read_text()), failure


def test_every_part_of_a_good_wheel(tmp_path: Path, wheel: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen, failure = check(tmp_path, wheel, monkeypatch, plan(attention=0), "--seed", "3")
    assert failure is None, failure
    assert seen["ok"] is True
    assert seen["finished"] is True
    assert seen["seed"] == 3
    assert seen["machine"]["driver"] == "580.1"
    states = {row["operator"]: (row["state"], row.get("image")) for row in seen["operators"]}
    assert states == {"_C::a": ("ok", "SASS"), "_C::b": ("ok", "JIT"), "_C::extra": ("not covered", None)}
    assert seen["checks"]["b"]["without_jit"] == "CUDA error: no kernel image"
    assert set(seen["engine"]) == set(RUNS)
    assert seen["audit"]["agrees"] is True
    assert seen["audit"]["target"] == "9.0@580.1"
    assert sorted(seen["slim"]["equal"]) == ["a", "b"]


def test_what_is_wrong_is_told_and_nothing_is_lost(
    tmp_path: Path, wheel: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    checks = {"a": "wrong", "c": "crash", "d": "lost", "e": "ok", "o": "other", "h": "hang", "z": "ok"}
    speed = {"rows": [{"operator": "rms", "us": 9.0, "against": "torch's", "torch_us": 2.0, "ok": False}], "ok": False}
    bad = {"ok": False, "judged": {"tokens": 8, "wrong": 3, "largest_gap": 2.0}}
    engine = {**dict.fromkeys(RUNS, GOOD), "llama eager": bad}
    del engine["llama serve"]
    told = plan(families={"norm": checks}, speed=speed, engine=engine, libraries={"_C.abi3.so": "no libfoo"})
    words = ("--family", "norm", "--limit", "4", "--part", "kernels", "--part", "speed", "--part", "engine")
    seen, failure = check(tmp_path, wheel, monkeypatch, told, *words)
    assert failure is not None
    assert failure.exit_code == 12
    states = {row["operator"]: row["state"] for row in seen["operators"]}
    assert states == {
        "_C::a": "wrong", "_C::c": "crashed", "_C::d": "error", "_C::e": "ok", "_C::h": "crashed", "_C::z": "error",
        "_C::o": "other arch", "_C::extra": "not covered",
    }  # fmt: skip
    problems = "\n".join(seen["problems"])
    for part in (
        "_C.abi3.so does not load: no libfoo", "_C::a: wrong", "ran longer than", "_C::z: error not run: 4 s",
        "rms takes 9.0 us",
        "3 of 8 tokens differ", "llama serve: ended with 1: RuntimeError: engine died", "loads no model: ImportError",
    ):  # fmt: skip
        assert part in problems
    assert seen["engine_changed"]
    assert seen["ok"] is False


def test_a_worker_that_cannot_start_and_no_speed(tmp_path: Path, wheel: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    told = plan(broken=True, speed=None)
    words = ("--family", "norm", "--part", "kernels", "--part", "speed", "--part", "audit", "--part", "slim")
    seen, failure = check(tmp_path, wheel, monkeypatch, told, *words)
    problems = "\n".join(seen["problems"])
    assert failure is not None
    assert "norm: the process ended with 1: no libcudart" in problems
    assert "no operator was found right" in problems
    assert "speed: the process ended with 1" in problems
    assert problems.count("needs the kernels part") == 2


def test_quick_leaves_out_speed_and_slim(tmp_path: Path, wheel: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen, _ = check(tmp_path, wheel, monkeypatch, plan(attention=0, smi="exit 9"), "--quick")
    assert list(seen["seconds"]) == ["kernels", "engine", "audit"]
    assert list(seen["engine"]) == ["llama eager"]
    assert seen["audit"]["target"] == "9.0"


def test_a_wheel_without_the_engine_s_library(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    wheel = make_wheel(tmp_path, {"vllm/__init__.py": b""})
    seen, _ = check(tmp_path, wheel, monkeypatch, plan(), "--part", "engine")
    assert "no _C" in seen["engine_not_covered"]


def test_the_engine_runs_where_its_library_is_of_the_stable_abi(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    wheel = make_wheel(tmp_path, {"vllm/_C_stable_libtorch.abi3.so": b""})
    seen, _ = check(tmp_path, wheel, monkeypatch, plan(), "--part", "engine", "--quick")
    assert list(seen["engine"]) == ["llama eager"]
    assert "engine_not_covered" not in seen


def test_a_slim_wheel_that_gives_other_bytes_is_told(
    tmp_path: Path, wheel: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    told = plan(families={"norm": {"a": "differs", "m": "moving", "w": "ok"}})
    words = ("--family", "norm", "--part", "kernels", "--part", "slim")
    seen, failure = check(tmp_path, wheel, monkeypatch, told, *words)
    assert failure is not None
    assert (seen["slim"]["equal"], seen["slim"]["different"], seen["slim"]["not_comparable"]) == (["w"], ["a"], ["m"])


def test_slim_that_cannot_is_told(tmp_path: Path, wheel: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    words = ("--family", "norm", "--part", "kernels", "--part", "slim")
    seen, _ = check(tmp_path, wheel, monkeypatch, plan(capability="7.0"), *words)
    assert any("slim ended with" in problem for problem in seen["problems"])


@pytest.mark.parametrize(
    ("told", "what"),
    [({"torch": 1}, "does not import torch"), ({"gpu": 1, "driver_says": "RuntimeError: no driver"}, "no usable GPU")],
)
def test_without_gpu_or_torch_the_command_line_ends_with_13(
    tmp_path: Path, wheel: Path, told: dict[str, Any], what: str
) -> None:
    python = install(tmp_path, told)
    report = tmp_path / "check.json"
    command: list[str | Path] = [
        sys.executable,
        "-m",
        "scripts.commands.gpu_check",
        wheel,
        "--python",
        python,
        "--json",
        report,
    ]
    ended = subprocess.run(command, check=False, cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert ended.returncode == 13
    assert what in ended.stderr
    assert not report.exists()


def test_here_without_anything_it_ends_with_13(wheel: Path) -> None:
    """No stand-in: this machine has no GPU, or the test would be another one."""
    if Path("/dev/nvidiactl").exists():
        pytest.skip("a GPU is here")
    command: list[str | Path] = [sys.executable, "-m", "scripts.commands.gpu_check", wheel]
    ended = subprocess.run(command, check=False, cwd=ROOT, capture_output=True, text=True, timeout=100)
    assert ended.returncode == 13
    assert "nothing was checked" in ended.stderr


def test_a_python_with_torch_is_found_on_the_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    python = install(tmp_path, {"gpu": 1})
    monkeypatch.setattr("scripts.gpu_check.parts.sys", SimpleNamespace(executable="/bin/false", prefix=sys.prefix))
    assert find_python(None, f"{tmp_path}{os.pathsep}/bin") == python
    with pytest.raises(NoGpuError, match="no usable GPU") as caught:
        gpu_driver(python)
    assert caught.value.why == "no message"
    with pytest.raises(NoGpuError, match="imports torch"):
        find_python(None, "")


def test_bad_usage(tmp_path: Path, wheel: Path) -> None:
    with pytest.raises(UsageError, match="is not a wheel"):
        gpu_check.main([str(tmp_path)], Console())
    with pytest.raises(UsageError, match="at least 1"):
        gpu_check.main([str(wheel), "--limit", "0"], Console())


def test_disagreements_are_found() -> None:
    said = {"vllm/_C.abi3.so": {"native": 0, "compatible": 0, "jit": 0, "missing": 1}}
    checks = {
        "a": {"image": "SASS", "operators": ["_C::a"]},
        "b": {"image": "JIT", "operators": ["_C::b"]},
        "c": {"reason": "CUDA error: no kernel image is available", "operators": ["_C::c"]},
    }
    assert len(disagreements(said, checks, ok=True)) == 3
    assert len(disagreements(said, checks, ok=False)) == 2
    said["vllm/_C.abi3.so"] = {"native": 3, "compatible": 0, "jit": 1, "missing": 0}
    assert disagreements(said, checks, ok=False) == []


@pytest.mark.parametrize("ending", ["", "_stable_libtorch"])
@pytest.mark.parametrize("space", ["_C", "_moe_C"])
def test_operators_belong_to_the_library_of_their_name_or_of_the_stable_abi(space: str, ending: str) -> None:
    """vLLM 0.33 registers `_C::` from _C_stable_libtorch and `_moe_C::` from _moe_C_stable_libtorch."""
    count = {"native": 1, "compatible": 0, "jit": 0, "missing": 0}
    checks = {"a": {"image": "SASS", "operators": [f"{space}::a"]}}
    assert disagreements({f"vllm/{space}{ending}.abi3.so": count}, checks, ok=True) == []
    assert len(disagreements({f"vllm/{space}{ending}.abi3.so": {**count, "native": 0}}, checks, ok=True)) == 1


def test_digests_are_compared_where_they_mean_something() -> None:
    one = {"state": "ok", "sha256": "1", "repeatable": True}
    first: dict[str, dict[str, Any]] = {"gone": one, "error": {"state": "error"}, "same": one}
    assert compare_digests(first, {"same": one}) == {"equal": ["same"], "different": ["gone"], "not_comparable": []}


def test_a_process_that_outlives_its_limit_is_killed_with_its_children(tmp_path: Path) -> None:
    script = f"sleep 30 & echo $! > {tmp_path}/child; echo '{{\"a\": 1}}'; echo '{{'; sleep 30"
    ended = run_lines(["/bin/sh", "-c", script], {"PATH": os.environ["PATH"]}, 1)
    assert ended.code == 124
    assert ended.lines == [{"a": 1}]
    wait_for(lambda: not alive(int((tmp_path / "child").read_text())), 10)


def test_a_family_with_no_time_left_says_nothing(tmp_path: Path) -> None:
    place = Place(install(tmp_path, plan()), tmp_path / "site", tmp_path, os.environ)
    seen = check_families(place, ["norm"], seed=1, limit=0, at_once=1, saved=lambda _seen: None)
    assert seen.checks == {}


def test_every_module_with_checks_is_loaded_and_every_family_is_run() -> None:
    """The modules need torch, which the tests lack: their source says what they enter."""
    folder = ROOT / "scripts/gpu_check/device"
    families = {
        path.stem: re.findall(r'^@check\(\s*"(\w+)"', path.read_text(), re.MULTILINE) for path in folder.glob("*.py")
    }
    entering = {name for name, found in families.items() if found}
    tree = ast.parse((folder / "worker.py").read_text())
    lists = [n for n in tree.body if isinstance(n, ast.Assign) and ast.unparse(n.targets[0]) == "MODULES"]
    loaded = {n.value for n in ast.walk(lists[0]) if isinstance(n, ast.Constant)}
    assert len(entering) > 10
    assert entering == loaded
    assert {family for found in families.values() for family in found} == set(FAMILIES)


def test_an_operator_that_only_other_gpus_have_keeps_its_reason() -> None:
    seen = Kernels(operators=[["_C::a.out", True, "not covered", "no check"], ["_C::z", False, "not compiled", "no"]])
    seen.checks["a"] = {"operators": ["_C::a"], "state": "not covered", "notes": ["needs more"]}
    rows = operator_table(seen)
    assert [(row["state"], row["reason"]) for row in rows] == [("not covered", "needs more"), ("not compiled", "no")]


def test_a_process_of_the_checks_finds_their_modules_wherever_it_starts(tmp_path: Path) -> None:
    environment = Place(Path(sys.executable), tmp_path / "site", tmp_path, os.environ).environment()
    names = (families.MODULE, "scripts.gpu_check.device.speed", "scripts.gpu_check.device.engine")
    program = f"import importlib.util as u; [u.find_spec(name).origin for name in {names}]"
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=tmp_path, env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
