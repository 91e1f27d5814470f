"""The compiler cache: whatever was compiled before, here or by somebody who shares a backend, is not compiled again.

Two levels, measured in docs/caching.md. Local: ccache, whole objects on disk; a hit takes 0.2 s; then device steps.
Shared, only when the user set `SCCACHE_*` for a backend: the same two (sharing.py), and sccache behind them for calls
that are not taken apart (shared_cache.py). The launcher asks a file, the switch, at each compiler call what to put
before the compiler; so a cache that fails is left by rewriting that file.

ccache alone would be wrong for nvcc: it preprocesses for one arch only, and neither its preprocessed text nor its list
of headers (nor nvcc's -MD, for headers of host code) is complete. So it runs in depend mode, which hashes all options,
and what all headers contain goes into the key as well: a changed header recompiles everything.
"""

from __future__ import annotations

import json
import os
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path

from scripts.compile.device_steps import DeviceSteps, read_events
from scripts.compile.shared_cache import Shared, SharedCache, start_shared
from scripts.compile.sharing import OBJECT_SOCKET, Sharing, share
from scripts.compile.standalone.launcher import COMPILER_CACHE
from scripts.core.console import Console, human_bytes, human_seconds
from scripts.core.errors import UsageError, WheelsmithError
from scripts.core.files import digest, file_sha256, remove_tree, write_json
from scripts.core.process import capture
from scripts.downloads.access import Access

DEFAULT_SIZE = "10G"
LONGEST_SOCKET = 107  # bytes of an address, which ccache takes as it is
PROGRAMS = Path(sys.executable).parent  # requirements/tools.txt brings ccache and sccache


@dataclass(frozen=True)
class CacheSettings:
    """What the user wants of the compiler cache."""

    enabled: bool = True
    size: str = DEFAULT_SIZE
    """Largest size on disk, as ccache reads it: `10G`."""
    shared: Shared | None = None
    """The backend that SCCACHE_* names."""


@dataclass
class CacheSummary:
    """What the cache did for one run; times in seconds, sizes in bytes."""

    level: str
    """`local`, `local and shared (Redis)`, or `off`."""
    hits: int = 0
    """Units whose object came from the local cache."""
    misses: int = 0
    """Units that were compiled, the shared cache's hits included."""
    failed: int = 0
    """Units that were compiled plainly because the cache failed."""
    saved_seconds: float = 0.0
    """What the hits took when they were compiled here, as far as this machine compiled them."""
    size: int = 0
    steps: dict[str, float] = field(default_factory=dict)
    """Device steps (cicc, ptxas) of the units that were compiled: `hits`, `misses`, `saved_seconds`, and `whole`: units
    that were left to nvcc as a whole."""
    exchanged: dict[str, int] = field(default_factory=dict)
    """What machines share through WebDAV, S3 or Redis: `units`, those of the hits whose object came from there,
    `step_hits`, those of the steps' hits that did, `steps_sent`, `objects_sent` (ccache keeps two per unit), and
    `errors`: faults, refused and damaged entries."""
    shared: dict[str, int] = field(default_factory=dict)
    """sccache's own counts, by step of a compiler call: hits, misses, errors."""
    trouble: list[str] = field(default_factory=list)
    """Why a level was given up, "" when none was."""

    def line(self) -> str:
        """Return the summary as one line of the closing table."""
        units = self.hits + self.misses + self.failed
        parts = [f"{self.level}: {self.hits} of {units} units ({100 * self.hits // max(1, units)} %)"]
        if self.exchanged.get("units"):
            parts.append(f"{self.exchanged['units']} of them from the shared cache")
        if self.saved_seconds:
            parts.append(f"{human_seconds(self.saved_seconds)} of compiling saved")
        if self.steps:
            of = self.steps["hits"] + self.steps["misses"]
            whole = f", {self.steps['whole']:.0f} units by nvcc as a whole" if self.steps.get("whole") else ""
            hits = self.exchanged.get("step_hits", 0)
            others = f", {hits} of them from the shared cache" if hits else ""
            parts.append(f"device steps: {self.steps['hits']:.0f} of {of:.0f} taken over{others}{whole}")
        if self.shared:
            steps = self.shared["hits"] + self.shared["misses"]
            parts.append(f"shared: {self.shared['hits']} of {steps} steps, {self.shared['errors']} errors")
            if self.shared.get("distributed") or self.shared.get("not_distributed"):
                failed = self.shared["not_distributed"]
                parts.append(f"{self.shared['distributed']} steps on other machines, {failed} failed there")
        if self.failed:
            parts.append(f"{self.failed} compiled plainly after trouble with the cache")
        return "; ".join([*parts, f"{human_bytes(self.size)} on disk"])

    def data(self) -> dict[str, object]:
        """Return the summary for the report."""
        return asdict(self)


