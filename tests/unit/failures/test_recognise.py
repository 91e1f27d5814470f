"""Known failures are found in logs of any shape, the root cause first, and none in logs of what went well."""

from __future__ import annotations

import contextlib
import gzip
import io
import re
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from scripts.commands.failures_page import PAGE
from scripts.core.console import human_bytes
from scripts.core.errors import CompileError, UsageError
from scripts.failures.catalogue import Failure, Stage, catalogue, literal
from scripts.failures.log_files import BROKEN
from scripts.failures.logs import BLOCK, plain, read_blocks
from scripts.failures.recognise import diagnose, diagnose_text, recognised

LOGS = Path(__file__).parents[2] / "logs"
FRAGMENTS = [(item.id, text) for item in catalogue().values() for text in item.seen_as]

BEFORE = """\
Collecting vllm==0.15.1
  Installing build dependencies: started
  Installing build dependencies: finished with status 'done'
-- The CXX compiler identification is GNU 12.2.0
-- Detecting CXX compiler ABI info - done
[1/260] Building CXX object CMakeFiles/cumem_allocator.dir/csrc/cumem_allocator.cpp.o
"""
AFTER = """\
ninja: build stopped: subcommand failed.
Traceback (most recent call last):
  File "setup.py", line 300, in build_extensions
subprocess.CalledProcessError: Command '['cmake', '--build', '.']' returned non-zero exit status 1.
ERROR: Failed building wheel for vllm
"""


def ids(text: str) -> list[str]:
    return [item.id for item in diagnose_text(text).findings]


def general(name: str) -> set[str]:
    """Return the entries that may come first for a fragment of `name`: those that say it more exactly."""
    return {name} | ({"rust-toolchain-missing"} if name == "no-isolation-missing-build-deps" else set())


@pytest.mark.parametrize(("name", "text"), FRAGMENTS)
def test_each_entry_is_found_in_a_real_log_around_its_message(name: str, text: str) -> None:
    found = diagnose_text(f"{BEFORE}{text}\n{AFTER}").findings
    assert found[0].id in general(name)
    assert [item.line for item in found if item.id == name] == [7]
    assert plain(text)[:40] in found[0].text


@pytest.mark.parametrize(("name", "text"), FRAGMENTS)
def test_timestamps_colours_and_carriage_returns_hide_nothing(name: str, text: str) -> None:
    lines = [
        f"2026-11-23T10:00:00.1234567Z #12 34.5 \x1b[31m{line}\x1b[0m\r\n" for line in [*BEFORE.splitlines(), text]
    ]
    found = diagnose_text("".join(lines)).findings
    assert found[0].id in general(name)
    assert "\x1b" not in found[0].text
    assert not found[0].text.startswith("2026")


def test_an_entry_reports_once_with_its_first_line() -> None:
    text = "x\n" + "fatal: early EOF\n" * 50 + "fatal error: cute/tensor.hpp: No such file or directory\n"
    assert [(item.id, item.line) for item in diagnose_text(text).findings] == [
        ("cutlass-submodule-empty", 52),
        ("git-rpc-early-eof-tls", 2),
    ]


@pytest.mark.parametrize("name", [item.id for item in catalogue().values() if item.over])
def test_the_more_exact_entry_hides_the_general_one(name: str) -> None:
    entry = catalogue()[name]
    for text in entry.seen_as:
        assert ids(text) == [name]


@pytest.mark.parametrize(
    ("text", "order"),
    [
        ("exit code: 137\n'cicc' died due to signal 9 (Kill signal)", ["oom-nvcc-cicc-killed", "oom-docker-exit-137"]),
        (
            ("Compiling the CUDA compiler identification source file\nfoo\n"
            "error: #error -- unsupported GNU version! gcc versions later than 13 are not supported!"),
            ["gcc-too-new-for-nvcc", "cmake-cuda-compiler-id-failed"],
        ),
        (
            ("error: RPC failed; curl 56\nFailed to clone repository: 'https://github.com/nvidia/cutlass.git'\n"
            "cp: error writing: No space left on device"),
            ["disk-full-ci-or-docker", "git-rpc-early-eof-tls", "fetchcontent-clone-failed"],
        ),
        (
            ("fatal: write error: No space left on device\nfatal: fetch-pack: invalid index-pack output\n"
            "Failed to clone repository: 'https://github.com/triton-lang/triton.git'"),
            ["disk-full-triton-clone", "git-rpc-early-eof-tls"],
        ),
    ],
)  # fmt: skip
def test_the_root_cause_comes_before_its_symptoms(text: str, order: list[str]) -> None:
    assert ids(text) == order


