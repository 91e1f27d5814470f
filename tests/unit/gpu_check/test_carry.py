from __future__ import annotations

import os
import re
import subprocess
import sys
import tarfile
from collections.abc import Sequence
from importlib import metadata
from pathlib import Path
from typing import Any

import pytest
from packaging.utils import canonicalize_name

from scripts.commands import carry
from scripts.core.console import Console
from scripts.core.errors import FetchError, UsageError
from scripts.core.paths import ROOT
from scripts.gpu_check import loads as gpu_check_loads
from scripts.gpu_check.loads import chosen, have, own_scripts, pack, spread, wanted, write_load
from tests.fatbins import container, sass, shared_object
from tests.wheels import make_wheel

METADATA = """Metadata-Version: 2.4
Name: {name}
Version: {version}
Requires-Dist: torch==2.11.0
Requires-Dist: regex
Requires-Dist: windows-only; sys_platform == "win32"
Requires-Dist: old-only; python_version < "3.11"
Requires-Dist: extra-only; extra == "audio"
Requires-Dist: opencv-python-headless>=4.13
Requires-Dist: not a requirement!!
Requires-Dist: zipp>1; python_version >= "3.9"

"""


def test_only_what_applies_there_is_wanted(tmp_path: Path) -> None:
    wheel = make_wheel(tmp_path, {"vllm/__init__.py": b""}, metadata=METADATA)
    needed = wanted([wheel])
    assert {"regex", "zipp>1", *gpu_check_loads.OWN, *gpu_check_loads.PINS} == set(needed)
    assert "old-only" in wanted([wheel], "3.10")


@pytest.mark.parametrize(("asked", "pins"), [("<6,>=4.56", gpu_check_loads.PINS), ("<5.21,>=5.16.1", ())])
def test_transformers_is_pinned_only_where_the_wheel_takes_that_one(
    tmp_path: Path, asked: str, pins: tuple[str, ...]
) -> None:
    metadata = METADATA.replace("Requires-Dist: regex", f"Requires-Dist: transformers{asked}")
    needed = wanted([make_wheel(tmp_path, {"vllm/__init__.py": b""}, metadata=metadata)])
    assert set(gpu_check_loads.PINS) & set(needed) == set(pins)
    assert f"transformers{asked}" in needed


def test_all_that_gpu_check_imports_is_carried() -> None:
    program = (
        "import sys, importlib.metadata as m, scripts.commands.gpu_check, scripts.commands.slim;"
        "d = m.packages_distributions();"
        "print(*{x for n in sys.modules for x in d.get(n.split('.')[0], [])})"
    )
    done = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=True)
    carried: set[str] = set()
    new = set[str](gpu_check_loads.OWN)
    while new:
        carried |= new
        lines = [line for name in new for line in metadata.requires(name) or [] if "extra" not in line]
        named = {canonicalize_name(re.split(r"[^\w.-]", line)[0]) for line in lines}
        new = {name for name in named - carried if _installed(name)}
    imported = {canonicalize_name(name) for name in done.stdout.split()} - {"setuptools", "coverage"}  # that measures
    assert {"pydantic", "pyelftools"} <= imported <= carried


def _installed(name: str) -> bool:
    try:
        metadata.distribution(name)
    except metadata.PackageNotFoundError:
        return False
    return True


def test_names_are_read_from_pip_s_lists(tmp_path: Path) -> None:
    path = tmp_path / "have.txt"
    path.write_text("# machine\nPyYAML==6\nzope.interface @ file:///x\n-e .\n\njinja2>=3\nuvloop[x]\n")
    assert have(path) == {"pyyaml", "zope-interface", "jinja2", "uvloop"}
    path.write_bytes(b"\xff")
    with pytest.raises(UsageError, match="cannot be read"):
        have(path)
    with pytest.raises(UsageError, match="cannot be read"):
        have(tmp_path / "none")


def test_what_is_there_is_left_out_but_for_what_must_be_newer() -> None:
    lines = [
        "regex==1",
        "torch==2",
        "nvidia-nccl-cu13==1",
        "transformers==5",
        "uvloop[dev]==3",
        "# comment",
        "Zope.X==1",
    ]
    assert chosen(lines, {"regex", "transformers"}) == ["transformers==5", "uvloop[dev]==3", "Zope.X==1"]


def test_files_are_spread_over_as_few_loads_as_fit(tmp_path: Path) -> None:
    files = []
    for name, size in (("a", 30), ("b", 50), ("c", 20), ("d", 10)):
        files.append(tmp_path / name)
        files[-1].write_bytes(bytes(size))
    assert [[p.name for p in load] for load in spread(files, 60)] == [["a", "c", "d"], ["b"]]
    with pytest.raises(UsageError, match="a load at most"):
        spread(files, 40)
    assert spread([], 40) == []


