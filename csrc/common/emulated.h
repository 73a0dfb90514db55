// CUDA's execution model on the CPU, for tests: what common/cuda.h takes in place of the real
// thing. Threads are fibres of one thread of the host; after each barrier, shuffle or pause the
// next to run is drawn at random, so an order that a kernel relies on without a barrier shows.
// A block's shared memory is as large as the launch says and begins as NaN.
//
// What it finds: wrong numbers, missing or divergent barriers (a barrier that some threads of a
// block do not reach, or that two lines of source stand for), lanes that a shuffle misses, endless
// waits; under AddressSanitizer every access outside an array or the shared memory. What it cannot
// find: unsynchronised accesses between two barriers that this order happens to get right, a weak
// memory order, misaligned vector loads on the card, speed.
#pragma once

#include <math.h>
#include <ucontext.h>

#include <algorithm>
#include <cstdint>
#include <cstdio>
#include <cstring>
#include <functional>
#include <memory>
#include <random>
#include <string>
#include <tuple>
#include <utility>
#include <vector>

#if defined(__SANITIZE_ADDRESS__)
#include <sanitizer/asan_interface.h>
#include <sanitizer/common_interface_defs.h>
#endif

namespace emulated {

struct Dim {
    unsigned x = 1, y = 1, z = 1;
};

struct Fibre;

// Those who wait until all have come.
struct Barrier {
    std::vector<Fibre*> waiting;
    int line = 0;
};

constexpr int kLanes = 32;

struct Warp {
    Barrier barrier;
    int threads = 0, ended = 0;
    uint64_t slot[kLanes] = {};
    // operands and results of a fragment operation, by lane
    unsigned char fragment[kLanes][128] = {};
};

struct Block {
    Dim index;
    Barrier barrier;
    int threads = 0, ended = 0;
    std::vector<Warp> warps;
    std::unique_ptr<unsigned char[]> shared;
};

// An asynchronous copy of 16 bytes, done when it is waited for.
struct Copy {
    void* to;
    const void* from;
};

struct Fibre {
    ucontext_t context;
    Block* block;
    Warp* warp;
    Dim index;
    int lane;
    bool ended;
    std::unique_ptr<unsigned char[]> stack;
    void* fake_stack;
    std::vector<Copy> copies;
    std::vector<std::size_t> groups;  // ends of the committed ones in `copies`
};

#if defined(__SANITIZE_ADDRESS__)
constexpr std::size_t kStack = 256 << 10;
#else
constexpr std::size_t kStack = 128 << 10;
#endif

struct Kernel {
    const char* name;
    unsigned threads;
    std::function<void(void**)> call;
};
inline std::vector<Kernel>& kernels() {
    static std::vector<Kernel> all;
    return all;
}

// One launch at a time, in the thread that asks for it.
struct Machine {
    Dim grid, block;
    const Kernel* kernel = nullptr;
    void** arguments = nullptr;
    std::mt19937_64 random;
    std::string error;

    ucontext_t scheduler;
    const void* scheduler_stack = nullptr;
    std::size_t scheduler_size = 0;
    void* scheduler_fake = nullptr;

    Fibre* current = nullptr;
    std::vector<std::unique_ptr<Fibre>> fibres;  // kept for their stacks
    std::vector<Fibre*> runnable;
    std::size_t living = 0;
    uint64_t idle = 0;       // pauses since anything else happened
    bool abandoned = false;  // fibres of a launch that failed

