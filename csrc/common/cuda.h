// What every CUDA kernel (*.cu) starts from. The same source is compiled by NVRTC for a GPU and by
// a C++ compiler against common/emulated.h, where threads are fibres: for that
//
//   - a kernel is defined by NLM_KERNEL(name, threads, parameters...) { ... }; `threads` is its
//     block size, a literal: the host reads it and the parameters from this source;
//   - its shared memory is nlm_shared<T>(), sized by the launch, and nothing else;
//   - whoever waits in a loop calls nlm_pause() in it;
//   - block barriers, warp shuffles and fragments are those below.
//
// REAL (float or double) is defined by whoever compiles. No atomics on floats: same input, same
// bits. Compiled with -default-device, so functions need no __device__.
#pragma once

#if defined(NLM_EMULATED)
#include "common/emulated.h"
#else
typedef unsigned int uint32_t;
typedef unsigned long long uint64_t;
typedef int int32_t;
typedef long long int64_t;

// One block of a multiprocessor is enough: otherwise ptxas spills a few registers, or loads in
// turn what could be on its way together, so that more may be there.
#define NLM_KERNEL(name, threads, ...) \
    extern "C" __global__ void __launch_bounds__(threads, 1) name(__VA_ARGS__)

extern __shared__ __align__(16) unsigned char nlm_shared_bytes[];
template <class T>
__device__ __forceinline__ T* nlm_shared() {
    return reinterpret_cast<T*>(nlm_shared_bytes);
}
__device__ __forceinline__ void nlm_pause() { __nanosleep(20); }
__device__ __forceinline__ double nlm_infinity() {
    return __longlong_as_double(0x7FF0000000000000LL);
}
__device__ __forceinline__ uint32_t nlm_load_acquire(const uint32_t* p) {
    uint32_t value;
    asm volatile("ld.acquire.gpu.global.u32 %0, [%1];" : "=r"(value) : "l"(p) : "memory");
    return value;
}
// A load of what another block has written during this launch: past the first-level cache.
template <class T>
__device__ __forceinline__ T nlm_load_global(const T* p) {
    return __ldcg(p);
}
// 16 bytes from global to shared memory, likewise past the first-level cache; they are there after
// nlm_copy_wait<n>(), which leaves the n latest groups under way, for the thread that copied, and
// after a block barrier for all.
__device__ __forceinline__ void nlm_copy16(void* to, const void* from) {
#if __CUDA_ARCH__ >= 800
    const uint32_t at = uint32_t(__cvta_generic_to_shared(to));
    asm volatile("cp.async.cg.shared.global [%0], [%1], 16;" ::"r"(at), "l"(from) : "memory");
#else
    *static_cast<int4*>(to) = __ldcg(static_cast<const int4*>(from));
#endif
}
__device__ __forceinline__ void nlm_copy_commit() {
#if __CUDA_ARCH__ >= 800
    asm volatile("cp.async.commit_group;" ::: "memory");
#endif
}
template <int kLeft>
__device__ __forceinline__ void nlm_copy_wait() {
#if __CUDA_ARCH__ >= 800
    asm volatile("cp.async.wait_group %0;" ::"n"(kLeft) : "memory");
#endif
}
#endif

#include "common/fn.h"

constexpr int kWarp = 32;
constexpr unsigned kAllLanes = 0xFFFFFFFFu;

// This thread's number in the grid, and the number of the grid's threads: for loops over elements
// `for (int64_t i = grid_thread(); i < n; i += grid_threads())`.
NLM_FN int64_t grid_thread() { return int64_t(blockIdx.x) * blockDim.x + threadIdx.x; }
NLM_FN int64_t grid_threads() { return int64_t(gridDim.x) * blockDim.x; }

// A number that the host gives, or that stands in device memory (`at`): what a CUDA graph is to
// read anew each time it runs. Of a kernel's parameters `x` and `const double* x_at` the host fills
// one.
template <class T>
NLM_FN T late(T value, const double* at) {
    return at != nullptr ? T(*at) : value;
}

