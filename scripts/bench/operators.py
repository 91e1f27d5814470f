"""Which operators do two wheels register? Both are loaded with the torch they were compiled for, and asked."""

from __future__ import annotations

import json
import tempfile
import zipfile
from pathlib import Path

from scripts.core.errors import BenchError
from scripts.core.process import Command, capture
from scripts.recipe.model import Recipe
from scripts.toolchain.provide import Toolchain

# Prints what loading each library adds to torch's operators: schemas, and the dispatch keys with a kernel.
_REGISTERED = """
import ctypes, json, os, sys
import torch
keys = ("CPU", "CUDA", "Meta", "CompositeImplicitAutograd", "CompositeExplicitAutograd", "Autograd")
def schemas():
    return {str(schema): schema.name for schema in torch._C._jit_get_all_schemas()}
found = {}
for name, path in json.loads(sys.argv[1]).items():
    before = schemas()
    ctypes.CDLL(path, mode=os.RTLD_LAZY | os.RTLD_GLOBAL)
    new = {text: name for text, name in schemas().items() if text not in before}
    has = torch._C._dispatch_has_kernel_for_dispatch_key
    found[name] = sorted(text + " @ " + ",".join(k for k in keys if has(op, k)) for text, op in new.items())
print("REGISTERED " + json.dumps(found))
"""


def registered_operators(wheel: Path, recipe: Recipe, toolchain: Toolchain) -> dict[str, list[str]]:
    """Return, by component, what a wheel registers: each schema and the dispatch keys that have a kernel.

    Raises BenchError when it does not load.
    """
    with tempfile.TemporaryDirectory(prefix="wheelsmith-bench-") as name:
        folder = Path(name)
        paths = {component.value: _extract(wheel, component.member, folder) for component in recipe.shared_objects}
        (folder / "libcuda.so.1").symlink_to(toolchain.cuda_home / "lib64" / "stubs" / "libcuda.so")
        environment = {"PATH": "/usr/bin:/bin", "HOME": name, "LD_LIBRARY_PATH": name}  # stands in for the driver's
        command: Command = [toolchain.python, "-c", _REGISTERED, json.dumps(paths)]
        code, text = capture(command, environment=environment, timeout=600)
    line = next((line for line in text.splitlines() if line.startswith("REGISTERED ")), None)
    if code or line is None:
        raise BenchError(f"{wheel.name} does not load", why=text.strip().rpartition("\n")[2] or f"exit code {code}")
    return dict(json.loads(line.removeprefix("REGISTERED ")))


def _extract(wheel: Path, member: str, folder: Path) -> str:
    with zipfile.ZipFile(wheel) as archive:
        name = next((item for item in archive.namelist() if item.split(".", 1)[0] == member), None)
        if name is None:
            raise BenchError(f"{wheel.name} has no {member}")
        return archive.extract(name, folder)


def operator_differences(stock: dict[str, list[str]], lean: dict[str, list[str]]) -> list[str]:
    """Return what only one of two wheels registers."""
    return [
        f"only {side} registers {item} ({component})"
        for component in sorted({*stock, *lean})
        for side, ours, theirs in (("stock", stock, lean), ("lean", lean, stock))
        for item in sorted(set(ours.get(component, [])) - set(theirs.get(component, [])))
    ]
