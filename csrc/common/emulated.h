// CUDA's execution model on the CPU, for tests: what common/cuda.h takes in place of the real
// thing. Threads are fibres of one thread of the host; after each barrier, shuffle or pause the
// next to run is drawn at random, so an order that a kernel relies on without a barrier shows.
// A block's shared memory is as large as the launch says and begins as NaN. emulated.cpp, a library
// of its own, runs the fibres.
//
// What it finds: wrong numbers, missing or divergent barriers (a barrier that some threads of a
// block do not reach, or that two lines of source stand for), lanes that a shuffle misses, endless
// waits; under AddressSanitizer every access outside an array or the shared memory. What it cannot
// find: unsynchronised accesses between two barriers that this order happens to get right, a weak
// memory order, misaligned vector loads on the card, speed.
#pragma once

#include <math.h>
#include <stdint.h>
#include <string.h>

#include <utility>

#define NLM_SHOWN __attribute__((visibility("default")))

namespace emulated {

constexpr int kLanes = 32;

struct Dim {
    unsigned x = 1, y = 1, z = 1;
};

// A thread as its kernel sees it.
struct Thread {
    Dim index, block;
    int lane;
    unsigned char* shared;
    uint64_t* slots;           // of the warp's lanes
    unsigned char* fragments;  // operands and results of a fragment operation, kFragment by lane
};
constexpr int kFragment = 128;

extern NLM_SHOWN Thread* current;
extern NLM_SHOWN Dim grid, block;

// Each lets other threads run.
NLM_SHOWN void pause();
NLM_SHOWN void sync_block(int line);
NLM_SHOWN void sync_warp(unsigned lanes, int line);
// Threads that wait have something new to look at.
NLM_SHOWN void moved();
// Asynchronous copies of 16 bytes, done when they are waited for.
NLM_SHOWN void copy16(void* to, const void* from);
NLM_SHOWN void copy_commit();
NLM_SHOWN void copy_wait(int left);

template <class... Parameters, std::size_t... I>
void call(void (*kernel)(Parameters...), void** given, std::index_sequence<I...>) {
    kernel(*static_cast<Parameters*>(given[I])...);
}
template <class... Parameters>
void call(void (*kernel)(Parameters...), void** given) {
    call(kernel, given, std::index_sequence_for<Parameters...>{});
}

// What lane `from` gives as `value`.
template <class T>
T shuffle(unsigned lanes, T value, int from, int line) {
    static_assert(sizeof(T) <= 8);
    memcpy(&current->slots[current->lane], &value, sizeof value);
    sync_warp(lanes, line);
    T other = value;
    if (from >= 0 && from < kLanes) memcpy(&other, &current->slots[from], sizeof other);
    sync_warp(lanes, line);
    return other;
}

}  // namespace emulated

#define __device__
#define __host__
#define __forceinline__ inline
#define threadIdx (emulated::current->index)
#define blockIdx (emulated::current->block)
#define blockDim (emulated::block)
#define gridDim (emulated::grid)

#define NLM_KERNEL(name, threads, ...)                                                           \
    static void name(__VA_ARGS__);                                                               \
    extern "C" NLM_SHOWN void nlm_emulated_##name(void** given) { emulated::call(name, given); } \
    static void name(__VA_ARGS__)

template <class T>
inline T* nlm_shared() {
    return reinterpret_cast<T*>(emulated::current->shared);
}
inline double nlm_infinity() { return HUGE_VAL; }
inline void nlm_pause() { emulated::pause(); }
inline uint32_t nlm_load_acquire(const uint32_t* p) { return *p; }
template <class T>
inline T nlm_load_global(const T* p) {
    return *p;
}
inline void nlm_copy16(void* to, const void* from) { emulated::copy16(to, from); }
inline void nlm_copy_commit() { emulated::copy_commit(); }
template <int kLeft>
inline void nlm_copy_wait() {
    emulated::copy_wait(kLeft);
}

inline void __syncthreads(int line = __builtin_LINE()) { emulated::sync_block(line); }
inline void __syncwarp(unsigned lanes = 0xFFFFFFFFu, int line = __builtin_LINE()) {
    emulated::sync_warp(lanes, line);
}
inline void __threadfence() {}
template <class T>
inline T __shfl_sync(unsigned lanes, T value, int from, int line = __builtin_LINE()) {
    return emulated::shuffle(lanes, value, from, line);
}
template <class T>
inline T __shfl_xor_sync(unsigned lanes, T value, int with, int line = __builtin_LINE()) {
    return emulated::shuffle(lanes, value, emulated::current->lane ^ with, line);
}
template <class T>
inline T __shfl_down_sync(unsigned lanes, T value, unsigned by, int line = __builtin_LINE()) {
    return emulated::shuffle(lanes, value, emulated::current->lane + int(by), line);
}
template <class T>
inline T __shfl_up_sync(unsigned lanes, T value, unsigned by, int line = __builtin_LINE()) {
    return emulated::shuffle(lanes, value, emulated::current->lane - int(by), line);
}
inline unsigned __ballot_sync(unsigned lanes, bool vote, int line = __builtin_LINE()) {
    unsigned votes = 0;
    emulated::current->slots[emulated::current->lane] = vote;
    emulated::sync_warp(lanes, line);
    for (int i = 0; i < emulated::kLanes; ++i)
        votes |= unsigned(emulated::current->slots[i] & 1) << i;
    emulated::sync_warp(lanes, line);
    return votes;
}
inline unsigned __match_any_sync(unsigned lanes, uint32_t value, int line = __builtin_LINE()) {
    unsigned same = 0;
    emulated::current->slots[emulated::current->lane] = value;
    emulated::sync_warp(lanes, line);
    for (int i = 0; i < emulated::kLanes; ++i)
        same |= unsigned(emulated::current->slots[i] == value) << i;
    emulated::sync_warp(lanes, line);
    return same;
}
inline int __popc(unsigned bits) { return __builtin_popcount(bits); }
inline int __ffs(int bits) { return __builtin_ffs(bits); }
// On integers only: sums of floats would depend on the order.
inline uint32_t atomicAdd(uint32_t* at, uint32_t value) {
    emulated::moved();
    return std::exchange(*at, *at + value);
}
inline int32_t atomicAdd(int32_t* at, int32_t value) {
    emulated::moved();
    return std::exchange(*at, *at + value);
}
template <class T>
inline T __ldg(const T* p) {
    return *p;
}
struct alignas(16) float4 {
    float x, y, z, w;
};
struct alignas(16) double2 {
    double x, y;
};
