"""The cache directory: where things are, and how they get there (beside, fsync, rename) and leave.

- downloads/<sha256>/<file name>: archives, addressed by content
- sources/<key>/: unpacked and patched source trees
- dependencies/<key>/: unpacked dependencies
- toolchains/<key>/: build environment and CUDA_HOME
- builds/<key>/: build trees, which stay
- measured/: what the units of each recipe took on this machine
- uv/: uv's own cache (hard links into environments)
- locks/: one per thing that only one run may work on
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import platformdirs
from filelock import FileLock, Timeout

from scripts.core import interrupt, manifest
from scripts.core.console import Console
from scripts.core.errors import FetchError, UsageError, WheelsmithError, from_os_error
from scripts.core.files import remove_tree, write_atomic

CACHEDIR_TAG = "CACHEDIR.TAG"
_SIGNATURE = "Signature: 8a477f597d28d172789f06886806bc55"  # bford.info/cachedir


def default_cache_dir() -> Path:
    """Return the platform's cache directory for wheelsmith (`~/.cache/wheelsmith` on Linux)."""
    return Path(platformdirs.user_cache_dir("wheelsmith", appauthor=False))


@dataclass(frozen=True)
class Cache:
    """A cache directory that exists, is tagged and is writable."""

    root: Path

    @classmethod
    def open(cls, root: Path) -> Cache:
        """Create or check the cache directory. Raises FetchError when it cannot be written."""
        tag = root / CACHEDIR_TAG
        try:
            root.mkdir(parents=True, exist_ok=True)
            if not tag.exists():
                _refuse_foreign(root)
                write_atomic(tag, f"{_SIGNATURE}\n# This is wheelsmith's cache; it can be deleted.\n".encode())
            with tempfile.TemporaryFile(dir=root):
                pass
        except OSError as error:
            raise from_os_error(FetchError, error, doing="opening the cache", path=root) from error
        return cls(root)

    def place(self, group: str, key: str, *, kind: type[WheelsmithError] = FetchError) -> Path:
        """Return the path of one entry; its parent exists. Raises an error of `kind`."""
        path = self.root / group / key
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise from_os_error(kind, error, doing="making a folder of the cache", path=path.parent) from error
        return path

    @contextmanager
    def lock(self, name: str, console: Console, *, kind: type[WheelsmithError] = FetchError) -> Iterator[None]:
        """Hold the lock `name` (released by the kernel when the process dies); say who holds it while waiting.

        Raises an error of `kind` when the cache's locks cannot be written.
        """
        path = self.place("locks", name + ".lock", kind=kind)
        holder = path.with_suffix(".holder")
        lock = FileLock(path)
        try:
            lock.acquire(timeout=0)
        except Timeout:
            console.note(f"waiting for another run ({_holder(holder)}) that works on {name}")
            _wait_for(lock)
        except OSError as error:
            raise from_os_error(kind, error, doing="locking", path=path) from error
        try:
            with suppress(OSError):  # a full disk; it is only for the one who waits
                holder.write_text(f"process {os.getpid()}")
            yield
        finally:
            holder.unlink(missing_ok=True)
            lock.release()

    def once(
        self,
        group: str,
        key: str,
        make: Callable[[Path], None],
        *,
        console: Console,
        kind: type[WheelsmithError] = FetchError,
        changing: Sequence[str] = (),
        known: Callable[[Path], manifest.Digests] = lambda _made: {},
        mourn: Callable[[Path, Sequence[manifest.Change]], None] = lambda _damaged, _changes: None,
    ) -> Path:
        """Return the entry, made by `make(temporary directory)` and renamed into place when absent or damaged.

        Only one run makes or checks it at a time. A failure or a kill leaves nothing under the final name. An entry in
        which files were changed is said to be so and made anew; `mourn` gets it and what has changed before that.
        `changing`: names at its top that may come and go; `known`: sha256 of its files where they need no hashing.
        Raises an error of `kind` when the disk does not take it.
        """
        with self.lock(f"{group}-{key}", console, kind=kind):
            final = self.place(group, key, kind=kind)
            record = self.place("manifests", f"{group}-{key}", kind=kind)
            try:
                if final.is_dir():
                    found = manifest.changes(final, record, changing=changing)
                    if not found:
                        return final
                    console.warn(f"{group}/{key} in the cache was damaged and is made anew: {manifest.summary(found)}")
                    mourn(final, found)
                self._make(final, record, make, changing, known)
            except OSError as error:
                raise from_os_error(kind, error, doing=f"writing to {group}", path=final) from error
            return final

    def _make(
        self,
        final: Path,
        record: Path,
        make: Callable[[Path], None],
        changing: Sequence[str],
        known: Callable[[Path], manifest.Digests],
    ) -> None:
        """Make an entry beside its place and put it there; what is in its place goes."""
        for stale in final.parent.glob(f".{final.name}.*.partial"):
            remove_tree(stale)
        partial = Path(tempfile.mkdtemp(prefix=f".{final.name}.", suffix=".partial", dir=final.parent))
        try:
            if final.is_dir():
                final.rename(partial / "damaged")
                remove_tree(partial / "damaged")
            make(partial)
            partial.chmod(0o755)
            manifest.record(partial, record, changing=changing, known=known(partial))
            partial.rename(final)
        except BaseException:
            with interrupt.tidying():
                remove_tree(partial)
            raise

    @contextmanager
    def scratch(self, prefix: str) -> Iterator[Path]:
        """Yield a folder for temporary files, removed at the end; what killed runs have left goes as well."""
        folder = self.place("tmp", prefix).parent
        for lock in folder.glob(f"{prefix}*.lock"):
            with suppress(Timeout), FileLock(lock, timeout=0):
                remove_tree(lock.with_suffix(""))
                lock.unlink(missing_ok=True)
        place = Path(tempfile.mkdtemp(prefix=prefix, dir=folder))
        with FileLock(f"{place}.lock"):
            try:
                yield place
            finally:
                with interrupt.tidying():
                    remove_tree(place)
                Path(f"{place}.lock").unlink(missing_ok=True)


def _refuse_foreign(root: Path) -> None:
    # A fresh filesystem has lost+found; a first run killed while it wrote the tag left a part of it.
    ours = ("locks", "uv", "lost+found")
    foreign = [
        name
        for name in (child.name for child in root.iterdir())
        if name not in ours and not name.startswith(f".{CACHEDIR_TAG}.")
    ]
    if foreign and not (root / CACHEDIR_TAG).exists():  # another run may just have made the cache
        raise UsageError(
            f"{root} is not empty and not a wheelsmith cache",
            why=f"it has no {CACHEDIR_TAG}; wheelsmith deletes things in its cache and will not risk yours",
            fix="point WHEELSMITH_CACHE at an empty or new directory",
        )


def _wait_for(lock: FileLock) -> None:
    """Wait for as long as another run takes, but no longer than until we are told to end."""
    while not lock.is_locked:
        interrupt.check()
        with suppress(Timeout):
            lock.acquire(timeout=0.2, poll_interval=0.05)


def _holder(path: Path) -> str:
    try:
        return path.read_text() or "unknown process"
    except OSError:
        return "unknown process"
