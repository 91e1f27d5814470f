"""Check an image from inside, without a GPU: one JSON line per check. Runs as any user; libcuda is a stub made here."""

import ctypes
import importlib.metadata
import json
import os
import pwd
import shutil
import subprocess
import sys
import tempfile
import traceback
from collections.abc import Callable
from pathlib import Path

CHECKS: list[Callable[[], str]] = []


def check(function: Callable[[], str]) -> Callable[[], str]:
    """Note a check; its docstring is its title."""
    CHECKS.append(function)
    return function


STUB = "/opt/wheelsmith/stub"  # runtime/build/stub.py


@check
def identity() -> str:
    """any uid has a name, and its caches are writable"""
    name = pwd.getpwuid(os.getuid()).pw_name
    for variable in ("HF_HOME", "VLLM_CACHE_ROOT", "TRITON_CACHE_DIR", "TORCHINDUCTOR_CACHE_DIR"):
        with tempfile.TemporaryFile(dir=os.environ[variable]):
            pass
    return f"uid {os.getuid()} is {name}"


@check
def packages() -> str:
    """installed packages agree with each other (pip check)"""
    from packaging.requirements import Requirement
    from packaging.utils import canonicalize_name

    versions = {canonicalize_name(d.name): d.version for d in importlib.metadata.distributions()}
    wrong = []
    for package in importlib.metadata.distributions():
        for line in package.requires or []:
            need = Requirement(line)
            if need.marker and not need.marker.evaluate({"extra": ""}):
                continue
            have = versions.get(canonicalize_name(need.name))
            if have is None or not need.specifier.contains(have, prereleases=True):
                wrong.append(f"{package.name} needs {need}, there is {have}")
    if wrong:
        raise RuntimeError("; ".join(wrong))
    return f"{len(versions)} packages"


@check
def libraries() -> str:
    """torch, vllm and every shared object of the wheel load (stub libcuda)"""
    import torch
    import vllm

    folder = Path(vllm.__file__).parent
    found = sorted(folder.rglob("*.so"))
    for library in found:
        ctypes.CDLL(str(library))
    return f"vllm {vllm.__version__}, torch {torch.__version__}, {len(found)} shared objects"


@check
def triton_launcher() -> str:
    """Triton compiles a launcher with the C compiler, and a kernel with its ptxas"""
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.runtime.build import compile_module_from_src

    source = (
        "#include <Python.h>\n"
        'static struct PyModuleDef d = {PyModuleDef_HEAD_INIT, "ws_probe"};\n'
        "PyMODINIT_FUNC PyInit_ws_probe(void) { return PyModule_Create(&d); }\n"
    )
    compile_module_from_src(source, "ws_probe", [], [], [])
    path = Path(tempfile.mkdtemp()) / "ws_kernel.py"
    path.write_text(
        "import triton\nimport triton.language as tl\n@triton.jit\ndef kernel(x, n: tl.constexpr):\n"
        "    i = tl.arange(0, n)\n    tl.store(x + i, tl.load(x + i) + 1)\n"
    )
    sys.path.insert(0, str(path.parent))
    import ws_kernel

    made = triton.compile(
        triton.compiler.ASTSource(ws_kernel.kernel, {"x": "*fp32", "n": "constexpr"}, {"n": 64}),
        target=GPUTarget("cuda", 86, 32),
    )
    return f"triton {triton.__version__}, cubin of {len(made.asm['cubin'])} bytes"


