"""nox -s gpu-check: on a machine with a GPU, are a wheel's kernels right and does its engine generate?

Without nox: `python -m scripts.gpu_check WHEEL` with a Python that has torch and what vLLM imports.
"""

from __future__ import annotations

import argparse
import datetime as dt
import os
import secrets
import shutil
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from scripts.audit.collect import audit_path
from scripts.cli import Parser, run, user_path
from scripts.core.console import Console
from scripts.core.errors import GpuError, NoGpuError, UsageError, WheelsmithError
from scripts.core.files import file_sha256, write_json
from scripts.core.process import capture
from scripts.cuda.drivers import parse_target
from scripts.downloads.unpack import unpack_wheel
from scripts.gpu_compare import compare_digests, disagreements
from scripts.gpu_kernels import FAMILIES, QUICK, Kernels, Place, check_families, operator_table, run_lines

SCHEMA_VERSION = 1
PARTS = ("kernels", "speed", "engine", "audit", "slim")
ENGINE_RUNS = (
    *(("llama", "eager"), ("llama", "graphs"), ("llama", "serve")),
    *(("gpt-oss", "eager"), ("gpt-oss", "graphs"), ("gpt-oss", "float32")),
)
DESCRIPTION = """\
On a machine with a GPU: call every operator of a wheel on fresh random inputs and compare with float64; generate
tokens with tiny random models (Llama, gpt-oss), eagerly, with CUDA graphs and through `vllm serve`; compare what was
seen with what `audit` says of this GPU; time a few operators against torch. Nothing is downloaded.
Leaves with 12 when something is wrong, with 13 when nothing could be checked (no GPU, no torch).
Example: nox -s gpu-check -- wheelhouse/vllm-0.20.1+cu130.core-cp38-abi3-manylinux_2_34_x86_64.whl --json check.json
"""


def parser() -> Parser:
    """Return the command line of `nox -s gpu-check`."""
    command = Parser("gpu-check", DESCRIPTION)
    command.add_argument("wheel", type=user_path, metavar="WHEEL")
    command.add_argument("--json", type=user_path, metavar="FILE", help="write what was seen, after every step")
    command.add_argument("--quick", action="store_true", help="common operators and one engine run: about a minute")
    command.add_argument("--part", action="append", choices=PARTS, metavar="P", help=f"only: {', '.join(PARTS)}")
    command.add_argument("--family", action="append", choices=FAMILIES, metavar="F", help="only these operators")
    command.add_argument("--python", type=user_path, metavar="PYTHON", help="a Python with torch (default: found)")
    command.add_argument("--seed", type=int, help="of the random inputs (default: a new one, recorded)")
    command.add_argument("--limit", type=int, default=180, metavar="S", help="seconds per family and engine run: 180")
    command.add_argument("--at-once", type=int, default=_at_once(), metavar="N", help="processes at a time")
    return command