// The value of all lanes of a full warp, added up (or the largest), in one order for all.
template <class T>
NLM_FN T warp_sum(T value) {
    for (int lanes = kWarp / 2; lanes > 0; lanes /= 2)
        value += __shfl_xor_sync(kAllLanes, value, lanes);
    return value;
}
template <class T>
NLM_FN T warp_max(T value) {
    for (int lanes = kWarp / 2; lanes > 0; lanes /= 2) {
        const T other = __shfl_xor_sync(kAllLanes, value, lanes);
        value = other > value ? other : value;
    }
    return value;
}

// The sum over a block of whole warps, for all its threads; `warps` is shared memory for a value
// of each warp. Ends with a barrier, so `warps` may be used again.
template <class T>
NLM_FN T block_sum(T value, T* warps) {
    value = warp_sum(value);
    const int warp = int(threadIdx.x) / kWarp, count = int(blockDim.x) / kWarp;
    if (int(threadIdx.x) % kWarp == 0) warps[warp] = value;
    __syncthreads();
    T total = 0;
    for (int w = 0; w < count; ++w) total += warps[w];
    __syncthreads();
    return total;
}

// The sum of `value` over the warp's earlier lanes.
template <class T>
NLM_FN T warp_sum_before(T value) {
    const int lane = int(threadIdx.x) % kWarp;
    T sum = value;
    for (int lanes = 1; lanes < kWarp; lanes *= 2) {
        const T below = __shfl_up_sync(kAllLanes, sum, unsigned(lanes));
        if (lane >= lanes) sum += below;
    }
    const T before = __shfl_up_sync(kAllLanes, sum, 1u);
    return lane > 0 ? before : T(0);
}

// The sum of `value` over the block's earlier threads; `warps` as for block_sum.
NLM_FN uint32_t block_sum_before(uint32_t value, uint32_t* warps) {
    const int warp = int(threadIdx.x) / kWarp;
    const uint32_t inside = warp_sum_before(value);
    if (int(threadIdx.x) % kWarp == kWarp - 1) warps[warp] = inside + value;
    __syncthreads();
    uint32_t before = inside;
    for (int w = 0; w < warp; ++w) before += warps[w];
    __syncthreads();
    return before;
}

// A barrier of `blocks` blocks that are all on the card (a cooperative launch), in two halves.
// `arrived` is a word of global memory, 0 before the launch; `round` counts this barrier's uses
// from 1, in each thread alike.
NLM_FN void grid_arrive(uint32_t* arrived) {
    __syncthreads();
    if (threadIdx.x == 0) {
        __threadfence();
        atomicAdd(arrived, 1u);
    }
}
NLM_FN void grid_wait(const uint32_t* arrived, uint32_t blocks, uint32_t round) {
    // signed: the count may wrap around
    if (threadIdx.x == 0)
        while (int32_t(nlm_load_acquire(arrived) - blocks * round) < 0) nlm_pause();
    __syncthreads();
}
NLM_FN void grid_barrier(uint32_t* arrived, uint32_t blocks, uint32_t round) {
    grid_arrive(arrived);
    grid_wait(arrived, blocks, round);
}

// Elementary functions for the equations of *_math.h.
template <class T>
struct CudaFn {
    using Real = T;
    using Scalar = T;
    static NLM_FN T sigmoid(T a) { return T(1) / (T(1) + exp(-a)); }
    static NLM_FN T tanh(T a) { return ::tanh(a); }
    static NLM_FN T sqrt(T a) { return ::sqrt(a); }
    // NaN stays NaN.
    static NLM_FN T clamp(T a, T bound) { return a > bound ? bound : (a < -bound ? -bound : a); }
    // `value` where |a| <= bound, else 0.
    static NLM_FN T inside(T a, T bound, T value) { return a > bound || a < -bound ? T(0) : value; }
};
