"""nox -s runtime-image: a slim image that runs a prebuilt wheel. See docs/runtime-image.md."""

from __future__ import annotations

import argparse
import json
import os
from collections.abc import Sequence
from pathlib import Path

from scripts.commands.cli import Parser, run, user_path
from scripts.commands.options import add_cache_options, open_access
from scripts.core.console import Console
from scripts.core.errors import UsageError, nearest
from scripts.core.files import write_atomic, write_json
from scripts.core.paths import ROOT
from scripts.image.build import TARGETS, Order, build_image
from scripts.image.choice import find_engine
from scripts.image.context import (
    LOCKS,
    find_lock,
    find_wheel,
    read_wheel,
)
from scripts.image.layers import lock_hashes
from scripts.image.report import ImageReport, as_json, file_stem, show
from scripts.index.provenance import SUFFIX, KeyPair, load_signer, sign
from scripts.index.statements import STATEMENT

DEFAULT_BASE = "python:3.12-slim-bookworm@sha256:782412e85d0f0984994c290652577d4018aff08145c85b262bb63dc0c7522254"

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
    access = open_access(options, console)
    log = access.cache.place("logs", "image.log")
    engine = find_engine(options.engine, log, access)
    console.stage("wheel", wheel.name)
    facts = read_wheel(wheel)
    lock = find_lock(facts.version, options.lock)
    signer = load_signer(options.sign_key, os.environ.get("WHEELSMITH_KEY_PASSWORD", "")) if options.sign_key else None
    with access.cache.lock("runtime-image", console):
        report = build_image(_order(options), facts, lock, engine, access)
    show(report, console)
    if options.json:
        write_json(options.json, as_json(report))
    for path in write_bill(report, options.out, lock, signer):
        console.note(f"written: {path}")
    console.note(f"log {log}")
    if options.push:
        engine.push(report.tag, options.push)
    return 0


def _order(options: argparse.Namespace) -> Order:
    known = options.encodings not in {None, "", "none"}
    return Order(
        options.target,
        options.base,
        options.tag,
        options.recipe,
        user_path(options.encodings) if known else None,
        with_encodings=options.encodings != "none",
        cuda_image=options.cuda_image,
    )


def write_bill(report: ImageReport, out: Path, lock: Path, signer: KeyPair | None) -> list[Path]:
    """Write the SBOM beside the image, and, with a key, an attestation of it for the image's id; return the files."""
    hashes = lock_hashes(lock.read_text()) | (
        lock_hashes((LOCKS / "worker.txt").read_text()) if report.target == "runpod" else {}
    )
    out.mkdir(parents=True, exist_ok=True)
    bill = out / f"{file_stem(report.tag)}.cdx.json"
    from scripts.image.sbom import image_sbom  # noqa: PLC0415  (0.15 s that only a new image needs)

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


if __name__ == "__main__":
    run(main)
