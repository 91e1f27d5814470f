// A lean stand-in for ATen/cuda/CUDAContext.h: see torch/all.h two folders up. torch's own brings all of cuBLAS,
// cuSPARSE and cuSOLVER for the handles it hands out; vLLM's kernels ask for the stream and the device's properties.
#if defined(VLLM_STOCK_TORCH_HEADERS) || defined(VLLM_STOCK_CUDA_CONTEXT)
#include_next <ATen/cuda/CUDAContext.h>
#else
#pragma once

#include <c10/cuda/CUDAException.h>
#include <c10/cuda/CUDAFunctions.h>
#include <c10/cuda/CUDAStream.h>
#include <cuda_runtime_api.h>

#define AT_CUDA_CHECK(EXPR) C10_CUDA_CHECK(EXPR)  // as in ATen/cuda/Exceptions.h

namespace at::cuda {

using c10::cuda::CUDAStream;
using c10::cuda::getCurrentCUDAStream;
using c10::cuda::getDefaultCUDAStream;
using c10::cuda::getStreamFromPool;

TORCH_CUDA_CPP_API cudaDeviceProp* getCurrentDeviceProperties();
TORCH_CUDA_CPP_API cudaDeviceProp* getDeviceProperties(c10::DeviceIndex device);

}  // namespace at::cuda
#endif