def test_packing_is_the_same_twice_and_keeps_what_can_be_run(tmp_path: Path) -> None:
    folder = tmp_path / "site"
    (folder / "p").mkdir(parents=True)
    (folder / "p" / "run").write_text("x")
    (folder / "p" / "run").chmod(0o755)
    (folder / "m.py").write_text("y")
    first, second = pack(folder, tmp_path / "1.tar.xz"), pack(folder, tmp_path / "2.tar.xz")
    assert first.read_bytes() == second.read_bytes()
    with tarfile.open(first) as tar:
        assert {m.name: m.mode for m in tar} == {"m.py": 0o644, "p/run": 0o755}
    with tarfile.open(own_scripts(tmp_path / "tool.tar.xz")) as tar:
        names = set(tar.getnames())
    assert {"scripts/commands/gpu_check.py", "scripts/gpu_check/device/worker.py", "recipes/quickstart.toml"} <= names
    assert not [name for name in names if "__pycache__" in name]


def test_the_slim_part_runs_from_a_load(tmp_path: Path) -> None:
    there = tmp_path / "there"
    with tarfile.open(own_scripts(tmp_path / "tool.tar.xz")) as tar:
        tar.extractall(there)
    units = {"a.cu": container(sass("90", "k"), sass("120", "k"))}
    library = shared_object(tmp_path / "c.so", units).read_bytes()
    wheel = make_wheel(tmp_path, {"vllm/_C.abi3.so": library})
    slim = [sys.executable, "-m", "scripts.commands.slim"]
    command: list[str | Path] = [*slim, wheel, "--arch", "9.0", "--out", tmp_path / "out"]
    done = subprocess.run(command, cwd=there, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert list((tmp_path / "out").glob("*.whl"))


def test_a_load_that_cannot_be_written_is_told(tmp_path: Path) -> None:
    (tmp_path / "load1").mkdir()
    with pytest.raises(FetchError, match="cannot be written"):
        write_load(tmp_path / "load1", [], last=True)


@pytest.fixture
def uv(monkeypatch: pytest.MonkeyPatch) -> list[list[str]]:
    """A uv that knows two packages."""
    calls: list[list[str]] = []

    def run(command: Sequence[str | Path], *_rest: Any, **_options: Any) -> None:
        words = [str(word) for word in command]
        calls.append(words)
        if words[1] == "compile":
            Path(words[words.index("-o") + 1]).write_text("regex==1\ntransformers==5\ntorch==2\n")
            return
        site = Path(words[words.index("--target") + 1])
        for name in ("thing/__init__.py", "thing/tests/test_x.py", "bin/tool", "thing/__pycache__/x.pyc"):
            (site / name).parent.mkdir(parents=True, exist_ok=True)
            (site / name).write_text("1")
        assert Path(words[words.index("-r") + 1]).read_text() == "transformers==5\n"

    monkeypatch.setattr(gpu_check_loads, "run_uv", run)
    return calls


def test_from_a_wheel_to_the_check_on_the_machine(
    tmp_path: Path, uv: list[list[str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The scripts of the loads are run here, where there is no GPU: both wheels' logs say so, exit code 13."""
    here = tmp_path / "machine"
    monkeypatch.setattr(gpu_check_loads, "HERE", str(here))
    contents = [{"vllm/__init__.py": b"", "vllm/x": os.urandom(600_000)} for _ in range(2)]
    wheels = [make_wheel(tmp_path, data, version=v) for data, v in zip(contents, ("1+a", "2+b"), strict=True)]
    machine, out = tmp_path / "have.txt", tmp_path / "carry"
    machine.write_text("regex\n")
    words = [*map(str, wheels), "--have", str(machine), "--out", str(out), "--limit", "1"]
    monkeypatch.setenv("WHEELSMITH_CACHE", str(tmp_path / "cache"))
    assert carry.main(words, Console()) == 0
    loads = sorted(out.iterdir())
    assert len(loads) in {2, 3}, (
        "two wheels of 0.6 MB do not fit into one load; the tool's own files fit beside one or not"
    )
    for load in loads:
        assert sum(path.stat().st_size for path in load.iterdir()) < (1 << 20) + 5000
        subprocess.run(["/bin/bash", load / "put.sh"], check=True, capture_output=True)
    assert (here / "site" / "thing" / "__init__.py").is_file()
    assert not (here / "site" / "thing" / "tests").exists()
    assert not (here / "site" / "bin").exists()
    results = tmp_path / "results"
    results.mkdir()
    environment = {"PATH": f"{Path(sys.executable).parent}:/usr/bin:/bin", "HOME": str(tmp_path)}
    run_sh: list[str | Path] = ["/bin/bash", here / "run.sh", results]
    ended = subprocess.run([*run_sh, "60"], env=environment, check=False, capture_output=True, text=True, timeout=100)
    assert ended.returncode == 13, ended.stdout
    assert sorted(path.name for path in results.iterdir()) == ["vllm-1_a.log", "vllm-2_b.log"]
    assert all("nothing was checked" in path.read_text() for path in results.iterdir())
    ended = subprocess.run([*run_sh, "1"], env=environment, check=False, capture_output=True, text=True, timeout=100)
    assert ended.returncode == 124
    assert "no time left" in ended.stdout
    assert [words[1] for words in uv] == ["compile", "install"]
    with pytest.raises(UsageError, match="is not empty"):
        carry.main(words, Console())
    again = [str(tmp_path / "again") if word == str(out) else word for word in words]
    assert carry.main(again, Console()) == 0
    assert [words[1] for words in uv] == ["compile", "install", "compile"], "what was packed before is used again"
