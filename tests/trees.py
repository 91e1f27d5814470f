"""Small trees that say the same things as vLLM's own build files, for tests that must not need the real ones."""

from __future__ import annotations

from pathlib import Path

CMAKE = """
set(TORCH_SUPPORTED_VERSION_CUDA "2.9.1")
if(DEFINED CMAKE_CUDA_COMPILER_VERSION AND
   CMAKE_CUDA_COMPILER_VERSION VERSION_GREATER_EQUAL 13.0)
  set(CUDA_SUPPORTED_ARCHS "7.5;8.0;9.0;12.0")
elseif(CMAKE_CUDA_COMPILER_VERSION VERSION_GREATER_EQUAL 12.8)
  set(CUDA_SUPPORTED_ARCHS "7.0;8.0;8.6;8.9;9.0;12.0") # with a comment (and a parenthesis
else()
  set(CUDA_SUPPORTED_ARCHS "7.0;8.0;9.0")
endif()
set(CUTLASS_REVISION "v4.2.1")
if(VLLM_CUTLASS_SRC_DIR)
  FetchContent_Declare(cutlass SOURCE_DIR ${VLLM_CUTLASS_SRC_DIR})
else()
  FetchContent_Declare(
      cutlass
      GIT_REPOSITORY https://github.com/nvidia/cutlass.git
      # GIT_TAG main would be wrong
      GIT_TAG ${CUTLASS_REVISION}
      GIT_SHALLOW TRUE
  )
endif()
execute_process(COMMAND ${Python_EXECUTABLE} generate.py)
"""
FLASHMLA = """
FetchContent_Declare(flashmla SOURCE_DIR ${FLASH_MLA_SRC_DIR} CONFIGURE_COMMAND "")
FetchContent_Declare(
    flashmla
    GIT_REPOSITORY https://github.com/vllm-project/FlashMLA
    GIT_TAG c2afa9cb93e674d5a9120a170a6da57b89267208
    GIT_SUBMODULES "csrc/cutlass" "csrc/other"
    GIT_PROGRESS TRUE
)
FetchContent_Populate(flashmla)
"""
TRITON = """
set(DEFAULT_TRITON_KERNELS_TAG "v3.5.0")
if (DEFINED ENV{TRITON_KERNELS_SRC_DIR})
  FetchContent_Declare(triton_kernels SOURCE_DIR $ENV{TRITON_KERNELS_SRC_DIR})
else()
  FetchContent_Declare(triton_kernels
    GIT_REPOSITORY https://github.com/triton-lang/triton.git
    GIT_TAG ${DEFAULT_TRITON_KERNELS_TAG})
endif()
"""
CPU = """
FetchContent_Declare(oneDNN GIT_REPOSITORY https://github.com/oneapi-src/oneDNN.git GIT_TAG v3.10)
FetchContent_Populate(arm_compute SUBBUILD_DIR x GIT_REPOSITORY y)
"""
SETUP = """
ext_modules = []
if _is_cuda() or _is_hip():
    ext_modules.append(CMakeExtension(name="vllm._moe_C"))
    ext_modules.append(CMakeExtension(name="vllm.triton_kernels", optional=True))
if _is_hip():
    ext_modules.append(CMakeExtension(name="vllm._rocm_C"))
if _is_cuda():
    if envs.VLLM_USE_PRECOMPILED or (CUDA_HOME and get_nvcc_cuda_version() >= Version("12.9")):
        ext_modules.append(CMakeExtension(name="vllm._flashmla_C", optional=True))
if _is_cpu():
    if platform.machine() == "x86_64":
        ext_modules.append(CMakeExtension(name="vllm._C_AVX512"))
    else:
        ext_modules.append(CMakeExtension(name="vllm._C"))
if _build_custom_ops():
    ext_modules.append(CMakeExtension(name="vllm._C"))
"""
PYPROJECT = """
[build-system]
requires = ["cmake>=3.26.1", "ninja", "setuptools>=77.0.3,<81.0.0", "setuptools-scm>=8.0", "torch == 2.9.1"]
"""


def vllm_tree(root: Path, **changes: str) -> Path:
    """Write the build files of a small vLLM below `root`; `changes` replace files by their key."""
    files = {
        "CMakeLists.txt": changes.get("cmake", CMAKE),
        "cmake/external_projects/flashmla.cmake": changes.get("flashmla", FLASHMLA),
        "cmake/external_projects/triton_kernels.cmake": changes.get("triton", TRITON),
        "cmake/cpu_extension.cmake": changes.get("cpu", CPU),
        "setup.py": changes.get("setup", SETUP),
        "pyproject.toml": changes.get("pyproject", PYPROJECT),
        "requirements/cuda.txt": changes.get("cuda", "-r common.txt\ntorch==2.9.1\ntorchvision==0.24.1\n"),
    }
    for name, text in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text)
    return root
