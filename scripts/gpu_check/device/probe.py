"""What one operator's check reports: relative errors against float64, their limits, and a digest of all outputs."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch

# ||out - reference|| / ||reference||; half a unit in the last place of the type, rounded up by about two.
LIMITS = {torch.float64: 1e-12, torch.float32: 1e-5, torch.float16: 1e-3, torch.bfloat16: 5e-3}
FLOAT32 = 2.0**-22  # a quotient and a sum in float32
INT8_RANGE = 256.0  # a zero point moves a value by this at most before it is rounded
CODE_LIMIT = 0.01  # share of quantised values that may be one code off: the reference rounds from float64
DTYPES = (torch.bfloat16, torch.float16, torch.float32)
HALVES = (torch.bfloat16, torch.float16)
FP8 = torch.float8_e4m3fn
FP8_MAX = 448.0


def dtype_name(dtype: Any) -> str:
    """Return `bfloat16` for torch.bfloat16."""
    return str(dtype).removeprefix("torch.")


@dataclass
class Line:
    """The worst case of one operator and output type."""

    dtype: str
    error: float = 0.0
    limit: float = 0.0
    cases: int = 0

    @property
    def ok(self) -> bool:
        """Whether the error is a number within the limit."""
        return not math.isnan(self.error) and self.error <= self.limit


@dataclass
class Probe:
    """Collects what a check compares."""

    device: Any = "cuda"
    lines: dict[str, Line] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)
    _digest: Any = field(default_factory=hashlib.sha256)

    @property
    def digest(self) -> str:
        """sha256 of all outputs so far, in order."""
        return str(self._digest.hexdigest())

    def close(self, got: Any, want: Any, *, limit: float | None = None, dtype: str = "") -> None:
        """Compare with a float64 reference by the norm of the difference over the norm of the reference."""
        self._take(got)
        reference = want.double()
        difference = (got.double() - reference).norm()
        scale = reference.norm()
        error = float(difference / scale) if float(scale) > 0 else float(difference)
        self._note(dtype or dtype_name(got.dtype), error, LIMITS[got.dtype] if limit is None else limit)

    def exact(self, got: Any, want: Any, *, dtype: str = "") -> None:
        """Compare bit for bit; the error is the share of different elements."""
        self._take(got)
        same = got.shape == want.shape
        wrong = float((got != want.to(got.device, got.dtype)).double().mean()) if same and got.numel() else 0.0
        self._note(dtype or dtype_name(got.dtype), wrong if same else math.inf, 0.0)

    def codes(self, got: Any, want: Any, *, limit: float = CODE_LIMIT, dtype: str = "") -> None:
        """Compare quantised values; `want` is the unrounded float64 value in units of the type.

        The error is the share of codes that differ; a difference of more than one code is infinite. Where the value
        lies between two codes, as near as float32 can tell, both are right: 16-bit inputs hit the middle exactly.
        """
        self._take(got)
        slack = (want.abs() + (0.0 if got.dtype.is_floating_point else INT8_RANGE)) * FLOAT32
        code = _rank(got)
        low, high = (_rank(_rounded(value, got.dtype)) for value in (want - slack, want + slack))
        steps = torch.maximum(low - code, code - high).clamp(min=0)
        error = math.inf if int(steps.max()) > 1 else float((steps > 0).double().mean())
        self._note(dtype or dtype_name(got.dtype), error, limit)

    def true(self, value: object, what: str) -> None:
        """Demand a property that has no size: an error of 0 or infinite."""
        if not value:
            self.notes.append(f"not so: {what}")
        self._note("property", 0.0 if value else math.inf, 0.0)

    def _take(self, got: Any) -> None:
        raw = got.detach().contiguous().reshape(-1).view(torch.uint8)
        self._digest.update(raw.cpu().numpy().tobytes())

    def _note(self, dtype: str, error: float, limit: float) -> None:
        line = self.lines.setdefault(dtype, Line(dtype))
        line.cases += 1
        line.limit = max(line.limit, limit)
        if math.isnan(error) or error > line.error or math.isnan(line.error):
            line.error = math.nan if math.isnan(line.error) else error


def _rounded(want: Any, dtype: Any) -> Any:
    if dtype.is_floating_point:
        return want.clamp(-FP8_MAX, FP8_MAX).float().to(dtype)
    limits = torch.iinfo(dtype)
    return want.round().clamp(limits.min, limits.max).to(dtype)


def _rank(codes: Any) -> Any:
    """Return an integer per code whose neighbours are neighbouring values."""
    if not codes.dtype.is_floating_point:
        return codes.int()
    bits = codes.view(torch.uint8).int()
    return torch.where(bits >= 128, 128 - bits, bits)


Run = Callable[[Probe], None]


@dataclass(frozen=True)
class Check:
    """One function and the operators that it calls and compares."""

    name: str
    operators: tuple[str, ...]
    run: Run
    arch: Callable[[tuple[int, int]], bool] = lambda _capability: True


TABLE: dict[str, list[Check]] = {}


def check(
    family: str, *operators: str, arch: Callable[[tuple[int, int]], bool] = lambda _capability: True
) -> Callable[[Run], Run]:
    """Enter a function into the table as the check of `operators` (qualified: `_C::rms_norm`)."""

    def enter(run: Run) -> Run:
        name = getattr(run, "__name__", "check")
        TABLE.setdefault(family, []).append(Check(name, operators, run, arch))
        return run

    return enter


def fitting(operator: Any, neutral: Mapping[str, Any]) -> dict[str, Any]:
    """Return those of `neutral` that the operator's registered schema has an argument for.

    vLLM adds and drops such arguments between versions. Only values go here that mean the same as no argument: no
    permutation, no padding mask, a factor of 1.
    """
    known = {argument.name for argument in operator.default._schema.arguments}
    return {name: value for name, value in neutral.items() if name in known}


def call(operator: Any, *arguments: Any, neutral: Mapping[str, Any], **named: Any) -> Any:
    """Call an operator with the arguments, and with those of `neutral` that fit."""
    return operator(*arguments, **named, **fitting(operator, neutral))


def randn(probe: Probe, *shape: int, dtype: Any = torch.float32, scale: float = 1.0) -> Any:
    """Return fresh normal values."""
    return (torch.randn(*shape, device=probe.device) * scale).to(dtype)


def poisoned(probe: Probe, *shape: int, dtype: Any) -> Any:
    """Return an output to write into: NaN, or a value that no result has."""
    if dtype.is_floating_point and dtype.itemsize > 1:
        return torch.full(shape, math.nan, device=probe.device, dtype=dtype)
    if dtype.itemsize == 1:
        return torch.full(shape, 0x7F, device=probe.device, dtype=torch.uint8).view(dtype)
    return torch.full(shape, -77777, device=probe.device, dtype=dtype)
