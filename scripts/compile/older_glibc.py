"""Link against the glibc that torch's own wheels ask for, with the headers and libraries of a newer system.

A shared object asks for the newest version of each symbol that the linker saw. On a new system that is a new version
even of functions that have not changed (`dlopen` moved from libdl to libc in 2.34), and the wheel then loads on no
older system. Nothing but a linker script changes that here. Before libc it names

- libraries without code (`libdl.so.2`, `libpthread.so.0`, `libm.so.6` …), made from this system's own libc: each
  symbol that is newer than the floor and has an older version too, under that version. glibc never drops an old one.
- an archive of small functions for symbols that are newer than the floor and have no older version
  (`older_glibc/*.c`). They are hidden: no other library sees them.

What neither covers keeps its version: the wheel's platform tag is measured afterwards and says the truth. Where this
does not work (another C library, another linker), the script is empty and the build is as it would be without.

Sources: glibc's NEWS for 2.32 to 2.38 (what moved, what is new); `ld`'s manual, "Implicit Linker Scripts";
manylinux_2_28 is the platform of torch's own wheels since 2.7.
"""

from __future__ import annotations

import re
import shutil
from collections import defaultdict
from collections.abc import Iterable, Mapping
from pathlib import Path

from elftools.common.exceptions import ELFError
from elftools.elf.elffile import ELFFile
from elftools.elf.gnuversions import GNUVerDefSection, GNUVerSymSection
from elftools.elf.sections import SymbolTableSection

from scripts.core.files import remove_tree
from scripts.core.process import Command, capture
from scripts.formats.dynamic import Dynamic, read_dynamic
from scripts.formats.elf import open_elf

PLATFORM = "manylinux_2_28"
FLOOR = (2, 28)
NEWEST = {"GLIBC": FLOOR, "GLIBCXX": (3, 4, 24), "CXXABI": (1, 3, 11)}  # auditwheel's policy for the platform
UNKNOWN = (999,)  # GLIBC_PRIVATE, GLIBC_ABI_DT_RELR, versions of other libraries
SCRIPT = "older-glibc.ld"
_SHIMS = Path(__file__).with_name("older_glibc")
_NEEDED_BY_SHIMS = ("__xstat64", "__lxstat64", "__fxstat64", "__fxstatat64")  # exported, but hidden since 2.33
_VERSION = re.compile(r"[A-Z]+_(\d+(?:\.\d+)*)")
# Where the floor's glibc has what is in libc.so.6 since 2.34 (NEWS of 2.32 to 2.34).
_MOVED = (
    (re.compile(r"dl(addr1?|close|error|info|mopen|open|sym|vsym)"), "libdl.so.2"),
    (re.compile(r"(__)?(pthread|sem|thrd|mtx|cnd|tss)_\w+|call_once"), "libpthread.so.0"),
    (re.compile(r"(aio|lio|mq|shm|timer)_\w+"), "librt.so.1"),
    (re.compile(r"openpty|forkpty|login|login_tty|logout|logwtmp"), "libutil.so.1"),
)  # fmt: skip
# New versions set errno otherwise, no more (NEWS of 2.29, 2.32, 2.35, 2.38). totalorder (2.31) takes other arguments.
_SAME_MATH = re.compile(r"(exp|exp2|exp10|log|log2|log10|pow|hypot|fmod)[fl]?")
_PROBE = """#include <dlfcn.h>
#include <string>
extern "C" void *probe(const char *name) { return dlopen(std::string(name).c_str(), RTLD_LAZY); }
"""
Versions = Mapping[str, tuple[str, ...]]
"""Symbol versions by name, the default one first: {"dlopen": ("GLIBC_2.34", "GLIBC_2.2.5")}."""


