"""Why a git call failed: the server's words, not git's last line."""

from __future__ import annotations

import pytest

from scripts.downloads.mirrors import other_spelling
from scripts.sources.git_process import NO_REPOSITORY, reason


@pytest.mark.parametrize(
    ("said", "why"),
    [
        (
            (
                "fatal: '/srv/NVIDIA/cutlass.git' does not appear to be a git repository\n"
                "fatal: Could not read from remote repository.\n\n"
                "Please make sure you have the correct access rights\nand the repository exists."
            ),
            "'/srv/NVIDIA/cutlass.git' does not appear to be a git repository",
        ),
        (
            (
                "remote: fatal: unable to read 1234\n"
                "remote: aborting due to possible repository corruption on the remote side.\n"
                "fatal: early EOF\nfatal: fetch-pack: invalid index-pack output"
            ),
            "aborting due to possible repository corruption on the remote side.",
        ),
        ("fatal: remote error: upload-pack: not our ref 1234", "upload-pack: not our ref 1234"),
        ("fatal: unable to access 'https://h/x/': Could not resolve host: h", None),
        ("error: something\nhint: try", "error: something"),
        ("git fetch ended with exit code 3", "git fetch ended with exit code 3"),
        ("", ""),
    ],
)
def test_the_reason_is_the_line_that_says_why(said: str, why: str | None) -> None:
    assert reason(said) == (said.removeprefix("fatal: ") if why is None else why)


def test_a_mirror_s_repository_is_found_under_either_name() -> None:
    assert other_spelling("file:///m/NVIDIA/cutlass.git") == "file:///m/NVIDIA/cutlass"
    assert other_spelling("file:///m/NVIDIA/cutlass/") == "file:///m/NVIDIA/cutlass.git"
    assert NO_REPOSITORY.search("fatal: '/m/x.git' does not appear to be a git repository")
    assert NO_REPOSITORY.search("fatal: repository 'https://h/x/' not found")
