"""What goes into an image's build: the wheel, held against the base; the lock; the files of runtime/; secrets."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
import re
import shutil
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from packaging.specifiers import SpecifierSet
from packaging.version import Version

from scripts.audit.collect import audit_wheel
from scripts.audit.models import TargetVerdict
from scripts.audit.subjects import label_archs, matching_recipe
from scripts.core.cache import Cache
from scripts.core.errors import AuditError, FetchError, ImageError
from scripts.core.files import digest, file_sha256
from scripts.core.paths import DEFAULT_RECIPE, ROOT
from scripts.cuda.drivers import Target, parse_target
from scripts.downloads.access import Access
from scripts.downloads.download import download, open_client
from scripts.formats.wheel import open_wheel, wheel_name
from scripts.image.gpus import NAME as GPU_TABLE
from scripts.image.gpus import gpu_table, gpu_targets
from scripts.image.layers import layer_rules, split_lock
from scripts.recipe.files import load_recipe

RUNTIME = ROOT / "runtime"
LOCKS = RUNTIME / "requirements"
ENCODINGS = {
    "o200k_base.tiktoken": "446a9538cb6c348e3516120d7c08b09f57c36495e2acfffe59a5bf8b0cfb1a2d",
    "cl100k_base.tiktoken": "223921b76ee99bde995b7ff738513eef100fb51d18c93597a113bcffe865b2a7",
}
"""Vocabularies that openai_harmony reads for gpt-oss, with their sha256 (tiktoken_ext/openai_public.py)."""
ENCODINGS_URL = "https://openaipublic.blob.core.windows.net/encodings/"


@dataclass(frozen=True)
class WheelFacts:
    """What the image must know of its wheel."""

    path: Path
    version: str
    sha256: str
    unpacked: int
    """Bytes of its files."""
    recipe: str
    cuda: str
    """Lowest CUDA version whose driver runs all its targets."""
    driver: str
    """First Linux driver of that CUDA version."""
    torch: str
    """Version of torch that it names; "" when it names none."""
    gpus: Mapping[str, Any]
    """What the audit says per GPU, for the entry point (scripts.image.gpus)."""


@dataclass(frozen=True)
class Base:
    """What a base image offers."""

    python: tuple[int, int]
    glibc: str
    machine: str


def find_wheel(given: Path | None, *, wheelhouse: Path = ROOT / "wheelhouse") -> Path:
    """Return the wheel that was given, else the newest vLLM in `wheelhouse`. Raises ImageError."""
    if given is None:
        found = sorted(wheelhouse.glob("vllm-*.whl"), key=lambda path: path.stat().st_mtime)
        if not found:
            raise ImageError(
                "there is no wheel", why=f"{wheelhouse} is empty", fix="give one: --wheel FILE, or: nox -s wheel"
            )
        return found[-1]
    if not given.is_file():
        raise ImageError(f"there is no wheel {given}", fix="check the path; nox -s wheel makes one into wheelhouse/")
    return given


def read_wheel(path: Path) -> WheelFacts:
    """Audit a wheel, once, and return what the image must know.

    Raises ImageError when it is no wheel of vLLM for a GPU, or is not what its RECORD says: what is installed is held
    against RECORD later.
    """
    try:
        name = wheel_name(path)
        recipe = matching_recipe(path)
        own = wheel_targets(path)
        report = audit_wheel(path, lambda subject: [*own, *gpu_targets(subject)], recipe=recipe)
        with open_wheel(path) as wheel:
            unpacked = sum(member.file_size for member in wheel.members)
    except AuditError as error:
        raise ImageError(error.what, why=error.why, fix=error.fix) from error
    if name.name != "vllm":
        raise ImageError(f"{path.name} is not vLLM", fix="give a wheel of vLLM: --wheel FILE")
    damage = next((item.text for item in report.findings if item.code == "record-mismatch"), "")
    if damage:
        raise ImageError(f"{path.name} is not what its RECORD says", why=damage, fix=f"nox -s audit -- {path}")
    verdicts = report.targets[: len(own)]
    cuda, driver = lowest_driver(verdicts)
    if not cuda:
        raise ImageError(
            f"{path.name} runs on none of its GPUs",
            why=next((item.summary for item in verdicts), "there is no GPU code in it"),
            fix=f"nox -s audit -- {path}",
        )
    torch = (report.torch or "").removeprefix("==")
    facts = {"version": name.version, "torch": torch, "cuda": cuda, "driver": driver}
    gpus = gpu_table(path.name, report.targets[len(own) :], **facts)
    named = recipe.name if recipe else ""
    return WheelFacts(
        path, sha256=report.sha256 or file_sha256(path), unpacked=unpacked, recipe=named, gpus=gpus, **facts
    )


def wheel_targets(path: Path) -> Sequence[Target]:
    """Return the GPUs of a wheel, by its label or recipe, each with the lowest driver that can run it."""
    recipe = matching_recipe(path)
    archs = label_archs(path) or (recipe.archs if recipe else load_recipe(DEFAULT_RECIPE).archs)
    return [parse_target(arch.number) for arch in archs]


def lowest_driver(verdicts: Sequence[TargetVerdict]) -> tuple[str, str]:
    """Return CUDA version and driver that run every target that can be run at all; two empty texts when none can.

    A target whose code is known to go wrong (a hazard) counts: the entry point tells, and stops.
    """
    met = [(item.lowest_cuda, item.lowest_driver or "") for item in verdicts if item.lowest_cuda]
    cuda, driver = max(met, key=lambda item: Version(item[0] or "0"), default=("", ""))
    return cuda or "", driver


def check_base(wheel: Path, base: Base) -> None:
    """Raise ImageError unless the wheel's tags and Requires-Python fit the base's Python, glibc and machine."""
    interpreter, abi, platform = wheel_name(wheel).tags.split("-")[-3:]
    version = f"{base.python[0]}.{base.python[1]}"
    found = re.search(r"cp3(\d+)", interpreter)
    minor = int(found.group(1)) if found else 0
    fits = base.python[0] == 3 and (base.python[1] >= minor if abi in {"abi3", "none"} else base.python[1] == minor)
    with open_wheel(wheel) as opened:
        wanted = opened.message("METADATA").get("Requires-Python") or ""
    if not fits or not SpecifierSet(wanted).contains(version):
        raise ImageError(
            f"{wheel.name} is not for Python {version}, which the base has",
            why=f"it is tagged {interpreter}-{abi} and asks for Python {wanted or 'of any version'}",
            fix=f"choose a --base with Python 3.{minor}" if minor else "choose another --base",
        )
    needed = [(int(a), int(b)) for a, b in re.findall(r"manylinux_(\d+)_(\d+)", platform)]
    has = tuple(int(part) for part in base.glibc.split(".")[:2]) if base.glibc else (0, 0)
    if needed and min(needed) > has:
        glibc = ".".join(str(part) for part in min(needed))
        raise ImageError(
            f"{wheel.name} needs glibc {glibc} and the base has {base.glibc or 'none (musl?)'}",
            why="the wheel's platform tag is what its symbols need",
            fix="choose a newer --base: Debian 12 has glibc 2.36, Debian 13 2.41",
        )
    if not platform.endswith(base.machine) and platform != "any":
        raise ImageError(f"{wheel.name} is not for {base.machine}", fix="choose a --base of the wheel's machine")


def find_lock(version: str, given: Path | None) -> Path:
    """Return the hash-locked requirements for a wheel of this version. Raises ImageError when there are none."""
    lock = given or LOCKS / f"vllm-{Version(version).public}.txt"
    if not lock.is_file():
        raise ImageError(
            f"there are no locked requirements for vLLM {Version(version).public}",
            why=f"{lock} does not exist",
            fix=[f"write {lock.with_suffix('.in').name} beside it and: nox -s upgrade -- {lock.stem}", "--lock FILE"],
        )
    if "--hash=sha256:" not in lock.read_text():
        raise ImageError(f"{lock} pins no hashes", fix="uv pip compile --generate-hashes")
    return lock


def have_encodings(given: Path | None, access: Access) -> dict[str, Path]:
    """Return gpt-oss's vocabularies, from the folder given or downloaded, each checked. Raises ImageError."""
    found = {}
    try:
        with open_client(access) as client:
            for name, sha256 in ENCODINGS.items():
                local = given / name if given else None
                found[name] = local or download(client, ENCODINGS_URL + name, access, sha256=sha256, filename=name)
                if local and (not local.is_file() or file_sha256(local) != sha256):
                    raise ImageError(f"{local} is not the {name} that gpt-oss needs", fix=f"its sha256 is {sha256}")
    except FetchError as error:
        raise ImageError(
            "the vocabularies of gpt-oss could not be fetched",
            why=error.why or error.what,
            fix=[
                "--encodings DIR with o200k_base.tiktoken and cl100k_base.tiktoken",
                "--encodings none: not for gpt-oss",
            ],
        ) from error
    return found


