"""Run nvcc's own steps instead of nvcc, and take device steps that were done before out of a store.

`steps.py nvcc ARGS…` asks nvcc for its steps and runs them. cicc and ptxas are keyed by what they read after
preprocessing, their own options and the toolkit's contents: the list of archs and the macros of other archs are in none
of these, unless the text uses them. So an added arch costs its own device steps, and a wheel for one arch out of many
costs none. Device steps of several archs run side by side where the scheduler has a free turn. What is not understood,
and what fails, is left to nvcc as a whole.

A compiler cache calls it (device_steps.py). It lies in the build tree beside launcher.py and is run with `python -SE`:
standard library only.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import shutil
import signal
import subprocess
import sys
import time

TYPE_CHECKING = False  # typing takes 10 ms to import
if TYPE_CHECKING:
    from typing import Any
if TYPE_CHECKING or __package__:
    from scripts.compile.standalone.launcher import ADMISSION, Turn, append, prefer_as_victim, unit_of
    from scripts.compile.standalone.step_plan import NotUnderstoodError, Plan, Step, make_plan, write_dependencies
    from scripts.compile.standalone.step_sharing import Sharing
    from scripts.compile.standalone.step_store import Store
else:  # in a build tree
    from launcher import ADMISSION, Turn, append, prefer_as_victim, unit_of
    from step_plan import NotUnderstoodError, Plan, Step, make_plan, write_dependencies
    from step_sharing import Sharing
    from step_store import Store

SETTINGS = "WHEELSMITH_STEPS"  # JSON object, see DeviceSteps.variables (device_steps.py)
PATIENCE = 0.5  # seconds between questions for another turn


class _Running:
    """A step whose program runs."""

    def __init__(self, step: Step, child: subprocess.Popen[bytes], said: str) -> None:
        self.step, self.child, self.said, self.started = step, child, said, time.monotonic()


class Run:
    """The running of one unit's steps."""

    def __init__(self, plan: Plan, store: Store, identity: str, unit: str, lock: int) -> None:
        self.plan, self.store, self.identity, self.unit, self.lock = plan, store, identity, unit, lock
        self.environment = {**os.environ, **plan.environment}
        self.done: set[str] = set()
        self.todo = list(plan.steps)
        self.running: dict[int, _Running] = {}
        self.hits = self.misses = 0
        self.saved = 0.0
        self.code = 0
        self._missed: list[Step] = []
        self._turns: list[Turn] = []
        self._next_question = 0.0

    def all(self) -> int:
        """Run what is to be run; return 0, or the exit code of the first step that failed (128 + signal)."""
        try:
            while (self.todo or self.running) and not self.code:
                self._start_what_may()
                if self.running:
                    self._wait()
        finally:
            for running in self.running.values():
                running.child.kill()
                running.child.wait()
            for turn in self._turns:
                turn.close()
        return self.code

    def _ready(self) -> list[Step]:
        """Return the steps whose files are there; the last waits for all, as it includes files by name."""
        last = self.plan.steps[-1]
        ready = [step for step in self.todo if step is not last and self.done.issuperset(step.reads)]
        return ready or ([last] if self.todo == [last] and not self.running else [])

    def _start_what_may(self) -> None:
        for step in self._ready():
            if self._taken(step):
                continue
            if len(self.running) > len(self._turns) and not self._another_turn():
                return
            self._start(step)

    def _taken(self, step: Step) -> bool:
        """Take a device step's results out of the store, when they are there."""
        if step in self._missed or not step.key(self.identity):
            return False
        found = self.store.get(step.key(self.identity), step.results)
        if found is None:
            self._missed.append(step)
            return False
        step.said, seconds = found
        self.hits += 1
        self.saved += seconds
        self._finished(step)
        return True

    def _another_turn(self) -> bool:
        """Ask the scheduler for one more step at a time, now and then."""
        if time.monotonic() < self._next_question:
            return False
        turn = Turn(os.environ.get(ADMISSION, ""))
        if turn.ask({"more": self.unit}, alone="no") == "go":
            self._turns.append(turn)
            return True
        turn.close()
        self._next_question = time.monotonic() + PATIENCE
        return False

    def _start(self, step: Step) -> None:
        said = f"{step.writes[0]}.said" if step is not self.plan.steps[-1] else f"{step.reads[0]}.said"
        with open(said, "wb") as file:  # noqa: PTH123
            options = {"stdout": file, "stderr": subprocess.STDOUT, "env": self.environment, "pass_fds": [self.lock]}
            child = subprocess.Popen(step.words, preexec_fn=prefer_as_victim, **options)  # type: ignore[call-overload]  # noqa: PLW1509
        self.todo.remove(step)
        self.running[child.pid] = _Running(step, child, said)

    def _wait(self) -> None:
        """Wait for a step to end; when others could start, only until a turn for them may be asked for again."""
        begin, more = time.monotonic(), bool(self._ready())
        pid, status = os.waitpid(-1, os.WNOHANG if more else 0)
        while pid == 0 and time.monotonic() < begin + PATIENCE:
            time.sleep(0.02)
            pid, status = os.waitpid(-1, os.WNOHANG)
        if pid in self.running:
            self._ended(self.running.pop(pid), os.waitstatus_to_exitcode(status))

    def _ended(self, running: _Running, code: int) -> None:
        step, running.child.returncode = running.step, code
        with open(running.said, "rb") as file:  # noqa: PTH123
            step.said = file.read()
        if code:
            self.code = code if code > 0 else 128 - code
            return
        if step.names_again(running.child.pid, self.plan.seed):
            self.todo.append(step)
            return
        if key := step.key(self.identity):
            self.misses += 1
            self.store.put(key, step.results, step.said, time.monotonic() - running.started)
        self._finished(step)
        while not self._ready() and len(self._turns) > max(0, len(self.running) - 1):
            self._turns.pop().close()

    def _finished(self, step: Step) -> None:
        self.todo = [other for other in self.todo if other is not step]
        self.done.update(step.writes)

    def counts(self) -> dict[str, float]:
        """Return device steps taken over and run, and the seconds that the first took when they ran."""
        return {"hits": self.hits, "misses": self.misses, "saved": round(self.saved, 3)}

    def said(self) -> bytes:
        """Return what nvcc and its steps said, in nvcc's order."""
        warnings = "".join(f"{line}\n" for line in self.plan.warnings).encode("utf-8", "surrogateescape")
        return warnings + b"".join(step.said for step in self.plan.steps)


