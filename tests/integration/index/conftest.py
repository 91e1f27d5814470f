"""Fixtures of all index tests."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.integration.upload_servers import s3


@pytest.fixture
def moto(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """An S3 server with a bucket `wheels` and its credentials in the environment; its address."""
    with s3(tmp_path, "wheels") as (url, environment):
        for name, value in environment.items():
            monkeypatch.setenv(name, value)
        yield url
