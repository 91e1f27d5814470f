"""Ratios and the table of a benchmark, from what its parts took."""

from __future__ import annotations

import platform
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import psutil

from scripts.bench.ours import ADDED, ALONE, COLD, NOOP, PARTS, WARM, Ours
from scripts.bench.runs import Taken, median
from scripts.bench.stock import Stock
from scripts.core.console import Console, human_bytes, human_seconds
from scripts.cuda.archs import arch_list

LIGHT = 1.2  # a CUDA unit is light when stock takes at most this many times the core-seconds of the median one
Units = Mapping[str, Mapping[str, Any]]


@dataclass(frozen=True)
class Target:
    """What a ratio must not exceed, or must reach."""

    key: str
    bound: float
    at_least: bool = False

    def met(self, value: float | None) -> bool | None:
        """Whether a value meets it; None for one that was not measured."""
        if value is None:
            return None
        return value >= self.bound if self.at_least else value <= self.bound

    def __str__(self) -> str:
        return f"{'>=' if self.at_least else '<='} {self.bound:g}"


TARGETS = (
    Target("cold_cpu_ratio", 0.40),
    Target("light_rss_ratio", 0.45),
    Target("warm_ratio", 0.12),
    Target("add_arch_ratio", 1.15),
    Target("noop_seconds", 5.0),
    Target("busy_core_ratio", 0.95, at_least=True),
)


def light_units(stock: Units) -> list[str]:
    """Return the light units: the CUDA sources of which stock takes at most `LIGHT` times what it takes of the median.

    They are those that mostly parse headers. The stock build alone decides, so that none becomes light by having been
    made so.
    """
    cuda = {name: row["cpu_seconds"] for name, row in stock.items() if row["source"].endswith(".cu")}
    return [name for name, seconds in cuda.items() if seconds <= LIGHT * median(list(cuda.values()))]


def ratios(stock: Taken | None, parts: Mapping[str, Taken]) -> dict[str, float | None]:
    """Return the ratios of the JSON file; None for those whose parts were not run.

    Ours divided by stock's cold figure. Otherwise: `add_arch_ratio` is the list with an arch added to the cached rest,
    divided by that arch alone, both ours and in core-seconds; `noop_seconds`; `busy_core_ratio`, the share of our job
    slots that were compiling while units were left.
    """
    cold = parts.get(COLD)
    return {
        "cold_cpu_ratio": _ratio(_took(cold, "cpu_seconds"), _took(stock, "cpu_seconds")),
        "cold_wall_ratio": _ratio(_took(cold, "seconds"), _took(stock, "seconds")),
        "compile_cpu_ratio": _ratio(_unit_seconds(cold), _unit_seconds(stock)),
        "light_cpu_ratio": _light(stock, cold, "cpu_seconds"),
        "light_rss_ratio": _light(stock, cold, "peak_mb"),
        "warm_ratio": _ratio(_took(parts.get(WARM), "seconds"), _took(stock, "seconds")),
        "warm_cpu_ratio": _ratio(_took(parts.get(WARM), "cpu_seconds"), _took(stock, "cpu_seconds")),
        "add_arch_ratio": _ratio(_took(parts.get(ADDED), "cpu_seconds"), _took(parts.get(ALONE), "cpu_seconds")),
        "noop_seconds": round(parts[NOOP].seconds, 2) if NOOP in parts else None,
        "busy_core_ratio": round(cold.facts["slots_busy"], 3) if cold else None,
        "wheel_bytes_ratio": _ratio(_fact(cold, "wheel_bytes"), _fact(stock, "wheel_bytes")),
    }


def _ratio(ours: float | None, stock: float | None) -> float | None:
    return round(ours / stock, 3) if ours is not None and stock else None


def _took(part: Taken | None, name: str) -> float | None:
    return float(getattr(part, name)) if part else None


def _fact(part: Taken | None, name: str) -> float | None:
    return float(part.facts[name]) if part else None


def _unit_seconds(part: Taken | None) -> float | None:
    return sum(float(row["cpu_seconds"]) for row in part.facts["units"].values()) if part else None


def _light(stock: Taken | None, cold: Taken | None, key: str) -> float | None:
    """Return the median of our light units divided by the median of the same units of stock."""
    if not stock or not cold:
        return None
    names = [name for name in light_units(stock.facts["units"]) if name in cold.facts["units"]]
    return _ratio(*(median([taken.facts["units"][name][key] for name in names]) for taken in (cold, stock)))


def bench_json(stock: Stock, ours: Ours) -> dict[str, Any]:
    """Return all that was measured so far, for --json: ratios, targets, raw figures. Sizes in bytes, times in s."""
    taken, parts = stock.ledger.done.get("stock"), ours.ledger.done
    found = ratios(taken, parts)
    wanted = PARTS if len(ours.archs) > 1 else (COLD, NOOP, WARM)
    return {
        **found,
        "targets": {target.key: {"bound": str(target), "met": target.met(found[target.key])} for target in TARGETS},
        "complete": taken is not None and all(name in parts for name in wanted),
        "recipe": ours.recipe.name,
        "archs": arch_list(ours.archs),
        "jobs": ours.jobs,
        "machine": machine(),
        "light_units": light_units(taken.facts["units"]) if taken else [],
        "stock": asdict(taken) if taken else None,
        "ours": {name: asdict(part) for name, part in parts.items()},
    }