def _without_gpu(code: str) -> str:
    start = (
        "import sys, vllm.platforms as p\n"
        "from vllm.platforms.cuda import NonNvmlCudaPlatform\n"
        "from vllm.platforms.interface import DeviceCapability\n"
        "class Stub(NonNvmlCudaPlatform):\n"
        "    @classmethod\n"
        "    def get_device_capability(cls, device_id=0):\n"
        "        return DeviceCapability(8, 6)\n"
        "p._current_platform = Stub()\n"
    )
    done = subprocess.run([sys.executable, "-c", start + code], capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError((done.stdout + done.stderr)[-1500:])
    return done.stdout


@check
def worker() -> str:
    """the worker's flag table agrees with this vLLM's parser (target runpod)"""
    if not Path("/opt/wheelsmith/worker").is_dir():
        return "no worker in this image"
    text = _without_gpu("import runpy\nrunpy.run_module('worker.flags', run_name='__main__')")

    return text.strip().splitlines()[-1]


@check
def inductor() -> str:
    """torch.compile works for a CPU operation (its headers were kept)"""
    code = (
        "import torch\n"
        "f = torch.compile(lambda x: torch.nn.functional.gelu(x.exp()).to(torch.bfloat16).sum())\n"
        "x = torch.linspace(0, 1, 64)\n"
        "wanted = torch.nn.functional.gelu(x.exp()).sum()\n"
        "assert abs(f(x).float() - wanted) < 1, (f(x), wanted)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError((done.stdout + done.stderr)[-1500:])
    return "compiled with g++"


ENTRY = "/opt/wheelsmith/entrypoint.sh"


def _entered(*words: str) -> subprocess.CompletedProcess[str]:
    environment = {name: value for name, value in os.environ.items() if name != "LD_LIBRARY_PATH"}
    return subprocess.run([ENTRY, *words], capture_output=True, text=True, check=False, env=environment)


@check
def no_gpu() -> str:
    """without a GPU the entry point says so in two lines and stops"""
    for words in (("vllm", "serve", "m"), ("python3", "-m", "worker.handler")):
        done = _entered(*words)
        if done.returncode != 11 or len(done.stderr.splitlines()) != 2 or "--gpus all" not in done.stderr:
            raise RuntimeError(f"{words}: {done.returncode}, {done.stderr[:500]}")
    return done.stderr.splitlines()[0][:80]


@check
def help_and_version() -> str:
    """--help and --version work without a GPU or a driver"""
    version, text = _entered("vllm", "serve", "--version"), _entered("vllm", "serve", "--help=all")
    if version.returncode or importlib.metadata.version("vllm") not in version.stdout:
        raise RuntimeError(f"--version: {version.returncode}, {(version.stdout + version.stderr)[-500:]}")
    if text.returncode or "--tensor-parallel-size" not in text.stdout:
        raise RuntimeError(f"--help: {text.returncode}, {(text.stdout + text.stderr)[-1500:]}")
    if Path("/opt/wheelsmith/worker").is_dir():
        text = _entered("python3", "-m", "worker.handler", "--help")
        if text.returncode or "MODEL_REVISION" not in text.stdout:
            raise RuntimeError(f"worker --help: {text.returncode}, {(text.stdout + text.stderr)[-1500:]}")
    return version.stdout.splitlines()[0]


@check
def compilers() -> str:
    """no CUDA compiler unless the image says so"""
    there, told = shutil.which("nvcc") is not None, os.environ.get("WHEELSMITH_JIT") == "1"
    if there != told:
        raise RuntimeError(f"nvcc is {'there' if there else 'not there'} and WHEELSMITH_JIT says otherwise")
    return "with nvcc" if there else "without nvcc"


def main() -> None:
    """Run all checks; libcuda's stub must be on the library path before Python starts, so start again with it."""
    if os.environ.get("LD_LIBRARY_PATH") != STUB:
        os.environ.update(LD_LIBRARY_PATH=STUB, TRITON_LIBCUDA_PATH=STUB)
        os.execv(sys.executable, [sys.executable, __file__])
    for function in CHECKS:
        try:
            said, fine = function(), True
        except Exception as error:
            said, fine = f"{type(error).__name__}: {error}\n{traceback.format_exc(limit=-2)}", False
        print(json.dumps({"check": function.__doc__, "ok": fine, "said": said}), flush=True)


main()
