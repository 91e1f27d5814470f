"""Checks of memory, limits, architecture, CI and the kernel's view of this machine."""

from __future__ import annotations

import os
import platform
import pwd
import resource

from scripts.compile.expectation import compile_seconds
from scripts.core.cgroup import memory_limit
from scripts.core.console import human_bytes, human_seconds
from scripts.core.machine import RESERVE
from scripts.cuda.archs import arch_list
from scripts.doctor.registry import Result, Subject, blocked, check, ok, unknown, warning
from scripts.recipe.expected import largest_unit

GB = 1e9


def _in_ci(subject: Subject) -> bool:
    return subject.environment.get("CI", "").lower() not in {"", "0", "false"}


@check("oom-nvcc-cicc-killed")
def memory(subject: Subject) -> Result:
    """Check memory, free and at all, against the largest unit: only a measured one is a reason to refuse."""
    need, have, capacity = subject.need, subject.machine.memory_gb, subject.machine.capacity_gb
    text = f"{need.sentence}; {have:.1f} GB are free"
    if need.unit and need.gb > capacity:
        swap = "a larger machine, or swap: fallocate -l 16G /swap; chmod 600 /swap; mkswap /swap; swapon /swap"
        fix = "; or ".join([swap, *_smaller_lists(subject)])
        return blocked(f"{text}, and this machine has {capacity:.1f} GB in all, counting swap and cgroup limits", fix)
    if need.gb > have:
        return warning(
            f"{text}: it is compiled alone, and killed if that is not enough", "end other programs, or add swap"
        )
    return ok(text)


def _smaller_lists(subject: Subject) -> list[str]:
    """Return what to do where some of the archs need less: nothing when none fits, or all do."""
    book = subject.costs
    fitting = [
        arch for arch in subject.archs if largest_unit(subject.recipe, [arch], book).gb <= subject.machine.capacity_gb
    ]
    return [f'leave out what needs it: --arch "{arch_list(fitting)}"'] if fitting else []


@check("oom-docker-exit-137")
def container_memory(subject: Subject) -> Result:
    """Check the cgroup's memory limit (v1 and v2): what a container, a pod or a service may use at most."""
    limit = memory_limit(subject.system / "proc")
    if limit is None:
        return ok("no memory limit by cgroup")
    text = f"the cgroup's memory limit is {human_bytes(limit)}"
    if limit / GB < subject.need.gb + RESERVE / 2:
        return warning(f"{text}, {subject.need.sentence}", "docker run -m 16g ... (or the pod's limit)")
    return ok(text)


@check("oom-cc1plus-killed")
def address_space(subject: Subject) -> Result:
    """Check `ulimit -v`: compilers that reach it fail as if memory had run out."""
    limit = resource.getrlimit(resource.RLIMIT_AS)[0]
    if limit == resource.RLIM_INFINITY:
        return ok("ulimit -v is unlimited")
    text = f"ulimit -v allows {human_bytes(limit)} for each process"
    return ok(text) if limit / GB > 2 * subject.need.gb else blocked(text, "ulimit -v unlimited")


@check("ptxas-segfault-signal-11")
def stack(_: Subject) -> Result:
    """Check the stack limit, which large kernels need."""
    limit = resource.getrlimit(resource.RLIMIT_STACK)[0]
    if limit == resource.RLIM_INFINITY or limit >= 8 << 20:
        return ok("the stack limit is 8 MB or more")
    return warning(f"the stack limit is {human_bytes(limit)}", "ulimit -s unlimited")


@check("wsl2-vm-dies-under-build")
def wsl(subject: Subject) -> Result:
    """Check whether this is WSL, whose virtual machine ends without a word when its memory is used up."""
    if "microsoft" not in subject.text("proc/version").lower():
        return ok("this is not WSL")
    text = f"this is WSL with {subject.machine.memory_gb:.1f} GB free"
    fix = "in %UserProfile%\\.wslconfig: [wsl2] memory=24GB swap=32GB; then wsl --shutdown"
    return warning(text, fix) if subject.machine.memory_gb < subject.need.gb + RESERVE else ok(text)


@check("ci-runner-lost")
def headroom(subject: Subject) -> Result:
    """Check that a CI runner's agent keeps memory beside the largest unit."""
    if not _in_ci(subject):
        return ok("this is not a CI job")
    left = subject.machine.memory_gb - subject.need.gb
    text = f"CI job: {left:.1f} GB stay free beside the largest unit"
    return ok(text) if left >= 0.5 else warning(text, "use a runner with more memory")


@check("ci-six-hour-limit")
def time_limit(subject: Subject) -> Result:
    """Check the estimated time against the CI service's limit (GitHub: 6 h; GitLab says it)."""
    limit = _ci_limit(subject)
    if limit is None:
        return ok("no time limit of a CI service is known")
    if subject.recipe.cost is None:
        return unknown("the recipe has no measured figures")
    jobs = min(subject.jobs, subject.machine.cores)
    memory = subject.machine.memory_gb
    wall = compile_seconds(subject.recipe, subject.archs, subject.costs, jobs=jobs, memory_gb=memory)
    text = (
        f"about {human_seconds(wall)} of compiling with {subject.jobs} jobs, the job's limit is {human_seconds(limit)}"
    )
    fix = (
        "keep WHEELSMITH_CACHE between jobs (a later one goes on), name fewer archs with --arch, or use a larger runner"
    )
    return ok(text) if wall < 0.8 * limit else warning(text, fix)


def _ci_limit(subject: Subject) -> float | None:
    if not _in_ci(subject):
        return None
    if subject.environment.get("GITHUB_ACTIONS") and subject.environment.get("RUNNER_ENVIRONMENT") != "self-hosted":
        return 6 * 3600
    timeout = subject.environment.get("CI_JOB_TIMEOUT", "")
    return float(timeout) if timeout.isdecimal() else None


@check("max-jobs-divided-by-nvcc-threads")
def jobs_and_threads(subject: Subject) -> Result:
    """Check MAX_JOBS with NVCC_THREADS, by which upstream's build divides it."""
    jobs, threads = (subject.environment.get(name, "") for name in ("MAX_JOBS", "NVCC_THREADS"))
    if threads and threads != "1":
        said = f"NVCC_THREADS={threads}" + (f" and MAX_JOBS={jobs}" if jobs else "")
        return warning(
            f"{said} are set; wheelsmith uses one thread per nvcc and {subject.jobs} jobs", "unset NVCC_THREADS"
        )
    return ok(f"{subject.jobs} units at once, one thread each")


@check("qemu-cross-arch-segfault")
def architecture(subject: Subject) -> Result:
    """Check that this is x86-64 and not qemu's emulation of it."""
    machine = platform.machine()
    if machine != "x86_64":
        return blocked(f"this machine is {machine}; the recipes are for x86_64", "build on an x86-64 machine")
    if "qemu" in subject.text("proc/self/maps").lower():
        return blocked("this process runs under qemu", "docker build --platform linux/amd64 on an x86-64 host")
    return ok("x86_64, not emulated")


@check("arbitrary-uid-getpwuid")
def user_name(subject: Subject) -> Result:
    """Check that the user has a name: torch and others ask for it."""
    try:
        return ok(f"user {pwd.getpwuid(os.getuid()).pw_name}")
    except KeyError:
        named = subject.environment.get("USER") or subject.environment.get("LOGNAME")
        text = f"user id {os.getuid()} has no name in /etc/passwd"
        return (
            ok(f"{text}, USER is {named}")
            if named
            else warning(text, "export USER=builder LOGNAME=builder HOME=/tmp/home")
        )
