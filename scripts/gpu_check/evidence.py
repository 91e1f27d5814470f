"""Reports of GPU machines as pages and a table: docs/evidence/ and the README."""

from __future__ import annotations

import json
import textwrap
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from scripts.core.errors import UsageError
from scripts.core.paths import ROOT
from scripts.gpu_check.report import SCHEMA_VERSION
from scripts.recipe.files import load_recipe

FOLDER = ROOT / "docs" / "evidence"
README = ROOT / "README.md"
BEGIN, END = "<!-- written by scripts.commands.evidence -->", "<!-- end -->"
_LISTS = ("problems", "summary", "notes", "later")


def _read(path: Path) -> dict[str, Any]:
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UsageError(f"{path} is not a report: {error}", fix="give what gpu-check --json wrote") from error
    if not isinstance(value, dict) or value.get("schema_version") != SCHEMA_VERSION:
        raise UsageError(f"{path} is not a report of schema {SCHEMA_VERSION}", fix="give what gpu-check --json wrote")
    return value


def join(reports: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Join reports of one wheel: the first one's word counts, lists are put end to end. Raises UsageError."""
    result: dict[str, Any] = {}
    for report in reports:
        if result and report["wheel"]["sha256"] != result["wheel"]["sha256"]:
            raise UsageError(
                f"{report['wheel']['name']}: another wheel than {result['wheel']['name']}",
                fix="join reports of the same file only",
            )
        for key, value in report.items():
            if key in _LISTS:
                result[key] = [*result.get(key, []), *value]
            elif isinstance(value, dict) and isinstance(result.get(key), dict):
                result[key] = {**value, **result[key]}
            else:
                result.setdefault(key, value)
    result["seed"] = list(dict.fromkeys(report["seed"] for report in reports if "seed" in report))
    result["ok"], result["finished"] = not result.get("problems"), all(r.get("finished", True) for r in reports)
    kept = ("family", "state", "reason", "image", "seconds", "sha256", "repeatable", "without_jit", "notes")
    result["checks"] = {
        name: {key: value[key] for key in kept if value.get(key)} for name, value in result.get("checks", {}).items()
    }
    return result


def evidence(folder: Path = FOLDER) -> dict[str, dict[str, Any]]:
    """Return all evidence by name."""
    return {path.stem: _read(path) for path in sorted(folder.glob("*.json"))}


def pages(folder: Path = FOLDER, readme: Path = README) -> Iterator[Path]:
    """Write a page beside each file of evidence, and the table into README; yield what was written."""
    seen = evidence(folder)
    for name, value in seen.items():
        path = folder / f"{name}.md"
        path.write_text(page(name, value), encoding="utf-8")
        yield path
    readme.write_text(replaced(readme.read_text(encoding="utf-8"), table(seen)), encoding="utf-8")


def replaced(text: str, inner: str) -> str:
    """Return README with what lies between the two marks exchanged. Raises UsageError when they are not there."""
    before, begin, rest = text.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not begin or not end:
        raise UsageError("README has no place for the table", fix=f"put {BEGIN} and {END} where it belongs")
    return f"{before}{BEGIN}\n{inner}\n{END}{after}"


def table(seen: Mapping[str, Mapping[str, Any]]) -> str:
    """Return README's list and the sentence of what has not been run, in lines below 120 characters."""
    lines: list[str] = []
    for name, value in seen.items():
        what = "; ".join(_short(value))
        text = f"- `{value['recipe']}` on {_where(value)}: {what} ([figures](docs/evidence/{name}.md))."
        lines += _wrapped(text, indent="  ")
    return "\n".join([*lines, "", *_wrapped(_not_run(seen.values()))])


def _wrapped(text: str, *, indent: str = "") -> list[str]:
    return textwrap.wrap(text, 118, subsequent_indent=indent, break_long_words=False, break_on_hyphens=False)


def _where(value: Mapping[str, Any]) -> str:
    machine = value["machine"]
    return f"{machine['gpu']}, driver {machine['driver']}, torch {machine['torch']}"


def _short(value: Mapping[str, Any]) -> Iterator[str]:
    states = Counter(row["state"] for row in value["operators"])
    bad = sum(states[state] for state in ("wrong", "crashed", "error"))
    yield f"{states['ok']} operators right against float64" + (f", {bad} not" if bad else "")
    if later := value.get("later"):
        yield f"{len(later)} more runs afterwards"
    if engine := value.get("engine"):
        good = sum(bool(entry["ok"]) for entry in engine.values())
        yield f"engine: {good} of {len(engine)} runs right" + (
            ", after a change to it" if value.get("engine_changed") else ""
        )
    if slim := value.get("slim"):
        yield f"slimmed to {slim['arch']}: {len(slim['equal'])} checks bit-equal, {len(slim['different'])} not"
    if audit := value.get("audit"):
        yield f"audit {'agrees' if audit['agrees'] else 'differs'}"


def _not_run(values: Iterable[Mapping[str, Any]]) -> str:
    found = list(values)
    recipes = {value["recipe"] for value in found}
    archs = {value["machine"]["capability"] for value in found}
    drivers = sorted({value["machine"]["driver"] for value in found})
    every = {path.stem: {str(a) for a in load_recipe(path.stem).archs} for path in (ROOT / "recipes").glob("*.toml")}
    never = sorted(set().union(*every.values()) - archs, key=lambda arch: [int(part) for part in arch.split(".")])
    none = [f"`{name}`" for name in sorted(set(every) - recipes)]
    return (
        f"**Never run:** wheels of {', '.join(none) or 'no recipe'}; any code for {', '.join(never)} "
        f"(no RTX 5090, no Ampere or Ada card); any driver but {', '.join(drivers) or 'none'}; more than one GPU."
    )


def page(name: str, value: Mapping[str, Any]) -> str:
    """Return the page of one file of evidence."""
    wheel, seeds = value["wheel"], ", ".join(map(str, value["seed"]))
    lines = [f"# {value['recipe']}, {value['machine']['capability']}: seen on {value['machine']['gpu']}", ""]
    lines += [f"Written by `python -m scripts.commands.evidence` from [{name}.json]({name}.json); {value['date']}.", ""]
    lines += [f"- wheel `{wheel['name']}`, {wheel['size']:,} bytes, sha256 `{wheel['sha256']}`"]
    machine = value["machine"]
    lines += [f"- {_where(value)}, CUDA {machine['cuda']}, Python {machine['python']}, kernel {machine['kernel']}"]
    lines += [f"- made by `{value['command']}`; seeds {seeds}"]
    lines += [f"- verdict of that run: {'all right' if value['ok'] else str(len(value['problems'])) + ' findings'}", ""]
    lines += _findings(value)
    lines += ["## Operators", "", *_operators(value["operators"])]
    for part in (_later, _engine, _audit, _slim, _speed):
        lines += part(value)
    return "\n".join(lines).rstrip() + "\n"


def _findings(value: Mapping[str, Any]) -> list[str]:
    lines = [f"- {' '.join(problem.split())}" for problem in value.get("problems", [])]
    notes = [f"- {note}" for note in value.get("notes", [])]
    result = ["## Findings", "", *lines, ""] if lines else []
    return [*result, *(["## What to make of them", "", *notes, ""] if notes else [])]


def _operators(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    counts = Counter(row["state"] for row in rows)
    lines = [", ".join(f"{count} {state}" for state, count in counts.most_common()) + ". The error is", ""]
    lines[0] += (
        " ‖out - ref‖ / ‖ref‖ against float64, or the share of codes or elements that differ; image: SASS is the"
    )
    lines[0] += " wheel's native code, JIT was compiled from its PTX by the driver."
    lines += ["| operator | type | error | limit | image | verdict |", "|---|---|---|---|---|---|"]
    for row in rows:
        for line in row.get("lines", []):
            verdict = "right" if line["ok"] else "**WRONG**"
            figures = f"{float(line['error']):.2g} | {line['limit']:.2g}"
            lines.append(f"| {row['operator']} | {line['dtype']} | {figures} | {row['image']} | {verdict} |")
        if not row.get("lines"):
            lines.append(f"| {row['operator']} | | | | | {row['state']}: {row['reason']} |")
    return [*lines, ""]


def _later(value: Mapping[str, Any]) -> list[str]:
    entries = [f"- {entry['what']}: {entry['seen']}" for entry in value.get("later", [])]
    return ["## Run afterwards", "", *entries, ""] if entries else []


def _engine(value: Mapping[str, Any]) -> list[str]:
    if "engine_not_covered" in value:
        return ["## Engine", "", f"Not run: {value['engine_not_covered']}.", ""]
    if "engine" not in value:
        return []
    lines = ["## Engine", ""]
    if "engine_as_it_is" in value:
        lines += [f"The wheel as it is loads no model: `{value['engine_as_it_is']['error']}`", ""]
    if "engine_changed" in value:
        lines += [f"Taken out for the runs below: {value['engine_changed']}.", ""]
    lines += [
        "| run | tokens | the reference's best | ties | others | largest gap of logits | batch 1 = batch 8 | right |"
    ]
    lines += ["|---|---|---|---|---|---|---|---|"]
    for name, run_ in value["engine"].items():
        judged = run_.get("judged")
        if not judged:
            lines.append(f"| {name} | | | | | | | no: ended with {run_['exit_code']} |")
            continue
        equal = f"{run_['equal_for_batch_1_and_8']} of {run_['prompts']}" if "prompts" in run_ else ""
        counts = " | ".join(str(judged[key]) for key in ("tokens", "best", "ties", "wrong"))
        right = "yes" if run_["ok"] else "no"
        lines.append(f"| {name} | {counts} | {judged['largest_gap']:.3g} | {equal} | {right} |")
    return [*lines, ""]


def _audit(value: Mapping[str, Any]) -> list[str]:
    audit = value.get("audit")
    if not audit:
        return []
    verdict = "agrees with what ran" if audit["agrees"] else "differs: " + "; ".join(audit["disagreements"])
    return ["## Audit", "", f"`{audit['target']}`: {audit['summary']}; {verdict}.", ""]


def _slim(value: Mapping[str, Any]) -> list[str]:
    slim = value.get("slim")
    if not slim:
        return ["## Slim", "", "Not compared here.", ""]
    parts = [f"{len(slim[key])} {text}" for key, text in (("equal", "bit-equal"), ("different", "different"))]
    parts.append(f"{len(slim['not_comparable'])} not repeatable with one wheel itself")
    return ["## Slim", "", f"`{slim['name']}` (sha256 `{slim['sha256']}`): checks {', '.join(parts)}.", ""]


def _speed(value: Mapping[str, Any]) -> list[str]:
    rows = value.get("speed", {}).get("rows", [])
    lines = ["## Speed", "", "Median of 50 calls by device events, to notice a build without optimisation.", ""]
    lines += ["| operator | µs | against | µs | at most |", "|---|---|---|---|---|"]
    for row in rows:
        figures = f"{row['us']} | {row['against']} | {row['torch_us']} | {row['limit']} times"
        lines.append(f"| {row['operator']} | {figures} |")
    return lines if rows else []
