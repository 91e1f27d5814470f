"""The commands of wheelsmith. `nox -l` lists them; `nox -s NAME -- --help` explains one."""

from __future__ import annotations

import contextlib
import hashlib
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import nox

nox.needs_version = ">=2024.4.15"
nox.options.sessions = ["lint", "tests"]
nox.options.reuse_existing_virtualenvs = True

ROOT = Path(__file__).parent
SCHEMAS = {
    "github-actions": ".github/actions/*/action.yml",
    "dependabot": ".github/dependabot.yml",
    "github-issue-config": ".github/ISSUE_TEMPLATE/config.yml",
    "github-issue-forms": ".github/ISSUE_TEMPLATE/[!c]*.yml",
}
"""What actionlint does not read, by the schema that check-jsonschema brings along."""
PYTHONS = nox.project.python_versions(nox.project.load_toml(ROOT / "pyproject.toml"))  # its classifiers
GUARD = ROOT / "scripts" / "core" / "standalone" / "guard.py"
GRACE = 3.0  # seconds that a command has to end after it was told to
_told: list[int] = []  # the signals that told us to end


@nox.session
def wheel(session: nox.Session) -> None:
    """Build a wheel: fetch, patch, compile, package, prove. Starts with `-- --recipe quickstart`."""
    _command(session, "wheel")


@nox.session
def fetch(session: nox.Session) -> None:
    """Download and check a recipe's sources into the cache, nothing else."""
    _command(session, "fetch")


@nox.session
def audit(session: nox.Session) -> None:
    """Tell which GPUs and drivers a wheel really runs on."""
    _command(session, "audit")


@nox.session
def slim(session: nox.Session) -> None:
    """Cut a wheel for many archs down to some, without compiling."""
    _command(session, "slim")


@nox.session(name="gpu-check")
def gpu_check(session: nox.Session) -> None:
    """On a machine with a GPU: are a wheel's kernels right, does its engine generate?"""
    _command(session, "gpu_check")


@nox.session
def publish(session: nox.Session) -> None:
    """Put wheels into a private index: `-- --to DIR-or-URL`, whole or not at all."""
    _command(session, "publish", lock="publish")


@nox.session
def index(session: nox.Session) -> None:
    """Yank, unyank, promote, mirror wheels of a static index; its log: `-- yank DIR WHEEL --reason TEXT`."""
    _command(session, "index", lock="publish")


@nox.session
def verify(session: nox.Session) -> None:
    """Check a wheel, its provenance and its SBOM: `-- WHEEL --key PUB`."""
    _command(session, "verify", lock="publish")


@nox.session
def lock(session: nox.Session) -> None:
    """Read a vLLM version's own files and write the recipe that pins all it fetches: `-- vllm 0.16.0`."""
    _command(session, "lock")


@nox.session
def patches(session: nox.Session) -> None:
    """Apply a recipe's patches to a real source tree without building, and report each."""
    _command(session, "patches")


@nox.session(name="runtime-image")
def runtime_image(session: nox.Session) -> None:
    """Build a slim image that runs a prebuilt wheel, and check it from inside: `-- --wheel W --base debootstrap`."""
    _command(session, "runtime_image", lock="publish")  # it signs


@nox.session
def doctor(session: nox.Session) -> None:
    """Check this machine against a recipe before anything large is downloaded: `-- --recipe R --target GPU@DRIVER`."""
    _command(session, "doctor")


@nox.session
def diagnose(session: nox.Session) -> None:
    """Recognise known failures in any log and say what to do: `-- LOGFILE`."""
    _command(session, "diagnose")


@nox.session
def costs(session: nox.Session) -> None:
    """Enter what a build's units took into the recipe's cost file: `-- --recipe R BUILD`."""
    _command(session, "costs")


@nox.session
def capsule(session: nox.Session) -> None:
    """Pack all that an offline machine needs: `-- --recipe R --with torch,cuda OUT`; `-- --take OBJECTS` back."""
    _command(session, "capsule")


@nox.session
def bench(session: nox.Session) -> None:
    """Measure against upstream's own pip wheel, side by side: `-- --recipe quickstart`; `-- --prove-headers`."""
    _command(session, "bench")


@nox.session
def tests(session: nox.Session) -> None:
    """Run the tests with branch coverage (no GPU, below 6 minutes on two cores; `-- -m builds` has the long builds)."""
    _install(session, "tests")
    session.run("coverage", "erase")
    workers = [] if session.posargs else ["-n", str(min(4, os.cpu_count() or 1)), "--dist", "worksteal"]
    session.run("coverage", "run", "-m", "pytest", *workers, *session.posargs)
    session.run("coverage", "combine", "--quiet")
    if not session.posargs:
        session.run("coverage", "report")


