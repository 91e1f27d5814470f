// A lean stand-in for ATen/DeviceGuard.h: see torch/all.h beside it. Without the guard's overload for lists of
// tensors, which brings IValue and the JIT's types.
#if defined(VLLM_STOCK_TORCH_HEADERS)
#include_next <ATen/DeviceGuard.h>
#else
#pragma once

#include <ATen/core/Tensor.h>
#include <c10/core/DeviceGuard.h>

#include <optional>

namespace at {

inline std::optional<Device> device_of(const Tensor& tensor) {
  return tensor.defined() ? std::make_optional(tensor.device()) : std::nullopt;
}

inline std::optional<Device> device_of(const std::optional<Tensor>& tensor) {
  return tensor.has_value() ? device_of(*tensor) : std::nullopt;
}

}  // namespace at
#endif
