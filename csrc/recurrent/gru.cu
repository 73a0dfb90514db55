// The plain GRU, reset after the product, on a GPU (contract: gru.h, equations: gru_math.h, loop:
// sequence.cuh).
//
// A step of the forward pass: 6 H^2 B FLOP; each block reads its rows' state, B H numbers over the
// row groups. Backward: as many FLOP, and 3 B H numbers. Bound as the LSTM is (lstm.cu).
#include "recurrent/sequence.cuh"
// one cell of all of them
#include "recurrent/gru.cuh"

// gates: on entry w_ih x [T,B,3H]; replaced by the gates if `hn` [T,B,H] is saved (null: neither).
// states, far: working memory; counters: zeros.
NLM_KERNEL(gru_forward, 256, REAL* y, REAL* h_last, REAL* gates, REAL* hn, const REAL* h0,
           const REAL* w_hh, const REAL* b, const REAL* b_hn, const int32_t* lengths, int64_t T,
           int64_t B, int64_t H, REAL* states, REAL* far, uint32_t* counters, int units, int rows,
           int pass_rows, int splits, int chunk, int kept) {
    const Sequence s{T,        B,     H,    lengths,   w_hh,   states, far,
                     counters, units, rows, pass_rows, splits, chunk,  kept};
    const Gru cell{gates, hn, B, H};
    forward_loop<Gru::G, Gru::Gates>(
        s, y, h_last, h0, [&](int64_t t, int64_t r, int64_t u) { return cell.load(t, r, u); },
        [&](int64_t t, int64_t r, int64_t u, const REAL* a, const Gru::Gates& inputs) {
            return cell.forward(t, r, u, inputs, a, h_last[r * H + u], b, b_hn);
        });
}

// dh0: on entry the gradient of the last state. gates, hn: in: saved; out: gradients of the
// pre-activations and of hn.
NLM_KERNEL(gru_backward, 256, REAL* dh0, REAL* gates, REAL* hn, const REAL* y, const REAL* h0,
           const REAL* w_hh, const REAL* dy, const int32_t* lengths, int64_t T, int64_t B,
           int64_t H, REAL* states, REAL* far, uint32_t* counters, int units, int rows,
           int pass_rows, int splits, int chunk, int kept, int parts, REAL* partial) {
    const Sequence s{T,     B,    H,         lengths, w_hh,  states, far,   counters,
                     units, rows, pass_rows, splits,  chunk, kept,   parts, partial};
    const Gru cell{gates, hn, B, H};
    struct Saved {
        Gru::Gates gates;
        REAL product, h_prev;
    };
    backward_loop<Gru::G, true, Saved>(
        s, dh0, dy,
        [&](int64_t t, int64_t r, int64_t u) {
            return Saved{cell.load(t, r, u), hn[(t * B + r) * H + u],
                         t > 0 ? y[((t - 1) * B + r) * H + u] : h0[r * H + u]};
        },
        [&](int64_t t, int64_t r, int64_t u, REAL& dh, REAL* a, const Saved& saved) {
            cell.backward(t, r, u, saved.gates, saved.product, saved.h_prev, dh, a);
        },
        [&](int64_t t, int64_t r, int64_t u) { cell.clear(t, r, u); });
}
