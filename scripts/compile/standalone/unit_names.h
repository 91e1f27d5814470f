/* Read before each CUDA unit. CUB and Thrust put themselves into an inline namespace that is named after the list of
   archs, so that libraries for other archs share no kernel. Here it is named after the unit: no two units share one
   either, and what is compiled for an arch is the same text in whichever list the arch stands. See docs/caching.md.
   The names of the macros are those of CUDA 11.6 to 13.0; where there are none, nothing changes. */
#if defined(WHEELSMITH_UNIT) && !defined(_NVHPC_CUDA) && defined(__has_include)
#if __has_include(<thrust/detail/config/namespace.h>)
#include <thrust/detail/config/namespace.h>
#if defined(THRUST_DETAIL_ABI_NS_BEGIN) && !defined(THRUST_DISABLE_ABI_NAMESPACE) && \
    THRUST_DEVICE_SYSTEM == THRUST_DEVICE_SYSTEM_CUDA
#undef THRUST_DETAIL_ABI_NS_BEGIN
#define THRUST_DETAIL_ABI_NS_BEGIN inline namespace WHEELSMITH_UNIT {
#endif
#endif
#if __has_include(<cub/util_namespace.cuh>)
#include <cub/util_namespace.cuh>
#if defined(CUB_DETAIL_MAGIC_NS_BEGIN) && !defined(CUB_DISABLE_NAMESPACE_MAGIC) && !defined(CUB_WRAPPED_NAMESPACE)
#undef CUB_DETAIL_MAGIC_NS_BEGIN
#define CUB_DETAIL_MAGIC_NS_BEGIN inline namespace WHEELSMITH_UNIT {
#endif
#endif
#endif
