// What the persistent kernels of all recurrent cells share (planned by pynlm/cuda/division.py).
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

// A barrier of some blocks; the counter of each stands in a cache line of its own.
constexpr int kCounterStride = 32;
struct RowGroup {
    uint32_t* arrived;
    uint32_t blocks;
    uint32_t round = 0;

    NLM_FN void arrive() {
        grid_arrive(arrived);
        ++round;
    }
    NLM_FN void wait() const { grid_wait(arrived, blocks, round); }
    NLM_FN void barrier() {
        arrive();
        wait();
    }
};
// Of the blocks that share rows.
NLM_FN RowGroup row_group(uint32_t* counters) {
    return {counters + blockIdx.y * kCounterStride, gridDim.x};
}
// Of `blocks` neighbouring ones among them, whose counters follow those of the row groups.
NLM_FN RowGroup neighbours(uint32_t* counters, int blocks) {
    const uint32_t which = gridDim.y + (blockIdx.y * gridDim.x + blockIdx.x) / blocks;
    return {counters + which * kCounterStride, uint32_t(blocks)};
}

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

// What a thread will need of global memory for its first element of each_element(begin, ..),
// asked for long before: while blocks wait for each other and a product is computed. load(r, u)
// gives it as a Saved. Rows end at `end`.
template <class Saved>
struct Ahead {
    Saved saved = {};

    template <class Load>
    NLM_FN void fetch(int begin, int end, const Span& units, const Load& load) {
        const int width = units.size(), i = int(threadIdx.x);
        if (i < (end - begin) * width) saved = load(begin + i / width, units.begin + i % width);
    }
    // f(row, unit, saved) for the elements of each_element.
    template <class Load, class F>
    NLM_FN void each(int begin, int end, const Span& units, const Load& load, const F& f) const {
        const int width = units.size(), all = (end - begin) * width;
        int i = int(threadIdx.x);
        if (i < all) f(begin + i / width, units.begin + i % width, saved);
        for (i += kThreads; i < all; i += kThreads) {
            const int r = begin + i / width, u = units.begin + i % width;
            f(r, u, load(r, u));
        }
    }
};

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

// What kernels of plain cells are given alike.
struct Sequence {
    int64_t T, B, H;
    const int32_t* lengths;
    const REAL* w_hh;
    REAL *states, *far;
    uint32_t* counters;
    int units, rows, pass_rows, splits, chunk, kept;
    int parts = 1;  // of the depth, in the backward pass
    REAL* partial = nullptr;

    NLM_FN Span own() const { return span_of(units, int(blockIdx.x), H); }
    NLM_FN Span group() const { return span_of(rows, int(blockIdx.y), B); }
    // With `per` columns for each of the units `all`, at most `most`; shared memory beyond its
    // first `before` numbers is its. A worker holds `steps` of its steps in registers.
    NLM_FN Product product(int per, const Span& all, int most, int64_t depth, int before,
                           int steps) const {
        REAL* shared = nlm_shared<REAL>() + before;
        Product made = product_of(per * all.size(), per * most, depth, pass_rows, splits, chunk,
                                  kept, far, shared, steps);
        made.space = shared;
        return made;
    }
    // The forward pass's product, with w_hh of G gates.
    template <int G>
    NLM_FN Product gates(int before = 0, int steps = 0) const {
        const Product made = product(G, own(), units, H, before, steps);
        const int begin = own().begin;
        pack<true>(made, int(H), [&](int m, int k) {
            return w_hh[(int64_t(m % G) * H + begin + m / G) * H + k];
        });
        return made;
    }
    // The backward pass's; the gradient of gate g and unit u stands at G u + g of its part of the
    // depth. `parts` neighbouring blocks have the same columns, those of the units of all of them,
    // and each a part of the depth.
    NLM_FN int part() const { return int(blockIdx.x) % parts; }
    NLM_FN int part_units() const { return int((H + parts - 1) / parts); }
    NLM_FN Span shared_units() const { return span_of(units * parts, int(blockIdx.x) / parts, H); }
    template <int G>
    NLM_FN Product gradient(int before = 0, int steps = 0) const {
        const Span all = shared_units(), depth = span_of(part_units(), part(), H);
        Product made = product(1, all, units * parts, G * part_units(), before, steps);
        made.across *= parts;
        pack<false>(made, G * depth.size(), [&](int m, int k) {
            return w_hh[(int64_t(k % G) * H + depth.begin + k / G) * H + all.begin + m];
        });
        return made;
    }
};

