"""Run a command where directories have other names: `namespace.py SPEC COMMAND…`, in a mount namespace of its own.

SPEC is a JSON file: {"root": "/tmp/wheelsmith", "binds": {"build": "/home/me/.cache/wheelsmith/builds/KEY", …}}. At the
root, a directory that is made when absent, a tmpfs is mounted that nobody else sees, with each of these directories in
it under its name. With a user namespace no rights are needed; the command runs as the same user, without new rights.

Standard library only, any Python 3, run with `-S -E`. It replaces itself by the command. Exit code 71 when the system
refuses; what it refused is written to stderr.
"""

from __future__ import annotations

import ctypes
import json
import os
import signal
import sys
from contextlib import suppress

REFUSED = 71  # EX_OSERR of sysexits.h
CLONE_NEWNS, CLONE_NEWUSER = 0x20000, 0x10000000
MS_BIND, MS_REC, MS_PRIVATE, MS_NOSUID, MS_NODEV = 0x1000, 0x4000, 0x40000, 0x2, 0x4
PR_SET_PDEATHSIG = 1
_libc = ctypes.CDLL(None, use_errno=True)


def _checked(result: int, what: str) -> None:
    if result:
        number = ctypes.get_errno()
        raise OSError(number, "%s: %s" % (what, os.strerror(number)))  # noqa: UP031


def _mount(source: str, target: str, kind: str, flags: int, data: str = "") -> None:
    words = [text.encode() for text in (source, target, kind)]
    _checked(_libc.mount(*words, ctypes.c_ulong(flags), data.encode()), "mount at %s" % target)  # noqa: UP031


def unshare() -> None:
    """Give this process a mount namespace of its own: with the rights it has, else through a user namespace."""
    if os.geteuid() == 0 and _libc.unshare(CLONE_NEWNS) == 0:
        return
    user, group = os.geteuid(), os.getegid()
    _checked(_libc.unshare(CLONE_NEWUSER | CLONE_NEWNS), "unshare")
    for name, text in (("setgroups", "deny"), ("uid_map", f"{user} {user} 1"), ("gid_map", f"{group} {group} 1")):
        with open(f"/proc/self/{name}", "w") as file:  # noqa: PTH123  (pathlib costs 20 ms of start-up)
            file.write(text)
    _libc.prctl(PR_SET_PDEATHSIG, signal.SIGTERM, 0, 0, 0)  # the kernel forgot it with the change of rights


def bind(root: str, binds: dict[str, str]) -> None:
    """Mount the directories under their names below root."""
    sources = {name: os.open(path, os.O_PATH | os.O_DIRECTORY) for name, path in binds.items()}
    _mount("none", "/", "none", MS_REC | MS_PRIVATE)
    _mount("tmpfs", root, "tmpfs", MS_NOSUID | MS_NODEV, "mode=755,size=1m")
    for name, source in sources.items():  # by descriptor: the tmpfs may hide the path
        target = os.path.join(root, name)  # noqa: PTH118
        os.makedirs(target)  # noqa: PTH103
        _mount("/proc/self/fd/%d" % source, target, "none", MS_BIND | MS_REC)  # noqa: UP031
        os.close(source)


def prepare_root(root: str) -> None:
    """Make the mount point. Raises OSError when something that is no directory is in its place."""
    try:
        os.mkdir(root)  # noqa: PTH102
    except FileExistsError:
        if os.path.islink(root) or not os.path.isdir(root):  # noqa: PTH112, PTH114
            raise
    with suppress(PermissionError):  # another user's: it is mounted over all the same
        os.utime(root)  # tidying of /tmp goes by age


def main(arguments: list[str]) -> None:
    """Enter the namespace and become the command."""
    with open(arguments[0]) as file:  # noqa: PTH123
        spec = json.load(file)
    here = os.getcwd()  # noqa: PTH109
    try:
        prepare_root(spec["root"])
        unshare()
        bind(spec["root"], spec["binds"])
    except OSError as error:
        sys.stderr.write(f"namespace: {error.strerror}\n")
        sys.exit(REFUSED)
    for name, path in spec["binds"].items():
        if here == path or here.startswith(path + "/"):
            here = os.path.join(spec["root"], name) + here[len(path) :]  # noqa: PTH118
            os.chdir(here)
            os.environ["PWD"] = here
            break
    try:
        os.execvp(arguments[1], arguments[1:])  # noqa: S606
    except OSError as error:
        sys.stderr.write(f"namespace: {arguments[1]}: {error.strerror}\n")
        sys.exit(127)


if __name__ == "__main__":
    main(sys.argv[1:])
