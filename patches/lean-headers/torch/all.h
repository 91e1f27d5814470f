// A lean stand-in for torch/all.h, put first on the include path of vLLM's kernels by the lean-headers patch.
//
// torch/all.h declares the whole C++ front end (autograd, nn, optim, data, serialisation); nvcc parses it three times
// a unit, which is 50 of a light unit's 52 seconds. vLLM's csrc uses tensors, their options, a handful of factories
// and the dispatch macros: that is declared here, from torch's own per-operator headers. Units that need more are
// found by the patch and compiled with VLLM_TORCH_LIBRARY, VLLM_STOCK_CUDA_CONTEXT or VLLM_STOCK_TORCH_HEADERS.
//
// Only declarations that host code sees differ; `nox -s bench -- --prove-headers` shows that device code does not.
#if defined(VLLM_STOCK_TORCH_HEADERS)
#include_next <torch/all.h>
#else
#pragma once
#include <torch/types.h>
#endif
