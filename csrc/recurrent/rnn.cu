// The plain simple recurrent network on a GPU (contract: rnn.h, equations: rnn_math.h, loop:
// sequence.cuh).
//
// A step of each pass: 2 H^2 B FLOP; each block reads its rows' state, B H numbers over the row
// groups. Bound by the barrier and that reading.
#include "recurrent/sequence.cuh"
// one cell of all of them
#include "recurrent/rnn.cuh"

// y: on entry w_ih x; replaced. states, far: working memory; counters: zeros.
NLM_KERNEL(rnn_forward, 256, REAL* y, REAL* h_last, const REAL* h0, const REAL* w_hh, const REAL* b,
           const int32_t* lengths, int64_t T, int64_t B, int64_t H, int relu, REAL* states,
           REAL* far, uint32_t* counters, int units, int rows, int pass_rows, int splits, int chunk,
           int kept) {
    const Sequence s{T,        B,     H,    lengths,   w_hh,   states, far,
                     counters, units, rows, pass_rows, splits, chunk,  kept};
    forward_loop<1, REAL>(
        s, y, h_last, h0,
        [&](int64_t t, int64_t r, int64_t u) { return y[(t * B + r) * H + u] + b[u]; },
        [&](int64_t, int64_t, int64_t, const REAL* a, REAL input) {
            return activation(relu, a[0] + input);
        });
}

// dh0: on entry the gradient of the last state. dpre: gradients of the pre-activations.
NLM_KERNEL(rnn_backward, 256, REAL* dh0, REAL* dpre, const REAL* y, const REAL* w_hh,
           const REAL* dy, const int32_t* lengths, int64_t T, int64_t B, int64_t H, int relu,
           REAL* states, REAL* far, uint32_t* counters, int units, int rows, int pass_rows,
           int splits, int chunk, int kept, int parts, REAL* partial) {
    const Sequence s{T,     B,    H,         lengths, w_hh,  states, far,   counters,
                     units, rows, pass_rows, splits,  chunk, kept,   parts, partial};
    backward_loop<1, false, REAL>(
        s, dh0, dy, [&](int64_t t, int64_t r, int64_t u) { return y[(t * B + r) * H + u]; },
        [&](int64_t t, int64_t r, int64_t u, REAL dh, REAL* a, REAL h) {
            dpre[(t * B + r) * H + u] = a[0] = activation_backward(relu, h, dh);
        },
        [&](int64_t t, int64_t r, int64_t u) { dpre[(t * B + r) * H + u] = 0; });
}
