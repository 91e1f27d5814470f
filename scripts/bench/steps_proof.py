"""Prove that nvcc's steps, run by us, make the object that nvcc makes: `nox -s bench -- --prove-steps`.

Each unit is compiled three times in the recipe's build tree, by the launcher and with the options of a real build: by
nvcc as a whole, by its steps, and by its steps again with all device steps out of the store. The objects must be the
same bytes. nvcc is given `--keep`: without, it writes the name of a temporary file, with its process's number, into the
object.
"""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from scripts.bench.proof import HeadersProof, choose_units, subject_tree
from scripts.compile.build import configure, list_units
from scripts.compile.device_steps import DeviceSteps, put_programs, read_events
from scripts.compile.outside import compilers_digest
from scripts.compile.standalone.launcher import ADMISSION, COMPILER_CACHE, EVENTS, unit_of
from scripts.compile.tree import BuildTree
from scripts.core.console import Console, human_seconds
from scripts.core.errors import BenchError, CompileError, UsageError
from scripts.core.files import remove_tree, write_json
from scripts.core.process import call, capture
from scripts.cuda.archs import arch_list

SAMPLE = ("_moe_C/moe/router_gemm.cu", "_moe_C/moe/topk_softmax_kernels.cu", "_moe_C/moe/moe_wna16.cu")


@dataclass(frozen=True)
class Proof:
    """One unit."""

    unit: str
    seconds: tuple[float, float, float]
    """Wall time of nvcc, of its steps, and of its steps out of the store."""
    steps: int
    """Device steps, all of which the third compilation took out of the store."""
    why: str = ""
    """What is wrong, "" when all objects are the same bytes."""


def prove_steps(subject: HeadersProof, patterns: Sequence[str], console: Console) -> list[Proof]:
    """Compile the CUDA units that match. Raises UsageError where none does, CompileError where one does not compile."""
    tree = subject_tree(subject)
    with subject.access.cache.lock(f"build-{tree.key}", console):
        tree.path.mkdir(exist_ok=True)
        configure(tree, console=console)
        put_programs(tree.path, tree.inside(tree.toolchain.python))
        chosen = [
            unit for unit in choose_units(list_units(tree, tree.targets)[0], patterns) if unit.source.endswith(".cu")
        ]
        if not chosen:
            raise UsageError(
                f"no CUDA unit matches {' '.join(patterns)}", fix="a unit is named as in `_moe_C/moe/topk*.cu`"
            )
        console.stage("steps", f"{len(chosen)} units for {arch_list(subject.archs)}, each three times")
        commands = unit_commands(tree)
        scratch = tree.path / "prove-steps"
        try:
            return [_prove(tree, unit.object, commands[unit.object], scratch, console) for unit in chosen]
        finally:
            remove_tree(scratch)


def unit_commands(tree: BuildTree) -> dict[str, list[str]]:
    """Return the compiler's command of each unit, without the launcher. Raises CompileError."""
    ninja = tree.inside(tree.toolchain.environment / "bin" / "ninja")
    command = [*tree.prefix, ninja, "-C", tree.inside(tree.binary), "-t", "commands", *tree.targets]
    code, text = capture(command, environment=tree.environment)
    if code:
        raise CompileError("ninja cannot read the build tree", why=text.strip()[-500:])
    launcher = str(tree.inside(tree.path / "launcher.py"))
    found = [shlex.split(line) for line in text.splitlines() if launcher in line]
    return {unit_of(words)[0]: words[words.index(launcher) + 1 :] for words in found}


def _prove(tree: BuildTree, unit: str, command: list[str], scratch: Path, console: Console) -> Proof:
    remove_tree(scratch)
    (scratch / "keep").mkdir(parents=True)
    console.note(unit)
    whole = [*command, "--keep", "--keep-dir", str(tree.inside(scratch / "keep"))]
    runs = [
        _compile(tree, whole, scratch / "whole.o", {}),
        _compile(tree, command, scratch / "steps.o", _switch(tree, scratch)),
        _compile(tree, command, scratch / "again.o", _switch(tree, scratch)),
    ]
    said = [event for event in read_events(scratch / "events", 0) if event.get("event") == "steps"]
    objects = [(scratch / name).read_bytes() for name in ("whole.o", "steps.o", "again.o")]
    why = next((str(event["whole"]) for event in said if "whole" in event), "")
    if not why and len(set(objects)) > 1:
        why = "the objects differ"
    count = int(said[-1].get("hits", 0)) if said else 0
    if not why and (len(said) != 2 or said[0]["misses"] != count):
        why = "not all device steps came out of the store"
    return Proof(unit, (runs[0], runs[1], runs[2]), count, why)


def _switch(tree: BuildTree, scratch: Path) -> dict[str, str]:
    """Return variables with which the launcher calls steps.py where a compiler cache would."""
    steps = DeviceSteps(tree.inside(tree.path / "steps.py"), tree.inside(scratch / "store"), compilers_digest(tree))
    folder = str(tree.inside(scratch))
    switch = {"command": [str(steps.program)], "environment": steps.variables(), "folder": folder}
    write_json(scratch / "switch.json", switch)
    return {COMPILER_CACHE: str(tree.inside(scratch / "switch.json"))}


def _compile(tree: BuildTree, command: list[str], target: Path, variables: dict[str, str]) -> float:
    """Run a compiler command whose object and dependency file are `target`; return its seconds. Raises CompileError."""
    unit, inside = unit_of(command)[0], str(tree.inside(target))
    words = [inside if word == unit else f"{inside}.d" if word == f"{unit}.d" else word for word in command]
    python = tree.inside(tree.toolchain.python)
    launched = [*tree.prefix, python, "-S", "-E", tree.inside(tree.path / "launcher.py"), *words]
    environment = {
        **{name: text for name, text in tree.environment.items() if name != ADMISSION},
        **variables,
        EVENTS: str(tree.inside(target.with_name("events"))),
        "TMPDIR": str(tree.inside(target.parent)),
    }
    done = call(launched, environment=environment, limit=None, cwd=tree.binary, merged=True)
    if done.code:
        raise CompileError(f"{unit} does not compile", detail=done.text[-3000:])
    end = [event for event in read_events(target.with_name("events"), 0) if event.get("event") == "end"][-1]
    return float(end["seconds"])


def report_steps(found: Sequence[Proof], console: Console) -> int:
    """Print the proof and return the exit code: 0 when every unit's objects are the same."""
    rows = [
        (
            item.unit.removeprefix("CMakeFiles/").replace(".dir/csrc", ""),
            str(item.steps),
            *(human_seconds(seconds) for seconds in item.seconds),
            item.why or "the same bytes",
        )
        for item in found
    ]
    console.grid(["unit", "device steps", "nvcc", "its steps", "out of the store", "verdict"], rows)
    wrong = sum(bool(item.why) for item in found)
    console.note(f"{len(found) - wrong} of {len(found)} units: the object is nvcc's, byte for byte")
    return BenchError.exit_code if wrong else 0
