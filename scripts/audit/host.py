"""The CPU side of a shared object: what it needs of the system and of torch, and whether that is there."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from contextlib import ExitStack, suppress
from dataclasses import dataclass, field
from pathlib import Path

from scripts.audit.models import Finding, Host, Level
from scripts.audit.torch_abi import TorchAbi, torch_abi
from scripts.core.errors import AuditError
from scripts.cuda.drivers import numbers
from scripts.formats.dynamic import Dynamic, Exports, read_dynamic, undefined_symbols
from scripts.formats.elf import Elf, is_elf, open_elf

BASE_IMAGES = (
    ("RHEL/UBI 8, Rocky 8", "2.28", "3.4.25"),
    ("Debian 11, Ubuntu 20.04", "2.31", "3.4.28"),
    ("RHEL/UBI 9, Rocky 9", "2.34", "3.4.29"),
    ("Ubuntu 22.04", "2.35", "3.4.30"),
    ("Debian 12", "2.36", "3.4.30"),
    ("Ubuntu 24.04", "2.39", "3.4.33"),
    ("Debian 13", "2.41", "3.4.33"),
)
"""Base images with their glibc and the newest GLIBCXX version of their libstdc++, from the distributions' packages."""

_SYSTEM = re.compile(
    r"(libc|libm|libdl|libpthread|librt|libutil|libgcc_s|libstdc\+\+|libgomp|libz|ld-linux[\w-]*|libresolv)\.so"
)
_TORCH = re.compile(r"lib(torch\w*|c10\w*|shm|caffe2\w*)\.so")
_CUDA = re.compile(
    r"lib(cudart|cublas|cublasLt|cudnn\w*|cu(fft|rand|solver|sparse|sparseLt|file|pti)\w*|nv\w+|nccl)\.so"
)
_DRIVER = re.compile(r"lib(cuda|nvidia-ml)\.so")
_PYTHON = re.compile(r"libpython3")
_SYSTEM_FOLDERS = ("/lib/x86_64-linux-gnu", "/usr/lib/x86_64-linux-gnu", "/lib64", "/usr/lib64", "/usr/lib")
_PYTHON_SYMBOL = re.compile(r"_?Py[A-Z_]")
_DRIVER_SYMBOL = re.compile(r"(cu[A-Z]|nvml)")
_TORCH_SYMBOL = re.compile(r"(2at|3c10|5torch|6caffe2|aoti_torch|torch_|c10_)")
MAX_LISTED = 50


@dataclass(frozen=True)
class Site:
    """A site-packages folder with torch's libraries: what wheels are linked against."""

    libraries: Mapping[str, Path]
    torch_version: str = ""
    """`2.9.1+cu128`."""
    torch_cuda: str = ""
    """`12.8`."""

    def find(self, soname: str) -> Path | None:
        """Return the library of that soname, from the folder or else from the system."""
        if soname in self.libraries:
            return self.libraries[soname]
        for folder in _SYSTEM_FOLDERS:
            if (path := Path(folder, soname)).is_file():
                return path
        return None


def read_site(folder: Path, more: Iterable[Path] = ()) -> Site | None:
    """Return the libraries of a site-packages folder, or of a virtual environment; None without torch in it.

    `more`: further folders with libraries, such as an installed toolkit's.
    """
    folders = [folder, *sorted(folder.glob("lib/python3*/site-packages"))]
    root = next((item for item in folders if (item / "torch/lib").is_dir()), None)
    if root is None:
        return None
    places = [root / "torch/lib", *sorted(root.glob("nvidia/*/lib")), *sorted(root.glob("*.libs")), *more]
    libraries: dict[str, Path] = {}
    for place in places:
        for path in sorted(place.glob("*.so*")):
            libraries.setdefault(path.name, path)
    version = root / "torch/version.py"
    text = version.read_text(errors="replace") if version.is_file() else ""
    return Site(libraries, _assigned(text, "__version__"), _assigned(text, "cuda"))


def _assigned(text: str, name: str) -> str:
    match = re.search(rf"(?m)^{name}\b[^=\n]*=\s*['\"]([^'\"]+)['\"]", text)
    return match[1] if match else ""


@dataclass(frozen=True)
class Inspection:
    """The CPU side of one shared object, with what is wrong about it."""

    host: Host
    findings: list[Finding] = field(default_factory=list)
    torch: TorchAbi = field(default_factory=TorchAbi.none)


NO_HOST = Host(
    machine="",
    needed=[],
    soname="",
    rpath=[],
    glibc="",
    libstdcxx="",
    base_images=[],
    executable_stack=False,
    stripped=True,
    undefined=0,
    unresolved=None,
)
"""The CPU side of a file that has none: cubins, fat binaries, archives."""


