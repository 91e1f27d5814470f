"""What a GPU machine without network needs for gpu-check, in loads of a limited size."""

from __future__ import annotations

import io
import lzma
import os
import re
import shutil
import tarfile
from collections.abc import Iterable, Sequence, Set
from pathlib import Path

from packaging.markers import default_environment
from packaging.requirements import InvalidRequirement, Requirement
from packaging.utils import canonicalize_name

from scripts.core.console import human_bytes
from scripts.core.errors import FetchError, UsageError
from scripts.core.files import digest, remove_tree
from scripts.core.paths import ROOT
from scripts.downloads.access import Access
from scripts.formats.wheel import open_wheel
from scripts.toolchain.environments import run_uv

HERE = "/tmp/wheelsmith-gpu"  # noqa: S108  (on the GPU machine, which is ours alone)
PYTHON = "3.12"
PLATFORM = "x86_64-manylinux_2_34"
# Large packages that vLLM can do without here: other kernels, compilers and codecs.
WITHOUT = {
    *("torch", "torchaudio", "torchvision", "triton", "numba", "opencv-python-headless", "setuptools"),
    *("flashinfer-python", "flashinfer-cubin", "tilelang", "apache-tvm-ffi-dev", "fastsafetensors", "quack-kernels"),
    *("nvidia-cudnn-frontend", "nvidia-cutlass-dsl", "nvidia-cuda-cccl", "uv"),
    *("tokenspeed-triton", "pynvvideocodec", "torchcodec", "instanttensor"),
}
# vLLM 0.20.1's own tests pin these two (requirements/test/cuda.txt); a newer transformers may not know its ways.
PINS = ("transformers==5.5.3", "tokenizers==0.22.2")
ALWAYS = {"transformers", "tokenizers", "typing-extensions", "typing-inspection"}  # even where an older one is there
OWN = (
    *("pyelftools", "platformdirs", "filelock", "rich", "packaging", "psutil", "pydantic", "cyclonedx-python-lib"),
    *("lz4", "zstandard", "hyperscan", "certifi"),
)
LEFT_OUT = ("mistral_common/data", "bin", "pycountry/locales", "xgrammar/lib")  # the last: a static library
PUT = """\
#!/usr/bin/env bash
# Unpack this load below {here}.
set -euo pipefail
from=$(cd "$(dirname "$0")" && pwd)
mkdir -p {here}/site {here}/wheels
for archive in "$from"/site.tar.xz; do [ -f "$archive" ] && tar -C {here}/site -xJf "$archive"; done
for archive in "$from"/tool.tar.xz; do [ -f "$archive" ] && tar -C {here} -xJf "$archive"; done
for wheel in "$from"/*.whl; do [ -f "$wheel" ] && cp "$wheel" {here}/wheels/; done
[ -f "$from/run.sh" ] && cp "$from/run.sh" {here}/
echo "unpacked $(basename "$from")"
"""
RUN = """\
#!/usr/bin/env bash
# bash {here}/run.sh OUT [SECONDS [OPTION]...]: check all wheels, write OUT/NAME.json and OUT/NAME.log.
set -uo pipefail
out=$1; seconds=${{2:-540}}; shift; [ $# -gt 0 ] && shift
cd {here}
export PYTHONPATH={here}/site PYTHONUNBUFFERED=1 VLLM_NO_USAGE_STATS=1 HF_HUB_OFFLINE=1
worst=0
for wheel in wheels/*.whl; do
  name=$(basename "$wheel" .whl); short=${{name%%-cp*}}; short=${{short//+/_}}
  left=$((seconds - SECONDS)); [ "$left" -gt 5 ] || {{ echo "no time left for $short"; worst=124; break; }}
  timeout --signal=TERM --kill-after=10 "$left" \\
    python3 -m scripts.commands.gpu_check "$wheel" --json "$out/$short.json" "$@" 2>&1 | tee "$out/$short.log"
  code=${{PIPESTATUS[0]}}; [ "$code" = 0 ] || worst=$code
done
exit "$worst"
"""


def have(path: Path) -> set[str]:
    """Read the names of installed packages, one a line, versions ignored. Raises UsageError."""
    try:
        lines = path.read_text().splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(f"{path} cannot be read: {error}", fix="write there what `pip list` names") from error
    words = [re.split(r"[\s=@;#\[<>~!]", line.strip(), maxsplit=1)[0] for line in lines]
    return {canonicalize_name(word) for word in words if word and not word.startswith("-")}


def wanted(wheels: Iterable[Path], python: str = PYTHON) -> list[str]:
    """Return the requirements of all wheels that apply on Linux and are not left out, and our own."""
    environment: dict[str, str | Set[str]] = {
        **{key: str(value) for key, value in default_environment().items()},
        "python_version": python,
        "python_full_version": f"{python}.0",
        "extra": "",
    }
    found = set(OWN)
    for path in wheels:
        with open_wheel(path) as wheel:
            lines = wheel.message("METADATA").get_all("Requires-Dist", [])
        for line in lines:
            try:
                requirement = Requirement(line)
            except InvalidRequirement:
                continue
            skipped = canonicalize_name(requirement.name) in WITHOUT
            if not skipped and (requirement.marker is None or requirement.marker.evaluate(environment)):
                requirement.marker = None
                found.add(str(requirement))
    return sorted({*found, *_pins(found)})