def read_settings(environment: Mapping[str, str], *, enabled: bool, scheduler: str = "") -> CacheSettings:
    """Read the user's SCCACHE_* and CCACHE_MAXSIZE. The first names a backend, or only the size of the local cache.

    `scheduler` is an sccache-dist scheduler's URL. Raises UsageError when it cannot be one.
    """
    if scheduler and not enabled:
        raise UsageError("--dist needs the compiler cache", fix="leave out --no-compiler-cache")
    size = environment.get("CCACHE_MAXSIZE") or environment.get("SCCACHE_CACHE_SIZE") or DEFAULT_SIZE
    return CacheSettings(enabled, size, Shared.read(environment, scheduler) if enabled else None)


class CompilerCache:
    """The cache of one run: its switch, its watch over the shared level, and its counts."""

    def __init__(
        self,
        folder: Path,
        settings: CacheSettings,
        switch: Path,
        console: Console,
        *,
        key: str,
        outside: str = "",
        steps: DeviceSteps | None = None,
    ) -> None:
        self.folder, self.settings, self.switch, self._console, self.key = folder, settings, switch, console, key
        self.outside = outside
        self.steps = steps
        self.shared: SharedCache | None = None
        self.sharing: Sharing | None = None
        self._shared_counts: Callable[[], dict[str, int]] | None = None
        self.trouble: list[str] = []
        self.local = False
        self._stats = switch.with_name("cache-stats")

    @property
    def environment(self) -> dict[str, str]:
        """Variables for ninja, and so for the launchers."""
        return {COMPILER_CACHE: str(self.switch)}

    def open(self) -> None:
        """Try both levels and write the switch; what does not work is said and left out."""
        remove_tree(self._stats)
        self._stats.mkdir()
        if self.settings.enabled:
            self._open_local()
        self.write_switch()

    def _open_local(self) -> None:
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryFile(dir=self.folder) as file:
                file.write(b"\0" * (1 << 16))
                file.flush()
        except OSError as error:
            self.give_up(f"the compiler cache in {self.folder} cannot be written: {error.strerror}")
            return
        (self.folder / "ccache.conf").touch()
        code, text = capture([PROGRAMS / "ccache", "--version"], environment=self.variables())
        if code:
            self.give_up(f"ccache does not run: {text.strip()[:200]}")
        self.local = code == 0

    def variables(self) -> dict[str, str]:
        """Return ccache's settings; a user's own CCACHE_* and ccache.conf are not read."""
        values = {
            "CCACHE_DIR": str(self.folder),
            "CCACHE_CONFIGPATH": str(self.folder / "ccache.conf"),
            "CCACHE_MAXSIZE": self.settings.size,
            "CCACHE_COMPILERCHECK": f"string:{self.key}",
            "CCACHE_DEPEND": "1",
            "CCACHE_NOHASHDIR": "1",  # only debug information has the directory in it, and there is none
        }
        client = self.shared.client if self.shared else {}
        if self.steps is None or (client and self._shared_counts is None):  # nvcc as a whole
            return {**values, **client}
        behind = [client["CCACHE_PREFIX"]] if client else []
        if self.sharing and len(path := str(self.steps.program.with_name(OBJECT_SOCKET))) <= LONGEST_SOCKET:
            client["CCACHE_REMOTE_STORAGE"] = f"crsh:{path}"
        return {**values, **client, **self.steps.variables(shared=self.sharing is not None, behind=behind)}

    def write_switch(self) -> None:
        """Tell the launchers what to put before the compiler from now on."""
        command = [str(PROGRAMS / "ccache")] if self.local else []
        switch = {"command": command, "environment": self.variables(), "folder": str(self._stats)}
        write_json(self.switch, {**switch, "outside": self.outside})

    def give_up(self, why: str) -> None:
        """Say what is wrong with a level of the cache, and keep it for the report."""
        self.trouble.append(why)
        self._console.warn(f"{why}; compiling goes on without it")

    def use(self, shared: SharedCache) -> None:
        """Put a shared cache that answers behind the local one."""
        self.shared = shared
        self.write_switch()

    def share(self, backend: Shared, access: Access, tree: Path) -> None:
        """Share steps and objects, unless other machines compile whole calls, or only sccache speaks to the backend."""
        if self.steps is None or backend.scheduler:
            return
        self.sharing, why = share(backend.variables, access, store=self.steps.store, tree=tree)
        if self.sharing:
            self._shared_counts = self.sharing.counts
            self.write_switch()
        elif why:
            self.give_up(f"steps and objects are not shared ({backend.name}): {backend.hide(why)}")

    def tick(self) -> None:
        """Look after the shared level; call it often. What is dead or stuck is left, and compiling goes on."""
        if self.sharing and self.settings.shared and (why := self.sharing.trouble()):
            left, self.sharing = self.sharing, None
            self.write_switch()
            name, why = self.settings.shared.name, self.settings.shared.hide(why)
            self.give_up(f"steps and objects are shared no longer ({name}): {why}")
            left.close()
        if self.shared is None:
            return
        why = self.shared.trouble()
        if why:
            dropped, self.shared = self.shared, None
            self.write_switch()  # first, so that launchers whose call is ended now do not come back to it
            self.give_up(f"the shared cache ({dropped.shared.name}) is given up: {why}")
            dropped.stop()

    def close(self) -> None:
        """End everything that was started, and remove the switch: a command repeated by hand compiles plainly."""
        if self.sharing:
            self.sharing.close()
        if self.shared:
            self.shared.stop()
        self.switch.unlink(missing_ok=True)
        remove_tree(self._stats)

    def drain(self) -> None:
        """Wait until what was compiled is sent, as long as something is."""
        if self.sharing:
            self.sharing.drain()
        if self.shared:
            self.shared.drain()

    def summary(self, events: Path, begin: int) -> CacheSummary:
        """Return what happened since the event file was `begin` bytes long, and remember what the units took."""
        level = "local" if self.local else "off"
        if self.settings.shared and self.local:
            level += f" and shared ({self.settings.shared.name})"
        summary = CacheSummary(level, trouble=self.trouble)
        self.drain()
        if self.shared:
            summary.shared = self.shared.counts()
        known = SecondsTable(self.folder / "seconds.json")
        shared_units = 0
        for event in finished_events(events, begin):
            outcome = event.get("cache", "off")
            if outcome == "hit":
                summary.hits += 1
                shared_units += bool(event.get("shared"))
                summary.saved_seconds += known.saved(event)
            elif event["code"] == 0:
                known.learn(event)
            summary.misses += outcome == "miss"
            summary.failed += outcome == "failed"
        if self._shared_counts:
            summary.exchanged = {"units": shared_units, **self._shared_counts()}
        if self.local:
            with suppress(OSError):
                known.write()
            summary.size = directory_size(self.folder)
        if self.local and self.steps:
            summary.steps = self.steps.counts(events, begin)
            summary.size += self.steps.prune(self.settings.size)
        return summary


