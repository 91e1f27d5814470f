"""Run the operator checks of gpu_check/device in processes of their own: a crash, a hang, a lost context cost one.

Every family runs first with the driver's compiler switched off (CUDA_DISABLE_PTX_JIT=1): what works then has run
native code. What fails is run again with the compiler on: what works only then was compiled from PTX by the driver.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from scripts.core.paths import ROOT
from scripts.core.process import call

FAMILIES = (
    *("marlin", "norm", "activation", "quant", "gemm", "moe", "machete", "gptq", "gguf"),  # the longest first
    *("cache", "attention", "scan", "sampling", "memory"),
)
QUICK = ("norm", "activation", "moe", "cache")
NO_JIT = {"CUDA_DISABLE_PTX_JIT": "1"}
MODULE = "scripts.gpu_check.device.worker"
TAIL = 3000  # characters of a process's stderr that are kept


@dataclass(frozen=True)
class Place:
    """Where the checks run."""

    python: Path
    """A Python with torch."""
    site: Path
    """The unpacked wheel."""
    scratch: Path
    """For compile caches and models."""
    variables: Mapping[str, str] = field(repr=False)
    """The user's environment."""

    def environment(self, extra: Mapping[str, str] | None = None) -> dict[str, str]:
        """Return the environment of a process: the wheel first on the path, caches in the scratch folder."""
        path = [str(ROOT), str(self.site), self.variables.get("PYTHONPATH", "")]
        return {
            **self.variables,
            "PYTHONPATH": os.pathsep.join(part for part in path if part),
            "PYTHONDONTWRITEBYTECODE": "1",
            "CUDA_CACHE_PATH": str(self.scratch / "cuda-cache"),  # an empty one: JIT is seen, not remembered
            "XDG_CACHE_HOME": str(self.scratch / "cache"),
            "TRITON_CACHE_DIR": str(self.scratch / "triton"),
            **(extra or {}),
        }


@dataclass
class Ended:
    """What a process left behind."""

    code: int
    lines: list[dict[str, Any]] = field(default_factory=list)
    error: str = ""
    """The end of its stderr."""
    seconds: float = 0.0


def run_lines(command: Sequence[str | Path], environment: Mapping[str, str], limit: float, prefix: str = "") -> Ended:
    """Run a command for at most `limit` seconds; return the JSON lines of its stdout. Code 124: it ran too long.

    With a prefix only lines that begin with it count. On Ctrl-C the process group is killed.
    """
    started = time.monotonic()
    done = call(command, environment=environment, limit=limit, cwd=ROOT)
    lines = [line.removeprefix(prefix) for line in done.text.splitlines() if line.startswith(prefix)]
    parsed = [value for value in map(_object, lines) if value]
    return Ended(done.code, parsed, done.error_text[-TAIL:], round(time.monotonic() - started, 1))


def _object(line: str) -> dict[str, Any]:
    try:
        value = json.loads(line)
    except ValueError:
        return {}
    return value if isinstance(value, dict) else {}


@dataclass
class Kernels:
    """What the checks saw, by check; and what the libraries register."""

    operators: list[list[Any]] = field(default_factory=list)
    libraries: dict[str, str] = field(default_factory=dict)
    machine: dict[str, Any] = field(default_factory=dict)
    checks: dict[str, dict[str, Any]] = field(default_factory=dict)
    planned: dict[str, dict[str, Any]] = field(default_factory=dict)
    """What the processes set out to run: a check that never began is told, too."""
    problems: list[str] = field(default_factory=list)


def check_families(
    place: Place, families: Sequence[str], *, seed: int, limit: float, at_once: int, saved: Callable[[Kernels], None]
) -> Kernels:
    """Run families, `at_once` at a time, each for at most `limit` seconds; call `saved` after each."""
    seen = Kernels()

    def one(family: str) -> None:
        _family(place, family, seed, limit, seen)
        saved(seen)

    with ThreadPoolExecutor(at_once) as pool:
        for future in [pool.submit(one, family) for family in families]:
            future.result()
    return seen


