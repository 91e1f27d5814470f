"""The launcher's records, in this process; real compilers run through it in the process tests."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from scripts.compile.standalone.launcher import (
    COMPILER_CACHE,
    EVENTS,
    FAILURES,
    MAPS,
    append,
    crosses_units,
    keep_failure,
    unit_of,
    with_stock_headers,
    with_stock_names,
)
from scripts.compile.units import read_failures, read_units
from scripts.core.paths import ROOT
from tests.support import wait_for


@pytest.mark.parametrize(
    ("command", "unit"),
    [
        ("nvcc -c x/a.cu -o b/a.cu.o", ("b/a.cu.o", "x/a.cu")),
        ("g++ -o b/a.o -c x/a.cpp", ("b/a.o", "x/a.cpp")),
        ("g++ -shared -o b/lib.so", ("b/lib.so", "b/lib.so")),
        ("g++ a.cc -o", ("", "a.cc")),
        ("true", ("", "")),
    ],
)
def test_a_unit_is_read_from_its_command(command: str, unit: tuple[str, str]) -> None:
    assert unit_of(command.split()) == unit


def test_events_are_lines_of_one_file_and_nothing_without_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(EVENTS, raising=False)
    append({"event": "lost"})
    monkeypatch.setenv(EVENTS, str(tmp_path / "events"))
    append({"event": "start"})
    append({"event": "end"})
    lines = (tmp_path / "events").read_text().splitlines()
    assert [json.loads(line)["event"] for line in lines] == ["start", "end"]


def test_a_failure_is_kept_as_it_can_be_repeated(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(FAILURES, raising=False)
    keep_failure("a.o", ["g++"], b"")
    monkeypatch.setenv(FAILURES, str(tmp_path))
    keep_failure("b/a.o", ["g++", "-DX=a b"], b"bad \xff byte\n")
    (failure,) = read_failures(tmp_path)
    assert failure.command == f"cd {Path.cwd()} && g++ '-DX=a b'"
    assert (failure.output, failure.killed) == ("bad \N{REPLACEMENT CHARACTER} byte", False)


@pytest.mark.parametrize(("script", "code", "kept"), [("exit 0", 0, 0), ("exit 3", 3, 1), ("kill -9 $$", 137, 1)])
def test_a_call_ends_with_its_code_and_failures_are_kept(script: str, code: int, kept: int, tmp_path: Path) -> None:
    environment = {**os.environ, EVENTS: str(tmp_path / "events"), FAILURES: str(tmp_path)}
    command = [sys.executable, str(ROOT / "scripts/compile/standalone/launcher.py"), "sh", "-c", script]
    done = subprocess.run(command, env=environment, cwd=ROOT, check=False)
    assert done.returncode == code
    start, end = (json.loads(line) for line in (tmp_path / "events").read_text().splitlines())
    assert (start["event"], end["event"], end["code"]) == ("start", "end", code)
    assert [failure.killed for failure in read_failures(tmp_path)] == [True] * kept


def test_a_call_that_is_told_to_stop_is_not_tried_again_without_the_cache(tmp_path: Path) -> None:
    """As when the whole run is killed: the cache's program says that it failed, and the compiler must not start."""
    cache, switch = tmp_path / "cache.sh", tmp_path / "switch.json"
    cache.write_text('trap "echo ccache: error: stopped; exit 1" TERM\ntouch "$STARTED"\nwhile :; do sleep 0.1; done\n')
    environment = {"STARTED": str(tmp_path / "started"), "COMPILED": str(tmp_path / "compiled")}
    switch.write_text(json.dumps({"command": ["sh", str(cache)], "environment": environment, "folder": str(tmp_path)}))
    command = [sys.executable, str(ROOT / "scripts/compile/standalone/launcher.py"), "sh", "-c", 'touch "$COMPILED"']
    with subprocess.Popen(command, env={**os.environ, **environment, COMPILER_CACHE: str(switch)}) as process:
        wait_for((tmp_path / "started").exists)
        for _ in range(3):  # ninja and the kernel both tell it, when the run is killed
            process.send_signal(signal.SIGTERM)
        assert process.wait(10) != 0
    assert not (tmp_path / "compiled").exists()


def compiled(tmp_path: Path, source: str, **more: str) -> tuple[int, bytes, list[dict[str, object]]]:
    """Compile with g++ and a lean header that lacks `stock()`, behind the launcher; return code, output, events."""
    for folder, text in (("lean-headers", "#pragma once\n"), ("stock", "#pragma once\nint stock();\n")):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "torch.h").write_text(text)
    (tmp_path / "unit.cpp").write_text(source)
    words = ["g++", f"-I{tmp_path}/lean-headers", "-isystem", f"{tmp_path}/stock", "-o", f"{tmp_path}/unit.o"]
    command = [sys.executable, str(ROOT / "scripts/compile/standalone/launcher.py"), *words, "-c", "unit.cpp"]
    environment = {**os.environ, EVENTS: str(tmp_path / "events"), FAILURES: str(tmp_path / "failures"), **more}
    (tmp_path / "failures").mkdir()
    done = subprocess.run(command, env=environment, cwd=tmp_path, check=False, capture_output=True)
    return done.returncode, done.stdout, [json.loads(line) for line in (tmp_path / "events").read_text().splitlines()]


def test_a_unit_that_fails_with_lean_headers_is_compiled_with_stock_ones(tmp_path: Path) -> None:
    code, output, events = compiled(tmp_path, "#include <torch.h>\nint f() { return stock(); }\n")
    assert (code, output) == (0, b"")
    assert (tmp_path / "unit.o").is_file()
    assert [event["event"] for event in events] == ["start", "stock", "start", "end"]
    assert "stock" in str(events[1]["output"])  # why the lean ones did not do
    assert not list((tmp_path / "failures").iterdir())
    (record,) = read_units(tmp_path / "events")
    assert record.headers == "stock"