    // In a fibre: let another run.
    void leave(bool for_good = false) {
        Fibre* const mine = current;
#if defined(__SANITIZE_ADDRESS__)
        __sanitizer_start_switch_fiber(for_good ? nullptr : &mine->fake_stack, scheduler_stack,
                                       scheduler_size);
#endif
        swapcontext(&mine->context, &scheduler);
#if defined(__SANITIZE_ADDRESS__)
        __sanitizer_finish_switch_fiber(mine->fake_stack, nullptr, nullptr);
#endif
        (void)for_good;
    }
    // In a fibre: end the launch.
    [[noreturn]] void fail(const std::string& what) {
        if (error.empty()) error = what;
        leave(true);
        __builtin_unreachable();
    }
    void pause() {
        ++idle;
        runnable.push_back(current);
        leave();
    }
    // In a fibre: wait until `count` fibres have come here.
    void wait(Barrier& barrier, int count, int ended, int line, const char* what) {
        if (ended > 0)
            fail(std::string(what) + " at line " + std::to_string(line) +
                 " after threads of it have returned");
        if (barrier.waiting.empty()) barrier.line = line;
        if (barrier.line != line)
            fail(std::string(what) + " diverges: lines " + std::to_string(barrier.line) + " and " +
                 std::to_string(line));
        barrier.waiting.push_back(current);
        idle = 0;
        if (int(barrier.waiting.size()) == count) {
            runnable.insert(runnable.end(), barrier.waiting.begin(), barrier.waiting.end());
            barrier.waiting.clear();
        }
        leave();
    }

