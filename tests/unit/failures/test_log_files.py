"""Logs come compressed, in archives, in any Unicode encoding, as JSON lines, as HTML and wrapped: all are read."""

from __future__ import annotations

import bz2
import gzip
import html
import io
import json
import lzma
import tarfile
import textwrap
import zipfile
from pathlib import Path

import pytest
import zstandard
from hypothesis import given, settings
from hypothesis import strategies as st

from scripts.commands.diagnose import main
from scripts.core.console import Console
from scripts.core.errors import UsageError
from scripts.failures.log_files import BROKEN
from scripts.failures.logs import BLOCK
from scripts.failures.recognise import diagnose, diagnose_text

LINES = ["-- The CUDA compiler identification is NVIDIA 12.8.93", "[1/9] Building CUDA object a.cu.o"]
ERROR = "nvcc error   : 'cicc' died due to signal 9 (Kill signal)"
LOG = "\n".join([*LINES, ERROR, "ninja: build stopped: subcommand failed.", ""])
WANTED = ("oom-nvcc-cicc-killed", 3)


def found(data: bytes) -> tuple[str, int]:
    first = diagnose(io.BytesIO(data)).findings[0]
    return first.id, first.line


PACKED = {
    "gz": gzip.compress(LOG.encode()),
    "xz": lzma.compress(LOG.encode()),
    "bz2": bz2.compress(LOG.encode()),
    "zst": zstandard.compress(LOG.encode()),
}


@pytest.mark.parametrize("kind", PACKED)
def test_compressed_logs_are_read(kind: str) -> None:
    assert found(PACKED[kind]) == WANTED


@pytest.mark.parametrize("kind", ["xz", "bz2"])
def test_files_of_several_streams_are_read_to_their_end(kind: str) -> None:
    pack = lzma.compress if kind == "xz" else bz2.compress
    assert found(pack(LOG[:60].encode()) + pack(LOG[60:].encode())) == WANTED


@pytest.mark.parametrize("kind", PACKED)
def test_a_compressed_log_that_was_cut_is_never_without_failure(kind: str, tmp_path: Path) -> None:
    log = tmp_path / f"build.log.{kind}"
    log.write_bytes(PACKED[kind][:-12])
    with pytest.raises(UsageError, match=r"build.log.* cannot be read"):
        main([str(log)], Console())


@pytest.mark.parametrize("encoding", ["utf-16-le", "utf-16-be", "utf-16", "utf-32-le", "utf-32", "utf-8-sig"])
def test_every_encoding_of_unicode_is_read_with_a_mark_or_without(encoding: str) -> None:
    assert found(LOG.encode(encoding)) == WANTED


def test_bytes_of_an_eight_bit_encoding_hide_nothing() -> None:
    assert found(b"gr\xfc\xdfe\n\xff\n" + ERROR.encode("latin-1") + b"\n") == WANTED


def zipped(members: dict[str, str]) -> bytes:
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, text in members.items():
            archive.writestr(name, text)
    return out.getvalue()


