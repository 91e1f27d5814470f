"""Opens a capsule of wheelsmith and runs a command in it: `sh wheelsmith-capsule.sh wheel [OPTION]...`.

Standard library only. Everything is checked before it is used: INDEX is the sha256 of capsule.json, which has those of
all parts. write.py puts lines for sh in the place of this text.
"""

from __future__ import annotations

import fcntl
import hashlib
import io
import json
import os
import shutil
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path
from typing import BinaryIO

INDEX = "@INDEX@"
FETCH, USAGE, DOCTOR = 4, 2, 3  # wheelsmith's exit codes
HERE = Path(__file__).resolve().parent
RECIPE_COMMANDS = {"wheel", "doctor", "fetch", "bench"}


def fail(code: int, what: str, why: str, fix: str) -> None:
    """End with one screen."""
    sys.stderr.write(f"error: {what}\n  why: {why}\n  fix: {fix}\n")
    sys.exit(code)


def read_index() -> dict:  # type: ignore[type-arg]
    """Return capsule.json, checked."""
    path = HERE / "capsule.json"
    try:
        data = path.read_bytes()
    except OSError as error:
        fail(FETCH, f"{path} cannot be read", error.strerror or "", "copy the whole folder of the capsule again")
    if hashlib.sha256(data).hexdigest() != INDEX:
        fail(FETCH, f"{path} is not of this capsule", "its sha256 is another", "copy it again, from the same folder")
    return json.loads(data)  # type: ignore[no-any-return]


def check_python(index: dict) -> None:  # type: ignore[type-arg]
    """Refuse a Python or a machine for which the capsule has no packages."""
    have = f"{sys.version_info[0]}.{sys.version_info[1]}"
    if have != index["python"] or os.uname().machine != index["machine"]:
        what = f"this is Python {have} on {os.uname().machine}"
        why = f"the capsule has packages for Python {index['python']} on {index['machine']}"
        fail(DOCTOR, what, why, f"PYTHON=/path/to/python{index['python']} sh {Path(__file__).name} ...")


class Parts(io.RawIOBase):
    """The parts as one stream; what goes by is digested, part by part."""

    def __init__(self, parts: list) -> None:  # type: ignore[type-arg]
        self.parts, self.number, self.sha, self.left = parts, -1, hashlib.sha256(), 0
        self.file: BinaryIO = io.BytesIO()

    def readable(self) -> bool:
        """Return that it can be read."""
        return True

    def readinto(self, buffer) -> int:  # type: ignore[no-untyped-def]
        """Fill a buffer with what comes next; 0 at the end of the last part."""
        while self.left == 0:
            self.check()
            if self.number + 1 == len(self.parts):
                return 0
            self.number += 1
            part = self.parts[self.number]
            self.file, self.sha, self.left = (HERE / part["name"]).open("rb"), hashlib.sha256(), part["size"]
        data = self.file.read(min(len(buffer), self.left))
        if not data:
            self.left = 0
            self.check(short=True)
        buffer[: len(data)] = data
        self.sha.update(data)
        self.left -= len(data)
        return len(data)

    def drain(self) -> None:
        """Read to the end of the last part, so that each is digested whole."""
        while self.read(1 << 20):
            pass

    def check(self, *, short: bool = False) -> None:
        """Refuse a part that ended and is not what the index says."""
        self.file.close()
        if self.number < 0:
            return
        part = self.parts[self.number]
        if short or self.sha.hexdigest() != part["sha256"]:
            fail(
                FETCH,
                f"{HERE / part['name']} is damaged",
                "its sha256 is not the one that the capsule was written with",
                f"copy {part['name']} again: sha256sum must say {part['sha256']}",
            )


def check_sizes(parts: list) -> None:  # type: ignore[type-arg]
    """Name all parts that are missing or not whole, before anything is unpacked."""
    sizes = {p["name"]: (HERE / p["name"]).stat().st_size if (HERE / p["name"]).is_file() else -1 for p in parts}
    wrong = [part for part in parts if sizes[part["name"]] != part["size"]]
    if wrong:
        words = [
            f"{p['name']} " + ("is missing" if sizes[p["name"]] < 0 else f"has {sizes[p['name']]} of {p['size']} bytes")
            for p in wrong[:5]
        ]
        more = f" and {len(wrong) - 5} more" if len(wrong) > 5 else ""
        names = " ".join(part["name"] for part in wrong[:5])
        fail(FETCH, f"the capsule is not whole: {len(wrong)} of {len(parts)} parts", "; ".join(words) + more,
             f"copy into {HERE}: {names}{more}")  # fmt: skip


