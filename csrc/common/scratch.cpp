#include "common/scratch.h"

#include <sys/mman.h>

#include <cstdlib>
#include <new>
#include <vector>

namespace nlm {
namespace {

constexpr std::size_t kHugePage = std::size_t(2) << 20;

struct Block {
    char* memory;
    std::size_t capacity;
};

// Blocks are never moved or given back while the thread lives: what a step once used, later steps
// use again, and a place too small for a request is passed over.
struct Arena {
    std::vector<Block> blocks;
    std::size_t block = 0;  // in use, with `used` bytes taken
    std::size_t used = 0;

    ~Arena() {
        for (const Block& each : blocks) std::free(each.memory);
    }

    void add_block(std::size_t bytes) {
        const std::size_t capacity = (bytes + kHugePage - 1) / kHugePage * kHugePage;
        blocks.reserve(blocks.size() + 1);
        char* memory = static_cast<char*>(std::aligned_alloc(kHugePage, capacity));
        if (memory == nullptr) throw std::bad_alloc();
#if defined(MADV_HUGEPAGE)
        madvise(memory, capacity, MADV_HUGEPAGE);  // packed weights of megabytes: fewer TLB misses
#endif
        blocks.push_back({memory, capacity});
    }

    void* take(std::size_t bytes) {
        bytes = (bytes + 63) / 64 * 64;
        while (block < blocks.size() && used + bytes > blocks[block].capacity) {
            ++block;
            used = 0;
        }
        if (block == blocks.size()) add_block(bytes);
        char* memory = blocks[block].memory + used;
        used += bytes;
        return memory;
    }
};

Arena& arena() {
    static thread_local Arena instance;
    return instance;
}

}  // namespace

Scratch::Scratch() : outer_block_(arena().block), outer_used_(arena().used) {}

Scratch::~Scratch() {
    arena().block = outer_block_;
    arena().used = outer_used_;
}

void* Scratch::take_bytes(std::size_t bytes) { return arena().take(bytes); }

}  // namespace nlm
