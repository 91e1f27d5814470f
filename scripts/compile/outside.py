"""What compilers read outside the sources and dependencies: headers of torch and Python, CUDA's compilers and headers.

The compiler cache's key must change with them and with nothing else: a lock file moves packages that no compiler reads
(numpy, filelock), and a toolkit may be renewed where it is. So the key is made of contents, not of names and versions.
"""

from __future__ import annotations

import re
import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path

from scripts.compile.tree import BuildTree
from scripts.core.files import digest, file_sha256
from scripts.core.process import capture
from scripts.toolchain.environments import recorded_digests

COMPILERS = ("nvcc", "nvcc.profile", "cudafe++", "ptxas", "fatbinary", "nvlink", "bin2c")
"""What nvcc runs and reads in a toolkit's bin/; cicc and libdevice are below nvvm/."""
STANDARD_HEADERS = (
    *("algorithm", "atomic", "chrono", "cmath", "complex", "filesystem", "fstream", "functional", "future", "iostream"),
    *("map", "memory", "mutex", "optional", "random", "regex", "sstream", "string", "thread", "tuple", "unordered_map"),
    *("variant", "vector", "dlfcn.h", "fcntl.h", "pthread.h", "signal.h", "sys/mman.h", "sys/socket.h", "unistd.h"),
)
"""What nearly all that is compiled includes of the host: all of libstdc++ and glibc that they are made of."""
_INCLUDE = re.compile(r"(?:-I|-isystem)[ =]?(\S+)")


def outside_digest(tree: BuildTree) -> str:
    """Return a digest of what the compilers of a configured tree read outside its sources and dependencies.

    Files that we installed are not read again: their RECORDs have the sha256. Those of an installed torch are read,
    since others may have changed them.
    """
    headers = {
        "python": tree.toolchain.python_include,
        "include": tree.toolchain.cuda_home / "include",
        **installed_includes(tree),
    }
    return _digest(tree, {**headers, **_compilers(tree)})


def compilers_digest(tree: BuildTree) -> str:
    """Return a digest of what a step of nvcc is, headers apart: its programs and libdevice."""
    return _digest(tree, _compilers(tree))


def host_digest(tree: BuildTree) -> str:
    """Return a digest of the host compiler's programs, and of the standard headers as it reads them.

    Its version alone is the same on machines with another glibc or another build of the compiler.
    """
    return host_contents(tree.toolchain.host.path)


def host_contents(compiler: Path) -> str:
    """Return the digest of `host_digest` for a C++ compiler."""
    programs = [compiler.resolve()]
    for name in ("cc1plus", "as"):
        code, text = capture([compiler, f"-print-prog-name={name}"])
        found = shutil.which(text.strip()) if code == 0 else None
        programs += [Path(found)] if found else []
    included = [word for name in STANDARD_HEADERS for word in ("-include", name)]
    read = capture([compiler, "-x", "c++", "-std=c++17", "-E", "-P", "-dD", *included, "/dev/null"])
    return digest([[file_sha256(path) for path in programs], read])


def _compilers(tree: BuildTree) -> dict[str, Path]:
    home = tree.toolchain.cuda_home
    return {"nvvm": home / "nvvm", **{f"bin/{name}": home / "bin" / name for name in COMPILERS}}


def _digest(tree: BuildTree, read: Mapping[str, Path]) -> str:
    known = recorded_digests(tree.toolchain.site_packages)
    return digest({name: list(_contents(place, known)) for name, place in read.items()})


def installed_includes(tree: BuildTree) -> dict[str, Path]:
    """Return the folders of installed packages on the units' include paths, by their names in site-packages.

    An installed torch lies in a site-packages of its own.
    """
    text = (tree.binary / "build.ninja").read_text(errors="surrogateescape")
    named = {Path(word) for word in _INCLUDE.findall(text)}
    found = {}
    for site in filter(None, (tree.toolchain.site_packages, tree.toolchain.torch_link)):
        inside = tree.inside(site)
        below = (path for path in named if inside in path.parents and named.isdisjoint(path.parents))
        found.update({str(path.relative_to(inside)): site / path.relative_to(inside) for path in below})
    return found


def _contents(place: Path, known: Mapping[tuple[int, int], str]) -> Iterator[tuple[str, str]]:
    """Yield (path below `place`, sha256) of a file or of all files in a folder, in order."""
    files = place.rglob("*") if place.is_dir() else [place]
    for path in sorted(files):
        if path.is_file():
            about = path.stat()
            yield str(path.relative_to(place)), known.get((about.st_dev, about.st_ino)) or file_sha256(path)