@contextmanager
def compiler_cache(
    settings: CacheSettings,
    access: Access,
    *,
    tree: Path,
    key: str,
    outside: str = "",
    enter: Sequence[str | Path],
    environment: Mapping[str, str],
    steps: DeviceSteps | None = None,
) -> Iterator[CompilerCache]:
    """Yield the compiler cache for compiling in the build tree `tree`; its programs end with the block.

    `key` says what all headers and compilers contain, `outside` the same without the sources, for units of which is
    known what they can read there (reach.py); `enter` is the command prefix with which the compilers are run
    (namespace.py), and `environment` the compilers' variables, for the daemon of the shared level. `steps`: how units
    are compiled that the cache has not.
    """
    place, switch = access.cache.place("compiler-cache", "objects"), tree / "compiler-cache.json"
    opened = CompilerCache(place, settings, switch, access.console, key=key, outside=outside, steps=steps)
    try:
        opened.open()
        if settings.shared and opened.local:
            shared, why = start_shared(
                settings.shared, PROGRAMS / "sccache", enter=enter, environment=environment, cache=access.cache
            )
            if shared:
                opened.use(shared)
                opened.share(settings.shared, access, tree)
                access.console.note(f"shared compiler cache: {settings.shared.name}")
            else:
                opened.give_up(f"the shared cache ({settings.shared.name}) does not work: {why}")
        yield opened
    except WheelsmithError:  # a unit failed: what others compiled is for the next run
        opened.drain()
        raise
    finally:
        opened.close()


def headers_digest(folder: Path) -> str:
    """Return a digest of all headers below a folder: their names and what they contain."""
    endings = {".h", ".hh", ".hpp", ".hxx", ".cuh", ".inl", ".inc", ".def"}
    found = sorted(path for path in folder.rglob("*") if path.suffix in endings and path.is_file())
    return digest([(str(path.relative_to(folder)), file_sha256(path)) for path in found])


def finished_events(events: Path, begin: int) -> Iterator[dict]:  # type: ignore[type-arg]
    """Yield the launcher's "end" events after the first `begin` bytes of its file; torn lines are left out."""
    for event in read_events(events, begin):
        if event.get("event") == "end" and isinstance(event.get("code"), int):
            yield event


class SecondsTable:
    """What each unit took when it was compiled, by object file and number of archs: what a hit saves."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.seconds: dict[str, float] = {}
        with suppress(OSError, ValueError):
            found = json.loads(path.read_text())
            if isinstance(found, dict):
                self.seconds = {key: value for key, value in found.items() if isinstance(value, (int, float))}

    @staticmethod
    def _key(event: Mapping[str, object]) -> str:
        return f"{event.get('unit')} {event.get('archs', '')}".strip()

    def learn(self, event: Mapping[str, object]) -> None:
        """Remember what a compiled unit took."""
        self.seconds[self._key(event)] = float(str(event.get("seconds", 0)))

    def saved(self, event: Mapping[str, object]) -> float:
        """Return the seconds that a hit saved, 0 when the unit was never compiled here."""
        return max(0.0, self.seconds.get(self._key(event), 0.0) - float(str(event.get("seconds", 0))))

    def write(self) -> None:
        """Write the table. Raises OSError."""
        write_json(self.path, self.seconds)


def directory_size(folder: Path) -> int:
    """Return the bytes of all files below a folder, as far as they can be seen."""
    total = 0
    for place, _, names in os.walk(folder):
        for name in names:
            with suppress(OSError):
                total += os.lstat(Path(place) / name).st_size
    return total