def machine() -> dict[str, Any]:
    """Return what measured: processor, cores, memory in bytes, system."""
    model = next((line.split(":", 1)[1].strip() for line in _lines("/proc/cpuinfo") if "model name" in line), "")
    return {
        "processor": model or platform.machine(),
        "cores": psutil.cpu_count(),
        "memory": psutil.virtual_memory().total,
        "system": f"{platform.system()} {platform.release()}",
        "python": platform.python_version(),
    }


def _lines(path: str) -> list[str]:
    try:
        return Path(path).read_text().splitlines()
    except OSError:
        return []


def table_rows(result: Mapping[str, Any]) -> list[tuple[str, str, str, str]]:
    """Return the table's rows: what, stock, ours, ratio with its target."""
    stock, ours = result["stock"], result["ours"]
    cold = ours.get(COLD)
    return [
        ("cold, core time", _time(stock, "cpu_seconds"), _time(cold, "cpu_seconds"),
         _verdict(result, "cold_cpu_ratio")),
        ("  of it compilers", _compilers(stock), _compilers(cold), _verdict(result, "compile_cpu_ratio")),
        ("cold, wall", _time(stock, "seconds"), _time(cold, "seconds"), _verdict(result, "cold_wall_ratio")),
        *_memory(result),
        ("tree deleted, cache warm", _time(stock, "seconds"), _time(ours.get(WARM), "seconds"),
         _verdict(result, "warm_ratio")),
        (
            "  its core time",
            _time(stock, "cpu_seconds"),
            _time(ours.get(WARM), "cpu_seconds"),
            _verdict(result, "warm_cpu_ratio"),
        ),
        ("one arch added", f"alone: {_time(ours.get(ALONE), 'cpu_seconds')}", _time(ours.get(ADDED), "cpu_seconds"),
         _verdict(result, "add_arch_ratio")),
        ("nothing changed", "", f"{result['noop_seconds']} s" if result["noop_seconds"] is not None else "-",
         _verdict(result, "noop_seconds")),
        ("job slots busy", _share(stock), _share(cold), _verdict(result, "busy_core_ratio")),
        ("wheel", _size(stock), _size(cold), _verdict(result, "wheel_bytes_ratio")),
    ]  # fmt: skip


def _memory(result: Mapping[str, Any]) -> list[tuple[str, str, str, str]]:
    """Return the rows of peak memory per unit: light ones, the median, the worst."""
    stock, cold = result["stock"], result["ours"].get(COLD)
    if not stock or not cold:
        return []
    light = set(result["light_units"])
    peaks = [{name: row["peak_mb"] for name, row in part["facts"]["units"].items()} for part in (stock, cold)]
    rows = []
    for title, only, measure in (
        (f"peak of {len(light)} light units, median", True, median),
        ("peak of all units, median", False, median),
        ("peak of all units, worst", False, max),
    ):
        values = [measure([peak for name, peak in part.items() if not only or name in light]) for part in peaks]
        sizes = [human_bytes(value * 1e6) for value in values]
        verdict = _verdict(result, "light_rss_ratio") if only else f"{values[1] / values[0]:.2f}"
        rows.append((title, sizes[0], sizes[1], verdict))
    return rows


def _verdict(result: Mapping[str, Any], key: str) -> str:
    value = result[key]
    if value is None:
        return "not measured"
    text = f"{value:.2f}" if key != "noop_seconds" else ""
    target = next((item for item in TARGETS if item.key == key), None)
    return f"{text} ({target}: {'met' if target.met(value) else 'MISSED'})".strip() if target else text


def _time(part: Mapping[str, Any] | None, key: str) -> str:
    return human_seconds(part[key]) if part else "-"


def _compilers(part: Mapping[str, Any] | None) -> str:
    return human_seconds(sum(row["cpu_seconds"] for row in part["facts"]["units"].values())) if part else "-"


def _share(part: Mapping[str, Any] | None) -> str:
    return f"{100 * part['facts']['slots_busy']:.1f} %" if part else "-"


def _size(part: Mapping[str, Any] | None) -> str:
    return human_bytes(part["facts"]["wheel_bytes"]) if part else "-"


def show(result: Mapping[str, Any], console: Console) -> None:
    """Print the table, the machine, and what makes wall times doubtful."""
    console.stage("bench", f"{result['recipe']} for {result['archs']}, {result['jobs']} jobs")
    console.grid(["", "stock", "ours", "ratio (target)"], table_rows(result))
    about = result["machine"]
    console.note(f"{about['processor']}, {about['cores']} cores, {human_bytes(about['memory'])}, {about['system']}")
    for name in disturbed(result):
        console.warn(f"{name}: other work ran beside it, or it was interrupted: its wall time is not a measurement")


def disturbed(result: Mapping[str, Any]) -> Sequence[str]:
    """Return the parts during which the machine had other work, by its load at their begin, or that had several runs.

    A bench begins with an idle machine; between its parts the load is that of the part before, at most the jobs.
    """
    parts = {"stock": result["stock"], **result["ours"]}
    return [
        name for name, part in parts.items() if part and (part["runs"] > 1 or max(part["load"]) > result["jobs"] + 1.5)
    ]