def _family(place: Place, family: str, seed: int, limit: float, seen: Kernels) -> None:
    deadline = time.monotonic() + limit
    _passes(place, family, seed, deadline, seen, image="SASS", only=())
    again = [name for name, value in seen.checks.items() if value["family"] == family and value["state"] in RETRIED]
    first = {name: seen.checks.pop(name) for name in again}
    if again:  # one process each: the driver compiles on one core for a minute or more
        deadline = max(deadline, time.monotonic() + limit)
        with ThreadPoolExecutor(len(again)) as pool:
            runs = [pool.submit(_passes, place, family, seed, deadline, seen, image="JIT", only=[n]) for n in again]
        for run in runs:
            run.result()
    for name, value in first.items():
        later = seen.checks.setdefault(name, value)
        if later is not value:
            later["without_jit"] = value.get("reason", value["state"])
    for name, about in list(seen.planned.items()):
        if about["family"] == family and name not in seen.checks:
            seen.checks[name] = {**about, "state": "error", "reason": f"not run: {limit:g} s were over before"}


RETRIED = {"error", "crashed"}


def _passes(
    place: Place, family: str, seed: int, deadline: float, seen: Kernels, *, image: str, only: Sequence[str]
) -> None:
    """Run a family; after a crash go on with the checks behind it."""
    done: set[str] = set()
    while (left := deadline - time.monotonic()) > 1:
        command: list[str | Path] = [place.python, "-m", MODULE, place.site / "vllm", "--family", family]
        command += ["--seed", str(seed)]
        command += [word for name in sorted(done) for word in ("--skip", name)]
        command += [word for name in only for word in ("--only", name)]
        ended = run_lines(command, place.environment(NO_JIT if image == "SASS" else {}), left)
        began = _collect(ended, seen, image)
        done |= {str(line["check"]) for line in ended.lines if line.get("event") == "check"}
        if not began:
            if ended.code not in {0, 3}:
                seen.problems.append(f"{family}: the process ended with {ended.code}: {_last(ended.error)}")
            if ended.code != 3:
                return
            continue
        name = str(began["check"])
        why = f"ran longer than {left:.0f} s" if ended.code == 124 else f"the process ended with {ended.code}"
        seen.checks[name] = {**_about(began), "state": "crashed", "reason": f"{why}: {_last(ended.error)}"}
        done.add(name)


def _collect(ended: Ended, seen: Kernels, image: str) -> dict[str, Any]:
    """Take over what a process said; return the check that began and did not end, or nothing."""
    began: dict[str, Any] = {}
    for line in ended.lines:
        event = line.get("event")
        if event == "operators":
            seen.operators, seen.libraries = line["operators"], line["libraries"]
        elif event == "planned":
            seen.planned.update({str(entry["check"]): _about(entry) for entry in line["checks"]})
        elif event == "machine":
            seen.machine = {key: value for key, value in line.items() if key != "event"}
        elif event == "begin":
            began = line
        elif event == "check":
            began = {}
            ran = {"image": image} if line["state"] in {"ok", "wrong"} else {}
            seen.checks[str(line["check"])] = {**{k: v for k, v in line.items() if k not in {"event", "check"}}, **ran}
    return began


def _about(line: Mapping[str, Any]) -> dict[str, Any]:
    return {"operators": line["operators"], "family": line["family"]}


def _last(text: str) -> str:
    lines = [line for line in text.strip().splitlines() if line.strip()]
    return lines[-1][:300] if lines else "no message"


def operator_table(seen: Kernels) -> list[dict[str, Any]]:
    """Return one row per registered operator: its state, and the worst line of every check that called it."""
    rows = []
    for name, _kernel, state, reason in seen.operators:
        base = str(name).split(".", 1)[0]
        called = {check: value for check, value in seen.checks.items() if base in value["operators"]}
        rows.append({"operator": name, **_row(called, state, reason)})
    return rows


_WORST = ("wrong", "crashed", "error", "ok", "other arch", "not covered", "not in the wheel")


def _row(called: Mapping[str, dict[str, Any]], state: str, reason: str) -> dict[str, Any]:
    ran = {check: value for check, value in called.items() if value["state"] in _WORST[:4]}
    if not ran:
        other = next((v for v in called.values() if v["state"] in {"other arch", "not covered"}), None)
        if other and state == "not covered":
            return {"state": other["state"], "reason": other.get("reason") or "; ".join(other.get("notes", []))}
        return {"state": state, "reason": reason}
    worst = min((value["state"] for value in ran.values()), key=_WORST.index)
    reasons = [str(value["reason"]) for value in ran.values() if value.get("reason")]
    lines = [line for value in ran.values() for line in value.get("lines", [])]
    return {
        "state": worst,
        "reason": "; ".join(reasons),
        "checks": sorted(ran),
        "image": "/".join(sorted({str(value["image"]) for value in ran.values() if "image" in value})),
        "lines": lines,
    }