@pytest.mark.parametrize("log", [path.name for path in sorted(LOGS.glob("*.log")) if "not-found" not in path.name])
def test_logs_of_what_went_well_match_nothing(log: str) -> None:
    diagnosis = diagnose(io.BytesIO((LOGS / log).read_bytes()))
    assert diagnosis.findings == ()
    assert diagnosis.ended_well
    text = (LOGS / log).read_text()
    said = {item.id for item in catalogue().values() for pattern in item.patterns if re.search(pattern, text)}
    assert all(catalogue()[name].recoverable for name in said)  # which are dropped because the log ends well


def test_a_real_log_of_a_torch_that_the_index_lacks_is_understood() -> None:
    diagnosis = diagnose(io.BytesIO((LOGS / "pip-torch-not-found.log").read_bytes()))
    assert [item.id for item in diagnosis.findings] == ["torch-variant-not-on-index"]
    assert "2.14.1" in diagnosis.findings[0].text


def test_what_a_tool_recovered_from_is_no_failure() -> None:
    retry = "WARNING: Retrying after connection broken by 'ReadTimeoutError: HTTPSConnectionPool(host='x')'\n"
    assert ids(retry + "Successfully installed torch-2.9.1\n") == []
    assert ids(retry + "Successfully installed torch-2.9.1\nERROR: it failed: no\n") == ["large-wheel-download-timeout"]
    assert ids(retry) == ["large-wheel-download-timeout"]


def test_the_first_error_is_shown_of_a_failure_that_nobody_knows() -> None:
    diagnosis = diagnose_text("fine\n/a/b.cu(3): error: the moon is full\nerror: more\nmake: *** [x] Error 2\n")
    assert diagnosis.findings == ()
    assert diagnosis.error is not None
    assert (diagnosis.error.line, diagnosis.error.text) == (2, "/a/b.cu(3): error: the moon is full")
    assert diagnose_text("-Werror -Wno-error=x\n0 errors\nerror.cpp.o\n").error is None


UNKNOWN = [
    "[3/9] Building\nFAILED: x.o\n/a/b.cu(3): error: the moon is full\nninja: build stopped: subcommand failed.\n",
    "  error: subprocess-exited-with-error\n  x did not run\n  ValueError: the moon is full\n  [end of output]\n",
    "Engine core initialization failed. See root cause above.\nRuntimeError: the moon is full\n",
    "(EngineCore_0 pid=9) RuntimeError: the moon is full\n(APIServer pid=1) Engine core initialization failed.\n",
    '#9 1.0 g++: error: the moon is full\nERROR: failed to solve: process "/bin/sh -c x" did not complete\n',
    "make[1]: *** [moon.o] Error 1\nld: fatal error: the moon is full\nmake: *** [all] Error 2\n",
    "nvcc error   : the moon is full\nsubprocess.CalledProcessError: Command '['ninja']' returned non-zero exit\n",
    "   Compiling moon\nerror[E0463]: the moon is full\nerror: could not compile `moon`: the rest\n",
    "WARNING: error: a mirror\nwarning: failed: twice\nthread 'main' panicked at the moon is full\n",
    "x.cu:3:1: warning: error: in a comment\n    3 | // error: nothing\nCMake Error at x: the moon is full\n",
    "Traceback (most recent call last):\n    assert tide, 'x'  # the moon is full\nAssertionError\n",
]
"""Failures that nobody knows, with the line a person would look for among those of other tools."""


@pytest.mark.parametrize("log", UNKNOWN)
def test_of_a_failure_that_nobody_knows_the_line_that_says_why_is_shown(log: str) -> None:
    diagnosis = diagnose_text(f"-- begin\n{log}")
    assert diagnosis.findings == ()
    assert diagnosis.error is not None
    assert "the moon is full" in diagnosis.error.text


def test_a_message_may_go_over_two_lines_and_its_first_line_counts() -> None:
    text = "a\nb\n  │ Try increasing\n  │ UV_HTTP_TIMEOUT (current value: 30s).\n"
    assert [(item.id, item.line) for item in diagnose_text(text).findings] == [("large-wheel-download-timeout", 3)]


MIXED = "\n".join(["ok " * 9, "\u2714 fine", *(text for _, text in FRAGMENTS[::9]), "x" * 700, "last"])


@settings(max_examples=40, deadline=None)
@given(size=st.integers(50, 5000))
def test_blocks_of_any_size_give_the_same_lines(size: int) -> None:
    seen: dict[int, bytes] = {}
    for block in read_blocks(io.BytesIO(MIXED.encode()), size=max(size, 800)):
        for offset, line in enumerate(
            block.text.split(b"\n")[:-1] if block.text.endswith(b"\n") else block.text.split(b"\n")
        ):
            if not block.again:
                assert seen.setdefault(block.number(offset), line) == line
    assert [seen[number] for number in sorted(seen)] == MIXED.encode().split(b"\n")


