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
    const Sequence s{T,        B,     H,    lengths,   w_hh,   states, far,
                     counters, units, rows, pass_rows, splits, chunk,  kept};
    each_element(s.group().begin, s.group().end, s.own(),
                 [&](int64_t r, int64_t u) { c_last[r * H + u] = c0[r * H + u]; });
    forward_loop<G>(s, y, h_last, h0, [&](int64_t t, int64_t r, int64_t u, REAL* a) {
        const int64_t at = t * B + r;
        REAL* const saved = gates + at * G * H + u;
        for (int g = 0; g < G; ++g) a[g] += saved[g * H] + b[g * H + u];
        REAL cell = c_last[r * H + u], h;
        lstm_cell<CudaFn<REAL>>(a[0], a[1], a[2], a[3], cell, h);
        c_last[r * H + u] = cell;
        if (c != nullptr) c[at * H + u] = cell;
        if (saves)
            for (int g = 0; g < G; ++g) saved[g * H] = a[g];
        return h;
    });
}

// dh0, dc0: on entry gradients of the last states. gates: in: saved; out: gradients of the
// pre-activations.
NLM_KERNEL(lstm_backward, 256, REAL* dh0, REAL* dc0, REAL* gates, const REAL* c, const REAL* c0,
           const REAL* w_hh, const REAL* dy, const int32_t* lengths, int64_t T, int64_t B,
           int64_t H, REAL* states, REAL* far, uint32_t* counters, int units, int rows,
           int pass_rows, int splits, int chunk, int kept, int parts, REAL* partial) {
    const Sequence s{T,     B,    H,         lengths, w_hh,  states, far,   counters,
                     units, rows, pass_rows, splits,  chunk, kept,   parts, partial};
    backward_loop<G, false>(
        s, dh0, dy,
        [&](int64_t t, int64_t r, int64_t u, REAL dh, REAL* a) {
            const int64_t at = t * B + r, state = r * H + u;
            REAL* const saved = gates + at * G * H + u;
            for (int g = 0; g < G; ++g) a[g] = saved[g * H];
            const REAL c_prev = t > 0 ? c[(at - B) * H + u] : c0[state];
            REAL dc = dc0[state];
            lstm_cell_backward<CudaFn<REAL>>(a[0], a[1], a[2], a[3], c[at * H + u], c_prev, dh, dc);
            dc0[state] = dc;
            for (int g = 0; g < G; ++g) saved[g * H] = a[g];
        },
        [&](int64_t t, int64_t r, int64_t u) {
            for (int g = 0; g < G; ++g) gates[((t * B + r) * G + g) * H + u] = 0;
        });
}
