// Runs the fibres of common/emulated.h: a library of its own, so that kernels compile quickly.
#include "common/emulated.h"

#if !defined(__x86_64__)
#include <ucontext.h>
#endif

#include <algorithm>
#include <cstddef>
#include <cstdio>
#include <memory>
#include <random>
#include <string>
#include <vector>

#if defined(__SANITIZE_ADDRESS__)
#include <sanitizer/asan_interface.h>
#include <sanitizer/common_interface_defs.h>
#endif

namespace emulated {

Thread* current = nullptr;
Dim grid, block;

namespace {

struct Fibre;

// Those who wait until all have come.
struct Barrier {
    std::vector<Fibre*> waiting;
    int line = 0;
};

struct Warp {
    Barrier barrier;
    int threads = 0, ended = 0;
    uint64_t slots[kLanes] = {};
    unsigned char fragments[kLanes * kFragment] = {};
};

struct Block {
    Dim index;
    Barrier barrier;
    int threads = 0, ended = 0;
    std::vector<Warp> warps;
    std::unique_ptr<unsigned char[]> shared;
};

struct Copy {
    void* to;
    const void* from;
};

#if defined(__SANITIZE_ADDRESS__)
constexpr std::size_t kStack = 256 << 10;
#else
constexpr std::size_t kStack = 128 << 10;
#endif

// Where a stack of its own was left. On x86-64 by hand: swapcontext asks the kernel for the signal
// mask at each switch, which takes longer than all the rest.
#if defined(__x86_64__)
struct Context {
    void* stack;
    void begin(unsigned char* bytes, std::size_t size, void (*function)()) {
        void** at = reinterpret_cast<void**>(bytes + size);
        *--at = nullptr;  // no caller; and the stack is aligned as at a call
        *--at = reinterpret_cast<void*>(function);
        for (int i = 0; i < 6; ++i) *--at = nullptr;  // rbp rbx r12-r15
        stack = at;
    }
};
extern "C" void nlm_emulated_switch(void** left, void* entered);
asm(R"(
    .text
    .type nlm_emulated_switch, @function
nlm_emulated_switch:
    pushq %rbp
    pushq %rbx
    pushq %r12
    pushq %r13
    pushq %r14
    pushq %r15
    movq %rsp, (%rdi)
    movq %rsi, %rsp
    popq %r15
    popq %r14
    popq %r13
    popq %r12
    popq %rbx
    popq %rbp
    ret
    .size nlm_emulated_switch, .-nlm_emulated_switch
)");
void change(Context& from, Context& to) { nlm_emulated_switch(&from.stack, to.stack); }
#else
struct Context {
    ucontext_t saved;
    void begin(unsigned char* bytes, std::size_t size, void (*function)()) {
        getcontext(&saved);
        saved.uc_stack.ss_sp = bytes;
        saved.uc_stack.ss_size = size;
        saved.uc_link = nullptr;
        makecontext(&saved, function, 0);
    }
};
void change(Context& from, Context& to) { swapcontext(&from.saved, &to.saved); }
#endif

struct Fibre {
    Thread thread;
    Context context;
    Block* block;
    Warp* warp;
    std::unique_ptr<unsigned char[]> stack;
    void* fake_stack;
    std::vector<Copy> copies;
    std::vector<std::size_t> groups;  // ends of the committed ones in `copies`
};

constexpr char kOfBlock[] = "a block's barrier", kOfWarp[] = "a warp operation";
std::string unreached(const char* what, int line) {
    return std::string(what) + " at line " + std::to_string(line) +
           " that not all of its threads reach";
}

// One launch at a time, in the thread that asks for it.
struct Machine {
    void (*kernel)(void**) = nullptr;
    void** arguments = nullptr;
    std::mt19937_64 random;
    std::string error;

    Context scheduler;
    const void* scheduler_stack = nullptr;
    std::size_t scheduler_size = 0;
    void* scheduler_fake = nullptr;

    Fibre* running = nullptr;
    std::vector<std::unique_ptr<Fibre>> fibres;  // kept for their stacks
    std::vector<Fibre*> runnable;
    std::size_t living = 0;
    uint64_t idle = 0;       // pauses since anything else happened
    bool abandoned = false;  // fibres of a launch that failed