def run_steps(command: list[str], settings: dict[str, Any]) -> int | None:
    """Compile a unit by its steps; return 0 or 137 (killed), None when nvcc is to do it as a whole."""
    unit, source = unit_of(command)
    name = hashlib.sha256(os.fsencode(unit)).hexdigest()[:16]
    folder = os.path.join(os.environ.get("TMPDIR", "/tmp"), f"steps-{name}")  # noqa: PTH118, S108
    lock = _lock(f"{folder}.lock")
    if lock is None:
        append({"event": "steps", "unit": unit, "whole": "another run of this unit"})
        return None
    try:
        shutil.rmtree(folder, ignore_errors=True)
        os.makedirs(folder)  # noqa: PTH103
        plan = make_plan(command, folder)
        sharing = Sharing(settings["shared"]) if settings.get("shared") else None
        run = Run(plan, Store(settings["store"], sharing), settings["identity"], unit, lock)
        code = run.all()
        if code == 0:
            if plan.dependencies:
                write_dependencies(plan, command, source)
            sys.stderr.buffer.write(run.said())
            append(
                {"event": "steps", "unit": unit, "hits": run.hits, "misses": run.misses, "saved": round(run.saved, 3)}
            )
            return 0
        if code in {128 + signal.SIGKILL, 128 + signal.SIGTERM, 128 + signal.SIGINT}:
            return code
        append({"event": "steps", "unit": unit, "whole": f"a step ended with {code}"})
    except NotUnderstoodError as error:
        append({"event": "steps", "unit": unit, "whole": str(error)[:300]})
    except (OSError, LookupError, ValueError) as error:
        append({"event": "steps", "unit": unit, "whole": f"{type(error).__name__}: {error}"[:300]})
    finally:
        shutil.rmtree(folder, ignore_errors=True)
        os.unlink(f"{folder}.lock")  # noqa: PTH108
        os.close(lock)
    return None


def _lock(path: str) -> int | None:
    """Take a unit's folder; None when another run has it, as one does whose ccache was killed.

    Its name must not depend on the run, so two would take each other's files, and keep them under the wrong key. The
    steps inherit the lock: what a killed run left behind has it until it ends.
    """
    lock = os.open(path, os.O_RDWR | os.O_CREAT, 0o600)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        if os.path.samestat(os.fstat(lock), os.stat(path)):  # noqa: PTH116
            return lock
    except OSError:
        pass
    os.close(lock)
    return None


def main(command: list[str]) -> None:
    """Compile by steps what nvcc would compile; become any other command, behind a cache of whole calls if there is."""
    nvcc = os.path.basename(command[0]) == "nvcc" and "-c" in command  # noqa: PTH119
    try:
        settings = json.loads(os.environ.get(SETTINGS, ""))
    except ValueError:
        settings = {}
    if nvcc and settings:
        code = run_steps(command, settings)
        if code is not None:
            sys.exit(code)
    whole = [*settings.get("behind", []), *command]
    os.execvp(whole[0], whole)  # noqa: S606


if __name__ == "__main__":
    main(sys.argv[1:])