def _pins(found: Iterable[str]) -> tuple[str, ...]:
    """Return the pins that all requirements allow: newer vLLM asks for a newer transformers."""
    versions = {pin.name: str(pin.specifier).removeprefix("==") for pin in map(Requirement, PINS)}
    asked = [requirement for requirement in map(Requirement, found) if requirement.name in versions]
    fit = all(requirement.specifier.contains(versions[requirement.name]) for requirement in asked)
    return PINS if fit else ()


def resolve(
    requirements: Sequence[str],
    names: set[str],
    scratch: Path,
    access: Access,
    python: str = PYTHON,
) -> list[str]:
    """Return exact versions of all that is needed and not there. Raises ToolchainError."""
    source, target = scratch / "wanted.in", scratch / "wanted.txt"
    source.write_text("".join(f"{line}\n" for line in requirements))
    command: list[str | Path] = ["pip", "compile", "--quiet", "--python-version", python]
    command += ["--python-platform", PLATFORM, "--only-binary", ":all:", "--no-annotate", "--no-header"]
    command += ["--no-emit-index-url", "--no-emit-find-links", source, "-o", target]
    run_uv(command, access)
    return chosen(target.read_text().splitlines(), names)


def chosen(lines: Iterable[str], names: set[str]) -> list[str]:
    """Return those pins that the machine lacks or must have newer, without what is left out on purpose."""
    kept = []
    for line in lines:
        name = canonicalize_name(line.split("==")[0].split("[")[0].strip())
        if (
            "==" in line
            and name not in WITHOUT
            and not name.startswith("nvidia-")
            and (name in ALWAYS or name not in names)
        ):
            kept.append(line.strip())
    return kept


def packed_site(pins: Sequence[str], access: Access, python: str = PYTHON) -> Path:
    """Return the packed dependencies, from the cache when the same ones were packed before."""

    def make(folder: Path) -> None:
        access.console.stage("install", f"{len(pins)} packages")
        site = install(pins, folder, access, python)
        access.console.stage("pack", "xz, a minute or more")
        pack(site, folder / "site.tar.xz")
        remove_tree(site)

    key = digest([*pins, python, LEFT_OUT, 1])
    return access.cache.once("carry", key, make, console=access.console) / "site.tar.xz"


def install(pins: Sequence[str], scratch: Path, access: Access, python: str = PYTHON) -> Path:
    """Install the pins for the machine's Python into a folder; take out what is not needed to run."""
    source, site = scratch / "pins.txt", scratch / "site"
    source.write_text("".join(f"{line}\n" for line in pins))
    command: list[str | Path] = ["pip", "install", "--quiet", "--no-deps", "--target", site, "-r", source]
    command += ["--python-version", python, "--python-platform", PLATFORM]
    run_uv([*command, "--only-binary", ":all:"], access)
    for path in [*(site / name for name in LEFT_OUT), *site.rglob("__pycache__"), *site.glob("*/tests")]:
        remove_tree(path)
    return site


def pack(folder: Path, target: Path) -> Path:
    """Pack a folder as .tar.xz, in the order of names and without dates or owners."""
    with lzma.open(target, "wb", preset=6) as compressed, tarfile.open(fileobj=compressed, mode="w") as tar:
        for path in sorted(folder.rglob("*")):
            if path.is_file():
                info = tarfile.TarInfo(str(path.relative_to(folder)))
                info.size, info.mode = path.stat().st_size, 0o755 if os.access(path, os.X_OK) else 0o644
                with path.open("rb") as file:
                    tar.addfile(info, file)
    return target


def own_scripts(target: Path) -> Path:
    """Pack wheelsmith's scripts and recipes as they are in the folder now, and pyproject.toml with its version."""
    files = [p for part in ("scripts", "recipes") for p in sorted((ROOT / part).rglob("*")) if p.is_file()]
    files.append(ROOT / "pyproject.toml")
    with lzma.open(target, "wb", preset=6) as compressed, tarfile.open(fileobj=compressed, mode="w") as tar:
        for path in [p for p in files if "__pycache__" not in p.parts]:
            data = path.read_bytes()
            info = tarfile.TarInfo(str(path.relative_to(ROOT)))
            info.size, info.mode = len(data), 0o644
            tar.addfile(info, io.BytesIO(data))
    return target


def spread(pieces: Sequence[Path], limit: int) -> list[list[Path]]:
    """Part files into loads of at most `limit` bytes, each into the first with room. Raises UsageError for a larger."""
    loads: list[list[Path]] = []
    rooms: list[int] = []
    for piece in pieces:
        size = piece.stat().st_size
        if size > limit:
            raise UsageError(
                f"{piece.name} has {human_bytes(size)}, a load at most {human_bytes(limit)}",
                fix="raise --limit, or slim the wheel first: nox -s slim -- WHEEL --arch 9.0",
            )
        number = next((number for number, room in enumerate(rooms) if size <= room), len(loads))
        if number == len(loads):
            loads.append([])
            rooms.append(limit)
        loads[number].append(piece)
        rooms[number] -= size
    return loads


def write_load(folder: Path, pieces: Iterable[Path], *, last: bool) -> None:
    """Copy the files of one load and write its scripts. Raises FetchError when the disk refuses."""
    try:
        folder.mkdir(parents=True)
        for piece in pieces:
            shutil.copyfile(piece, folder / piece.name)
        (folder / "put.sh").write_text(PUT.format(here=HERE))
        if last:
            (folder / "run.sh").write_text(RUN.format(here=HERE))
    except OSError as error:
        raise FetchError(f"{folder} cannot be written: {error}", fix="name another --out") from error