def safe_name(member: tarfile.TarInfo, folder: Path) -> str:
    """Return where below `folder` a member goes. Raises tarfile.TarError for what is no file, or leads outside."""
    if not member.isreg():
        raise tarfile.TarError(f"{member.name} is no file")
    if hasattr(tarfile, "data_filter"):  # Python 3.10.12, 3.11.4 and later
        member = tarfile.data_filter(member, str(folder))
    if member.name.startswith("/") or ".." in member.name.split("/"):
        raise tarfile.TarError(f"{member.name} leads outside")
    return member.name


def unpack(index: dict, target: Path) -> None:  # type: ignore[type-arg]
    """Unpack all parts beside `target`, and rename."""
    parts = index["parts"]
    check_sizes(parts)
    partial = target.with_name(f".{target.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    sys.stderr.write(f"capsule   unpacking {sum(p['size'] for p in parts) / 1e6:.1f} MB into {target}\n")
    try:
        unpack_parts(Parts(parts), partial)
        partial.rename(target)
    except OSError as error:
        fix = "free space there, or name another folder: WHEELSMITH_CAPSULE=/a/larger/disk"
        fail(FETCH, f"the capsule cannot be unpacked into {target}", error.strerror or str(error), fix)
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def unpack_parts(stream: Parts, folder: Path) -> None:
    """Unpack into a new folder; return when all parts are read and are what the index says."""
    reader = io.BufferedReader(stream, 1 << 20)
    try:
        with tarfile.open(fileobj=reader, mode="r|") as tar:
            for member in tar:
                place = folder / safe_name(member, folder)
                place.parent.mkdir(parents=True, exist_ok=True)
                with place.open("wb") as file:
                    shutil.copyfileobj(tar.extractfile(member), file, 1 << 20)  # type: ignore[arg-type]
                place.chmod(0o755 if member.mode & 0o100 else 0o644)
    except (tarfile.TarError, EOFError, ValueError, RecursionError) as error:  # the last two: of odd headers
        stream.drain()  # names the part that is damaged
        fail(FETCH, "the capsule cannot be unpacked", str(error), "write a new one: its parts are as they were written")
    stream.drain()  # what is behind the archive's end


def run(command: list, environment: dict) -> None:  # type: ignore[type-arg]
    """Run a step; show what it said when it fails."""
    done = subprocess.run(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, check=False)
    if done.returncode:
        sys.stderr.write(done.stdout.decode("utf-8", "replace")[-4000:])
        fail(
            FETCH,
            "the capsule's tools could not be installed",
            f"{command[0]} ended with {done.returncode}; what it said is above",
            "mend that and start again; WHEELSMITH_CAPSULE=/another/disk unpacks it elsewhere",
        )


def make_tools(place: Path, environment: dict) -> Path:  # type: ignore[type-arg]
    """Install wheelsmith's locked tools out of the capsule's wheels; return their Python."""
    python = place / "tools" / "bin" / "python"
    if python.exists():
        return python
    sys.stderr.write("capsule   installing wheelsmith's tools\n")
    partial = place / "tools.partial"
    shutil.rmtree(partial, ignore_errors=True)
    [wheel] = (place / "wheels").glob("uv-*.whl")
    with zipfile.ZipFile(wheel) as archive:
        [name] = [name for name in archive.namelist() if name.endswith(".data/scripts/uv")]
        (place / "uv").write_bytes(archive.read(name))
    (place / "uv").chmod(0o755)
    uv = str(place / "uv")
    run([uv, "venv", "--quiet", "--relocatable", "--python", sys.executable, str(partial)], environment)
    install = [uv, "pip", "install", "--quiet", "--require-hashes", "--no-deps"]
    lock = place / "project" / "requirements" / "tools.txt"
    run([*install, "--python", str(partial / "bin" / "python"), "-r", str(lock)], environment)
    partial.rename(place / "tools")
    return python


def settings(place: Path) -> dict:  # type: ignore[type-arg]
    """Return the environment in which wheelsmith finds all packages in the capsule and asks no network."""
    environment = {k: v for k, v in os.environ.items() if not k.startswith(("PIP_", "UV_", "PYTHON"))}
    cache = str(Path(os.environ.get("WHEELSMITH_CACHE") or home("wheelsmith")).expanduser().absolute())
    wheels = str(place / "wheels")
    return {
        **environment,
        "WHEELSMITH_CACHE": cache,
        "WHEELSMITH_INVOKED_FROM": str(Path.cwd()),
        "PIP_CONFIG_FILE": os.devnull,
        "PIP_NO_INDEX": "1",
        "PIP_FIND_LINKS": wheels,
        "UV_NO_INDEX": "1",
        "UV_FIND_LINKS": wheels,
        "UV_OFFLINE": "1",
        "UV_NO_CONFIG": "1",
        "UV_PYTHON_DOWNLOADS": "never",
        "UV_CACHE_DIR": os.environ.get("UV_CACHE_DIR") or f"{cache}/uv",
    }


def home(name: str) -> Path:
    """Return a folder of the user's cache directory."""
    base = os.environ.get("XDG_CACHE_HOME")
    return (Path(base) if base else Path("~/.cache").expanduser()) / name


def arguments_for(words: list, index: dict, place: Path) -> list:  # type: ignore[type-arg]
    """Return module and arguments of wheelsmith's command: what was typed, with the capsule's recipe and archs."""
    command, *rest = words
    if command == "objects":
        return ["scripts.commands.capsule", "--give", *rest]
    given = {word.split("=")[0] for word in rest}
    if command in RECIPE_COMMANDS:
        recipe = index["recipe"]
        defaults = {"--recipe": str(place / "recipe" / f"{recipe}.toml") if index["own_recipe"] else recipe}
        if command != "fetch" and index["archs"]:
            defaults["--arch"] = index["archs"]
        if command != "fetch" and "torch" not in index["with"]:
            defaults["--torch"] = "installed"
        if command in {"wheel", "doctor"}:
            defaults["--wheelhouse"] = "wheelhouse"  # where it was started
        rest = ["--offline", *(word for item in defaults.items() if item[0] not in given for word in item), *rest]
    return [f"scripts.commands.{command.replace('-', '_')}", *rest]


def main() -> None:
    """Open the capsule and become wheelsmith's command."""
    words = sys.argv[1:]
    if not words or words[0].startswith("-"):
        name = Path(__file__).name
        sys.stderr.write(
            f"usage: sh {name} wheel [OPTION]...     build the wheel\n"
            f"       sh {name} doctor [OPTION]...    check this machine first\n"
            f"       sh {name} objects FILE          pack the compiled objects, for `nox -s capsule -- --take FILE`\n"
        )
        sys.exit(0 if words in (["-h"], ["--help"]) else USAGE)
    index = read_index()
    check_python(index)
    root = Path(os.environ.get("WHEELSMITH_CAPSULE") or home("wheelsmith-capsule")).expanduser().absolute()
    place = root / INDEX[:16]
    try:
        root.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        fix = "name a folder that you can write to: WHEELSMITH_CAPSULE=/a/folder"
        fail(USAGE, f"{root} cannot be made", error.strerror or str(error), fix)
    environment = settings(place)  # before the folder changes: its paths may be relative to this one
    with (root / f"{INDEX[:16]}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not place.is_dir():
            unpack(index, place)
        python = make_tools(place, environment)
        os.chdir(place / "project")
        marker = place / ("sources-" + hashlib.sha256(environment["WHEELSMITH_CACHE"].encode()).hexdigest()[:16])
        if not marker.exists() or not Path(environment["WHEELSMITH_CACHE"], "downloads").is_dir():
            fetch = arguments_for(["fetch", "--from-bundle", str(place / "sources.tar")], index, place)
            code = subprocess.run([str(python), "-m", *fetch], env=environment, stdout=subprocess.DEVNULL, check=False)
            if code.returncode:
                sys.exit(code.returncode)
            marker.touch()
    os.execve(  # noqa: S606  (it becomes the command: signals and exit code are its own)
        python, [str(python), "-m", *arguments_for(words, index, place)], environment
    )


if __name__ == "__main__":
    main()
