// The plain GRU, reset after the product, on a GPU (contract: gru.h, equations: gru_math.h, loop:
// sequence.cuh).
//
// A step of the forward pass: 6 H^2 B FLOP; each block reads its rows' state, B H numbers over the
// row groups. Backward: as many FLOP, and 3 B H numbers. Bound as the LSTM is (lstm.cu).
#include "recurrent/sequence.cuh"
// one cell of all of them
#include "recurrent/gru_math.h"

constexpr int G = 3;

// gates: on entry w_ih x [T,B,3H]; replaced by the gates if `hn` [T,B,H] is saved (null: neither).
// states, far: working memory; counters: zeros.
NLM_KERNEL(gru_forward, 256, REAL* y, REAL* h_last, REAL* gates, REAL* hn, const REAL* h0,
           const REAL* w_hh, const REAL* b, const REAL* b_hn, const int32_t* lengths, int64_t T,
           int64_t B, int64_t H, REAL* states, REAL* far, uint32_t* counters, int units, int rows,
           int pass_rows, int splits, int chunk, int kept) {
    const Sequence s{T,        B,     H,    lengths,   w_hh,   states, far,
                     counters, units, rows, pass_rows, splits, chunk,  kept};
    forward_loop<G>(s, y, h_last, h0, [&](int64_t t, int64_t r, int64_t u, const REAL* a) {
        const int64_t at = t * B + r;
        REAL* const saved = gates + at * G * H + u;
        REAL reset = a[0] + saved[0] + b[u], z = a[1] + saved[H] + b[H + u];
        REAL n = saved[2 * H] + b[2 * H + u], h = h_last[r * H + u];
        const REAL product = a[2] + b_hn[u];
        gru_cell<CudaFn<REAL>>(reset, z, n, product, h);
        if (hn != nullptr) {
            saved[0] = reset;
            saved[H] = z;
            saved[2 * H] = n;
            hn[at * H + u] = product;
        }
        return h;
    });
}

// dh0: on entry the gradient of the last state. gates, hn: in: saved; out: gradients of the
// pre-activations and of hn.
NLM_KERNEL(gru_backward, 256, REAL* dh0, REAL* gates, REAL* hn, const REAL* y, const REAL* h0,
           const REAL* w_hh, const REAL* dy, const int32_t* lengths, int64_t T, int64_t B,
           int64_t H, REAL* states, REAL* far, uint32_t* counters, int units, int rows,
           int pass_rows, int splits, int chunk, int kept) {
    const Sequence s{T,        B,     H,    lengths,   w_hh,   states, far,
                     counters, units, rows, pass_rows, splits, chunk,  kept};
    backward_loop<G, true>(
        s, dh0, dy,
        [&](int64_t t, int64_t r, int64_t u, REAL& dh, REAL* a) {
            const int64_t at = t * B + r;
            REAL* const saved = gates + at * G * H + u;
            const REAL h_prev = t > 0 ? y[(at - B) * H + u] : h0[r * H + u];
            REAL reset = saved[0], z = saved[H], n = saved[2 * H], product = hn[at * H + u];
            gru_cell_backward<CudaFn<REAL>>(reset, z, n, product, h_prev, dh);
            saved[0] = a[0] = reset;
            saved[H] = a[1] = z;
            saved[2 * H] = n;
            hn[at * H + u] = a[2] = product;
        },
        [&](int64_t t, int64_t r, int64_t u) {
            const int64_t at = t * B + r;
            for (int g = 0; g < G; ++g) gates[(at * G + g) * H + u] = 0;
            hn[at * H + u] = 0;
        });
}
