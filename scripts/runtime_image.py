"""nox -s runtime-image: a slim image that runs a prebuilt wheel. See docs/runtime-image.md."""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
import re
import resource
import shutil
import subprocess
import tempfile
import time
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from datetime import datetime, timezone
from pathlib import Path

from securesystemslib.signer import CryptoSigner

from scripts.audit_collect import audit_path
from scripts.cache import Cache, write_atomic, write_json
from scripts.cli import Parser, add_cache_options, open_cache, run, user_path
from scripts.console import Console, human_bytes
from scripts.errors import ImageError, UsageError, nearest
from scripts.image_base import debian_base, parse_debian, reachable
from scripts.image_checks import Facts, Result, check_image, read_facts, stopped_cleanly
from scripts.image_choice import find_engine
from scripts.image_context import (
    LOCKS,
    Base,
    WheelFacts,
    check_base,
    context_arguments,
    find_lock,
    find_wheel,
    have_encodings,
    lowest_driver,
    make_context,
    read_wheel,
    wheel_targets,
    write_secrets,
)
from scripts.image_engine import Engine, Plan, layers_folder
from scripts.image_gpus import NO_HAZARDS, gpu_table, hazard_label
from scripts.image_layers import lock_hashes
from scripts.image_report import ImageReport, Phase, as_json, file_stem, show
from scripts.image_sbom import image_sbom, licence_label
from scripts.indexes import read_indexes
from scripts.mirrors import VARIABLE, parse_mirrors
from scripts.provenance import STATEMENT, SUFFIX, load_signer, sign
from scripts.recipe import ROOT

DEFAULT_BASE = "python:3.12-slim-bookworm@sha256:782412e85d0f0984994c290652577d4018aff08145c85b262bb63dc0c7522254"
TARGETS = ("runtime", "runpod", "runtime-jit")
HAZARDS = "wheelsmith.hazards"
LICENCES = "org.opencontainers.image.licenses"
DISK = 14e9  # bytes that the first build needs where layers are kept (9 GB, and the largest layer again)
SPARE = 8e9  # bytes that buildah needs besides, in TMPDIR (the largest layer as two files)
DISK_AGAIN = 2e9  # bytes when the layers below the wheel are there already

DESCRIPTION = """\
Build a slim image that runs a prebuilt wheel of vLLM, and check it from inside without a GPU.

Target runtime is `vllm serve`; runpod adds the serverless worker; runtime-jit adds nvcc. With --base debootstrap
nothing but Debian's packages and a package index is needed. The image gets its tag when all checks have passed.
Example: nox -s runtime-image -- --wheel wheelhouse/vllm-0.15.1+cu128.sm86-….whl --target runpod --base debootstrap
"""


def parser() -> Parser:
    """Return the command line of `nox -s runtime-image`."""
    command = Parser("runtime-image", DESCRIPTION)
    command.add_argument("--wheel", type=user_path, metavar="W", help="default: the newest in wheelhouse/")
    command.add_argument("--recipe", metavar="R", help="the recipe's name for the label (default: judged by the wheel)")
    command.add_argument("--target", default="runtime", metavar="T", help=f"one of: {', '.join(TARGETS)}")
    command.add_argument("--engine", default="auto", help="docker, podman, buildah or auto (the first that works)")
    command.add_argument(
        "--base", default=DEFAULT_BASE, metavar="IMAGE", help=f"or debootstrap[@DATE] (default: {DEFAULT_BASE[:25]})"
    )
    command.add_argument("--tag", metavar="T", help="default: localhost/vllm:VERSION-TARGET")
    command.add_argument("--push", metavar="REF", help="push it there when the checks have passed")
    command.add_argument("--lock", type=user_path, metavar="FILE", help="requirements (default: runtime/requirements/)")
    command.add_argument("--encodings", metavar="DIR", help="gpt-oss's vocabularies for runpod, or none")
    command.add_argument(
        "--cuda-image", default="", metavar="IMAGE", help="CUDA devel image by digest, for runtime-jit"
    )
    command.add_argument("--json", type=user_path, metavar="FILE", help="write the report to a file")
    command.add_argument("--out", type=user_path, default=ROOT / "wheelhouse", metavar="DIR", help="for the SBOM")
    command.add_argument("--sign-key", type=user_path, metavar="PEM", help="sign the SBOM for this image")
    add_cache_options(command)
    return command


