"""Linking against an older glibc: with this system's compiler, linker and libc."""

from __future__ import annotations

import ctypes
import os
import re
import shutil
import subprocess
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from scripts.compile import older_glibc
from scripts.compile.older_glibc import SCRIPT, exported_versions, link_to_older_glibc, newer_versions, older_symbols

COMPILER = shutil.which("g++") or ""
# Each line needs a symbol that some glibc above 2.28 has in a newer version, or not at all before.
SOURCE = r"""
#include <cmath>
#include <cstdlib>
#include <dlfcn.h>
#include <memory>
#include <pthread.h>
#include <sys/stat.h>
extern "C" unsigned arc4random();
static pthread_once_t flag = PTHREAD_ONCE_INIT;
static int calls;
static void once() { ++calls; }
extern "C" int call_once_twice() { pthread_once(&flag, once); pthread_once(&flag, once); return calls; }
extern "C" double logarithm(double x) { return log2(x); }
extern "C" long number(const char *text) { return strtol(text, nullptr, 10); }
extern "C" long size_of(const char *path) { struct stat s; return stat(path, &s) ? -1 : (long)s.st_size; }
extern "C" int opened(const char *name) { return dlopen(name, RTLD_LAZY) != nullptr; }
extern "C" long shared(long x) { auto a = std::make_shared<long>(x); auto b = a; return *b; }
extern "C" int random_twice() { return arc4random() != arc4random() || arc4random() != arc4random(); }
"""


def _link(folder: Path, *libraries: str | Path) -> Path:
    source, made = folder / "x.cpp", folder / "x.so"
    source.write_text(SOURCE)
    options = ["-shared", "-fPIC", "-O1", "-D_GNU_SOURCE", source, *libraries]
    subprocess.run([COMPILER, *options, "-o", made], check=True, capture_output=True)
    return made


