"""Checks of disks: room, inodes, rights and mount options of cache, TMPDIR and wheelhouse."""

from __future__ import annotations

import os
import shutil
import tempfile
from pathlib import Path

from scripts.core.console import human_bytes
from scripts.doctor.preflight import missing_git
from scripts.doctor.registry import Result, Subject, blocked, check, ok, unknown, warning
from scripts.recipe.costs import TOOLCHAIN_GB
from scripts.recipe.model import Component
from scripts.recipe.sources import GitSource
from scripts.toolchain.provide import environment_key

GB = 1e9
UNIT_TMP_GB = 1.0  # intermediate files of one unit, seen at most in public threads
FILES = 70_000  # of toolchain and sources: 60 000 counted for quickstart
GIT_GB = 0.3  # pinned git sources: measured without most of their history, docs/sources.md, with room for it
CLONE_GB = 1.5  # a whole clone of triton


def existing(path: Path) -> Path:
    """Return the path or its nearest parent that exists."""
    return next(part for part in (path, *path.parents) if part.exists())


def free(path: Path) -> int:
    """Return the bytes that may be written on the filesystem of a path, which need not exist yet."""
    return shutil.disk_usage(existing(path)).free


def cache_need(subject: Subject) -> float:
    """Return the bytes that downloads, toolchain and build tree still need in the cache; 0 without figures."""
    cost = subject.recipe.cost
    if not cost:
        return 0
    ready = (subject.cache / "toolchains" / environment_key(subject.recipe, subject.torch)).is_dir()
    need = (cost.disk_gb - (TOOLCHAIN_GB if ready else 0)) * GB
    if ready and any((subject.cache / "builds").glob("*/configured.json")):
        need = min(need, 0.2 * GB)  # a tree is there already; what it still needs is unknown but less
    return need


def wheel_need(subject: Subject) -> float:
    """Return the bytes of the wheel and its copy: upstream's whole wheel has 0.51 GB, quickstart's 8 MB."""
    return 1.1 * GB if Component.FLASH_ATTENTION_2 in subject.recipe.components else 0.1 * GB


def _own_tmp(subject: Subject) -> str:
    folder = subject.cache / "tmp"
    return f"mkdir -p {folder}; export TMPDIR={folder}"


def _same(first: Path, second: Path) -> bool:
    return existing(first).stat().st_dev == existing(second).stat().st_dev


def _room(place: str, path: Path, need: float, fix: str) -> Result:
    have = free(path)
    text = f"{human_bytes(have)} free for {place} ({path}), {human_bytes(need)} needed"
    return ok(text) if have >= need else blocked(text, fix)


@check("disk-full-ci-or-docker")
def disk_of_cache(subject: Subject) -> Result:
    """Check room for downloads, toolchain and build tree, with TMPDIR and wheelhouse where they share it."""
    if not subject.recipe.cost:
        return unknown("the recipe has no measured figures")
    need = cache_need(subject)
    if _same(subject.wheelhouse, subject.cache):
        need += wheel_need(subject)
    fix = "free space there, or: export WHEELSMITH_CACHE=/a/larger/disk/wheelsmith"
    return _room("downloads, toolchain and build tree", subject.cache, need, fix)


@check("tmp-too-small-for-nvcc")
def disk_of_tmp(subject: Subject) -> Result:
    """Check TMPDIR: up to 1 GB for each unit compiled at once."""
    need, have = UNIT_TMP_GB * GB * subject.jobs, free(subject.tmp)
    text = f"{human_bytes(have)} free in TMPDIR ({subject.tmp}), {human_bytes(need)} for {subject.jobs} units at once"
    fix = _own_tmp(subject)
    if have >= need:
        return ok(text)
    return blocked(text, fix) if have < 0.2 * GB else warning(text, fix)


@check("disk-full-wheelhouse")
def disk_of_wheelhouse(subject: Subject) -> Result:
    """Check room for the finished wheel."""
    return _room("the wheel", subject.wheelhouse, wheel_need(subject), "nox -s wheel -- --wheelhouse /a/larger/disk")