def link_to_older_glibc(folder: Path, seen: Path, compiler: Command, environment: Mapping[str, str]) -> str:
    """Write `folder`/older-glibc.ld; return why it is empty, "" when it is not or need not be anything else.

    `seen`: the path under which `compiler` (the host compiler, and what comes before it) sees the folder.
    `environment` is the compiler's. Never fails: a wheel for newer systems only is better than none.
    """
    remove_tree(folder)
    folder.mkdir(parents=True)
    script = folder / SCRIPT
    script.write_text("/* nothing: the wheel is for systems as new as this one */\n")
    tools = _Tools(folder, seen, compiler, environment)
    try:
        wanted = older_symbols({name: exported_versions(tools.library(name)) for name in ("libc.so.6", "libm.so.6")})
        if wanted:  # the system is newer than the floor
            _write_script(tools, wanted)
    except Exception as error:  # noqa: BLE001  (pyelftools has many of its own for a file that is none)
        script.write_text("/* nothing: it could not be made */\n")
        return str(error)
    return ""


def _write_script(tools: _Tools, wanted: Mapping[str, Mapping[str, str]]) -> None:
    # A compiler that links libstdc++ statically names it last: what it needs in turn must find ours behind it.
    plain = _link_probe(tools)
    static = [] if any(name.startswith("libstdc++.so") for name in plain.needed) else ["-l:libstdc++.a"]
    archive = _make_archive(tools)
    libraries = [_make_library(tools, name, symbols) for name, symbols in sorted(wanted.items())]
    words = [*static, str(archive), "AS_NEEDED (", *map(str, libraries), ")"]
    (tools.folder / SCRIPT).write_text(f"GROUP ( {' '.join(words)} )\n")
    if newer := _newer(_link_probe(tools, tools.seen / SCRIPT).versions):
        raise ValueError(f"the linker takes {', '.join(newer)} all the same")


def _link_probe(tools: _Tools, *libraries: Path) -> Dynamic:
    (tools.folder / "probe.cpp").write_text(_PROBE)
    tools.run("-shared", "-fPIC", tools.seen / "probe.cpp", *libraries, "-o", tools.seen / "probe.so")
    with open_elf(tools.folder / "probe.so") as elf:
        return read_dynamic(elf)


def _make_archive(tools: _Tools) -> Path:
    """Compile the functions that have no older version into an archive, each file a member of its own."""
    members = []
    for source in sorted(_SHIMS.glob("*.c")):
        shutil.copy(source, tools.folder)
        member = tools.seen / f"{source.stem}.o"
        tools.run("-x", "c", "-std=gnu11", "-O2", "-fPIC", "-c", tools.seen / source.name, "-o", member)
        members.append(member)
    archive = tools.seen / "libolder.a"
    tools.run("rcsD", archive, *members, program=tools.run("-print-prog-name=ar").strip())
    return archive


def _make_library(tools: _Tools, name: str, symbols: Mapping[str, str]) -> Path:
    """Make a library without code that exports each symbol under its older version; return where compilers see it."""
    lines, versions = [".text"], defaultdict[str, list[str]](list)
    for symbol, version in sorted(symbols.items()):
        lines += [f".globl {symbol}", f".type {symbol},@function", f"{symbol}: .skip 8", f".size {symbol}, 8"]
        versions[version].append(symbol)
    lines.append('.section .note.GNU-stack,"",@progbits\n')
    nodes = [
        f"{version} {{ global: {'; '.join(versions[version])}; }};\n" for version in sorted(versions, key=_numbers)
    ]
    (tools.folder / f"{name}.s").write_text("\n".join(lines))
    (tools.folder / f"{name}.map").write_text("".join(nodes))
    made, script = tools.seen / name, tools.seen / f"{name}.map"
    linker = f"-Wl,--version-script={script},-soname,{name}"
    tools.run("-shared", "-nostdlib", linker, tools.seen / f"{name}.s", "-o", made)
    return made