    void leave(bool for_good = false);
    [[noreturn]] void fail(const std::string& what);
    void wait(Barrier& barrier, int count, int ended, int line, const char* what);
    static void run_fibre();
    void start(Block& made, unsigned first_fibre);
    void run_blocks(std::vector<std::unique_ptr<Block>>& blocks);
    void launch(bool cooperative, std::size_t shared);
};
Machine machine;

// In a fibre: let another run.
void Machine::leave(bool for_good) {
    [[maybe_unused]] const bool ends = for_good;
    Fibre* const mine = running;
#if defined(__SANITIZE_ADDRESS__)
    __sanitizer_start_switch_fiber(ends ? nullptr : &mine->fake_stack, scheduler_stack,
                                   scheduler_size);
#endif
    change(mine->context, scheduler);
#if defined(__SANITIZE_ADDRESS__)
    __sanitizer_finish_switch_fiber(mine->fake_stack, nullptr, nullptr);
#endif
}

// In a fibre: end the launch.
void Machine::fail(const std::string& what) {
    if (error.empty()) error = what;
    leave(true);
    __builtin_unreachable();
}

// In a fibre: wait until `count` fibres have come here.
void Machine::wait(Barrier& barrier, int count, int ended, int line, const char* what) {
    if (ended > 0) fail(unreached(what, line));
    if (barrier.waiting.empty()) barrier.line = line;
    if (barrier.line != line)
        fail(std::string(what) + " diverges: lines " +
             std::to_string(std::min(line, barrier.line)) + " and " +
             std::to_string(std::max(line, barrier.line)));
    barrier.waiting.push_back(running);
    idle = 0;
    if (int(barrier.waiting.size()) == count) {
        runnable.insert(runnable.end(), barrier.waiting.begin(), barrier.waiting.end());
        barrier.waiting.clear();
    }
    leave();
}

void Machine::run_fibre() {
#if defined(__SANITIZE_ADDRESS__)
    __sanitizer_finish_switch_fiber(nullptr, &machine.scheduler_stack, &machine.scheduler_size);
#endif
    machine.kernel(machine.arguments);
    Fibre* const mine = machine.running;
    ++mine->block->ended;
    ++mine->warp->ended;
    --machine.living;
    machine.idle = 0;
    if (!mine->block->barrier.waiting.empty())
        machine.error = unreached(kOfBlock, mine->block->barrier.line);
    if (!mine->warp->barrier.waiting.empty())
        machine.error = unreached(kOfWarp, mine->warp->barrier.line);
    machine.leave(true);
}

void Machine::start(Block& made, unsigned first_fibre) {
    for (unsigned i = 0; i < block.x; ++i) {
        while (fibres.size() <= first_fibre + i) {
            fibres.push_back(std::make_unique<Fibre>());
            fibres.back()->stack = std::make_unique_for_overwrite<unsigned char[]>(kStack);
        }
        Fibre& fibre = *fibres[first_fibre + i];
        fibre.block = &made;
        fibre.warp = &made.warps[i / kLanes];
        fibre.thread = {{i, 0, 0},         made.index,        int(i % kLanes),
                        made.shared.get(), fibre.warp->slots, fibre.warp->fragments};
        fibre.fake_stack = nullptr;
        fibre.copies.clear();
        fibre.groups.clear();
#if defined(__SANITIZE_ADDRESS__)
        // Frames of a fibre that has returned are clean but for its first; abandoned ones are not.
        const std::size_t dirty = abandoned ? kStack : 4096;
        __asan_unpoison_memory_region(fibre.stack.get() + kStack - dirty, dirty);
#endif
        fibre.context.begin(fibre.stack.get(), kStack, &Machine::run_fibre);
        runnable.push_back(&fibre);
        ++living;
    }
}

void Machine::run_blocks(std::vector<std::unique_ptr<Block>>& blocks) {
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
        running = runnable[at];
        current = &running->thread;
        runnable[at] = runnable.back();
        runnable.pop_back();
#if defined(__SANITIZE_ADDRESS__)
        __sanitizer_start_switch_fiber(&scheduler_fake, running->stack.get(), kStack);
#endif
        change(scheduler, running->context);
#if defined(__SANITIZE_ADDRESS__)
        __sanitizer_finish_switch_fiber(scheduler_fake, nullptr, nullptr);
#endif
    }
    abandoned = !error.empty();
}

void Machine::launch(bool cooperative, std::size_t shared) {
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
        memset(made->shared.get(), 0xFF, shared);
        blocks.push_back(std::move(made));
        if (!cooperative || i + 1 == count) {
            run_blocks(blocks);
            blocks.clear();
        }
    }
}

}  // namespace

void pause() {
    ++machine.idle;
    machine.runnable.push_back(machine.running);
    machine.leave();
}

void sync_block(int line) {
    Block& mine = *machine.running->block;
    machine.wait(mine.barrier, mine.threads, mine.ended, line, kOfBlock);
}

void sync_warp(unsigned lanes, int line) {
    Warp& mine = *machine.running->warp;
    if (lanes != 0xFFFFFFFFu || mine.threads != kLanes)
        machine.fail("a warp operation at line " + std::to_string(line) + " lacks lanes");
    machine.wait(mine.barrier, kLanes, mine.ended, line, kOfWarp);
}

void moved() { machine.idle = 0; }

void copy16(void* to, const void* from) {
    if (reinterpret_cast<std::uintptr_t>(to) % 16 != 0 ||
        reinterpret_cast<std::uintptr_t>(from) % 16 != 0)
        machine.fail("a copy of 16 bytes is not aligned");
    machine.running->copies.push_back({to, from});
}

void copy_commit() { machine.running->groups.push_back(machine.running->copies.size()); }

void copy_wait(int left) {
    std::vector<Copy>& copies = machine.running->copies;
    std::vector<std::size_t>& groups = machine.running->groups;
    if (int(groups.size()) <= left) return;
    const std::size_t done = groups.size() - std::size_t(left), end = groups[done - 1];
    for (std::size_t i = 0; i < end; ++i) memcpy(copies[i].to, copies[i].from, 16);
    copies.erase(copies.begin(), copies.begin() + std::ptrdiff_t(end));
    groups.erase(groups.begin(), groups.begin() + std::ptrdiff_t(done));
    for (std::size_t& group : groups) group -= end;
}

}  // namespace emulated

// Run a kernel; returns 0, or 1 with what went wrong in `error`.
extern "C" NLM_SHOWN int nlm_emulated_launch(void (*kernel)(void**), const unsigned* grid,
                                             unsigned threads, std::size_t shared, int cooperative,
                                             void** arguments, uint64_t seed, char* error,
                                             std::size_t size) {
    emulated::Machine& machine = emulated::machine;
    machine.kernel = kernel;
    machine.arguments = arguments;
    machine.error.clear();
    machine.random.seed(seed);
    emulated::grid = {grid[0], grid[1], grid[2]};
    emulated::block = {threads, 1, 1};
    machine.launch(cooperative != 0, shared);
    std::snprintf(error, size, "%s", machine.error.c_str());
    return machine.error.empty() ? 0 : 1;
}
