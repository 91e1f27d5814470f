"""Which torch versions a library fits, judged by the symbols it wants: torch's C++ ones, its stable C ones, or none.

C++ symbols (`at::`, `c10::`, `torch::`) change with each torch release: such a library is pinned to the release it was
compiled with. Libraries of the stable ABI use C functions only, each of which exists from some torch on; their
`TORCH_TARGET_VERSION` is at least the newest of those. From torch/csrc/stable/c/shim.h (October 2026): what is
guarded by TORCH_FEATURE_VERSION there. Functions named `aoti_torch_*` are older: torch 2.9 has all that were met.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from enum import Enum

_CPP = re.compile(r"_Z\w*?(?:N[KVRO]*)?(?:2at|3c10|5torch|6caffe2)\d?")
_STABLE = re.compile(r"(?:aoti_torch|torch)_[a-z]\w*")
OLDEST = (2, 9)
ONE_RELEASE = "one release"  # how the words for a pinned library begin
_SINCE = {
    (2, 10): (
        "call_dispatcher library_impl new_list_reserve_size list_size list_get_item list_set_item list_push_back "
        "delete_list parse_device_string parallel_for get_thread_idx get_num_threads get_mutable_data_ptr "
        "get_const_data_ptr new_string_handle delete_string string_length string_c_str get_current_cuda_blas_handle "
        "set_current_cuda_stream get_cuda_stream_from_pool cuda_stream_synchronize c10_cuda_check_msg "
        "c10_cuda_free_error_msg set_requires_grad"
    ),
    (2, 11): "dtype_float8_e8m0fnu dtype_float4_e2m1fn_x2 from_blob",
    (2, 12): "library_def_with_tags",
    (2, 13): (
        "library_set_python_module exception_get_what exception_get_what_without_backtrace new_stable_ivalue "
        "delete_stable_ivalue stream_native_handle new_generator_handle delete_generator generator_get_device"
    ),
    (2, 14): "has_storage tensor_from_pyobject tensor_to_pyobject",
    (2, 15): ("is_tensor_pyobject dtype_from_pyobject dtype_to_pyobject device_from_pyobject device_to_pyobject"),
    (2, 16): "is_warn_always_enabled",
}
_FIRST = {f"torch_{name}": version for version, names in _SINCE.items() for name in names.split()}


class Abi(str, Enum):
    """How a library is tied to torch."""

    NONE = "none"
    STABLE = "stable"
    PINNED = "pinned"


@dataclass(frozen=True)
class TorchAbi:
    """Which torch a library fits."""

    abi: Abi
    since: str = ""
    """Stable ABI: the first torch that has all functions it wants: `2.11`."""
    symbols: int = 0
    """C++ symbols of torch that it wants."""

    @classmethod
    def none(cls) -> TorchAbi:
        """Return that of a file that is not tied to torch."""
        return cls(Abi.NONE)

    def __str__(self) -> str:
        """Return it in words: `>= 2.11 (stable ABI)`."""
        if self.abi is Abi.NONE:
            return "any"
        if self.abi is Abi.STABLE:
            return f">= {self.since} (stable ABI)"
        return f"{ONE_RELEASE} ({self.symbols:,} C++ symbols)"


def torch_abi(undefined: Iterable[str]) -> TorchAbi:
    """Judge a library by the names of its undefined symbols."""
    cpp, since, stable = 0, OLDEST, False
    for name in undefined:
        if _CPP.match(name):
            cpp += 1
        elif _STABLE.fullmatch(name):
            stable = True
            first = (2, 12) if name.startswith("torch_tag_") else _FIRST.get(name, OLDEST)
            since = max(since, first)
    if cpp:
        return TorchAbi(Abi.PINNED, symbols=cpp)
    return TorchAbi(Abi.STABLE, since=f"{since[0]}.{since[1]}") if stable else TorchAbi(Abi.NONE)
