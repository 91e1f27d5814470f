"""Proof of a wheel without a GPU: installed beside torch alone, imported, operators registered, cubins listed."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from importlib.metadata import distributions
from pathlib import Path

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from scripts.core.errors import AuditError
from scripts.core.process import Command, capture
from scripts.cuda.archs import Arch
from scripts.downloads.access import Access
from scripts.formats.fatbin_types import DeviceCode, Kind
from scripts.package.check import Wheel
from scripts.recipe.model import Recipe
from scripts.toolchain.environments import make_environment, run_uv
from scripts.toolchain.layered import lead_to
from scripts.toolchain.provide import Toolchain

# Loads each shared object lazily (there is no driver to resolve against) and prints the operators it registers.
_PROOF = """
import ctypes, importlib.util, json, os, pathlib, sys
import torch
import vllm
root = pathlib.Path(vllm.__file__).parent.parent
result = {"vllm": vllm.__version__, "torch": torch.__version__, "operators": {}}
for name, members in json.loads(sys.argv[1]).items():
    before = set(torch._C._dispatch_get_all_op_names())
    [path] = [path for member in members for path in root.glob(member + ".*.so")]
    ctypes.CDLL(str(path), mode=os.RTLD_LAZY | os.RTLD_GLOBAL)
    result["operators"][name] = sorted(set(torch._C._dispatch_get_all_op_names()) - before)
print("PROOF " + json.dumps(result))
"""


@dataclass(frozen=True)
class Proof:
    """What was seen of a wheel without a GPU."""

    vllm: str
    torch: str
    operators: dict[str, list[str]]
    """Names of the operators that each component registers."""
    cubins: dict[str, dict[str, int]]
    """Cubins (SASS) per component and arch: `{"_moe_C": {"90": 11, "90a": 3}}`."""
    ptx: dict[str, dict[str, int]]
    """The same for PTX."""


def prove_wheel(
    wheel: Wheel,
    recipe: Recipe,
    archs: Sequence[Arch],
    toolchain: Toolchain,
    access: Access,
) -> Proof:
    """Install, import and load the wheel in a new environment, and list its cubins. Raises AuditError."""
    access.console.stage("prove", "a new environment with only torch and the wheel, no GPU")
    with access.cache.scratch("proof-") as folder:
        cubins, ptx = list_device_code(wheel.device, recipe)
        check_archs(cubins, archs)
        lock = folder / "torch.txt"
        lock.write_text(torch_lock(toolchain, recipe.lock_file.read_text(), recipe))
        venv, python = folder / "venv", folder / "venv" / "bin" / "python"
        if toolchain.torch:
            make_environment(venv, lock, access, base=toolchain.torch.python)
            lead_to(venv, toolchain.torch)
        else:
            make_environment(venv, lock, access)
        alone = replace(access, offline=True, given_indexes=access.indexes)  # pip is not asked again
        run_uv(["pip", "install", "--python", python, "--no-deps", wheel.path], alone)
        seen = _import(python, recipe, toolchain, folder)
    for component, names in seen.operators.items():
        access.console.note(f"{component}: loads, registers {len(names)} operators")
    return Proof(seen.vllm, seen.torch, seen.operators, cubins, ptx)


def torch_lock(toolchain: Toolchain, lock: str, recipe: Recipe) -> str:
    """Return the part of a lock file that torch (an installed one apart) and `import vllm` need.

    By what the distributions in the build environment require.
    """
    needed: set[str] = set()
    waiting = [Requirement(text).name for text in recipe.import_requirements]
    if not toolchain.torch:
        waiting.append("torch")
    installed = {
        canonicalize_name(item.metadata["Name"]): item.requires or []
        for item in distributions(path=[str(toolchain.site_packages)])
    }
    while waiting:
        name = canonicalize_name(waiting.pop())
        if name not in needed and name in installed:
            needed.add(name)
            waiting += [Requirement(text).name for text in installed[name]]
    # A universal lock may hold a name more than once, for different Pythons.
    blocks = [(re.split(r"[=\s]", text, maxsplit=1)[0], text) for text in re.split(r"\n(?=\S)", lock)]
    return "\n".join(text for name, text in blocks if canonicalize_name(name) in needed)


def list_device_code(
    device: Mapping[str, DeviceCode], recipe: Recipe
) -> tuple[dict[str, dict[str, int]], dict[str, dict[str, int]]]:
    """Return (cubins, PTX) per component and arch, from the GPU code of the wheel's shared objects."""
    by_member = {name.split(".", 1)[0]: code for name, code in device.items()}
    codes = {component.value: by_member[component.stem_in(by_member)] for component in recipe.shared_objects}
    cubins = {name: code.count(Kind.ELF) for name, code in codes.items()}
    return cubins, {name: code.count(Kind.PTX) for name, code in codes.items()}


def check_archs(cubins: dict[str, dict[str, int]], archs: Sequence[Arch]) -> None:
    """Refuse a wheel in which no component has a cubin for one of the archs. Raises AuditError."""
    for arch in archs:
        base = f"{arch.major}{arch.minor}"
        accepted = {base + arch.suffix} if arch.suffix else {base, base + "a", base + "f"}
        if not any(accepted & set(counts) for counts in cubins.values()):
            found = sorted({label for counts in cubins.values() for label in counts})
            raise AuditError(
                f"no component has a cubin for {arch}",
                why=f"archs found: {', '.join(found) or 'none'}; upstream's CMake filters archs per kernel family",
                fix="see what CMake said of this arch in compile.log, or take the arch out of the list",
            )


@dataclass(frozen=True)
class _Seen:
    vllm: str
    torch: str
    operators: dict[str, list[str]]


def _import(python: Path, recipe: Recipe, toolchain: Toolchain, folder: Path) -> _Seen:
    stubs = folder / "stubs"
    stubs.mkdir()
    (stubs / "libcuda.so.1").symlink_to(toolchain.cuda_home / "lib64" / "stubs" / "libcuda.so")
    members = {component.value: component.members for component in recipe.shared_objects}
    torch = toolchain.torch.library_path if toolchain.torch else ""
    environment = {
        "PATH": "/usr/bin:/bin",
        "HOME": str(folder),
        "LD_LIBRARY_PATH": ":".join(filter(None, (str(stubs), torch))),  # it stands in for the driver's library
        "VLLM_NO_USAGE_STATS": "1",
    }
    command: Command = [python, "-c", _PROOF, json.dumps(members)]
    code, text = capture(command, environment=environment, timeout=600)
    line = next((line for line in text.splitlines() if line.startswith("PROOF ")), None)
    if code or line is None:
        raise AuditError(
            "the wheel does not import beside the torch it was compiled for",
            why=text.strip().splitlines()[-1] if text.strip() else f"Python ended with {code}",
            fix="an undefined symbol means another torch than at compile time; anything else is a bug in the wheel",
            detail=text.strip()[-3000:],
        )
    seen = _Seen(**json.loads(line.removeprefix("PROOF ")))
    silent = [c.value for c in recipe.shared_objects if not c.is_plain_module and not seen.operators[c.value]]
    if silent:
        raise AuditError(f"{', '.join(silent)} loads but registers no operators", fix="see compile.log")
    return seen