@settings(max_examples=60, deadline=None)
@given(data=st.binary(max_size=3000))
def test_any_bytes_can_be_read(data: bytes) -> None:
    with contextlib.suppress(UsageError, *BROKEN):
        diagnose(io.BytesIO(data))


@pytest.mark.parametrize("encoding", ["utf-16", "utf-8-sig"])
def test_what_powershell_writes_is_read(encoding: str) -> None:
    text = f"{BEFORE}fatal: early EOF\n"
    assert diagnose(io.BytesIO(text.encode(encoding))).findings[0].line == 7


def test_gzip_is_read() -> None:
    assert diagnose(io.BytesIO(gzip.compress(f"{BEFORE}fatal: early EOF\n".encode()))).findings[0].line == 7


def test_a_log_without_line_ends_and_one_across_blocks_are_read_with_bounded_memory() -> None:
    text = b"https://" + b"x" * (3 * BLOCK) + b" fatal: early EOF " + b"y" * BLOCK
    [found] = diagnose(io.BytesIO(text)).findings
    assert (found.id, found.line) == ("git-rpc-early-eof-tls", 1)
    assert len(found.text) < 400, human_bytes(len(found.text))
    lines = b"0123456789abcdef\n" * (2 * BLOCK // 17) + b"fatal: early EOF\n"
    [found] = diagnose(io.BytesIO(lines)).findings
    assert found.line == 2 * BLOCK // 17 + 1


def test_passwords_in_urls_are_not_shown() -> None:
    [found] = diagnose_text("fatal: https://me:secret@host/x: RPC failed; curl 56").findings
    assert "secret" not in found.text
    assert "https://host/x" in found.text


def test_a_failed_stage_names_the_entry() -> None:
    error = recognised(
        CompileError("1 unit failed", why="see above", fix="run again", detail="x\n'cicc' died due to signal 9\n")
    )
    assert error.what == "1 unit failed"
    assert "(oom-nvcc-cicc-killed)" in error.why
    assert error.fix[-1] == "run again"
    assert len(error.fix) == 2
    assert error.docs == "docs/failures.md#oom-nvcc-cicc-killed"
    same = recognised(CompileError("2 units failed", why="see above", detail="the moon is full"))
    assert (same.why, same.docs) == ("see above", "docs/errors.md#compile")
    output = recognised(CompileError("CMake", detail="x", output="Compatibility with CMake < 3.5 has been removed"))
    assert output.docs.endswith("#cmake-4-policy-floor")


def test_every_entry_is_whole_and_leads_somewhere() -> None:
    for item in catalogue().values():
        assert item.patterns or item.symptom or not item.references, item.id
        assert bool(item.seen_as) <= bool(item.patterns), item.id
        assert all(name in catalogue() for name in item.over)
        assert f"### {item.id}\n" in PAGE.read_text()
        for pattern in item.patterns:
            assert len(literal(pattern)) >= 4, f"{item.id}: {pattern} has no text to look for first"


@pytest.mark.parametrize(
    ("pattern", "text"),
    [
        (r"abc", "abc"),
        (r"(?i)No Space left", "no space left"),
        (r"a(?:b|c)def+ghij", "ghij"),
        (r"undefined symbol: nccl\w+", "undefined symbol: nccl"),
        (r"x\.y\(z\)", "x.y(z)"),
        (r"ab?cde", "cde"),
        (r"[abc]{3}", ""),
    ],
)
def test_the_literal_part_of_a_pattern_is_in_all_it_matches(pattern: str, text: str) -> None:
    assert literal(pattern) == text


def test_stages_are_those_of_the_page() -> None:
    assert [line[3:] for line in PAGE.read_text().splitlines() if line.startswith("## ")] == [s.value for s in Stage]


def test_a_failure_refuses_keys_it_does_not_know() -> None:
    with pytest.raises(ValueError, match="extra"):
        Failure.model_validate({"id": "x", "stage": "fetch", "title": "", "cause": "", "fix": "", "colour": "red"})


@pytest.mark.parametrize("last", [b"", b"sent", b"sent\n", b"error: no logs", b"error: no logs\n"])
@pytest.mark.parametrize("beyond", [0, 5, 40, 200])
def test_a_log_that_ended_well_did_so_wherever_its_last_block_begins(last: bytes, beyond: int) -> None:
    end = b"Successfully built vllm\n" + b"uploading a log\n" * 8 + last
    filler = b"-- checking one thing after another\n" * (BLOCK // 36 + 1)
    diagnosis = diagnose(io.BytesIO(filler[len(end) - beyond - BLOCK :] + end))
    assert diagnosis.ended_well is not last.startswith(b"error")
