// The plain LSTM on a GPU (contract: lstm.h, equations: lstm_math.h, loop: sequence.cuh).
//
// A step of the forward pass: 8 H^2 B FLOP; each block reads its rows' state, B H numbers over the
// row groups. Backward: as many FLOP, and 4 B H numbers. Bound by the barrier, that reading and,
// in float32, multiply-adds.
#include "recurrent/sequence.cuh"
// one cell of all of them
#include "recurrent/lstm_math.h"

constexpr int G = 4;

// gates: on entry w_ih x [T,B,4H]; replaced by the gates if `saves`. states, far: working memory;
// counters: zeros.
NLM_KERNEL(lstm_forward, 256, REAL* y, REAL* h_last, REAL* c_last, REAL* gates, REAL* c,
           const REAL* h0, const REAL* c0, const REAL* w_hh, const REAL* b, const int32_t* lengths,
           int64_t T, int64_t B, int64_t H, int saves, REAL* states, REAL* far, uint32_t* counters,
           int units, int rows, int pass_rows, int splits, int chunk, int kept) {
    const Span own = span_of(units, int(blockIdx.x), H), group = span_of(rows, int(blockIdx.y), B);
    const Exchange exchange = exchange_of(states, B, H);
    RowGroup others = row_group(counters);
    REAL* shared = nlm_shared<REAL>();
    Product product =
        product_of(G * own.size(), G * units, H, pass_rows, splits, chunk, kept, far, shared);
    product.space = shared;
    pack<true>(product, int(H), [&](int m, int k) {
        return w_hh[(int64_t(m % G) * H + own.begin + m / G) * H + k];
    });
    each_element(group.begin, group.end, own, [&](int64_t r, int64_t u) {
        exchange.put(0, r, u, h_last[r * H + u] = h0[r * H + u]);
        c_last[r * H + u] = c0[r * H + u];
    });
    others.barrier();
    for (int64_t t = 0; t < T; ++t) {
        const int count = active_rows(lengths, group, t);
        multiply(product, exchange.row(t, group.begin), count, [&](int first, int n) {
            const int from = group.begin + first;
            each_element(from, from + n, own, [&](int64_t r, int64_t u) {
                const int64_t at = t * B + r;
                REAL* const saved = gates + at * G * H + u;
                const int m = (int(u) - own.begin) * G, column = int(r) - from;
                REAL a[G];
                for (int g = 0; g < G; ++g)
                    a[g] = product.at(m + g, column) + saved[g * H] + b[g * H + u];
                REAL cell = c_last[r * H + u], h;
                lstm_cell<CudaFn<REAL>>(a[0], a[1], a[2], a[3], cell, h);
                exchange.put(t + 1, r, u, h);
                y[at * H + u] = h_last[r * H + u] = h;
                c_last[r * H + u] = cell;
                if (c != nullptr) c[at * H + u] = cell;
                if (saves)
                    for (int g = 0; g < G; ++g) saved[g * H] = a[g];
            });
        });
        each_element(group.begin + count, group.end, own,
                     [&](int64_t r, int64_t u) { y[(t * B + r) * H + u] = 0; });
        if (count > 0) others.barrier();
    }
}

// dh0, dc0: on entry gradients of the last states. gates: in: saved; out: gradients of the
// pre-activations.
NLM_KERNEL(lstm_backward, 256, REAL* dh0, REAL* dc0, REAL* gates, const REAL* c, const REAL* c0,
           const REAL* w_hh, const REAL* dy, const int32_t* lengths, int64_t T, int64_t B,
           int64_t H, REAL* states, REAL* far, uint32_t* counters, int units, int rows,
           int pass_rows, int splits, int chunk, int kept) {
    const Span own = span_of(units, int(blockIdx.x), H), group = span_of(rows, int(blockIdx.y), B);
    const Exchange exchange = exchange_of(states, B, G * H);
    RowGroup others = row_group(counters);
    REAL* shared = nlm_shared<REAL>();
    Product product =
        product_of(own.size(), units, G * H, pass_rows, splits, chunk, kept, far, shared);
    product.space = shared;
    // a gradient of gate g and unit u stands at G u + g
    pack<false>(product, int(G * H), [&](int m, int k) {
        return w_hh[(int64_t(k % G) * H + k / G) * H + own.begin + m];
    });
    for (int64_t t = T - 1; t >= 0; --t) {
        const int count = active_rows(lengths, group, t), end = group.begin + count;
        each_element(group.begin, end, own, [&](int64_t r, int64_t u) {
            const int64_t at = t * B + r, state = r * H + u;
            REAL* const saved = gates + at * G * H + u;
            REAL a[G];
            for (int g = 0; g < G; ++g) a[g] = saved[g * H];
            const REAL c_prev = t > 0 ? c[(at - B) * H + u] : c0[state];
            REAL dc = dc0[state];
            lstm_cell_backward<CudaFn<REAL>>(a[0], a[1], a[2], a[3], c[at * H + u], c_prev,
                                             dy[at * H + u] + dh0[state], dc);
            dc0[state] = dc;
            for (int g = 0; g < G; ++g) exchange.put(t, r, u * G + g, saved[g * H] = a[g]);
        });
        each_element(end, group.end, own, [&](int64_t r, int64_t u) {
            for (int g = 0; g < G; ++g) gates[((t * B + r) * G + g) * H + u] = 0;
        });
        if (count == 0) continue;
        others.barrier();
        multiply(product, exchange.row(t, group.begin), count, [&](int first, int n) {
            const int from = group.begin + first;
            each_element(from, from + n, own, [&](int64_t r, int64_t u) {
                dh0[r * H + u] = product.at(int(u) - own.begin, int(r) - from);
            });
        });
    }
}
