"""Fixed paths: how paths are told inside and outside, and the namespace that makes them true."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from scripts.compile import fixed_paths
from scripts.compile.fixed_paths import NAMESPACE, ROOT, FixedPaths, refusal
from scripts.compile.standalone import namespace
from scripts.core.process import GUARD, Command
from tests.support import alive

SYSTEM_PYTHON = Path("/usr/bin/python3")
needs_namespace = pytest.mark.skipif(bool(refusal()), reason=f"no mount namespace here: {refusal()}")


def test_paths_below_a_bound_directory_get_its_name_and_others_stay() -> None:
    paths = FixedPaths(Path("/x/spec"), {"build": Path("/home/me/b"), "dependencies/cutlass": Path("/home/me/c")})
    assert paths.inside(Path("/home/me/b")) == ROOT / "build"
    assert paths.inside(Path("/home/me/c/include")) == ROOT / "dependencies/cutlass/include"
    assert paths.inside(Path("/home/me/bb")) == Path("/home/me/bb")
    seen = paths.variables({"PATH": "/home/me/b/bin:/usr/bin", "URL": "http://me:b@host/home/me/b"})
    assert seen == {"PATH": f"{ROOT}/build/bin:/usr/bin", "URL": "http://me:b@host/home/me/b"}


def test_without_directories_everything_is_as_it_is(tmp_path: Path) -> None:
    paths = FixedPaths()
    paths.write(tmp_path / "enter")
    assert not (tmp_path / "enter").exists()
    assert (paths.enter, paths.repeat(tmp_path, "make it"), paths.inside(tmp_path)) == ((), "make it", tmp_path)


@needs_namespace
def test_a_command_is_repeated_under_the_fixed_paths_and_stays_in_its_directory(tmp_path: Path) -> None:
    (tmp_path / "tree" / "sub").mkdir(parents=True)
    (tmp_path / "tree" / "here").write_text("yes")
    paths = FixedPaths(tmp_path / "spec.json", {"build": tmp_path / "tree", "a/b": tmp_path})
    paths.write(tmp_path / "enter")
    command = paths.repeat(
        tmp_path / "enter", f"cat {ROOT}/build/here && ls {ROOT} {ROOT}/a && pwd && echo $PWD; id -u"
    )
    done = subprocess.run(command, shell=True, cwd=tmp_path / "tree/sub", capture_output=True, text=True, check=True)
    inside = f"{ROOT}/build/sub"
    assert done.stdout.split() == [
        "yes" + f"{ROOT}:",
        "a",
        "build",
        f"{ROOT}/a:",
        "b",
        inside,
        inside,
        str(os.getuid()),
    ]
    assert not (ROOT / "build").exists()


@needs_namespace
def test_a_file_below_the_mount_point_can_be_bound(tmp_path: Path) -> None:
    """The cache itself may be below /tmp/wheelsmith: its directories are opened before they are hidden."""
    ROOT.mkdir(exist_ok=True)
    own = ROOT / f"test-{os.getpid()}"
    own.mkdir()
    try:
        (own / "here").write_text("yes")
        paths = FixedPaths(tmp_path / "spec.json", {"build": own})
        paths.write(tmp_path / "enter")
        command = [*paths.enter, "cat", paths.inside(own / "here")]
        assert subprocess.run(command, capture_output=True, check=True).stdout == b"yes"
    finally:
        (own / "here").unlink()
        own.rmdir()


@needs_namespace
def test_the_command_ends_when_its_parent_is_killed(tmp_path: Path) -> None:
    paths = FixedPaths(tmp_path / "spec.json", {"build": tmp_path})
    paths.write(tmp_path / "enter")
    guarded = [*map(str, paths.enter), "sh", "-c", "echo $$; exec sleep 60"]
    inner = f"[{sys.executable!r}, {str(GUARD)!r}, '--parent', str(os.getpid()), '--', *{guarded!r}]"
    outer = f"import os, subprocess; subprocess.run({inner})"
    with subprocess.Popen([sys.executable, "-c", outer], stdout=subprocess.PIPE) as parent:
        assert parent.stdout
        child = int(parent.stdout.readline())
        parent.kill()
    deadline = time.monotonic() + 10
    while alive(child) and time.monotonic() < deadline:
        time.sleep(0.02)
    assert not alive(child)


def test_a_refusal_is_told_in_one_line_with_its_own_exit_code(tmp_path: Path) -> None:
    spec = tmp_path / "spec.json"
    (tmp_path / "file").write_text("")
    for root, bound in ((tmp_path / "file", tmp_path), (tmp_path / "root", tmp_path / "absent")):
        spec.write_text(json.dumps({"root": str(root), "binds": {"build": str(bound)}}))
        done = subprocess.run(
            [sys.executable, "-S", "-E", NAMESPACE, spec, "true"], capture_output=True, text=True, check=False
        )
        assert (done.returncode, done.stderr.count("\n")) == (namespace.REFUSED, 1)


@needs_namespace
def test_a_command_that_is_not_there_is_told_as_shells_do(tmp_path: Path) -> None:
    spec = tmp_path / "spec.json"
    spec.write_text(json.dumps({"root": str(ROOT), "binds": {"a/b": str(tmp_path)}}))
    command: Command = [sys.executable, NAMESPACE, spec, "absent-program"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (127, "namespace: absent-program: No such file or directory\n")


def test_a_link_is_no_mount_point(tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to(tmp_path)
    with pytest.raises(FileExistsError):
        namespace.prepare_root(str(tmp_path / "link"))
    namespace.prepare_root(str(tmp_path / "new"))
    namespace.prepare_root(str(tmp_path / "new"))


def test_the_machine_is_asked_once_and_its_words_are_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    refusal.cache_clear()
    monkeypatch.setattr(fixed_paths, "capture", lambda *_, **__: (71, "namespace: unshare: Operation not permitted\n"))
    assert refusal() == "unshare: Operation not permitted"
    monkeypatch.undo()
    assert refusal() == "unshare: Operation not permitted"
    refusal.cache_clear()


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root to become somebody else")
@pytest.mark.skipif(not SYSTEM_PYTHON.exists(), reason="needs a Python that anybody can read")
def test_no_rights_are_needed_and_none_are_gained(tmp_path: Path) -> None:
    if refusal():
        pytest.skip(refusal())
    spec = json.dumps({"root": str(ROOT), "binds": {"build": "/usr/share"}})
    inner = f"id -u; grep CapEff /proc/self/status; ls {ROOT}"
    script = f'''d=$(mktemp -d) && cd "$d" && cat > namespace.py && printf %s '{spec}' > spec &&
        {SYSTEM_PYTHON} -S -E namespace.py spec sh -c "{inner}"; rm -r "$d"'''
    nobody = {"user": 65534, "group": 65534, "extra_groups": [65534]}
    done = subprocess.run(  # type: ignore[call-overload]
        ["sh", "-c", script],
        input=NAMESPACE.read_text(),
        capture_output=True,
        text=True,
        check=False,
        cwd="/",
        **nobody,
    )
    assert done.stdout.split() == ["65534", "CapEff:", "0000000000000000", "build"], done.stderr
