"""Print as JSON what an image is and holds: Python, glibc, packages, and what should not be there. Runs as root."""

import json
import os
import platform
import re
import stat
import subprocess
import sys
import sysconfig
from pathlib import Path

SKIP = {"/proc", "/sys", "/dev", "/run"}
STICKY = {"/tmp", "/var/tmp", "/var/lock", "/cache"}
CACHES = ("/root/.cache", "/cache/", "/var/cache/uv", "/var/lib/apt/lists/", "/var/cache/apt/")
SECRETS = re.compile(
    rb"-----BEGIN [A-Z ]*PRIVATE KEY|\bhf_[A-Za-z0-9]{30,}|\bAKIA[0-9A-Z]{16}\b|\bgh[pousr]_[A-Za-z0-9]{36}"
    rb"|//[^/\s:@]+:[^/\s@]+@"
)
PLACES = ("/etc", "/root", "/home", "/opt/wheelsmith", "/cache")


def scan() -> dict[str, list[str]]:
    """Return setuid files, root's directories that others may write, and left-over caches."""
    found: dict[str, list[str]] = {"setuid": [], "writable": [], "caches": []}
    for folder, names, files in os.walk("/"):
        names[:] = [name for name in names if os.path.join(folder, name) not in SKIP]
        info = os.lstat(folder)
        if info.st_uid == 0 and info.st_mode & stat.S_IWOTH and folder not in STICKY:
            found["writable"].append(folder)
        for name in files:
            path = f"{folder.rstrip('/')}/{name}"
            mode = os.lstat(path).st_mode
            if stat.S_ISREG(mode) and mode & (stat.S_ISUID | stat.S_ISGID):
                found["setuid"].append(path)
            if path.startswith(CACHES) and name not in {"lock", ".keep"}:
                found["caches"].append(path)
    return found


def secrets() -> list[str]:
    """Return files that hold something like a key or a password, and such variables."""
    found = [name for name, value in os.environ.items() if SECRETS.search(value.encode())]
    for place in PLACES:
        for path in Path(place).rglob("*"):
            if path.name in {".netrc", "_netrc", "id_rsa", "pip.conf"}:
                found.append(str(path))
            elif path.is_file() and not path.is_symlink() and path.stat().st_size < 1 << 20:
                if SECRETS.search(path.read_bytes()):
                    found.append(str(path))
    return found


def python_packages() -> list[list[object]]:
    """Return installed distributions: name, version, and bytes by their RECORD."""
    code = (
        "import importlib.metadata as m, json\n"
        "print(json.dumps([[d.name, d.version, sum(f.size or 0 for f in d.files or [] if f.suffix != '.pyc')]"
        " for d in m.distributions()]))"
    )
    python = "/opt/vllm/bin/python"
    if not Path(python).exists():
        return []
    found: list[list[object]] = json.loads(subprocess.run([python, "-c", code], capture_output=True, check=True).stdout)
    return found


def debian_packages() -> list[list[str]]:
    """Return Debian packages: name, version, architecture, installed kB."""
    form = "-f=${Package}\t${Version}\t${Architecture}\t${Installed-Size}\n"
    try:
        text = subprocess.run(["dpkg-query", "-W", form], capture_output=True, text=True, check=True).stdout
    except OSError:
        return []
    return [line.split("\t") for line in text.splitlines()]


json.dump(
    {
        "python": list(sys.version_info[:2]),
        "glibc": platform.libc_ver()[1],
        "machine": platform.machine(),
        "headers": (Path(sysconfig.get_path("include")) / "Python.h").exists(),
        "python_packages": python_packages(),
        "debian_packages": debian_packages(),
        "secrets": secrets(),
        **scan(),
    },
    sys.stdout,
)
