#include "common/scratch.h"

#include <sys/mman.h>

#include <algorithm>
#include <cstdlib>
#include <new>
#include <vector>

namespace nlm {
namespace {

constexpr std::size_t kHugePage = std::size_t(2) << 20;

struct Block {
    char* memory;
    std::size_t capacity;
    std::size_t offset;  // of its first byte in the arena's running count
};

// Blocks in order; when the outermost user leaves, several are replaced by one large enough.
struct Arena {
    std::vector<Block> blocks;
    std::size_t used = 0;
    int depth = 0;

    ~Arena() {
        for (const Block& block : blocks) std::free(block.memory);
    }

    void add_block(std::size_t bytes) {
        const std::size_t capacity = (bytes + kHugePage - 1) / kHugePage * kHugePage;
        char* memory = static_cast<char*>(std::aligned_alloc(kHugePage, capacity));
        if (memory == nullptr) throw std::bad_alloc();
#if defined(MADV_HUGEPAGE)
        madvise(memory, capacity, MADV_HUGEPAGE);  // packed weights of megabytes: fewer TLB misses
#endif
        blocks.push_back({memory, capacity, used});
    }

    void* take(std::size_t bytes) {
        bytes = (bytes + 63) / 64 * 64;
        if (blocks.empty() || used + bytes > blocks.back().offset + blocks.back().capacity)
            add_block(bytes);
        char* memory = blocks.back().memory + (used - blocks.back().offset);
        used += bytes;
        return memory;
    }

    void release(std::size_t outer_used) {
        used = outer_used;
        if (depth == 0 && blocks.size() > 1) {
            std::size_t total = 0;
            for (const Block& block : blocks) {
                total += block.capacity;
                std::free(block.memory);
            }
            blocks.clear();
            try {
                add_block(total);
            } catch (const std::bad_alloc&) {  // the next call asks again, where it can throw
            }
        }
        while (blocks.size() > 1 && blocks.back().offset > used) {
            std::free(blocks.back().memory);
            blocks.pop_back();
        }
    }
};

Arena& arena() {
    static thread_local Arena instance;
    return instance;
}

}  // namespace

Scratch::Scratch() : outer_used_(arena().used) { ++arena().depth; }

Scratch::~Scratch() {
    Arena& a = arena();
    --a.depth;
    a.release(outer_used_);
}

void* Scratch::take_bytes(std::size_t bytes) { return arena().take(bytes); }

}  // namespace nlm
