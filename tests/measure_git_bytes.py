"""Measure the bytes that the stock way of getting vLLM's git dependencies moves, and ours, against local servers.

Run: python -m tests.measure_git_bytes [--scale 0.05]. No git host is reached. Repositories are generated with the shape
of upstream's (files, sizes, commits of history; text that compresses about 4:1, each commit changing a few files),
scaled down; the stock way is what CMake's FetchContent does for vLLM 0.15.1: full clones at a commit with all
submodules in full, CUTLASS alone with --depth 1 of its tag. Both go over smart HTTP and are counted at the server.
"""

from __future__ import annotations

import argparse
import random
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from scripts.core.cache import Cache
from scripts.core.console import human_bytes
from scripts.downloads.mirrors import parse_mirrors
from scripts.recipe.sources import GitSource
from scripts.sources.git_source import fetch_git
from tests.accesses import make_access
from tests.integration.git_servers import GitServer, Upstream, git, serving


@dataclass(frozen=True)
class Shape:
    """Rough figures of a repository: folders with (files, kB per file), commits, files changed per commit."""

    folders: dict[str, tuple[int, int]]
    commits: int
    changed: int = 6


SHAPES = {
    "triton": Shape(
        {"lib": (500, 14), "test": (450, 14), "third_party": (500, 16), "include": (250, 6), "docs": (120, 40),
         "python/triton": (120, 20), "python/test": (90, 25), "python/triton_kernels/triton_kernels": (40, 8)},
        commits=7000,
    ),
    "cutlass": Shape(
        {"include": (450, 30), "tools/util/include": (50, 14), "python/cutlass_library": (25, 60),
         "examples": (700, 18), "test": (1300, 9), "media": (150, 120), "docs": (150, 20), "python/CuTeDSL": (150, 25)},
        commits=900, changed=40,
    ),
    "FlashMLA": Shape({"csrc": (90, 14), "flash_mla": (3, 12), "tests": (20, 12), "docs": (6, 200)}, commits=60),
    "qutlass": Shape({"qutlass": (60, 12), "benchmarks": (20, 10), "assets": (8, 300), "tests": (20, 8)}, commits=80),
    "flash-attention": Shape(
        {"csrc/flash_attn": (140, 8), "hopper": (500, 6), "flash_attn": (120, 25), "vllm_flash_attn": (4, 20),
         "assets": (25, 250), "tests": (60, 25), "training": (100, 8)},
        commits=1600,
    ),
    "composable_kernel": Shape({"include": (1200, 12), "library": (900, 8), "example": (700, 8), "test": (500, 6)},
                               commits=2500),
}  # fmt: skip
STEMS = ("Tile", "ptr", "Layout", "warp")
WORDS = [f"{head}{stem}{i}" for head in ("", "smem_", "kBlock", "tma_") for stem in STEMS for i in range(24)]


def text(rng: random.Random, size: int) -> bytes:
    """Return lines of made-up code of about `size` bytes, which compress about as source code does."""
    lines = []
    while size > 0:
        line = " ".join(rng.choice(WORDS) for _ in range(rng.randint(3, 9))) + f" = {rng.randrange(10**4)};"
        lines.append(line)
        size -= len(line) + 1
    return "\n".join(lines).encode()