def inspect(elf: Elf, name: str, *, own: Iterable[str], site: Site | None) -> Inspection:
    """Inspect an open shared object called `name`; `own` are the sonames and files the wheel itself brings."""
    dynamic = read_dynamic(elf)
    glibc, libstdcxx = _highest(dynamic, "GLIBC_"), _highest(dynamic, "GLIBCXX_")
    undefined = undefined_symbols(elf)
    unresolved = _unresolved(dynamic, undefined, site) if site else None
    host = Host(
        machine=dynamic.machine,
        needed=list(dynamic.needed),
        soname=dynamic.soname,
        rpath=list(dynamic.rpath),
        glibc=glibc,
        libstdcxx=libstdcxx,
        base_images=base_images(glibc, libstdcxx),
        executable_stack=dynamic.executable_stack,
        stripped=dynamic.stripped,
        undefined=len(undefined),
        unresolved=unresolved[:MAX_LISTED] if unresolved is not None else None,
    )
    findings = [*_host_findings(name, host), *_soname_findings(name, host, set(own), site)]
    return Inspection(host, findings, torch_abi(undefined))


def _highest(dynamic: Dynamic, prefix: str) -> str:
    found = [
        text.removeprefix(prefix)
        for text in dynamic.versions
        if re.fullmatch(prefix + r"\d{1,4}(\.\d{1,4}){0,3}", text)
    ]
    return max(found, key=numbers, default="")


def base_images(glibc: str, libstdcxx: str) -> list[str]:
    """Return the base images on which a library with these floors loads."""
    return [
        name
        for name, libc, cxx in BASE_IMAGES
        if numbers(libc) >= numbers(glibc or "0") and numbers(cxx) >= numbers(libstdcxx or "0")
    ]


def _host_findings(name: str, host: Host) -> Iterator[Finding]:
    if host.executable_stack:
        text = "it asks for an executable stack: hardened kernels and glibc 2.41 refuse to load it"
        yield Finding(level=Level.WARNING, code="executable-stack", where=name, text=text)
    if strange := [path for path in host.rpath if not path.startswith("$ORIGIN")]:
        text = f"it searches the build machine's folders: {', '.join(strange[:3])}"
        yield Finding(level=Level.WARNING, code="absolute-rpath", where=name, text=text)
    if host.unresolved:
        more = f" and {host.undefined} in all" if len(host.unresolved) == MAX_LISTED else ""
        text = f"nothing provides {len(host.unresolved)}{more} of its symbols, such as {host.unresolved[0]}"
        yield Finding(level=Level.ERROR, code="undefined-symbols", where=name, text=text)


def _soname_findings(name: str, host: Host, own: set[str], site: Site | None) -> Iterator[Finding]:
    cudart = re.compile(r"libcudart\.so\.(\d+)")
    for soname in host.needed:
        if soname in own or _DRIVER.match(soname) or _SYSTEM.match(soname) or _PYTHON.match(soname):
            continue
        match = cudart.match(soname)
        if site and match and site.torch_cuda and site.torch_cuda.split(".")[0] != match[1]:
            text = f"it needs {soname}, but torch {site.torch_version} brings CUDA {site.torch_cuda}"
            yield Finding(level=Level.ERROR, code="cuda-mismatch", where=name, text=text)
        elif site and site.find(soname) is None:
            text = f"it needs {soname}, which neither the wheel nor torch {site.torch_version} provides"
            yield Finding(level=Level.ERROR, code="missing-library", where=name, text=text)
        elif not site and not _TORCH.match(soname) and not _CUDA.match(soname):
            text = f"it needs {soname}, which is not known to come with torch, CUDA or the system"
            yield Finding(level=Level.WARNING, code="unknown-library", where=name, text=text)


def _unresolved(dynamic: Dynamic, undefined: Iterable[str], site: Site) -> list[str]:
    """Return the symbols that no library in reach defines; those of libraries that are not here are let through."""
    left = [name for name in undefined if not _PYTHON_SYMBOL.match(name)]
    absent: list[str] = []
    with ExitStack() as stack:
        for library in _reachable(dynamic.needed, site, absent, stack):
            left = [name for name in left if name not in library]
    if any(_DRIVER.match(soname) for soname in absent):
        left = [name for name in left if not _DRIVER_SYMBOL.match(name)]
    if any(not _DRIVER.match(soname) for soname in absent):
        left = [name for name in left if _TORCH_SYMBOL.search(name)]
    return sorted(left)


def _reachable(needed: Iterable[str], site: Site, absent: list[str], stack: ExitStack) -> Iterator[Exports]:
    """Yield the needed libraries and what they need in turn; the sonames that were not found go to `absent`."""
    queue, seen = list(needed), set(needed)
    while queue:
        soname = queue.pop(0)
        path = site.find(soname)
        if path is None:
            absent.append(soname)
            continue
        with suppress(AuditError):  # a linker script or a library that is not ELF defines nothing
            if is_elf(path):
                elf = stack.enter_context(open_elf(path))
                yield Exports(elf)
                new = [name for name in read_dynamic(elf).needed if name not in seen]
                seen.update(new)
                queue.extend(new)