@pytest.fixture(scope="module")
def linked(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A library linked with the script."""
    folder = tmp_path_factory.mktemp("older")
    assert link_to_older_glibc(folder / "link", folder / "link", [COMPILER], os.environ) == ""
    return _link(folder, folder / "link" / SCRIPT)


def test_asks_for_nothing_newer(linked: Path, tmp_path: Path) -> None:
    assert newer_versions(_link(tmp_path)), "this system is as old as the floor: the test shows nothing here"
    assert newer_versions(linked) == []


def test_calls_what_it_means(linked: Path, tmp_path: Path) -> None:
    library = ctypes.CDLL(str(linked))
    library.logarithm.restype, library.logarithm.argtypes = ctypes.c_double, [ctypes.c_double]
    (tmp_path / "file").write_bytes(b"x" * 4321)
    assert library.call_once_twice() == 1
    assert library.logarithm(8.0) == 3.0
    assert library.number(b"0042 and more") == 42
    assert library.size_of(str(tmp_path / "file").encode()) == 4321
    assert library.size_of(b"/there/is/none") == -1
    assert library.opened(b"libm.so.6") == 1
    assert library.shared(7) == 7
    assert library.random_twice() == 1


def test_a_static_libstdcxx_finds_what_it_needs_behind_it(tmp_path: Path) -> None:
    fake = tmp_path / "g++"
    fake.write_text(f'#!/bin/sh\nexec {COMPILER} -static-libstdc++ "$@"\n')
    fake.chmod(0o755)
    folder = tmp_path / "link"
    assert link_to_older_glibc(folder, folder, [str(fake)], os.environ) == ""
    (tmp_path / "r.cpp").write_text(
        '#include <random>\n#include <fstream>\nextern "C" int draw() { std::random_device d; return d() != d(); }\n'
        'extern "C" int there(const char *name) { return bool(std::ifstream(name)); }\n'
    )
    made = tmp_path / "r.so"
    subprocess.run([fake, "-shared", "-fPIC", tmp_path / "r.cpp", folder / SCRIPT, "-o", made], check=True)
    assert newer_versions(made) == []
    needed = subprocess.run(["readelf", "-d", made], check=True, capture_output=True, text=True).stdout
    assert "libstdc++" not in needed  # it stays what the user's compiler makes of it
    library = ctypes.CDLL(str(made))
    assert library.draw() == 1
    assert (library.there(b"/etc/passwd"), library.there(b"/there/is/none")) == (1, 0)


def test_functions_of_ours_are_hidden(linked: Path) -> None:
    names = subprocess.run(["nm", "-D", "--defined-only", linked], check=True, capture_output=True, text=True).stdout
    assert "arc4random" not in names
    assert "__libc_single_threaded" not in names
    assert "random_twice" in names


def test_without_a_linker_builds_go_on(tmp_path: Path) -> None:
    fake = tmp_path / "g++"
    fake.write_text(f'#!/bin/sh\ncase "$*" in *-shared*) echo no linker here; exit 1;; esac\nexec {COMPILER} "$@"\n')
    fake.chmod(0o755)
    folder = tmp_path / "link"
    assert "no linker here" in link_to_older_glibc(folder, folder, [str(fake)], os.environ)
    assert newer_versions(_link(tmp_path, folder / SCRIPT))  # as without: it links, for new systems


def test_another_c_library(tmp_path: Path) -> None:
    fake = tmp_path / "g++"
    fake.write_text('#!/bin/sh\ncase "$1" in -print-file-name=*) echo "${1#*=}";; esac\n')
    fake.chmod(0o755)
    assert "not glibc" in link_to_older_glibc(tmp_path / "l", tmp_path / "l", [str(fake)], os.environ)


def test_a_linker_that_ignores_the_script(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(older_glibc, "_PROBE", SOURCE)
    monkeypatch.setattr(older_glibc, "older_symbols", lambda _libraries: {"libm.so.6": {"exp": "GLIBC_2.2.5"}})
    why = link_to_older_glibc(tmp_path / "l", tmp_path / "l", [COMPILER], os.environ)
    assert re.search(r"the linker takes .*GLIBC_2\.34 all the same", why)
    assert "GROUP" not in (tmp_path / "l" / SCRIPT).read_text()


def test_an_old_system_needs_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(older_glibc, "exported_versions", lambda _library: {"dlopen": ("GLIBC_2.2.5",)})
    assert link_to_older_glibc(tmp_path / "l", tmp_path / "l", [COMPILER], os.environ) == ""
    assert "GROUP" not in (tmp_path / "l" / SCRIPT).read_text()


def test_symbols_by_the_library_that_had_them() -> None:
    libc = {
        "dlopen": ("GLIBC_2.34", "GLIBC_2.2.5"),
        "pthread_once": ("GLIBC_2.34", "GLIBC_2.2.5"),
        "pthread_setaffinity_np": ("GLIBC_2.34", "GLIBC_2.3.3", "GLIBC_2.3.4"),
        "memcpy": ("GLIBC_2.14", "GLIBC_2.2.5"),  # the floor has the default version
        "pthread_clockjoin_np": ("GLIBC_2.34", "GLIBC_2.31"),  # the floor has none
        "moved_from_we_know_not_where": ("GLIBC_2.34", "GLIBC_2.2.5"),
        "__fxstat64": ("GLIBC_2.2.5",),
        "secret": ("GLIBC_PRIVATE", "GLIBC_2.2.5"),
    }
    libm = {
        "log2": ("GLIBC_2.29", "GLIBC_2.2.5"),
        "totalorder": ("GLIBC_2.31", "GLIBC_2.25"),  # it takes pointers since 2.31
    }
    assert older_symbols({"libc.so.6": libc, "libm.so.6": libm}) == {
        "libdl.so.2": {"dlopen": "GLIBC_2.2.5"},
        "libpthread.so.0": {"pthread_once": "GLIBC_2.2.5", "pthread_setaffinity_np": "GLIBC_2.3.4"},
        "libc.so.6": {"__fxstat64": "GLIBC_2.2.5"},
        "libm.so.6": {"log2": "GLIBC_2.2.5"},
    }


def test_versions_of_the_systems_libc() -> None:
    said = subprocess.run([COMPILER, "-print-file-name=libc.so.6"], check=True, capture_output=True, text=True).stdout
    found = exported_versions(Path(said.strip()))
    assert found["memcpy"] == ("GLIBC_2.14", "GLIBC_2.2.5")
    assert found["pthread_create"][-1] == "GLIBC_2.2.5"


@given(st.binary(max_size=200), st.integers(0, 2000))
@settings(max_examples=60, deadline=None)
def test_a_damaged_libc_stops_no_build(tmp_path_factory: pytest.TempPathFactory, noise: bytes, at: int) -> None:
    folder = tmp_path_factory.mktemp("damaged")
    libc = bytearray(Path("/bin/true").read_bytes())
    libc[at : at + len(noise)] = noise
    (folder / "libc.so.6").write_bytes(libc)
    fake = folder / "g++"
    fake.write_text(f"#!/bin/sh\necho {folder}/libc.so.6\n")
    fake.chmod(0o755)
    assert link_to_older_glibc(folder / "l", folder / "l", [str(fake)], os.environ) != ""
    assert "GROUP" not in (folder / "l" / SCRIPT).read_text()