def older_symbols(libraries: Mapping[str, Versions], floor: tuple[int, ...] = FLOOR) -> dict[str, dict[str, str]]:
    """Return {library of the floor's glibc: {symbol: its newest version that the floor has}}.

    Only symbols whose default version is newer than the floor, and those that the archive's own functions call.
    """
    found: dict[str, dict[str, str]] = defaultdict(dict)
    for library, symbols in libraries.items():
        for name, versions in symbols.items():
            old = [version for version in versions if _numbers(version) <= floor]
            newer = _numbers(versions[0]) > floor
            if not old or not (newer or name in _NEEDED_BY_SHIMS):
                continue
            home = _home(library, name) if newer else library
            if home:
                found[home][name] = max(old, key=_numbers)
    return dict(found)


def _home(library: str, name: str) -> str:
    """Return the library that has a symbol in the floor's glibc, "" when its older version may be another function."""
    if library == "libm.so.6":
        return library if _SAME_MATH.fullmatch(name) else ""
    return next((home for pattern, home in _MOVED if pattern.fullmatch(name)), "")


def _numbers(version: str) -> tuple[int, ...]:
    match = _VERSION.fullmatch(version)
    return tuple(map(int, match[1].split("."))) if match else UNKNOWN


def exported_versions(library: Path) -> dict[str, tuple[str, ...]]:
    """Return the versions of each symbol that a library exports, the default one first. Raises OSError, ELFError."""
    with library.open("rb") as file:
        elf = ELFFile(file)
        sections = {section.name: section for section in elf.iter_sections()}
        versions, symbols = sections.get(".gnu.version"), sections.get(".dynsym")
        definitions = sections.get(".gnu.version_d")
        if not (
            isinstance(definitions, GNUVerDefSection)
            and isinstance(versions, GNUVerSymSection)
            and isinstance(symbols, SymbolTableSection)
        ):
            raise ELFError(f"{library} has no symbol versions: it is not glibc")
        names = {item["vd_ndx"]: next(parts).name for item, parts in definitions.iter_versions()}
        found: dict[str, list[str]] = defaultdict(list)
        for symbol, version in zip(symbols.iter_symbols(), versions.iter_symbols(), strict=True):
            index = version["ndx"]
            if symbol["st_shndx"] == "SHN_UNDEF" or not isinstance(index, int) or index & 0x7FFF not in names:
                continue
            hidden = bool(index & 0x8000)
            known = found[symbol.name]
            known.insert(len(known) if hidden else 0, names[index & 0x7FFF])
    return {name: tuple(known) for name, known in found.items()}


def newer_versions(library: Path) -> list[str]:
    """Return what a shared object needs of newer systems than the platform's: `GLIBC_2.38`. Raises AuditError."""
    with open_elf(library) as elf:
        return _newer(read_dynamic(elf).versions)


def _newer(versions: Iterable[str]) -> list[str]:
    return [version for version in versions if _numbers(version) > NEWEST.get(version.partition("_")[0], UNKNOWN)]


class _Tools:
    """The host compiler, and a folder to work in: `folder` for us, `seen` for the compiler."""

    def __init__(self, folder: Path, seen: Path, compiler: Command, environment: Mapping[str, str]) -> None:
        self.folder, self.seen = folder, seen
        self._compiler, self._environment = compiler, environment

    def library(self, name: str) -> Path:
        """Return where the compiler finds a library of the system's glibc. Raises ValueError."""
        path = Path(self.run(f"-print-file-name={name}").strip())
        if not path.is_absolute():
            raise ValueError(f"the compiler knows no {name}: this system's C library is not glibc")
        return path

    def run(self, *options: str | Path, program: str = "") -> str:
        """Run the compiler, or another program in its stead; return what it said. Raises ValueError when it fails."""
        *before, compiler = self._compiler
        code, said = capture([*before, program or compiler, *options], environment=self._environment)
        if code:
            raise ValueError(said.strip()[-300:] or f"{program or compiler} failed")
        return said