    static void run_fibre();
    void start(Block& block, unsigned first_fibre);
    void run_blocks(std::vector<std::unique_ptr<Block>>& blocks);
    void launch(bool cooperative, std::size_t shared);
};
inline Machine machine;

inline void Machine::run_fibre() {
#if defined(__SANITIZE_ADDRESS__)
    __sanitizer_finish_switch_fiber(nullptr, &machine.scheduler_stack, &machine.scheduler_size);
#endif
    machine.kernel->call(machine.arguments);
    Fibre* const mine = machine.current;
    mine->ended = true;
    ++mine->block->ended;
    ++mine->warp->ended;
    --machine.living;
    machine.idle = 0;
    if (!mine->block->barrier.waiting.empty())
        machine.error = "a thread returned while others of its block wait at line " +
                        std::to_string(mine->block->barrier.line);
    if (!mine->warp->barrier.waiting.empty())
        machine.error = "a thread returned while others of its warp wait at line " +
                        std::to_string(mine->warp->barrier.line);
    machine.leave(true);
}

inline void Machine::start(Block& made, unsigned first_fibre) {
    for (unsigned i = 0; i < block.x; ++i) {
        while (fibres.size() <= first_fibre + i) {
            fibres.push_back(std::make_unique<Fibre>());
            fibres.back()->stack = std::make_unique_for_overwrite<unsigned char[]>(kStack);
        }
        Fibre& fibre = *fibres[first_fibre + i];
        fibre.block = &made;
        fibre.warp = &made.warps[i / kLanes];
        fibre.index = {i, 0, 0};
        fibre.lane = int(i % kLanes);
        fibre.ended = false;
        fibre.fake_stack = nullptr;
        fibre.copies.clear();
        fibre.groups.clear();
#if defined(__SANITIZE_ADDRESS__)
        // Frames of a fibre that has returned are clean but for its first; abandoned ones are not.
        const std::size_t dirty = abandoned ? kStack : 4096;
        __asan_unpoison_memory_region(fibre.stack.get() + kStack - dirty, dirty);
#endif
        getcontext(&fibre.context);
        fibre.context.uc_stack.ss_sp = fibre.stack.get();
        fibre.context.uc_stack.ss_size = kStack;
        fibre.context.uc_link = nullptr;
        makecontext(&fibre.context, &Machine::run_fibre, 0);
        runnable.push_back(&fibre);
        ++living;
    }
}

inline void Machine::run_blocks(std::vector<std::unique_ptr<Block>>& blocks) {
    runnable.clear();
    living = 0;
    idle = 0;
    for (std::size_t i = 0; i < blocks.size(); ++i) start(*blocks[i], unsigned(i) * block.x);
    const uint64_t patience = 100000 + 1000 * uint64_t(living);
    abandoned = false;
    while (living > 0 && error.empty()) {
        if (runnable.empty()) {
            error = "threads wait at barriers that the others never reach";
            break;
        }
        if (idle > patience) {
            error = "threads wait without end (is the launch cooperative?)";
            break;
        }
        const std::size_t at = random() % runnable.size();
        current = runnable[at];
        runnable[at] = runnable.back();
        runnable.pop_back();
#if defined(__SANITIZE_ADDRESS__)
        __sanitizer_start_switch_fiber(&scheduler_fake, current->stack.get(), kStack);
#endif
        swapcontext(&scheduler, &current->context);
#if defined(__SANITIZE_ADDRESS__)
        __sanitizer_finish_switch_fiber(scheduler_fake, nullptr, nullptr);
#endif
    }
    abandoned = !error.empty();
}

inline void Machine::launch(bool cooperative, std::size_t shared) {
    const std::size_t count = std::size_t(grid.x) * grid.y * grid.z;
    std::vector<std::size_t> order(count);
    for (std::size_t i = 0; i < count; ++i) order[i] = i;
    std::shuffle(order.begin(), order.end(), random);
    std::vector<std::unique_ptr<Block>> blocks;
    for (std::size_t i = 0; i < count && error.empty(); ++i) {
        auto made = std::make_unique<Block>();
        made->index = {unsigned(order[i] % grid.x), unsigned(order[i] / grid.x % grid.y),
                       unsigned(order[i] / grid.x / grid.y)};
        made->threads = int(block.x);
        made->warps.resize((block.x + kLanes - 1) / kLanes);
        for (unsigned t = 0; t < block.x; ++t) ++made->warps[t / kLanes].threads;
        made->shared = std::make_unique_for_overwrite<unsigned char[]>(shared);
        std::memset(made->shared.get(), 0xFF, shared);
        blocks.push_back(std::move(made));
        if (!cooperative || i + 1 == count) {
            run_blocks(blocks);
            blocks.clear();
        }
    }
}

template <class... Parameters>
struct Registered {
    Registered(const char* name, unsigned threads, void (*function)(Parameters...)) {
        kernels().push_back({name, threads, [function](void** given) {
                                 call(function, given, std::index_sequence_for<Parameters...>{});
                             }});
    }
    template <std::size_t... I>
    static void call(void (*function)(Parameters...), void** given, std::index_sequence<I...>) {
        function(*static_cast<Parameters*>(given[I])...);
    }
};

inline void sync_warp(unsigned lanes, int line) {
    Warp& warp = *machine.current->warp;
    if (lanes != 0xFFFFFFFFu || warp.threads != kLanes)
        machine.fail("a warp operation at line " + std::to_string(line) + " lacks lanes");
    machine.wait(warp.barrier, kLanes, warp.ended, line, "a warp operation");
}

// What lane `from` gives as `value`.
template <class T>
T shuffle(unsigned lanes, T value, int from, int line) {
    static_assert(sizeof(T) <= 8);
    Fibre& mine = *machine.current;
    std::memcpy(&mine.warp->slot[mine.lane], &value, sizeof value);
    sync_warp(lanes, line);
    T other = value;
    if (from >= 0 && from < kLanes) std::memcpy(&other, &mine.warp->slot[from], sizeof other);
    sync_warp(lanes, line);
    return other;
}

}  // namespace emulated

#define __device__
#define __host__
#define __forceinline__ inline
#define threadIdx (emulated::machine.current->index)
#define blockIdx (emulated::machine.current->block->index)
#define blockDim (emulated::machine.block)
#define gridDim (emulated::machine.grid)

#define NLM_KERNEL(name, threads, ...)                                            \
    static void name(__VA_ARGS__);                                                \
    static const emulated::Registered registered_##name(#name, threads, &(name)); \
    static void name(__VA_ARGS__)