def main(arguments: Sequence[str], console: Console) -> int:
    """Run the command; return its exit code."""
    options = parser().parse_args(arguments)
    _check_options(options)
    wheel = find_wheel(options.wheel)
    cache = open_cache(options)
    log = cache.place("logs", "image.log")
    engine = find_engine(options.engine, log=log, console=console)
    console.stage("wheel", wheel.name)
    facts = read_wheel(wheel)
    lock = find_lock(facts.version, options.lock)
    signer = load_signer(options.sign_key, os.environ.get("WHEELSMITH_KEY_PASSWORD", "")) if options.sign_key else None
    with cache.lock("runtime-image", console):
        report = _build(options, facts, lock, engine=engine, cache=cache, console=console)
    show(report, console)
    if options.json:
        write_json(options.json, as_json(report))
    for path in write_bill(report, options.out, lock, signer):
        console.note(f"written: {path}")
    console.note(f"log {log}")
    if options.push:
        engine.push(report.tag, options.push)
    return 0


def write_bill(report: ImageReport, out: Path, lock: Path, signer: CryptoSigner | None) -> list[Path]:
    """Write the SBOM beside the image, and, with a key, an attestation of it for the image's id; return the files."""
    hashes = lock_hashes(lock.read_text()) | (
        lock_hashes((LOCKS / "worker.txt").read_text()) if report.target == "runpod" else {}
    )
    out.mkdir(parents=True, exist_ok=True)
    bill = out / f"{file_stem(report.tag)}.cdx.json"
    text = image_sbom(report, hashes=hashes)
    write_atomic(bill, text.encode())
    if signer is None:
        return [bill]
    claim = {
        "_type": STATEMENT,
        "subject": [{"name": report.tag, "digest": {"sha256": report.image_id}}],
        "predicateType": "https://cyclonedx.org/bom",
        "predicate": json.loads(text),
    }
    signed = bill.with_suffix(SUFFIX)
    write_atomic(signed, sign(claim, signer))
    return [bill, signed]


def _check_options(options: argparse.Namespace) -> None:
    if options.target not in TARGETS:
        raise UsageError(
            f"there is no target {options.target!r}.{nearest(options.target, TARGETS)}",
            fix=f"choose from: {', '.join(TARGETS)}",
        )
    if (options.target == "runtime-jit") != bool(options.cuda_image):
        raise UsageError("--target runtime-jit and --cuda-image belong together", fix="--cuda-image IMAGE@sha256:…")
    for name in (options.tag, options.push):
        if name is not None and (name.endswith(":latest") or ":" not in name.rpartition("/")[2]):
            raise UsageError(f"{name} says nothing about what is inside", fix="give a tag other than latest: NAME:TAG")


