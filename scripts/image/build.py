"""Build the image under a name of its own, check it from inside, and only then give it its tag."""

from __future__ import annotations

import dataclasses
import os
import re
import resource
import shutil
import tempfile
import time
from collections.abc import Mapping
from contextlib import ExitStack
from datetime import datetime, timezone
from pathlib import Path

from scripts.core.console import human_bytes
from scripts.core.errors import ImageError
from scripts.core.files import file_sha256
from scripts.core.paths import ROOT
from scripts.core.process import call
from scripts.downloads.access import Access
from scripts.formats.wheel import Hash, open_wheel, read_record, record_digest
from scripts.image.base import debian_base, parse_debian, reachable
from scripts.image.checks import Facts, Result, check_image, read_facts, stopped_cleanly
from scripts.image.context import (
    Base,
    WheelFacts,
    check_base,
    context_arguments,
    have_encodings,
    make_context,
    write_secrets,
)
from scripts.image.engine import Engine, Plan, layers_folder
from scripts.image.gpus import NO_HAZARDS, hazard_label
from scripts.image.report import ImageReport, Phase

HAZARDS = "wheelsmith.hazards"
LICENCES = "org.opencontainers.image.licenses"

TARGETS = ("runtime", "runpod", "runtime-jit")
DISK = 14e9  # bytes that the first build needs where layers are kept (9 GB, and the largest layer again)
SPARE = 8e9  # bytes that buildah needs besides, in TMPDIR (the largest layer as two files)
DISK_AGAIN = 2e9  # bytes when the layers below the wheel are there already


@dataclasses.dataclass(frozen=True)
class Order:
    """What image is wanted."""

    target: str
    base: str
    tag: str | None = None
    recipe: str | None = None
    """The recipe's name for the label."""
    encodings: Path | None = None
    """gpt-oss's vocabularies; None fetches them."""
    with_encodings: bool = True
    cuda_image: str = ""


def build_image(options: Order, wheel: WheelFacts, lock: Path, engine: Engine, access: Access) -> ImageReport:
    """Build under a name of its own, check, and only then give the tag."""
    clock, console = PhaseClock(), access.console
    name, base = have_base(options.base, engine, access)
    check_base(wheel.path, Base(base.python, base.glibc, base.machine))
    check_disk(engine, layers_folder(access.environment), known=any(engine.has(tag) for tag in _known_tags(wheel)))
    clock.ends("base")
    hazards = hazard_label(wheel.gpus)
    if hazards != NO_HAZARDS:
        console.warn(f"known hazards, by compute capability: {hazards}; the image stops there unless told otherwise")
    encodings = {}
    if options.target == "runpod" and options.with_encodings:
        encodings = have_encodings(options.encodings, access)
    clock.ends("encodings")
    tag = options.tag or _known_tags(wheel)[TARGETS.index(options.target)]
    unfinished = f"localhost/wheelsmith-unfinished:{os.getpid()}"
    stamp, digest = _timestamp(access.environment), engine.digest(name)
    with ExitStack() as stack:
        context = stack.enter_context(make_context(access.cache, wheel, lock, encodings))
        private = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="wheelsmith-")))
        arguments = build_arguments(wheel, lock, base=name, digest=digest)
        marks = labels(wheel, base=name, digest=digest, recipe=options.recipe, stamp=stamp) | {HAZARDS: hazards}
        if options.cuda_image:
            arguments |= {"CUDA_IMAGE": options.cuda_image, "TRIM": "0"}
        console.stage("build", f"{options.target} with {engine.name} on {name}")
        stack.callback(engine.untag, unfinished, name)
        engine.build(Plan(context, options.target, unfinished, arguments, write_secrets(private, access), marks, stamp))
        clock.ends("build")
        console.stage("check", "inside the image")
        jit = options.target == "runtime-jit"
        facts, checks = check_image(engine, unfinished, base=base, console=console, jit=jit)
        checks.append(installed_as_audited(engine, unfinished, facts, wheel))
        stopped_cleanly(checks)
        clock.ends("checks")
        report = ImageReport(
            tag, options.target, name, digest, engine.name, wheel, facts, engine.layers(unfinished), checks, 0, stamp,
            hazards=hazards,
        )  # fmt: skip
        from scripts.image.sbom import licence_label  # noqa: PLC0415  (0.15 s that only a new image needs)

        relabel(engine, unfinished, tag, {LICENCES: licence_label(report)}, stamp=stamp)
    clock.ends("labels")
    return dataclasses.replace(
        report, seconds=clock.total, phases=clock.phases, steps=tuple(engine.steps), image_id=engine.image_id(tag)
    )


def _known_tags(wheel: WheelFacts) -> list[str]:
    return [f"localhost/vllm:{wheel.version.replace('+', '-')}-{target}" for target in TARGETS]


def installed_as_audited(engine: Engine, image: str, facts: Facts, wheel: WheelFacts) -> Result:
    """Hold what is installed against the wheel that was audited: the same bytes run on the same GPUs."""
    place = f"/opt/vllm/lib/python{facts.python[0]}.{facts.python[1]}/site-packages/vllm"
    with open_wheel(wheel.path) as opened:
        record = {name: item for name, item in read_record(opened).items() if name.startswith("vllm/")}
    with engine.folder(image, place) as folder:
        other = sorted(name for name, item in record.items() if not _is(folder.parent / name, item))
    said = f"not so: {', '.join(other[:5])}" if other else f"{len(record)} files are the audited wheel's"
    return Result("what is installed is the wheel that was audited", bool(record) and not other, said)


def _is(path: Path, item: Hash) -> bool:
    try:
        return path.stat().st_size == item.size and record_digest(bytes.fromhex(file_sha256(path))) == item.sha256
    except OSError:
        return False


def have_base(wanted: str, engine: Engine, access: Access) -> tuple[str, Facts]:
    """Return the base's name and facts, pulled or made when it is not here. Raises ImageError, UsageError."""
    access.console.stage("base", wanted)
    if wanted.partition("@")[0] == "debootstrap":
        wanted = debian_base(engine, reachable(parse_debian(wanted), access, wanted=wanted), access)
    else:
        engine.pull(wanted)
        if "@sha256:" not in wanted:
            named = engine.digest(wanted) or "its digest"
            access.console.warn(f"{wanted} is a tag, which moves: {named} goes into the label")
    return wanted, read_facts(engine, wanted)


def check_disk(engine: Engine, spare: Path, *, known: bool) -> None:
    """Raise ImageError unless the layers fit where the engine keeps them and, for buildah, writes them before."""
    needed = {engine.storage(): DISK_AGAIN if known else DISK}
    if engine.name == "buildah" and not known:
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


def _timestamp(environment: Mapping[str, str]) -> int:
    """Return SOURCE_DATE_EPOCH, else the time of the last commit, so that the same inputs give the same layers."""
    text = environment.get("SOURCE_DATE_EPOCH") or _git("log", "-1", "--format=%ct")
    return int(text) if text.isdigit() else 0


def _git(*arguments: str) -> str:
    done = call(["git", *arguments], cwd=ROOT)
    return "" if done.code else done.text.strip()


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


def public_url(remote: str) -> str:
    """Return where a git remote can be looked at: its URL without credentials; "" for a folder of this machine."""
    scp = re.fullmatch(r"(?:\w[\w.-]*@)([\w.-]+):(?!/)(\S+)", remote)
    if scp:
        return f"ssh://{scp[1]}/{scp[2]}"
    found = re.fullmatch(r"(https?|ssh|git)://(?:[^/@\s]*@)?(\S+)", remote)
    return f"{found[1]}://{found[2]}" if found else ""
