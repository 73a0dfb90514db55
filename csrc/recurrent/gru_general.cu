// The GRU that resets after the product with all its variants on a GPU (contract: gru.h and
// variant.h, equations: gru_math.h, loop: variant.cuh). A step costs what one of gru.cu does, with
// layer norm one more barrier.
#include "recurrent/variant.cuh"
// one cell of all of them
#include "recurrent/gru.cuh"

// gates: on entry what enters the gates besides w_hh h (with layer norm gain N(w_ih x) + b, and b
// is null) [T,B,3H]; replaced by the gates if `hn` [T,B,H] is saved (null: neither). norm: of all
// steps if so, else of one. clip_h: infinite for none. states, far, partials: working memory;
// counters: zeros.
NLM_KERNEL(gru_general_forward, 256, REAL* y, REAL* h_last, REAL* gates, REAL* hn, REAL* h_in,
           REAL* norm, REAL* rstd, const REAL* h0, const REAL* w_hh, const REAL* b,
           const REAL* b_hn, const REAL* ln_gates, const REAL* mask_h, const int32_t* lengths,
           int64_t T, int64_t B, int64_t H, REAL zoneout_h, uint32_t threshold_h, REAL clip_h,
           int sample, uint32_t seed, uint32_t draw, const double* draw_at, uint32_t layer,
           uint32_t time0, const int32_t* row_ids, REAL* states, REAL* far, REAL* partials,
           uint32_t* counters, int rows, int units, int pass_rows, int splits, int chunk,
           int kept) {
    const Sequence s{T,        B,     H,    lengths,   w_hh,   states, far,
                     counters, units, rows, pass_rows, splits, chunk,  kept};
    const Gru cell{gates, hn, B, H};
    const State state{y,
                      h_last,
                      h_in,
                      mask_h,
                      clip_h,
                      {zoneout_h, threshold_h, philox_purpose(kZoneoutH, layer), sample, seed, draw,
                       draw_at, time0, row_ids},
                      exchange_of(states, B, H),
                      H};
    const GateNorm<Gru::G> gate_norm = norm_of<Gru::G>(s, ln_gates, norm, rstd, partials);
    general_forward_loop(
        s, state, gate_norm, h0, [&](int64_t t, int64_t r, int64_t u, const REAL* a) {
            return cell.forward(t, r, u, cell.load(t, r, u), a, h_last[r * H + u], b, b_hn);
        });
}

// dh0: on entry the gradient of the last state. gates, hn: in: saved; out: gradients of the
// pre-activations and of hn; norm's second half likewise. rec [B,H], dln_gates [B,3H] (sums over
// time): zeros.
NLM_KERNEL(gru_general_backward, 256, REAL* dh0, REAL* gates, REAL* hn, REAL* norm, REAL* rstd,
           const REAL* y, const REAL* h0, const REAL* w_hh, const REAL* ln_gates,
           const REAL* mask_h, const REAL* dy, const int32_t* lengths, REAL* rec, REAL* dln_gates,
           int64_t T, int64_t B, int64_t H, REAL zoneout_h, uint32_t threshold_h, REAL clip_h,
           int sample, uint32_t seed, uint32_t draw, const double* draw_at, uint32_t layer,
           uint32_t time0, const int32_t* row_ids, REAL* states, REAL* far, REAL* partials,
           uint32_t* counters, int rows, int units, int pass_rows, int splits, int chunk,
           int kept) {
    const Sequence s{T,        B,     H,    lengths,   w_hh,   states, far,
                     counters, units, rows, pass_rows, splits, chunk,  kept};
    const Gru cell{gates, hn, B, H};
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
    const GateNorm<Gru::G> gate_norm = norm_of<Gru::G>(s, ln_gates, norm, rstd, partials);
    general_backward_loop<Gru::G, true>(
        s, state, gate_norm, dln_gates,
        [&](int64_t t, int64_t r, int64_t u, REAL& dh, REAL* a) {
            const REAL h_prev = t > 0 ? y[((t - 1) * B + r) * H + u] : h0[r * H + u];
            cell.backward(t, r, u, cell.load(t, r, u), hn[(t * B + r) * H + u], h_prev, dh, a);
        },
        [&](int64_t t, int64_t r, int g, int64_t u) {
            return g == 2 ? hn[(t * B + r) * H + u] : gates[((t * B + r) * Gru::G + g) * H + u];
        },
        [&](int64_t t, int64_t r, int64_t u) { cell.clear(t, r, u); });
}
