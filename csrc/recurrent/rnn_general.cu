// The simple recurrent network with all its variants on a GPU (contract: rnn.h and variant.h,
// equations: rnn_math.h, loop: variant.cuh). A step costs what one of rnn.cu does, with layer norm
// one more barrier.
#include "recurrent/variant.cuh"
// one cell of all of them
#include "recurrent/rnn.cuh"

// y: on entry what enters the activation besides w_hh h (with layer norm gain N(w_ih x) + b, and b
// is null); replaced. norm: of all steps if `rstd` is saved, else of one. clip_h: infinite for
// none. states, far, partials: working memory; counters: zeros.
NLM_KERNEL(rnn_general_forward, 256, REAL* y, REAL* h_last, REAL* h_in, REAL* norm, REAL* rstd,
           const REAL* h0, const REAL* w_hh, const REAL* b, const REAL* ln_gates,
           const REAL* mask_h, const int32_t* lengths, int64_t T, int64_t B, int64_t H, int relu,
           REAL zoneout_h, uint32_t threshold_h, REAL clip_h, int sample, uint32_t seed,
           uint32_t draw, const double* draw_at, uint32_t layer, uint32_t time0,
           const int32_t* row_ids, REAL* states, REAL* far, REAL* partials, uint32_t* counters,
           int rows, int units, int pass_rows, int splits, int chunk, int kept) {
    const Sequence s{T,        B,     H,    lengths,   w_hh,   states, far,
                     counters, units, rows, pass_rows, splits, chunk,  kept};
    const State state{y,
                      h_last,
                      h_in,
                      mask_h,
                      clip_h,
                      {zoneout_h, threshold_h, philox_purpose(kZoneoutH, layer), sample, seed, draw,
                       draw_at, time0, row_ids},
                      exchange_of(states, B, H),
                      H};
    const GateNorm<1> gate_norm = norm_of<1>(s, ln_gates, norm, rstd, partials);
    general_forward_loop(s, state, gate_norm, h0,
                         [&](int64_t t, int64_t r, int64_t u, const REAL* a) {
                             const REAL pre = a[0] + y[(t * B + r) * H + u];
                             return activation(relu, b != nullptr ? pre + b[u] : pre);
                         });
}

// dh0: on entry the gradient of the last state. dpre: gradients of the pre-activations; norm: in:
// saved; out: its second half's gradients. rec [B,H], dln_gates [B,H] (sums over time): zeros.
NLM_KERNEL(rnn_general_backward, 256, REAL* dh0, REAL* dpre, REAL* norm, REAL* rstd, const REAL* y,
           const REAL* w_hh, const REAL* ln_gates, const REAL* mask_h, const REAL* dy,
           const int32_t* lengths, REAL* rec, REAL* dln_gates, int64_t T, int64_t B, int64_t H,
           int relu, REAL zoneout_h, uint32_t threshold_h, REAL clip_h, int sample, uint32_t seed,
           uint32_t draw, const double* draw_at, uint32_t layer, uint32_t time0,
           const int32_t* row_ids, REAL* states, REAL* far, REAL* partials, uint32_t* counters,
           int rows, int units, int pass_rows, int splits, int chunk, int kept) {
    const Sequence s{T,        B,     H,    lengths,   w_hh,   states, far,
                     counters, units, rows, pass_rows, splits, chunk,  kept};
    const StateGradient state{dh0,
                              rec,
                              mask_h,
                              y,
                              dy,
                              clip_h,
                              {zoneout_h, threshold_h, philox_purpose(kZoneoutH, layer), sample,
                               seed, draw, draw_at, time0, row_ids},
                              B,
                              H};
    const GateNorm<1> gate_norm = norm_of<1>(s, ln_gates, norm, rstd, partials);
    general_backward_loop<1, false>(
        s, state, gate_norm, dln_gates,
        // where a unit kept its state, y is no activation, and dh is 0
        [&](int64_t t, int64_t r, int64_t u, REAL dh, REAL* a) {
            const int64_t at = (t * B + r) * H + u;
            dpre[at] = a[0] = activation_backward(relu, y[at], dh);
        },
        [&](int64_t t, int64_t r, int, int64_t u) { return dpre[(t * B + r) * H + u]; },
        [&](int64_t t, int64_t r, int64_t u) { dpre[(t * B + r) * H + u] = 0; });
}
