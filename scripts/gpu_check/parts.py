"""The parts of a GPU check: kernels, speed, engine, the audit's word, a slimmed wheel's kernels."""

from __future__ import annotations

import os
import shutil
import sys
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

from scripts.audit.collect import audit_path
from scripts.core.errors import NoGpuError
from scripts.core.files import file_sha256
from scripts.core.process import capture
from scripts.cuda.drivers import parse_target
from scripts.downloads.unpack import unpack_wheel
from scripts.gpu_check.compare import compare_digests, disagreements
from scripts.gpu_check.families import FAMILIES, QUICK, Kernels, Place, check_families, operator_table, run_lines
from scripts.gpu_check.report import Question, Report

PARTS = ("kernels", "speed", "engine", "audit", "slim")
ENGINE_RUNS = (
    *(("llama", "eager"), ("llama", "graphs"), ("llama", "serve")),
    *(("gpt-oss", "eager"), ("gpt-oss", "graphs"), ("gpt-oss", "float32")),
)
_GPU = "import torch; n = torch.cuda.device_count(); print('GPU', n, torch.version.cuda); torch.zeros(1, device='cuda')"
_BAD = {"wrong", "crashed", "error"}
_REFUSAL = "if not (FA2_AVAILABLE or FA3_AVAILABLE):\n    raise ImportError("
_NO_REFUSAL = "if False:  # changed by gpu-check\n    raise ImportError("


def find_python(given: Path | None, path: str) -> Path:
    """Return a Python that imports torch: the one given, ours, or the first on `path` (PATH). Raises NoGpuError."""
    names = [str(given)] if given else [sys.executable, *_pythons_on_path(path)]
    for name in dict.fromkeys(names):
        if capture([name, "-c", "import torch"], timeout=300)[0] == 0:
            return Path(name)
    raise NoGpuError(
        f"{given or 'no Python here'} {'does not import' if given else 'imports'} torch; nothing was checked",
        why=f"tried {', '.join(dict.fromkeys(names))}",
        fix="--python /path/to/python of the environment with the torch that the wheel was made for, and vLLM's needs",
    )


def _pythons_on_path(path: str) -> list[str]:
    own = Path(sys.prefix).resolve()
    folders = [part for part in path.split(os.pathsep) if part]
    outside = [part for part in folders if not Path(part).resolve().is_relative_to(own)]
    found = shutil.which("python3", path=os.pathsep.join(outside))
    return [found] if found else []


def gpu_driver(python: Path) -> str:
    """Return the driver's version, "" when nvidia-smi does not tell. Raises NoGpuError without a usable GPU."""
    code, text = capture([python, "-c", _GPU], timeout=300)
    if code:
        raise NoGpuError(
            "torch sees no usable GPU; nothing was checked",
            why=(text.strip().splitlines() or ["no message"])[-1],
            fix="run this on a machine with an NVIDIA GPU and its driver; `nox -s audit` judges a wheel without one",
        )
    code, text = capture(["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"], timeout=60)
    return text.strip().splitlines()[0].strip() if code == 0 and text.strip() else ""


def _kernels(place: Place, options: Question, report: Report) -> None:
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


def _lines(rows: Sequence[dict[str, Any]]) -> list[tuple[str, ...]]:
    shown: list[tuple[str, ...]] = []
    for row in rows:
        for line in row.get("lines", []):
            figures = (f"{float(line['error']):.2g}", f"{line['limit']:.2g}")
            shown.append((row["operator"], line["dtype"], *figures, row["image"], "ok" if line["ok"] else "WRONG"))
        if not row.get("lines"):
            shown.append((row["operator"], "", "", "", "", f"{row['state']}: {row['reason']}"))
    return shown


def _speed(place: Place, options: Question, report: Report) -> None:
    ended = run_lines(
        [place.python, "-m", "scripts.gpu_check.device.speed", place.site / "vllm"],
        place.environment(),
        options.limit,
        "RESULT ",
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


def _engine(place: Place, options: Question, report: Report) -> None:
    runs = ENGINE_RUNS[:1] if options.quick else ENGINE_RUNS
    if not any(list((place.site / "vllm").glob(f"{stem}.*so")) for stem in ("_C", "_C_stable_libtorch")):
        report.data["engine_not_covered"] = "the wheel has no _C, without which vLLM does not start on a GPU"
        report.data.setdefault("summary", []).append(f"engine     not run: {report.data['engine_not_covered']}")
        return
    _allow_no_flash_attention(place, options, report)
    seen: dict[str, Any] = report.data.setdefault("engine", {})

    def one(run_: tuple[str, str]) -> None:
        model, mode = run_
        folder = place.scratch / f"{model}-{mode}"
        command: list[str | Path] = [
            place.python,
            "-m",
            "scripts.gpu_check.device.engine",
            model,
            mode,
            "--folder",
            folder,
        ]
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


def _allow_no_flash_attention(place: Place, options: Question, report: Report) -> None:
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


def _audit(_place: Place, options: Question, report: Report) -> None:
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


def _slim(place: Place, options: Question, report: Report) -> None:
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
    slim_place = replace(place, site=place.scratch / "slim-site")
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


RUN: dict[str, Callable[[Place, Question, Report], None]] = {
    "kernels": _kernels,
    "speed": _speed,
    "engine": _engine,
    "audit": _audit,
    "slim": _slim,
}
