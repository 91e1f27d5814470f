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
MOST_HEADERS = 1000
"""Headers of torch that inductor's CPU kernels include, at most (runtime/build/trim.py); all are 9,000."""
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
    """Return installed distributions: name, version, bytes by their RECORD, licence, sha256 of their RECORD."""
    code = (
        "import hashlib, importlib.metadata as m, json\n"
        "def licence(d):\n"
        "    said = [d.metadata.get('License-Expression') or '']\n"
        "    said += [c for c in d.metadata.get_all('Classifier') or [] if c.startswith('License ::')]\n"
        "    said += [' '.join((d.metadata.get('License') or '').split())[:100]]\n"
        "    return [text for text in said if text]\n"
        "def row(d):\n"
        "    size = sum(f.size or 0 for f in d.files or [] if f.suffix != '.pyc')\n"
        "    record = hashlib.sha256((d.read_text('RECORD') or '').encode()).hexdigest()\n"
        "    return [d.name, d.version, size, licence(d), record]\n"
        "print(json.dumps([row(d) for d in m.distributions()]))"
    )
    python = "/opt/vllm/bin/python"
    if not Path(python).exists():
        return []
    found: list[list[object]] = json.loads(subprocess.run([python, "-c", code], capture_output=True, check=True).stdout)
    return found


def compiler_files() -> list[str]:
    """Return static archives, and torch's headers except those of inductor's CPU kernels, in the environment."""
    site = next(Path("/opt/vllm").glob("lib/python3*/site-packages"), None)
    if site is None:
        return []
    include = site / "torch" / "include"
    foreign = [path for path in include.rglob("*.h") if "inductor" not in str(path)] if include.is_dir() else []
    many = [f"{len(foreign)} headers of torch"] if len(foreign) > MOST_HEADERS else []
    return [*many, *(str(path) for path in site.rglob("*.a")), *map(str, (site / "torch").glob("share/cmake"))]


def debian_licence(package: str) -> list[str]:
    """Return the licences that a package's copyright file names, where it is in the machine-readable form."""
    try:
        text = Path(f"/usr/share/doc/{package}/copyright").read_text("utf-8", "replace")
    except OSError:
        return []
    if "copyright-format" not in text[:400]:
        return []
    return sorted({name.strip() for name in re.findall(r"^License: *(\S.*)$", text, re.MULTILINE)})


def debian_packages() -> list[list[object]]:
    """Return Debian packages: name, version, architecture, installed kB, licences, sha256 of its file."""
    form = "-f=${Package}\t${Version}\t${Architecture}\t${Installed-Size}\n"
    try:
        text = subprocess.run(["dpkg-query", "-W", form], capture_output=True, text=True, check=True).stdout
    except OSError:
        return []
    table = Path("/opt/wheelsmith/debian.tsv")
    rows = [line.split("\t") for line in table.read_text().splitlines()] if table.exists() else []
    digests = {(name, version): sha256 for name, version, sha256 in rows}
    found = [line.split("\t") for line in text.splitlines()]
    return [[*row, debian_licence(row[0]), digests.get((row[0], row[1]), "")] for row in found]


json.dump(
    {
        "python": list(sys.version_info[:2]),
        "glibc": platform.libc_ver()[1],
        "machine": platform.machine(),
        "headers": (Path(sysconfig.get_path("include")) / "Python.h").exists(),
        "python_packages": python_packages(),
        "debian_packages": debian_packages(),
        "secrets": secrets(),
        "compiler_files": compiler_files(),
        **scan(),
    },
    sys.stdout,
)