template <class T>
inline T* nlm_shared() {
    return reinterpret_cast<T*>(emulated::machine.current->block->shared.get());
}
inline void nlm_pause() { emulated::machine.pause(); }
inline uint32_t nlm_load_acquire(const uint32_t* p) { return *p; }
template <class T>
inline T nlm_load_global(const T* p) {
    return *p;
}
inline void nlm_copy16(void* to, const void* from) {
    if (reinterpret_cast<std::uintptr_t>(to) % 16 != 0 ||
        reinterpret_cast<std::uintptr_t>(from) % 16 != 0)
        emulated::machine.fail("a copy of 16 bytes is not aligned");
    emulated::machine.current->copies.push_back({to, from});
}
inline void nlm_copy_commit() {
    emulated::Fibre& mine = *emulated::machine.current;
    mine.groups.push_back(mine.copies.size());
}
template <int kLeft>
inline void nlm_copy_wait() {
    emulated::Fibre& mine = *emulated::machine.current;
    if (mine.groups.size() <= kLeft) return;
    const std::size_t done = mine.groups.size() - kLeft, end = mine.groups[done - 1];
    for (std::size_t i = 0; i < end; ++i) std::memcpy(mine.copies[i].to, mine.copies[i].from, 16);
    mine.copies.erase(mine.copies.begin(), mine.copies.begin() + long(end));
    mine.groups.erase(mine.groups.begin(), mine.groups.begin() + long(done));
    for (std::size_t& group : mine.groups) group -= end;
}

inline void __syncthreads(int line = __builtin_LINE()) {
    emulated::Block& block = *emulated::machine.current->block;
    emulated::machine.wait(block.barrier, block.threads, block.ended, line, "a block's barrier");
}
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
    return emulated::shuffle(lanes, value, emulated::machine.current->lane ^ with, line);
}
template <class T>
inline T __shfl_down_sync(unsigned lanes, T value, unsigned by, int line = __builtin_LINE()) {
    return emulated::shuffle(lanes, value, emulated::machine.current->lane + int(by), line);
}
template <class T>
inline T __shfl_up_sync(unsigned lanes, T value, unsigned by, int line = __builtin_LINE()) {
    return emulated::shuffle(lanes, value, emulated::machine.current->lane - int(by), line);
}
inline unsigned __ballot_sync(unsigned lanes, bool vote, int line = __builtin_LINE()) {
    unsigned votes = 0;
    emulated::Fibre& mine = *emulated::machine.current;
    mine.warp->slot[mine.lane] = vote;
    emulated::sync_warp(lanes, line);
    for (int i = 0; i < emulated::kLanes; ++i) votes |= unsigned(mine.warp->slot[i] & 1) << i;
    emulated::sync_warp(lanes, line);
    return votes;
}
// On integers only: sums of floats would depend on the order.
inline uint32_t atomicAdd(uint32_t* at, uint32_t value) {
    emulated::machine.idle = 0;
    return std::exchange(*at, *at + value);
}
inline int32_t atomicAdd(int32_t* at, int32_t value) {
    emulated::machine.idle = 0;
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

// Run a kernel; returns 0, or 1 with what went wrong in `error`.
extern "C" inline __attribute__((used, visibility("default"))) int nlm_emulated_launch(
    const char* name, const unsigned* grid, unsigned threads, std::size_t shared, int cooperative,
    void** arguments, uint64_t seed, char* error, std::size_t size) {
    emulated::Machine& machine = emulated::machine;
    machine.kernel = nullptr;
    for (const emulated::Kernel& kernel : emulated::kernels())
        if (std::strcmp(kernel.name, name) == 0) machine.kernel = &kernel;
    machine.error.clear();
    if (machine.kernel == nullptr)
        machine.error = "there is no such kernel";
    else if (machine.kernel->threads != threads)
        machine.error = "the block's size differs from the source's";
    machine.grid = {grid[0], grid[1], grid[2]};
    machine.block = {threads, 1, 1};
    machine.arguments = arguments;
    machine.random.seed(seed);
    if (machine.error.empty()) machine.launch(cooperative != 0, shared);
    std::snprintf(error, size, "%s", machine.error.c_str());
    return machine.error.empty() ? 0 : 1;
}