@contextmanager
def make_context(cache: Cache, wheel: WheelFacts, lock: Path, encodings: Mapping[str, Path]) -> Iterator[Path]:
    """Give a folder with what Dockerfile.runtime takes from its context, removed afterwards. Raises ImageError.

    Big files are hard links where the filesystem allows
    it; times and modes are set, so that layers are the same from every checkout.
    """
    with tempfile.TemporaryDirectory(dir=cache.place("tmp", "image").parent, prefix="image-") as name:
        folder = Path(name)
        for part in ("wheel", "encodings"):
            (folder / part).mkdir()
        shutil.copy2(ROOT / "Dockerfile.runtime", folder)
        for number, text in enumerate(split_lock(lock.read_text(), layer_rules()), 1):
            (folder / f"requirements-{number}.txt").write_text(text)
        shutil.copy2(LOCKS / "worker.txt", folder)
        for part in ("build", "image", "worker"):
            shutil.copytree(RUNTIME / part, folder / part, ignore=shutil.ignore_patterns("__pycache__"))
        for part in ("build", "image"):
            (folder / part / "__init__.py").unlink()  # a folder of programs
        (folder / "image" / GPU_TABLE).write_text(json.dumps(wheel.gpus, indent=1) + "\n")
        _link(Path(sys.executable).with_name("uv"), folder / "build" / "uv")
        _link(wheel.path, folder / "wheel" / wheel.path.name)
        for target, source in encodings.items():
            _link(source, folder / "encodings" / target)
        for path in folder.rglob("*"):
            if path.is_dir() or path.parent.name in {"build", "image"}:
                path.chmod(0o755)
            elif path.parent.name == "worker":
                path.chmod(0o644)
        yield folder


