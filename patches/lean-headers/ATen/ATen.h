// A lean stand-in for ATen/ATen.h: see torch/all.h beside it.
//
// The factories that vLLM's csrc calls go through torch's own generated operators (ATen/ops/*_ops.h), as the functions
// of ATen/ops/*.h do; those would bring IValue, the JIT's types and the whole context with them.
#if defined(VLLM_STOCK_TORCH_HEADERS)
#include_next <ATen/ATen.h>
#else
#pragma once

#include <ATen/DeviceGuard.h>
#include <ATen/Dispatch.h>
#include <ATen/core/Tensor.h>
#include <ATen/ops/empty_like_ops.h>
#include <ATen/ops/empty_ops.h>
#include <ATen/ops/from_blob.h>
#include <ATen/ops/sum_ops.h>
#include <ATen/ops/zeros_like_ops.h>
#include <ATen/ops/zeros_ops.h>
#include <c10/core/ScalarType.h>
#include <c10/core/TensorOptions.h>
#include <c10/util/Exception.h>
#include <c10/util/Logging.h>

#include <optional>

namespace at {

inline Tensor empty(IntArrayRef size, TensorOptions options = {},
                    std::optional<MemoryFormat> memory_format = std::nullopt) {
  return _ops::empty_memory_format::call(
      c10::fromIntArrayRefSlow(size), c10::optTypeMetaToScalarType(options.dtype_opt()), options.layout_opt(),
      options.device_opt(), options.pinned_memory_opt(),
      c10::impl::check_tensor_options_and_extract_memory_format(options, memory_format));
}

inline Tensor empty_like(const Tensor& self, TensorOptions options = {},
                         std::optional<MemoryFormat> memory_format = std::nullopt) {
  return _ops::empty_like::call(
      self, c10::optTypeMetaToScalarType(options.dtype_opt()), options.layout_opt(), options.device_opt(),
      options.pinned_memory_opt(),
      c10::impl::check_tensor_options_and_extract_memory_format(options, memory_format));
}

inline Tensor zeros(IntArrayRef size, TensorOptions options = {}) {
  return _ops::zeros::call(c10::fromIntArrayRefSlow(size), c10::optTypeMetaToScalarType(options.dtype_opt()),
                           options.layout_opt(), options.device_opt(), options.pinned_memory_opt());
}

inline Tensor zeros_like(const Tensor& self, TensorOptions options = {},
                         std::optional<MemoryFormat> memory_format = std::nullopt) {
  return _ops::zeros_like::call(
      self, c10::optTypeMetaToScalarType(options.dtype_opt()), options.layout_opt(), options.device_opt(),
      options.pinned_memory_opt(),
      c10::impl::check_tensor_options_and_extract_memory_format(options, memory_format));
}

inline Tensor& sum_out(Tensor& out, const Tensor& self, OptionalIntArrayRef dim, bool keepdim = false,
                       std::optional<ScalarType> dtype = std::nullopt) {
  return _ops::sum_IntList_out::call(self, dim, keepdim, dtype, out);
}

}  // namespace at
#endif
