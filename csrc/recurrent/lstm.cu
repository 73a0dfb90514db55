// The plain LSTM on a GPU (contract: lstm.h, equations: lstm_math.h, loop: sequence.cuh).
//
// A step of the forward pass: 8 H^2 B FLOP; each block reads its rows' state, B H numbers over the
// row groups. Backward: as many FLOP, and 4 B H numbers. Bound by the barrier, that reading and,
// in float32, multiply-adds.
#include "recurrent/sequence.cuh"
// one cell of all of them
#include "recurrent/lstm_math.h"

constexpr int G = 4;

struct Gates {
    REAL of[G];
};
// Gates of one row and unit, saved[g H].
NLM_FN Gates gates_at(const REAL* saved, int64_t H) {
    Gates found;
    for (int g = 0; g < G; ++g) found.of[g] = saved[g * H];
    return found;
}

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
    forward_loop<G, Gates>(
        s, y, h_last, h0,
        [&](int64_t t, int64_t r, int64_t u) {
            return gates_at(gates + (t * B + r) * G * H + u, H);
        },
        [&](int64_t t, int64_t r, int64_t u, REAL* a, const Gates& inputs) {
            const int64_t at = t * B + r;
            for (int g = 0; g < G; ++g) a[g] += inputs.of[g] + b[g * H + u];
            REAL cell = c_last[r * H + u], h;
            lstm_cell<CudaFn<REAL>>(a[0], a[1], a[2], a[3], cell, h);
            c_last[r * H + u] = cell;
            if (c != nullptr) c[at * H + u] = cell;
            if (saves)
                for (int g = 0; g < G; ++g) gates[(at * G + g) * H + u] = a[g];
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
    struct Saved {
        Gates gates;
        REAL c, c_prev;
    };
    backward_loop<G, false, Saved>(
        s, dh0, dy,
        [&](int64_t t, int64_t r, int64_t u) {
            const int64_t at = t * B + r;
            return Saved{gates_at(gates + at * G * H + u, H), c[at * H + u],
                         t > 0 ? c[(at - B) * H + u] : c0[r * H + u]};
        },
        [&](int64_t t, int64_t r, int64_t u, REAL dh, REAL* a, const Saved& saved) {
            for (int g = 0; g < G; ++g) a[g] = saved.gates.of[g];
            REAL dc = dc0[r * H + u];
            lstm_cell_backward<CudaFn<REAL>>(a[0], a[1], a[2], a[3], saved.c, saved.c_prev, dh, dc);
            dc0[r * H + u] = dc;
            for (int g = 0; g < G; ++g) gates[((t * B + r) * G + g) * H + u] = a[g];
        },
        [&](int64_t t, int64_t r, int64_t u) {
            for (int g = 0; g < G; ++g) gates[((t * B + r) * G + g) * H + u] = 0;
        });
}