def test_a_real_error_is_shown_once_from_the_stock_try(tmp_path: Path) -> None:
    code, output, events = compiled(tmp_path, "#include <torch.h>\nint f() { return stock() + nowhere; }\n")
    assert code == 1
    assert b"nowhere" in output
    assert b"stock" not in output.replace(b"/stock/", b"").split(b"nowhere")[0].split(b"error")[-1]
    assert events[-1]["code"] == 1
    (failure,) = read_failures(tmp_path / "failures")
    assert "lean-headers" not in failure.command


def test_a_unit_that_compiles_with_lean_headers_keeps_them(tmp_path: Path) -> None:
    code, _, events = compiled(tmp_path, "#include <torch.h>\nint f() { return 1; }\n")
    assert code == 0
    assert [event["event"] for event in events] == ["start", "end"]
    assert read_units(tmp_path / "events")[0].headers is None


@pytest.mark.parametrize(
    ("words", "stock"),
    [
        ("nvcc -DAT_PER_OPERATOR_HEADERS -I/s/lean-headers -I/s/csrc -c a.cu", "nvcc -I/s/csrc -c a.cu"),
        ("nvcc -I/s/lean-headers -DVLLM_STOCK_TORCH_HEADERS -c a.cpp", ""),
        ("nvcc -I/s/csrc -c a.cu", ""),
        ("nvcc -include u.h -DWHEELSMITH_UNIT=unit_1 -I/s/lean-headers -c a.cu", "nvcc -c a.cu"),
        ("nvcc -x cu -include u.h -DWHEELSMITH_UNIT=unit_1 -c a.cu", "nvcc -x cu -c a.cu"),
    ],
)
def test_stock_headers_are_those_without_the_lean_folder(words: str, stock: str) -> None:
    assert with_stock_headers(words.split()) == stock.split()


NVCC = """#!/bin/sh
for word; do
  shift
  case $word in -Xcudafe|--orig_src*|-Xcompiler=*) continue ;; esac
  set -- "$@" "$word"
done
exec g++ -x c++ "$@"
"""
THRUST = """
#ifndef WHEELSMITH_UNIT
#define WHEELSMITH_UNIT stock
#endif
namespace thrust { inline namespace WHEELSMITH_UNIT { struct pointer {}; } }
"""


def compiled_cuda(tmp_path: Path, source: str) -> tuple[int, list[dict[str, object]]]:
    """Compile a unit with a namespace like Thrust's, by g++ under nvcc's name, behind the launcher."""
    (tmp_path / "nvcc").write_text(NVCC)
    (tmp_path / "nvcc").chmod(0o755)
    (tmp_path / "unit.cu").write_text(THRUST + source)
    command = [sys.executable, str(ROOT / "scripts/compile/standalone/launcher.py"), str(tmp_path / "nvcc")]
    command += ["-c", str(tmp_path / "unit.cu"), "-o", "unit.o"]
    environment = {**os.environ, EVENTS: str(tmp_path / "events"), MAPS: json.dumps({str(tmp_path): "/source"})}
    done = subprocess.run(command, env=environment, cwd=tmp_path, check=False, capture_output=True)
    return done.returncode, [json.loads(line) for line in (tmp_path / "events").read_text().splitlines()]


@pytest.mark.parametrize(
    "source",
    ["int f(thrust::pointer) { return 1; }", "int f(thrust::pointer); int g() { return f({}); }"],
    ids=["has for others", "calls of others"],
)
def test_a_unit_whose_signatures_cross_units_keeps_thrusts_own_names(tmp_path: Path, source: str) -> None:
    code, events = compiled_cuda(tmp_path, source)
    assert code == 0
    assert [event["event"] for event in events] == ["start", "names", "start", "end"]
    assert b"5stock7pointer" in (tmp_path / "unit.o").read_bytes()
    assert b"unit_" not in (tmp_path / "unit.o").read_bytes()
    assert read_units(tmp_path / "events")[0].headers == "stock"


@pytest.mark.parametrize(
    "source",
    [
        "static int f(thrust::pointer) { return 1; } int g() { return f({}); }",
        "template <class T> int f(T) { return 1; } int g() { return f(thrust::pointer{}); }",
        "template <class T> struct S { static T x; }; template <class T> T S<T>::x; auto* g = &S<thrust::pointer>::x;",
    ],
    ids=["local", "weak function", "weak datum"],
)
def test_a_unit_that_uses_such_types_alone_has_its_own_name_in_them(tmp_path: Path, source: str) -> None:
    code, events = compiled_cuda(tmp_path, source)
    assert code == 0
    assert [event["event"] for event in events] == ["start", "end"]
    assert b"unit_" in (tmp_path / "unit.o").read_bytes()
    assert not crosses_units(str(tmp_path / "unit.o"))


def test_what_fails_with_our_names_is_compiled_with_stock_ones(tmp_path: Path) -> None:
    code, events = compiled_cuda(tmp_path, "thrust::stock::pointer other;")
    assert code == 0
    assert [event["event"] for event in events] == ["start", "stock", "start", "end"]


def test_no_object_has_no_names(tmp_path: Path) -> None:
    (tmp_path / "a.o").write_bytes(b"!<arch>\n")
    assert not crosses_units(str(tmp_path / "a.o"))
    assert with_stock_names(["g++", "-c", "a.cpp"]) == []