@nox.session
def lint(session: nox.Session) -> None:
    """Check style, types and CI's files: ruff, ruff format, mypy --strict, layers, actionlint, check-jsonschema."""
    _install(session, "lint")
    session.run("ruff", "check", ".")
    session.run("ruff", "format", "--check", ".")
    session.run("mypy")
    session.run("lint-imports")
    session.run("actionlint", *_files(".github/workflows/*.yml"))
    for schema, pattern in SCHEMAS.items():
        session.run("check-jsonschema", "--builtin-schema", f"vendor.{schema}", *_files(pattern))


def _files(pattern: str) -> list[str]:
    return [str(path) for path in sorted(ROOT.glob(pattern))]


@nox.session
def upgrade(session: nox.Session) -> None:
    """Renew every lock file: tools, tests, lint, and the recipes' build environments."""
    _command(session, "upgrade")


def _command(session: nox.Session, name: str, *, lock: str = "tools") -> None:
    """Run scripts/commands/NAME.py with the session's arguments and leave nox with its exit code when it is not 0."""
    _listen()
    _install(session, lock)
    code = _run(session, "-m", f"scripts.commands.{name}", *session.posargs)
    if code:
        sys.exit(code)


def _install(session: nox.Session, lock: str) -> None:
    """Install a lock file into the session's environment unless it is there already.

    With `nox --no-venv` the packages of the running Python are used as they are.
    """
    version = session.run("python", "-c", "import sys; print('%d.%d' % sys.version_info[:2])", silent=True, log=False)
    if version is not None and version.strip() not in PYTHONS:
        _refuse_python(session, str(version).strip())
    if session.virtualenv.venv_backend == "none":
        return
    requirements = ROOT / "requirements" / f"{lock}.txt"
    stamp = Path(session.virtualenv.location) / f"wheelsmith-{lock}.sha256"
    digest = hashlib.sha256(requirements.read_bytes()).hexdigest()
    if stamp.is_file() and stamp.read_text() == digest:
        return
    session.log(f"installing {requirements.relative_to(ROOT)}")
    code = _run(session, "-m", "pip", "install", "--quiet", "--require-hashes", "-r", str(requirements))
    if code:
        session.error(f"the tools could not be installed: pip ended with {code}")
    stamp.write_text(digest)


def _refuse_python(session: nox.Session, version: str) -> None:
    age = "old" if version.startswith("2.") or (version.startswith("3.") and int(version[2:]) < 10) else "new"
    session.warn(
        f"error: Python {version} is too {age}: wheelsmith and the torch it compiles against need {PYTHONS[0]} "
        f"to {PYTHONS[-1]}\n  fix: install one of these and add its version: "
        f"nox -s {session.name.split('-', 1)[0]} --force-python 3.12 -- ...\n  see: docs/errors.md#doctor (exit code 3)"
    )
    sys.exit(3)


def _run(session: nox.Session, *arguments: str) -> int:
    """Run the environment's Python under scripts/core/standalone/guard.py; return its exit code.

    nox's own runner terminates a child 0.3 s after Ctrl-C, too soon for compilers to be stopped and state saved, knows
    no SIGTERM, and turns every exit code into 1. Signals only set a flag here; the guard gets them, ends the command
    within GRACE, also when nox itself is killed, and tells with its exit code. Leaves nox when it was told to end.
    """
    environment = {**os.environ, **{k: v for k, v in session.env.items() if v is not None}}
    environment["WHEELSMITH_INVOKED_FROM"] = session.invoked_from
    folders = session.bin_paths
    python = str(Path(folders[0]) / "python") if folders else "python"
    options = ["--parent", str(os.getpid()), "--grace", str(GRACE)]
    child = subprocess.Popen(
        [python, "-S", "-E", str(GUARD), *options, "--", python, *arguments],
        cwd=ROOT,
        env=environment,
    )
    passed, deadline = 0, float("inf")
    while True:
        try:
            code = child.wait(0.1)
            break
        except subprocess.TimeoutExpired:
            if len(_told) > passed:
                child.send_signal(_told[passed])
                passed, deadline = passed + 1, min(deadline, time.monotonic() + GRACE + 2)
            if time.monotonic() > deadline:
                child.kill()
    if _told and (code or passed < len(_told)):
        sys.exit(128 + _told[0])
    return code if code >= 0 else 128 - code


def _listen() -> None:
    """Have the signals that end a run noted; SIGHUP stays ignored where it is (nohup)."""
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        if number != signal.SIGHUP or signal.getsignal(number) != signal.SIG_IGN:
            with contextlib.suppress(ValueError):  # nox -j: not the main thread; the default ends it
                signal.signal(number, lambda received, _frame: _told.append(received))