def _at_once() -> int:
    return max(1, min(6, len(os.sched_getaffinity(0)) // 2))


def main(arguments: Sequence[str], console: Console) -> int:
    """Run the command; return its exit code."""
    options = parser().parse_args(arguments)
    if options.wheel.suffix != ".whl" or not options.wheel.is_file():
        raise UsageError(f"{options.wheel} is not a wheel", fix="give the path of a .whl file")
    if options.at_once < 1 or options.limit < 1:
        raise UsageError("--at-once and --limit are at least 1", fix="leave them out for the defaults")
    python = find_python(options.python)
    driver = gpu_driver(python)
    with tempfile.TemporaryDirectory(prefix="gpu-check-") as folder:
        report = Report(options, driver, console)
        place = Place(python, Path(folder) / "site", Path(folder))
        unpack_wheel(options.wheel, place.site)
        for part in _parts(options):
            report.part(part, lambda part=part: _RUN[part](place, options, report))  # type: ignore[misc]
        return report.finish()


def _parts(options: argparse.Namespace) -> tuple[str, ...]:
    chosen = options.part or [part for part in PARTS if not options.quick or part not in {"slim", "speed"}]
    return tuple(part for part in PARTS if part in chosen)


def find_python(given: Path | None) -> Path:
    """Return a Python that imports torch. Raises NoGpuError."""
    names = [str(given)] if given else [sys.executable, *_pythons_on_path()]
    for name in dict.fromkeys(names):
        if capture([name, "-c", "import torch"], environment=os.environ, timeout=300)[0] == 0:
            return Path(name)
    raise NoGpuError(
        f"{given or 'no Python here'} {'does not import' if given else 'imports'} torch; nothing was checked",
        why=f"tried {', '.join(dict.fromkeys(names))}",
        fix="--python /path/to/python of the environment with the torch that the wheel was made for, and vLLM's needs",
    )


def _pythons_on_path() -> list[str]:
    own = Path(sys.prefix).resolve()
    folders = [part for part in os.environ.get("PATH", "").split(os.pathsep) if part]
    outside = [part for part in folders if not Path(part).resolve().is_relative_to(own)]
    found = shutil.which("python3", path=os.pathsep.join(outside))
    return [found] if found else []


_GPU = "import torch; n = torch.cuda.device_count(); print('GPU', n, torch.version.cuda); torch.zeros(1, device='cuda')"


def gpu_driver(python: Path) -> str:
    """Return the driver's version, "" when nvidia-smi does not tell. Raises NoGpuError without a usable GPU."""
    code, text = capture([python, "-c", _GPU], environment=os.environ, timeout=300)
    if code:
        raise NoGpuError(
            "torch sees no usable GPU; nothing was checked",
            why=(text.strip().splitlines() or ["no message"])[-1],
            fix="run this on a machine with an NVIDIA GPU and its driver; `nox -s audit` judges a wheel without one",
        )
    code, text = capture(
        ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"], environment=os.environ, timeout=60
    )
    return text.strip().splitlines()[0].strip() if code == 0 and text.strip() else ""


class Report:
    """What is written to --json after every step, and told at the end."""

    def __init__(self, options: argparse.Namespace, driver: str, console: Console) -> None:
        self.console, self._path = console, options.json
        self.problems: list[str] = []
        self.data: dict[str, Any] = {
            "schema_version": SCHEMA_VERSION,
            "date": dt.datetime.now(dt.timezone.utc).date().isoformat(),
            "wheel": {
                "name": options.wheel.name,
                "sha256": file_sha256(options.wheel),
                "size": options.wheel.stat().st_size,
            },
            "machine": {"driver": driver, "kernel": os.uname().release, "cores": len(os.sched_getaffinity(0))},
            "seed": secrets.randbelow(2**31) if options.seed is None else options.seed,
            "quick": options.quick,
            "seconds": {},
            "finished": False,
        }
        self.save()

    def save(self) -> None:
        """Write the file, whole or not at all."""
        if self._path:
            write_json(self._path, self.data)

    def part(self, name: str, work: Callable[[], None]) -> None:
        """Run one part; whatever it meets is recorded, and the others still run."""
        self.console.stage(name)
        started = time.monotonic()
        try:
            work()
        except WheelsmithError as error:
            self.problems.append(f"{name}: {error.what} {error.why}".strip())
        except (OSError, ValueError, LookupError) as error:
            self.problems.append(f"{name}: {type(error).__name__}: {error}")
        self.data["seconds"][name] = round(time.monotonic() - started, 1)
        self.save()

    def finish(self) -> int:
        """Tell the result; raise GpuError when something is wrong."""
        self.data["problems"], self.data["ok"], self.data["finished"] = self.problems, not self.problems, True
        self.save()
        for line in self.data.get("summary", []):
            self.console.result(line)
        if self.problems:
            raise GpuError(
                f"the wheel fails on this machine: {len(self.problems)} findings",
                why=self.problems[0],
                fix="see --json for every figure; `nox -s audit -- WHEEL` says what the wheel holds for this GPU",
                detail="\n".join(self.problems),
                docs="docs/gpu-check.md",
            )
        return 0


def _kernels(place: Place, options: argparse.Namespace, report: Report) -> None:
    def saved(seen: Kernels) -> None:
        report.data["machine"].update(dict(seen.machine))
        report.data.update(operators=operator_table(seen), checks=dict(seen.checks), libraries=dict(seen.libraries))
        report.save()

    families = options.family or (QUICK if options.quick else FAMILIES)
    seen = check_families(
        place, families, seed=report.data["seed"], limit=options.limit, at_once=options.at_once, saved=saved
    )
    saved(seen)
    report.problems += seen.problems
    report.problems += [f"{name} does not load: {why}" for name, why in seen.libraries.items() if why]
    rows = report.data["operators"]
    report.problems += [
        f"{row['operator']}: {row['state']} {row['reason']}".strip() for row in rows if row["state"] in _BAD
    ]
    if not any(row["state"] == "ok" for row in rows):
        report.problems.append("no operator was found right")
    counts = {state: sum(row["state"] == state for row in rows) for state in dict.fromkeys(r["state"] for r in rows)}
    report.data.setdefault("summary", []).append(
        "operators  " + ", ".join(f"{count} {state}" for state, count in counts.items())
    )
    report.console.grid(("operator", "type", "error", "limit", "image", "verdict"), list(_lines(rows)))


_BAD = {"wrong", "crashed", "error"}


def _lines(rows: Sequence[dict[str, Any]]) -> list[tuple[str, ...]]:
    shown: list[tuple[str, ...]] = []
    for row in rows:
        for line in row.get("lines", []):
            figures = (f"{float(line['error']):.2g}", f"{line['limit']:.2g}")
            shown.append((row["operator"], line["dtype"], *figures, row["image"], "ok" if line["ok"] else "WRONG"))
        if not row.get("lines"):
            shown.append((row["operator"], "", "", "", "", f"{row['state']}: {row['reason']}"))
    return shown


def _speed(place: Place, options: argparse.Namespace, report: Report) -> None:
    ended = run_lines(
        [place.python, "-m", "scripts.gpu.speed", place.site / "vllm"], place.environment(), options.limit, "RESULT "
    )
    seen: dict[str, Any] = ended.lines[-1] if ended.lines else {"ok": False, "rows": [], "error": ended.error}
    report.data["speed"] = seen
    report.problems += [
        f"{row['operator']} takes {row['us']} us, {row['against']} {row['torch_us']} us"
        for row in seen["rows"]
        if not row["ok"]
    ]
    if not ended.lines:
        report.problems.append(f"speed: the process ended with {ended.code}: {ended.error[-300:]}")


def _engine(place: Place, options: argparse.Namespace, report: Report) -> None:
    runs = ENGINE_RUNS[:1] if options.quick else ENGINE_RUNS
    if not list((place.site / "vllm").glob("_C.*so")):
        report.data["engine_not_covered"] = "the wheel has no _C, without which vLLM does not start on a GPU"
        report.data.setdefault("summary", []).append(f"engine     not run: {report.data['engine_not_covered']}")
        return
    _allow_no_flash_attention(place, options, report)
    seen: dict[str, Any] = report.data.setdefault("engine", {})

    def one(run_: tuple[str, str]) -> None:
        model, mode = run_
        folder = place.scratch / f"{model}-{mode}"
        command: list[str | Path] = [place.python, "-m", "scripts.gpu.engine", model, mode, "--folder", folder]
        ended = run_lines(
            [*command, "--seed", str(report.data["seed"])], place.environment(), 2 * options.limit, "RESULT "
        )
        failed = {"ok": False, "exit_code": ended.code, "error": ended.error}
        seen[f"{model} {mode}"] = {**(ended.lines[-1] if ended.lines else failed), "seconds": ended.seconds}
        report.save()

    with ThreadPoolExecutor(min(options.at_once, len(runs))) as pool:
        list(pool.map(one, runs))
    for name, value in seen.items():
        if not value["ok"]:
            report.problems.append(f"engine, {name}: {_engine_why(value)}")
    good = sum(bool(value["ok"]) for value in seen.values())
    report.data.setdefault("summary", []).append(f"engine     {good} of {len(seen)} runs right: {', '.join(seen)}")


_REFUSAL = "if not (FA2_AVAILABLE or FA3_AVAILABLE):\n    raise ImportError("
_NO_REFUSAL = "if False:  # changed by gpu-check\n    raise ImportError("


def _allow_no_flash_attention(place: Place, options: argparse.Namespace, report: Report) -> None:
    """Where flash-attention is not in the wheel: record what vLLM says as it is, then go on with its refusal taken out.

    vLLM 0.20.1 imports vllm_flash_attn for every model on an NVIDIA GPU, also with the Triton attention backend.
    """
    folder = place.site / "vllm" / "vllm_flash_attn"
    start = folder / "__init__.py"
    if list(folder.glob("_vllm_fa*.so")) or not start.is_file():
        return
    command: list[str | Path] = [place.python, "-c", "import vllm.v1.attention.backends.fa_utils"]
    code, text = capture(command, environment=place.environment(), timeout=options.limit)
    if not code:
        return
    last = (text.strip().splitlines() or ["no message"])[-1]
    report.data["engine_as_it_is"] = {"ok": False, "error": last}
    report.problems.append(f"engine, the wheel as it is loads no model: {last}")
    source = start.read_text()
    if _REFUSAL in source:
        start.write_text(source.replace(_REFUSAL, _NO_REFUSAL))
        report.data["engine_changed"] = "vllm/vllm_flash_attn/__init__.py: its ImportError without flash-attention"


def _engine_why(value: dict[str, Any]) -> str:
    if "error" in value:
        lines = [line for line in str(value["error"]).strip().splitlines() if line.strip()]
        return f"ended with {value['exit_code']}: {lines[-1][:300] if lines else 'no message'}"
    judged = value["judged"]
    gap = f"largest gap {judged['largest_gap']:.3g}"
    return f"{judged['wrong']} of {judged['tokens']} tokens differ from the reference ({gap}), or see the report"


def _audit(_place: Place, options: argparse.Namespace, report: Report) -> None:
    machine = report.data["machine"]
    if "capability" not in machine:
        raise ValueError("needs the kernels part: the GPU's number is not known")
    target = f"{machine['capability']}@{machine['driver']}" if machine["driver"] else machine["capability"]
    verdict = audit_path(options.wheel, [parse_target(target)]).targets[0]
    said = {
        name: {"native": c.native, "compatible": c.compatible, "jit": c.jit, "missing": c.missing}
        for name, c in verdict.components.items()
    }
    problems = disagreements(said, report.data.get("checks", {}), ok=verdict.ok)
    report.data["audit"] = {
        "target": target,
        "ok": verdict.ok,
        "summary": verdict.summary,
        "components": said,
        "disagreements": problems,
        "agrees": not problems,
    }
    report.problems += [f"audit and what was seen differ: {problem}" for problem in problems]
    report.data.setdefault("summary", []).append(
        f"audit      {'agrees' if not problems else 'differs'}: {verdict.summary}"
    )


def _slim(place: Place, options: argparse.Namespace, report: Report) -> None:
    arch = report.data["machine"].get("capability")
    if not arch or not report.data.get("checks"):
        raise ValueError("needs the kernels part")
    out = place.scratch / "slim"
    out.mkdir()
    command = [sys.executable, "-m", "scripts.commands.slim", options.wheel, "--arch", arch, "--out", out]
    code, text = capture(command, environment=place.environment(), timeout=300)
    wheels = list(out.glob("*.whl"))
    if code or not wheels:
        raise ValueError(f"slim ended with {code}: {text.strip()[-300:]}")
    slim_place = Place(place.python, place.scratch / "slim-site", place.scratch)
    unpack_wheel(wheels[0], slim_place.site)
    families = options.family or FAMILIES
    seen = check_families(
        slim_place,
        families,
        seed=report.data["seed"],
        limit=options.limit,
        at_once=options.at_once,
        saved=lambda _seen: None,
    )
    compared = compare_digests(report.data["checks"], seen.checks)
    report.data["slim"] = {"name": wheels[0].name, "sha256": file_sha256(wheels[0]), "arch": arch, **compared}
    report.problems += [f"slimmed to {arch}: {name} gives other results" for name in compared["different"]]
    report.data.setdefault("summary", []).append(
        f"slim       {len(compared['equal'])} checks bit-equal, {len(compared['different'])} not, "
        f"{len(compared['not_comparable'])} not repeatable themselves"
    )


_RUN: dict[str, Callable[[Place, argparse.Namespace, Report], None]] = {
    "kernels": _kernels,
    "speed": _speed,
    "engine": _engine,
    "audit": _audit,
    "slim": _slim,
}

if __name__ == "__main__":
    run(main)