def _build(
    options: argparse.Namespace, wheel: WheelFacts, lock: Path, *, engine: Engine, cache: Cache, console: Console
) -> ImageReport:
    """Build under a name of its own, check, and only then give the tag."""
    clock = PhaseClock()
    name, base = have_base(options.base, engine=engine, cache=cache, console=console)
    check_base(wheel.path, Base(base.python, base.glibc, base.machine))
    check_disk(engine, known=any(engine.has(tag) for tag in _known_tags(wheel)))
    clock.ends("base")
    table = gpu_table(wheel.path, version=wheel.version, torch=wheel.torch, cuda=wheel.cuda, driver=wheel.driver)
    hazards = hazard_label(table)
    if hazards != NO_HAZARDS:
        console.warn(f"known hazards, by compute capability: {hazards}; the image stops there unless told otherwise")
    indexes = read_indexes()
    encodings = {}
    if options.target == "runpod" and options.encodings != "none":
        given = user_path(options.encodings) if options.encodings else None
        encodings = have_encodings(given, cache=cache, indexes=indexes, console=console)
    clock.ends("audit")
    tag = options.tag or _known_tags(wheel)[TARGETS.index(options.target)]
    unfinished = f"localhost/wheelsmith-unfinished:{os.getpid()}"
    stamp, digest = _timestamp(), engine.digest(name)
    with ExitStack() as stack:
        context = stack.enter_context(make_context(cache, wheel.path, lock, encodings, table))
        private = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="wheelsmith-")))
        arguments = build_arguments(wheel, lock, base=name, digest=digest)
        marks = labels(wheel, base=name, digest=digest, recipe=options.recipe, stamp=stamp) | {HAZARDS: hazards}
        if options.cuda_image:
            arguments |= {"CUDA_IMAGE": options.cuda_image, "TRIM": "0"}
        console.stage("build", f"{options.target} with {engine.name} on {name}")
        stack.callback(engine.untag, unfinished, name)
        engine.build(
            Plan(context, options.target, unfinished, arguments, write_secrets(private, indexes), marks, stamp)
        )
        clock.ends("build")
        console.stage("check", "inside the image")
        jit = options.target == "runtime-jit"
        facts, checks = check_image(engine, unfinished, base=base, console=console, jit=jit)
        checks.append(audit_installed(engine, unfinished, facts, wheel))
        stopped_cleanly(checks)
        clock.ends("checks")
        report = ImageReport(
            tag, options.target, name, digest, engine.name, wheel, facts, engine.layers(unfinished), checks, 0, stamp,
            hazards=hazards,
        )  # fmt: skip
        relabel(engine, unfinished, tag, {LICENCES: licence_label(report)}, stamp=stamp)
    clock.ends("labels")
    return dataclasses.replace(
        report, seconds=clock.total, phases=clock.phases, steps=tuple(engine.steps), image_id=engine.image_id(tag)
    )


class PhaseClock:
    """Seconds by the clock and of the CPU, phase by phase."""

    def __init__(self) -> None:
        self._begun = self._last = time.monotonic()
        self._cpu = _cpu_seconds()
        self.phases: list[Phase] = []

    def ends(self, name: str) -> None:
        """Note that a phase has ended."""
        now, cpu = time.monotonic(), _cpu_seconds()
        self.phases.append(Phase(name, round(now - self._last, 1), round(cpu - self._cpu, 1)))
        self._last, self._cpu = now, cpu

    @property
    def total(self) -> float:
        """Seconds since the beginning."""
        return round(time.monotonic() - self._begun, 1)


def _cpu_seconds() -> float:
    usages = (resource.getrusage(resource.RUSAGE_SELF), resource.getrusage(resource.RUSAGE_CHILDREN))
    return sum(usage.ru_utime + usage.ru_stime for usage in usages)


def relabel(engine: Engine, image: str, tag: str, marks: Mapping[str, str], *, stamp: int) -> None:
    """Give an image its tag and labels that only its contents tell. No layer is added."""
    with tempfile.TemporaryDirectory(prefix="wheelsmith-") as name:
        (Path(name) / "Dockerfile.runtime").write_text(f"FROM {image} AS labelled\n")
        engine.build(Plan(Path(name), "labelled", tag, {}, {}, marks, stamp))


def _known_tags(wheel: WheelFacts) -> list[str]:
    return [f"localhost/vllm:{wheel.version.replace('+', '-')}-{target}" for target in TARGETS]


def audit_installed(engine: Engine, image: str, facts: Facts, wheel: WheelFacts) -> Result:
    """Audit what is installed, not the wheel: the same GPUs and driver must come out."""
    place = f"/opt/vllm/lib/python{facts.python[0]}.{facts.python[1]}/site-packages/vllm"
    with engine.folder(image, place) as folder:
        report = audit_path(folder, wheel_targets(wheel.path))
    cuda, driver = lowest_driver(report)
    files = len(report.components)
    said = f"{files} shared objects: CUDA {cuda} or later (driver {driver})"
    return Result("nox -s audit of what is installed", cuda == wheel.cuda and files > 0, said)


