// What the persistent kernels of all recurrent cells share (planned by pynlm/cuda/recurrent.py).
//
// One cooperative launch runs a whole sequence. Block (x, y) of the grid owns units and rows: all
// gates of its units, for its rows. Rows do not meet in a recurrence, so only blocks of one row
// group wait for each other. Each step is a product of the block's weights with the state of its
// rows, the pointwise equations, and one barrier, at which each block gives its units' state to the
// others through `Exchange`: of 1.3-2 us a step at B = 20, H = 650 on an H200 the barrier is one.
#pragma once

#include "recurrent/product.cuh"

struct Span {
    int begin, end;
    NLM_FN int size() const { return end - begin; }
};
NLM_FN Span span_of(int each, int which, int64_t all) {
    const int begin = each * which;
    const int limit = int(all);
    return {begin < limit ? begin : limit, begin + each < limit ? begin + each : limit};
}

// A row group's barrier; the counter of each stands in a cache line of its own.
constexpr int kCounterStride = 32;
struct RowGroup {
    uint32_t* arrived;
    uint32_t round = 0;

    NLM_FN void arrive() {
        grid_arrive(arrived);
        ++round;
    }
    NLM_FN void wait() const { grid_wait(arrived, gridDim.x, round); }
    NLM_FN void barrier() {
        arrive();
        wait();
    }
};
NLM_FN RowGroup row_group(uint32_t* counters) { return {counters + blockIdx.y * kCounterStride}; }

// Rows of the span that take part in step t: a prefix, because lengths do not increase.
NLM_FN int active_rows(const int32_t* lengths, const Span& rows, int64_t t) {
    int count = rows.size();
    if (lengths != nullptr)
        while (count > 0 && lengths[rows.begin + count - 1] <= t) --count;
    return count;
}

// f(row, unit) for rows [begin, end) and the block's units, neighbouring threads at neighbouring
// units; a thread has the same elements for the same rows each time.
template <class F>
NLM_FN void each_element(int begin, int end, const Span& units, const F& f) {
    const int width = units.size();
    for (int i = int(threadIdx.x); i < (end - begin) * width; i += kThreads)
        f(begin + i / width, units.begin + i % width);
}

// States [2][batch][depth] that blocks hand each other: written at one step, read at the next.
// Their padding stays zero.
struct Exchange {
    Operand* states;
    int64_t batch;
    int depth;
    NLM_FN Operand* row(int64_t step, int64_t r) const {
        return states + ((step & 1) * batch + r) * depth;
    }
    NLM_FN void put(int64_t step, int64_t r, int64_t k, REAL value) const {
        row(step, r)[k] = to_operand(value);
    }
};
NLM_FN Exchange exchange_of(REAL* states, int64_t batch, int64_t depth) {
    return {reinterpret_cast<Operand*>(states), batch, padded_depth(depth)};
}
