#!/usr/bin/env python3
"""Hold the GPUs at hand against what the audit found in the image's wheel; runs before vLLM or the worker starts.

`gpus.json`, beside this file, has the audit's word per compute capability. Exit code 0: go on. 11: there is no GPU, or
one that would run code that is known to go wrong, or none at all. Standard library only: it runs before anything else.
"""

from __future__ import annotations

import ctypes
import json
import os
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any, NamedTuple

TABLE = Path(__file__).with_name("gpus.json")
ACCEPT = "WHEELSMITH_ACCEPT_HAZARDS"
STOP = 11
_MAJOR, _MINOR = 75, 76  # CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR and _MINOR (cuda.h)
_NO_DEVICE = 100  # CUDA_ERROR_NO_DEVICE


class Gpu(NamedTuple):
    """A GPU as the driver tells it."""

    name: str
    capability: str
    """Compute capability: `9.0`."""


class Found(NamedTuple):
    """What the driver told."""

    gpus: tuple[Gpu, ...]
    cuda: str
    """CUDA version of the driver: `13.0`."""
    trouble: str
    """Why there are no GPUs, else ""."""


def find_gpus(library: str = "libcuda.so.1") -> Found:
    """Ask the driver for its GPUs (CUDA_VISIBLE_DEVICES counts)."""
    try:
        driver = ctypes.CDLL(library)
    except OSError:
        return Found((), "", "this container has no NVIDIA driver (libcuda.so.1)")
    version, count = ctypes.c_int(), ctypes.c_int()
    code = driver.cuInit(0) or driver.cuDriverGetVersion(ctypes.byref(version))
    code = code or driver.cuDeviceGetCount(ctypes.byref(count))
    if code or not count.value:
        none = code in (0, _NO_DEVICE)
        return Found((), "", "this container sees no NVIDIA GPU" if none else f"the NVIDIA driver answers error {code}")
    cuda = f"{version.value // 1000}.{version.value % 1000 // 10}"
    return Found(tuple(_gpu(driver, index) for index in range(count.value)), cuda, "")


def _gpu(driver: ctypes.CDLL, index: int) -> Gpu:
    device, name = ctypes.c_int(), ctypes.create_string_buffer(256)
    driver.cuDeviceGet(ctypes.byref(device), index)
    driver.cuDeviceGetName(name, len(name), device)
    numbers = []
    for attribute in (_MAJOR, _MINOR):
        value = ctypes.c_int()
        driver.cuDeviceGetAttribute(ctypes.byref(value), attribute, device)
        numbers.append(value.value)
    return Gpu(name.value.decode("utf-8", "replace"), f"{numbers[0]}.{numbers[1]}")


def without_gpu(table: dict[str, Any], trouble: str) -> list[str]:
    """Return the two lines that a container without a GPU says."""
    ways = "--gpus all (docker), --device nvidia.com/gpu=all (podman) or nvidia.com/gpu: 1 (Kubernetes)"
    driver = f"an NVIDIA driver for CUDA {table['cuda']} ({table['driver']}) or later, which nvidia-smi shows there"
    return [
        f"error: {trouble}: start it with {ways}",
        f"  the host needs {driver}; --help and --version work without a GPU",
    ]


def judge(table: dict[str, Any], found: Found, accepted: Iterable[str]) -> tuple[list[str], bool]:
    """Return what to say about the GPUs, and whether to stop."""
    taken, lines, stop = set(accepted), [], False
    for capability in dict.fromkeys(gpu.capability for gpu in found.gpus):
        names = ", ".join(dict.fromkeys(gpu.name for gpu in found.gpus if gpu.capability == capability))
        title = f"{names} (compute capability {capability})"
        about = table["gpus"].get(capability)
        if about is None:
            lines.append(f"warning: {title} was not known when this image was built; going on")
            continue
        for hazard in hazards(table, about, found.cuda, capability):
            fatal = hazard["level"] == "error" and not taken & {hazard["id"], "all"}
            lines += _told(title, hazard, fatal=fatal)
            stop = stop or fatal
    return lines, stop


def hazards(table: dict[str, Any], about: dict[str, Any], cuda: str, capability: str) -> list[dict[str, str]]:
    """Return what goes wrong on a GPU with a driver of this CUDA version, as the audit found it when building."""
    found = [row for row in about["hazards"] if not row["below_cuda"] or _numbers(cuda) < _numbers(row["below_cuda"])]
    if about["cuda"] and _numbers(cuda) < _numbers(about["cuda"]):
        text = f"the driver is for CUDA {cuda}, and some kernels of the wheel need one for {about['cuda']} here"
        remedy = f"driver {about['driver']} or later on the host"
        found.append({"id": "old-driver", "level": "error", "text": text, "remedy": remedy, "source": ""})
    if not about["ok"] and not any(row["level"] == "error" for row in about["hazards"]):
        fitting = ", ".join(number for number, row in table["gpus"].items() if row["ok"])
        text = f"the wheel does not run on {capability} ({about['why']}); it runs on: {fitting or 'none'}"
        found.append({"id": "no-code", "level": "error", "text": text, "remedy": "another GPU or wheel", "source": ""})
    return found


def _told(title: str, hazard: dict[str, str], *, fatal: bool) -> list[str]:
    source = f" ({hazard['source']})" if hazard["source"] else ""
    lines = [f"{'error' if fatal else 'warning'}: {title}: {hazard['text']}{source}"]
    if hazard["remedy"]:
        lines.append(f"  fix: {hazard['remedy']}")
    if fatal:
        lines.append(f"  or: start in spite of it with {ACCEPT}={hazard['id']}")
    return lines


def _numbers(text: str) -> tuple[int, ...]:
    return tuple(int(part) for part in text.split("."))


def version(table: dict[str, Any]) -> str:
    """Return what `--version` says."""
    fitting = ", ".join(number for number, row in table["gpus"].items() if row["ok"])
    lines = [
        f"vLLM {table['version']}",
        f"torch {table['torch']}" if table["torch"] else "",
        f"wheel {table['wheel']}",
        f"compute capabilities {fitting}",
        f"driver for CUDA {table['cuda']} ({table['driver']}) or later",
    ]
    return "\n".join(line for line in lines if line)


def main(arguments: list[str]) -> int:
    """Check the GPUs; with `--version` say what the image holds; with `--quiet` only tell whether there is a GPU."""
    table = json.loads(TABLE.read_text())
    if arguments == ["--version"]:
        sys.stdout.write(version(table) + "\n")
        return 0
    found = find_gpus()
    if arguments == ["--quiet"]:
        return STOP if found.trouble else 0
    accepted = os.environ.get(ACCEPT, "").replace(",", " ").split()
    lines, stop = (without_gpu(table, found.trouble), True) if found.trouble else judge(table, found, accepted)
    sys.stderr.write("".join(f"{line}\n" for line in lines))
    return STOP if stop else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
