"""`nox -s index` and late signatures with real servers: buckets of moto's S3, wheels out of devpi and pypiserver."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pytest

from scripts.commands import index, publish
from scripts.core.console import Console
from scripts.core.errors import PublishError, UsageError
from scripts.core.files import file_sha256
from scripts.index.object_store import ObjectStore
from tests.integration.index.test_provenance import key_pair, wheel_with_sbom
from tests.integration.index.test_publish_static import check_index, small
from tests.integration.index_servers import needs, nginx, tool
from tests.integration.upload_servers import devpi, pypiserver

pytestmark = [pytest.mark.large, pytest.mark.servers]


@pytest.fixture(autouse=True)
def surroundings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WHEELSMITH_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("WHEELSMITH_INVOKED_FROM", str(tmp_path))
    monkeypatch.setenv("PIP_CONFIG_FILE", "/dev/null")
    monkeypatch.setenv("UV_PUBLISH_USERNAME", "team")
    monkeypatch.setenv("UV_PUBLISH_PASSWORD", "secret")


def do(*words: object) -> int:
    return index.main([str(word) for word in words], Console(quiet=True))


def put(*words: object) -> int:
    return publish.main([str(word) for word in words], Console(quiet=True))


def record(target: str, wheel: Path) -> dict[str, Any]:
    found = ObjectStore(target).read(f"entries/{wheel.name}.json")
    assert found
    return dict(json.loads(found.data))


def listed(target: str) -> dict[str, dict[str, Any]]:
    page = ObjectStore(target).read("simple/vllm/index.json")
    assert page
    return {file["filename"]: file for file in json.loads(page.data)["files"]}


def caching(moto: str, key: str) -> str:
    """Return what the bucket tells caches about an object, asked with curl."""
    words = ["curl", "-fsS", "-I", f"{moto}/wheels/{quote(key)}", "-H", f"Authorization: {_SCOPE}"]
    head = subprocess.run(words, check=True, capture_output=True, text=True).stdout
    return next(line.partition(": ")[2] for line in head.splitlines() if line.lower().startswith("cache-control"))


_SCOPE = "AWS4-HMAC-SHA256 Credential=id/20260101/us-east-1/s3/aws4_request, SignedHeaders=host, Signature=0"


def test_a_wheel_is_signed_later_yanked_promoted_and_looked_up_in_buckets(moto: str, tmp_path: Path) -> None:
    staging, production = "s3://wheels/staging", "s3://wheels/production"
    private, public = key_pair(tmp_path, "key")
    wheel = wheel_with_sbom(tmp_path)
    put(wheel, "--to", staging, "--who", "ann")
    with pytest.raises(Exception, match="is not signed"):
        do("promote", staging, production, wheel.name, "--key", public)
    put(wheel, "--to", staging, "--sign-key", private)
    signature = wheel.with_name(wheel.name + ".intoto.jsonl").read_bytes()
    extras = record(staging, wheel)["extras"]
    assert extras[".intoto.jsonl"] == hashlib.sha256(signature).hexdigest()
    assert ".cdx.json" in extras
    do("yank", staging, wheel.name, "--reason", "wrong on sm_89", "--who", "bob")
    assert listed(staging)[wheel.name]["yanked"] == "wrong on sm_89"
    with pytest.raises(PublishError, match="is yanked"):
        do("promote", staging, production, wheel.name)
    do("unyank", staging, wheel.name)
    do("promote", staging, production, wheel.name, "--key", public)
    do("promote", production, tmp_path / "copy", wheel.name, "--key", public)  # out of a bucket into a directory
    [path] = (tmp_path / "copy/files").rglob("*.whl")
    assert file_sha256(path) == file_sha256(wheel)
    assert path.with_name(path.name + ".intoto.jsonl").read_bytes() == signature
    check_index(tmp_path / "copy")
    do("log", staging, "--json", tmp_path / "log.json")
    events = json.loads((tmp_path / "log.json").read_text())
    assert [row["action"] for row in events] == ["publish", "update", "yank", "unyank"]
    assert [row["who"] for row in events if row["action"] in {"publish", "yank"}] == ["ann", "bob"]
    for key in (f"files/{file_sha256(wheel)}/{wheel.name}", "simple/vllm/index.html", f"entries/{wheel.name}.json"):
        assert caching(moto, f"staging/{key}").startswith("private")
    put(wheel, "--to", "s3://wheels/open", "--public-cache")
    assert caching(moto, f"open/files/{file_sha256(wheel)}/{wheel.name}").startswith("public")


def upload(url: str, wheel: Path) -> None:
    words = [tool("uv"), "publish", "-q", "--trusted-publishing", "never", "--publish-url", url, str(wheel)]
    subprocess.run(words, check=True, env={**os.environ})


@needs("nginx")
def test_wheels_of_devpi_pypiserver_and_nginx_are_mirrored_by_name_and_version(moto: str, tmp_path: Path) -> None:
    assert moto
    target = "s3://wheels/ours"
    wheels = [small(tmp_path / f"w{number}", f"1.{number}+cu130") for number in range(3)]
    for folder in ("devpi", "pypi", "nginx"):
        (tmp_path / folder).mkdir()
    with devpi(tmp_path / "devpi") as url:
        upload(url, wheels[0])
        do("mirror", f"{url}+simple/", target, "vllm==1.0+cu130")
        with pytest.raises(UsageError, match="has no wheel of vllm 7") as caught:
            do("mirror", f"{url}+simple/", target, "vllm==7")
        assert caught.value.why == "it has 1.0+cu130"
        with pytest.raises(UsageError, match="Perhaps you meant 'vllm'"):
            do("mirror", f"{url}+simple/", target, "vlm==1.0")
    with pypiserver(tmp_path / "pypi") as url:
        upload(url, wheels[1])
        do("mirror", f"{url}simple/", target, wheels[1].name)
    put(wheels[2], "--to", "theirs", "--no-audit")
    with nginx(tmp_path / "theirs", tmp_path / "nginx") as server:
        do("mirror", f"{server.url}/simple/", target, "vllm==1.2+cu130", "--dry-run")
        assert set(listed(target)) == {wheel.name for wheel in wheels[:2]}
        do("mirror", f"{server.url}/simple/", target, "vllm==1.2+cu130")
    found = listed(target)
    assert {name: file["hashes"]["sha256"] for name, file in found.items()} == {
        wheel.name: file_sha256(wheel) for wheel in wheels
    }
    assert "/team/prod/+simple/" in record(target, wheels[0])["origin"]["index"]