@check("disk-full-triton-clone")
def disk_of_clones(subject: Subject) -> Result:
    """Check room for the git sources that are not in the cache yet; a whole clone is more than a pinned folder."""
    urls = missing_git(subject.recipe, subject.access.cache, subject.access.mirrors)
    sources = [item.source for item in subject.recipe.needed_dependencies().values()]
    whole = [
        item
        for item in sources
        if isinstance(item, GitSource) and not item.subdirectories and "triton" in item.repository
    ]
    if not urls:
        return ok("all git sources are in the cache, or none is needed")
    need = (GIT_GB + CLONE_GB * len(whole)) * GB
    found = _room(f"{len(urls)} git sources", subject.cache, need, "export WHEELSMITH_CACHE=/a/larger/disk/wheelsmith")
    if whole and found.verdict.value == "ok":
        return warning(
            f"{whole[0].repository} is fetched whole", 'subdirectories = ["python/triton_kernels"] in the recipe'
        )
    return found


@check("inodes-used-up")
def inodes(subject: Subject) -> Result:
    """Check that the cache's filesystem can hold as many files."""
    stats = os.statvfs(existing(subject.cache))
    if not stats.f_files:
        return ok("the filesystem has no fixed number of inodes")
    text = f"{stats.f_favail} inodes free at {subject.cache}, about {FILES} needed"
    return ok(text) if stats.f_favail >= FILES else blocked(text)


@check("noexec-tmp-blocks-jit")
def noexec(subject: Subject) -> Result:
    """Check that programs may be run from the cache, and code loaded from TMPDIR."""
    forbidden = [path for path in (subject.cache, subject.tmp) if os.statvfs(existing(path)).f_flag & os.ST_NOEXEC]
    if not forbidden:
        return ok("neither the cache nor TMPDIR is mounted noexec")
    text = f"mounted noexec: {', '.join(map(str, forbidden))}"
    if subject.cache in forbidden:
        return blocked(text, "export WHEELSMITH_CACHE=/a/folder/without/noexec   (findmnt -T DIR shows the options)")
    return warning(text, _own_tmp(subject))


@check("cache-dir-not-writable")
def cache_writable(subject: Subject) -> Result:
    """Check that the cache and TMPDIR can be written."""
    bad = [f"{path}: {why}" for path in (subject.cache, subject.tmp) if (why := _unwritable(path))]
    fix = "chown them to this user, or: export WHEELSMITH_CACHE=... TMPDIR=..."
    return blocked("; ".join(bad), fix) if bad else ok(f"{subject.cache} and {subject.tmp} can be written")


@check("wheelhouse-not-writable")
def wheelhouse_writable(subject: Subject) -> Result:
    """Check that the wheelhouse can be written."""
    why = _unwritable(subject.wheelhouse)
    if why:
        return blocked(f"{subject.wheelhouse}: {why}", "nox -s wheel -- --wheelhouse /a/folder/of/yours")
    return ok(f"{subject.wheelhouse} can be written")


def _unwritable(path: Path) -> str:
    """Return why a folder (or, while it does not exist, its parent) cannot be written, "" when it can."""
    try:
        with tempfile.TemporaryFile(dir=existing(path)):
            return ""
    except OSError as error:
        return error.strerror or str(error)


@check("dev-shm-too-small")
def shared_memory(subject: Subject) -> Result:
    """Check /dev/shm, which NCCL needs when the wheel is served from several GPUs."""
    place = subject.system / "dev/shm"
    if not place.is_dir():
        return unknown("there is no /dev/shm")
    size = shutil.disk_usage(place).total
    text = f"{place} has {human_bytes(size)}"
    fix = "docker run --shm-size=8g ... (needed for serving on several GPUs, not for building)"
    return ok(text) if size >= 1e9 else warning(text, fix)


@check("flash-attn-cross-device-rename")
def one_filesystem(subject: Subject) -> Result:
    """Check whether builds by hand would rename between TMPDIR and pip's cache on different filesystems."""
    pip = Path(subject.environment.get("PIP_CACHE_DIR") or Path(subject.environment.get("HOME") or "/") / ".cache/pip")
    if _same(subject.tmp, pip):
        return ok("TMPDIR and pip's cache are on one filesystem")
    return ok(f"TMPDIR and {pip} are on two filesystems: matters for pip install flash-attn only")