def test_all_steps_of_githubs_zip_are_read_and_the_step_is_named(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    stamped = "".join(f"2026-11-25T10:00:00.1234567Z {line}\n" for line in LOG.splitlines())
    log = tmp_path / "logs_1.zip"
    log.write_bytes(
        zipped(
            {"0_build.txt": stamped, "build/10_Post.txt": "fine\n", "build/2_Compile.txt": stamped, "x.png": "\x89PNG"}
        )
    )
    assert main([str(log), "--json", str(tmp_path / "f.json")], Console()) == 0
    assert "build/2_Compile.txt, line 3: nvcc error" in capsys.readouterr().out
    assert json.loads((tmp_path / "f.json").read_text())[0]["file"] == "build/2_Compile.txt"


def test_a_tar_of_compressed_logs_is_read() -> None:
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w:xz") as archive:
        info = tarfile.TarInfo("logs/build.log.gz")
        info.size = len(PACKED["gz"])
        archive.addfile(info, io.BytesIO(PACKED["gz"]))
    assert found(out.getvalue()) == WANTED


@pytest.mark.parametrize(
    ("data", "kind"),
    [
        (b"\x7fELF" + bytes(100), "a program"),
        (b"%PDF-1.7\n", "a PDF"),
        (b"7z\xbc\xaf\x27\x1c", "7-Zip"),
        (bytes(range(256)) * 20, "not text"),
    ],
)
def test_what_is_no_log_is_refused_by_name(data: bytes, kind: str, tmp_path: Path) -> None:
    log = tmp_path / "x.log"
    log.write_bytes(data)
    with pytest.raises(UsageError, match=kind):
        main([str(log)], Console())


def test_archives_within_archives_end_somewhere() -> None:
    data = LOG.encode()
    for _ in range(5):
        data = zipped({"x.zip": ""}) if not data else _again(data)
    assert diagnose(io.BytesIO(data)).findings == ()


def _again(data: bytes) -> bytes:
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w") as archive:
        archive.writestr("inner.zip", data)
    return out.getvalue()


def test_an_empty_log_says_nothing_about_success(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    log = tmp_path / "x.log"
    log.touch()
    main([str(log)], Console())
    assert "nothing can be said" in capsys.readouterr().out


@pytest.mark.parametrize("key", ["log", "msg", "message"])
def test_json_lines_are_read_with_their_escapes(key: str) -> None:
    rows = [
        json.dumps({"time": "2026-11-25T10:00:00Z", "stream": "stderr", key: line + "\n"}) for line in LOG.splitlines()
    ]
    assert found("\n".join(rows).encode()) == WANTED
    assert found(json.dumps([{key: LOG}]).encode())[0] == WANTED[0]


def test_a_quoted_message_in_json_is_found_by_its_quotes() -> None:
    row = json.dumps({"level": "error", "msg": 'x.cpp:1: error: namespace "cub" has no member "Sum"'})
    assert diagnose_text(row).findings[0].id == "cuda13-cub-max-sum-removed"


def test_html_is_read() -> None:
    page = f"<!DOCTYPE html><html><body><pre><span>{html.escape(LOG)}</span></pre></body></html>"
    assert found(page.encode()) == WANTED
    assert found(html.escape(LOG).encode()) == WANTED


LONG = (
    "x " * 20
    + "RuntimeError: Detected that PyTorch and torchvision were compiled with different CUDA major versions. x"
)


@pytest.mark.parametrize("width", [80, 100])
@pytest.mark.parametrize("hard", [True, False])
def test_text_wrapped_at_a_column_is_joined_again(width: int, *, hard: bool) -> None:
    text = f"{'y ' * 60}\n{LONG}\nerror: {'z ' * 60}"
    if hard:
        rows = [row[at : at + width] for row in text.splitlines() for at in range(0, len(row), width)]
    else:
        rows = [line for row in text.splitlines() for line in textwrap.wrap(row, width)]
    log = "\n".join(rows)
    [first] = [item for item in diagnose_text(log).findings if item.id == "torchvision-op-mismatch"]
    assert "x x x x" in log.splitlines()[first.line - 1]


def test_a_large_log_with_all_kinds_of_lines_is_read_block_by_block() -> None:
    text = "".join(f"[{i}/99999] Building CUDA object csrc/kernel_error_{i}.cu.o\n" for i in range(2 * BLOCK // 50))
    assert found((text + ERROR + "\n").encode()) == (WANTED[0], text.count("\n") + 1)


@settings(max_examples=80, deadline=None)
@given(kind=st.sampled_from([*PACKED, "zip", "json"]), place=st.integers(0, 60), byte=st.integers(0, 255))
def test_one_changed_byte_never_ends_in_an_unknown_exception(kind: str, place: int, byte: int) -> None:
    data = bytearray({**PACKED, "zip": zipped({"a": LOG}), "json": json.dumps({"a": LOG}).encode()}[kind])
    data[place % len(data)] = byte
    try:
        diagnose(io.BytesIO(bytes(data)))
    except (UsageError, *BROKEN):
        pass