def have_base(wanted: str, *, engine: Engine, cache: Cache, console: Console) -> tuple[str, Facts]:
    """Return the base's name and facts, pulled or made when it is not here. Raises ImageError, UsageError."""
    console.stage("base", wanted)
    if wanted.partition("@")[0] == "debootstrap":
        mirrors = parse_mirrors(os.environ.get(VARIABLE, ""))
        debian = reachable(parse_debian(wanted), mirrors, indexes=read_indexes(), wanted=wanted, console=console)
        wanted = debian_base(engine, debian, mirrors=mirrors, cache=cache, console=console, log=engine.log)
    else:
        engine.pull(wanted)
        if "@sha256:" not in wanted:
            console.warn(f"{wanted} is a tag, which moves: {engine.digest(wanted) or 'its digest'} goes into the label")
    return wanted, read_facts(engine, wanted)


def check_disk(engine: Engine, *, known: bool) -> None:
    """Raise ImageError unless the layers fit where the engine keeps them."""
    needed = {engine.storage(): DISK_AGAIN if known else DISK}
    if engine.name == "buildah" and not known:
        spare = layers_folder()
        needed[spare] = needed.get(spare, 0) + SPARE
    places = {path: next(folder for folder in (path, *path.parents) if folder.exists()) for path in needed}
    for path, place in places.items():
        together = sum(needed[other] for other in needed if places[other].stat().st_dev == place.stat().st_dev)
        free = shutil.disk_usage(place).free
        if free < together:
            raise ImageError(
                f"the image needs {human_bytes(together)} in {path} and {human_bytes(free)} are free",
                why="torch and its CUDA libraries are 9 GB, and each layer is written more than once",
                fix=[
                    f"free space there: {engine.name} {'prune' if engine.name != 'buildah' else 'rm --all'}",
                    "TMPDIR=FOLDER on another filesystem (buildah)",
                ],
            )


def build_arguments(wheel: WheelFacts, lock: Path, *, base: str, digest: str) -> dict[str, str]:
    """Return the Dockerfile's arguments; a base from a registry is named by its digest, so that it cannot move.

    The digests of what enters by bind mount are there, too.
    """
    pinned = f"{base.partition('@')[0]}@{digest}" if digest.startswith("sha256:") and "localhost/" not in base else base
    return {
        "BASE_IMAGE": pinned,
        "WHEEL_NAME": wheel.path.name,
        "WHEEL_SHA256": wheel.sha256,
        **context_arguments(lock),
        "NVIDIA_REQUIRE_CUDA": f"cuda>={wheel.cuda}",
    }


def labels(wheel: WheelFacts, *, base: str, digest: str, recipe: str | None, stamp: int) -> dict[str, str]:
    """Return the image's labels that are not the same for every image of a wheel."""
    changed = "-dirty" if _git("status", "--porcelain", "--untracked-files=no") else ""
    revision = _git("rev-parse", "HEAD")
    found = {
        "org.opencontainers.image.source": public_url(_git("remote", "get-url", "origin")),
        "org.opencontainers.image.revision": revision + changed if revision else "",
        "org.opencontainers.image.version": wheel.version,
        "org.opencontainers.image.created": datetime.fromtimestamp(stamp, tz=timezone.utc).isoformat(),
        "org.opencontainers.image.base.name": base,
        "org.opencontainers.image.base.digest": digest,
        "wheelsmith.recipe": recipe or wheel.recipe,
        "wheelsmith.driver.minimum": wheel.driver,
    }
    return {name: value for name, value in found.items() if value}


def public_url(remote: str) -> str:
    """Return where a git remote can be looked at: its URL without credentials; "" for a folder of this machine."""
    scp = re.fullmatch(r"(?:\w[\w.-]*@)([\w.-]+):(?!/)(\S+)", remote)
    if scp:
        return f"ssh://{scp[1]}/{scp[2]}"
    found = re.fullmatch(r"(https?|ssh|git)://(?:[^/@\s]*@)?(\S+)", remote)
    return f"{found[1]}://{found[2]}" if found else ""


def _timestamp() -> int:
    """Return SOURCE_DATE_EPOCH, else the time of the last commit, so that the same inputs give the same layers."""
    text = os.environ.get("SOURCE_DATE_EPOCH") or _git("log", "-1", "--format=%ct")
    return int(text) if text.isdigit() else 0


def _git(*arguments: str) -> str:
    done = subprocess.run(["git", *arguments], cwd=ROOT, capture_output=True, text=True, check=False)
    return done.stdout.strip() if done.returncode == 0 else ""


if __name__ == "__main__":
    run(main)