// Forward pass of a plain cell of G gates. point(t, r, u, a, saved) returns the new state of unit
// u, from a[g] = (w_hh h)[gate g of u] and from saved = load(t, r, u), which no other element
// changes; h_last is the previous one.
template <int G, class Saved, class Load, class Point>
NLM_FN void forward_loop(const Sequence& s, REAL* y, REAL* h_last, const REAL* h0, const Load& load,
                         const Point& point) {
    const int64_t B = s.B, H = s.H;
    const Span own = s.own(), group = s.group();
    const Exchange exchange = exchange_of(s.states, B, H);
    RowGroup others = row_group(s.counters);
    const Product product = s.gates<G>(0, HELD);
    const Held<HELD> held(product);
    each_element(group.begin, group.end, own, [&](int64_t r, int64_t u) {
        exchange.put(0, r, u, h_last[r * H + u] = h0[r * H + u]);
    });
    Ahead<Saved> ahead;
    const auto fetch = [&](int64_t t, int begin, int end) {
        if (t < s.T) ahead.fetch(begin, end, own, [&](int r, int u) { return load(t, r, u); });
    };
    others.arrive();
    fetch(0, group.begin, group.end);
    others.wait();
    for (int64_t t = 0; t < s.T; ++t) {
        const int count = active_rows(s.lengths, group, t), end = group.begin + count;
        multiply(product, held, exchange.row(t, group.begin), count, [&](int first, int n) {
            const int from = group.begin + first;
            ahead.each(
                from, from + n, own, [&](int r, int u) { return load(t, r, u); },
                [&](int64_t r, int64_t u, const Saved& saved) {
                    REAL a[G];
                    for (int g = 0; g < G; ++g)
                        a[g] = product.at((int(u) - own.begin) * G + g, int(r) - from);
                    const REAL h = point(t, r, u, a, saved);
                    exchange.put(t + 1, r, u, h);
                    y[(t * B + r) * H + u] = h_last[r * H + u] = h;
                });
            fetch(t, from + n, end);
        });
        if (count > 0) others.arrive();
        each_element(end, group.end, own,
                     [&](int64_t r, int64_t u) { y[(t * B + r) * H + u] = 0; });
        fetch(t + 1, group.begin, end);
        if (count > 0) others.wait();
    }
}

// Backward pass of a plain cell. point(t, r, u, dh, a, saved) gives a[g], the gradient of (w_hh
// h)[gate g of u], from dh, that of the new state, which becomes that of the previous one as far as
// it does not pass by w_hh (kDirect: there is such a part), and saved = load(t, r, u), which no
// other element changes; clear(t, r, u) is for rows that have ended. dh0: on entry the gradient of
// the last state.
template <int G, bool kDirect, class Saved, class Load, class Point, class Clear>
NLM_FN void backward_loop(const Sequence& s, REAL* dh0, const REAL* dy, const Load& load,
                          const Point& point, const Clear& clear) {
    const int64_t B = s.B, H = s.H;
    const Span own = s.own(), group = s.group();
    const int each = s.part_units(), padded = padded_depth(G * each);
    const Exchange exchange = exchange_of(s.states, B, int64_t(padded) * s.parts);
    RowGroup others = row_group(s.counters), team = neighbours(s.counters, s.parts);
    const Product product = s.gradient<G>(0, HELD);
    const Held<HELD> held(product);
    const Span all = s.shared_units();
    struct Given {
        Saved saved;
        REAL dy;
    };
    const auto load_at = [&](int64_t t, int64_t r, int64_t u) {
        return Given{load(t, r, u), dy[(t * B + r) * H + u]};
    };
    Ahead<Given> ahead;
    const auto fetch = [&](int64_t t) {
        if (t >= 0)
            ahead.fetch(group.begin, group.end, own,
                        [&](int r, int u) { return load_at(t, r, u); });
    };
    fetch(s.T - 1);
    for (int64_t t = s.T - 1; t >= 0; --t) {
        const int count = active_rows(s.lengths, group, t), end = group.begin + count;
        ahead.each(
            group.begin, end, own, [&](int r, int u) { return load_at(t, r, u); },
            [&](int64_t r, int64_t u, const Given& given) {
                REAL a[G], dh = given.dy + dh0[r * H + u];
                point(t, r, u, dh, a, given.saved);
                if (kDirect) dh0[r * H + u] = dh;
                const int at = int(u) / each * padded + int(u) % each * G;
                for (int g = 0; g < G; ++g) exchange.put(t, r, at + g, a[g]);
            });
        if (count > 0) others.arrive();
        each_element(end, group.end, own, [&](int64_t r, int64_t u) { clear(t, r, u); });
        fetch(t - 1);
        if (count == 0) continue;
        others.wait();
        const Operand* const from_part = exchange.row(t, group.begin) + s.part() * padded;
        multiply(product, held, from_part, count, [&](int first, int n) {
            const int from = group.begin + first;
            each_element(from, from + n, all, [&](int64_t r, int64_t u) {
                const REAL sum = product.at(int(u) - all.begin, int(r) - from);
                if (s.parts > 1)
                    s.partial[(s.part() * B + r) * H + u] = sum;
                else
                    dh0[r * H + u] = kDirect ? dh0[r * H + u] + sum : sum;
            });
        });
        if (s.parts == 1) continue;
        team.barrier();
        each_element(group.begin, end, own, [&](int64_t r, int64_t u) {
            REAL sum = kDirect ? dh0[r * H + u] : REAL(0);
            for (int part = 0; part < s.parts; ++part)
                sum += nlm_load_global(s.partial + (part * B + r) * H + u);
            dh0[r * H + u] = sum;
        });
    }
}