def context_arguments(lock: Path) -> dict[str, str]:
    """Return the digests of what enters by bind mount: buildah's layer cache does not look into mounts."""
    parts = split_lock(lock.read_text(), layer_rules())
    digests = {f"REQUIREMENTS_{i}_SHA256": hashlib.sha256(part.encode()).hexdigest() for i, part in enumerate(parts, 1)}
    install = [(RUNTIME / "build" / name).read_text() for name in ("install.sh", "trim.py")]
    return {
        **digests,
        "INSTALLER_SHA256": digest(install),
        "STUB_SHA256": file_sha256(RUNTIME / "build" / "stub.py"),
        "WORKER_SHA256": file_sha256(LOCKS / "worker.txt"),
    }


def _link(source: Path, target: Path) -> None:
    try:
        os.link(source.resolve(), target)
    except OSError:
        shutil.copy2(source, target)


def write_secrets(folder: Path, access: Access) -> dict[str, Path]:
    """Write what the build needs and no layer may hold: index URLs (with credentials) and certificates."""
    plain = dataclasses.replace(access.indexes, extra_index_urls=(), find_links=(), cert="")
    variables = {k: v for k, v in plain.uv_environment({}).items() if v and k.startswith("UV_")}
    for name in ("HTTPS_PROXY", "HTTP_PROXY", "NO_PROXY", "https_proxy", "http_proxy", "no_proxy"):
        if value := access.environment.get(name):
            variables[name] = value
    index = folder / "index"
    index.touch(mode=0o600)
    index.write_text("".join(f"{name}='{value}'\n" for name, value in variables.items() if "'" not in value))
    bundle = access.indexes.cert or access.environment.get("SSL_CERT_FILE", "")
    certificates = folder / "ca"
    certificates.write_bytes(Path(bundle).read_bytes() if bundle and Path(bundle).is_file() else b"")
    return {"index": index, "ca": certificates}