def build(root: Path, name: str, scale: float, gitlinks: dict[str, str], modules: str) -> tuple[Upstream, list[str]]:
    """Make a repository of a shape at `scale` (of its files and commits); return it and its commits."""
    rng = random.Random(name)
    shape = SHAPES[name]
    upstream = Upstream.create(root, name)
    for folder, (files, size) in shape.folders.items():
        for number in range(max(2, round(files * scale))):
            upstream.files[f"{folder}/f{number}.h"] = text(rng, size * 1000)
    upstream.files["LICENSE"] = b"licence\n"
    if modules:
        upstream.files[".gitmodules"] = modules.encode()
    upstream.gitlinks = gitlinks
    commits = [upstream.commit()]
    paths = [path for path in upstream.files if path.endswith(".h")]
    edits = max(1, round(shape.changed * BATCH * scale))

    def rounds() -> Iterator[dict[str, bytes]]:
        for _ in range(shape.commits // BATCH):
            changed = rng.sample(paths, min(len(paths), edits))
            for path in changed:
                lines = upstream.files[path].split(b"\n")
                start = rng.randrange(len(lines))
                lines[start : start + 20] = text(rng, 1200).split(b"\n")
                upstream.files[path] = b"\n".join(lines)
            yield {path: upstream.files[path] for path in changed}

    commits += upstream.replay(rounds())
    git(upstream.path, "repack", "-q", "-a", "-d")
    return upstream, commits


BATCH = 10  # commits of history are made ten at a time, with ten times the changes: the same bytes, sooner


def stock(server: GitServer, work: Path, name: str, commit: str, *, submodules: bool) -> int:
    """Clone in full, check out the commit and all submodules in full, as FetchContent does; return bytes sent."""
    server.sent = 0
    git(work, "clone", "-q", "--no-checkout", server.url(name), name)
    git(work / name, "checkout", "-q", commit)
    if submodules:
        git(work / name, "-c", "protocol.file.allow=always", "submodule", "-q", "update", "--init", "--recursive")
    return server.sent


def shallow(server: GitServer, work: Path, name: str, tag: str) -> int:
    """Clone with --depth 1 of a tag, as FetchContent does with GIT_SHALLOW; return bytes sent."""
    server.sent = 0
    git(work, "clone", "-q", "--depth", "1", "--branch", tag, server.url(name), f"{name}-{tag}")
    return server.sent


def module(path: str, name: str) -> str:
    """Return a section of .gitmodules with a relative URL."""
    return f'[submodule "{path}"]\n\tpath = {path}\n\turl = ../{name}.git\n'


def measure(scale: float) -> list[tuple[str, int, int]]:
    """Return name, stock bytes and our bytes for each dependency of vLLM 0.15.1."""
    with tempfile.TemporaryDirectory() as folder:
        root, work = Path(folder) / "srv", Path(folder) / "work"
        root.mkdir()
        work.mkdir()
        cutlass, pins = build(root, "cutlass", scale, {}, "")
        cutlass.tag("v4.2.1", cutlass.head)
        kernel, _ = build(root, "composable_kernel", scale, {}, "")
        triton, _ = build(root, "triton", scale, {}, "")
        older, newer = pins[len(pins) // 3], pins[2 * len(pins) // 3]
        in_csrc = module("csrc/cutlass", "cutlass")
        flashmla, _ = build(root, "FlashMLA", scale, {"csrc/cutlass": older}, in_csrc)
        qutlass, _ = build(
            root, "qutlass", scale, {"third_party/cutlass": older}, module("third_party/cutlass", "cutlass")
        )
        both = {"csrc/cutlass": newer, "csrc/composable_kernel": kernel.head}
        flash, _ = build(
            root, "flash-attention", scale, both, in_csrc + module("csrc/composable_kernel", "composable_kernel")
        )
        own = ["csrc/cutlass/include", "csrc/cutlass/tools/util/include"]
        parts = ["include", "tools/util/include", "python/cutlass_library"]
        wanted: dict[str, dict[str, Any]] = {
            "cutlass": {"commit": cutlass.head, "subdirectories": parts},
            "triton": {"commit": triton.head, "subdirectories": ["python/triton_kernels/triton_kernels"]},
            "FlashMLA": {"commit": flashmla.head, "subdirectories": own, "submodules": {"csrc/cutlass": older}},
            "qutlass": {"commit": qutlass.head, "subdirectories": ["qutlass"]},
            "flash-attention": {"commit": flash.head, "subdirectories": own, "submodules": {"csrc/cutlass": newer},
                                "skip_submodules": ["csrc/composable_kernel"]},
        }  # fmt: skip
        rows = []
        cache = Cache.open(Path(folder) / "cache")
        with serving(root) as server:
            mirrors = parse_mirrors(f"http://127.0.0.1:{server.port}")
            for name, pin in wanted.items():
                if name == "cutlass":
                    theirs = shallow(server, work, name, "v4.2.1")
                else:
                    theirs = stock(server, work, name, str(pin["commit"]), submodules=True)
                server.sent = 0
                source = GitSource.model_validate(
                    {"kind": "git", "repository": f"https://github.com/{name}.git", **pin}
                )
                fetch_git(source, make_access(cache, mirrors=mirrors))
                rows.append((name, theirs, server.sent))
        return rows


def main() -> None:
    """Measure and print a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--scale", type=float, default=0.05, help="size of the repositories (1: upstream's)")
    scale = parser.parse_args().scale
    started = time.monotonic()
    rows = measure(scale)
    rows.append(("all", sum(row[1] for row in rows), sum(row[2] for row in rows)))
    for name, theirs, ours in rows:
        sys.stdout.write(f"{name:18}{human_bytes(theirs):>12}{human_bytes(ours):>12}{theirs / ours:8.1f}x\n")
    sys.stdout.write(f"scale {scale}, {time.monotonic() - started:.0f} s\n")


if __name__ == "__main__":
    main()
