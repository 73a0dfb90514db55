// Working memory of a kernel call: a grow-only arena per calling thread, so that a steady
// training step allocates nothing. Take it before team_run, on the calling thread.
#pragma once

#include <cstddef>
#include <cstdint>

namespace nlm {

class Scratch {
public:
    Scratch();
    ~Scratch();  // gives back all that this object took, keeping the memory for the next call
    Scratch(const Scratch&) = delete;
    Scratch& operator=(const Scratch&) = delete;

    // `count` uninitialised elements, 64-byte aligned. Throws std::bad_alloc.
    template <class T>
    T* take(int64_t count) {
        return static_cast<T*>(take_bytes(static_cast<std::size_t>(count) * sizeof(T)));
    }

private:
    void* take_bytes(std::size_t bytes);
    std::size_t outer_block_, outer_used_;
};

}  // namespace nlm
