// The GRU that resets before the product, plain and with its variants, on a GPU (contract: gru.h
// and variant.h, equations: gru_math.h).
//
// As many FLOP and bytes a step as in gru.cu, but in two products, because that of n needs r of
// all units, with a barrier more between them.
#include "recurrent/variant.cuh"
// one cell of all of them
#include "recurrent/gru_math.h"

constexpr int G = 3;

// gates: on entry w_ih x [T,B,3H]; replaced by the gates. rh [T,B,H]: r h, null if not saved.
// clip_h: infinite for none. states, middle, far, far_2: working memory; counters: zeros.
NLM_KERNEL(gru_before_forward, 256, REAL* y, REAL* h_last, REAL* gates, REAL* rh, REAL* h_in,
           const REAL* h0, const REAL* w_hh, const REAL* b, const REAL* mask_h,
           const int32_t* lengths, int64_t T, int64_t B, int64_t H, REAL zoneout_h,
           uint32_t threshold_h, REAL clip_h, int sample, uint32_t seed, uint32_t draw,
           const double* draw_at, uint32_t layer, uint32_t time0, const int32_t* row_ids,
           REAL* states, REAL* middle, REAL* far, REAL* far_2, uint32_t* counters, int rows,
           int units, int pass_rows, int splits, int chunk, int kept, int units_2, int pass_rows_2,
           int splits_2, int chunk_2, int kept_2) {
    const Span own = span_of(units, int(blockIdx.x), H), group = span_of(rows, int(blockIdx.y), B);
    const Exchange between = exchange_of(middle, B, H);
    RowGroup others = row_group(counters);
    REAL* shared = nlm_shared<REAL>();
    Product product =
        product_of(2 * own.size(), 2 * units, H, pass_rows, splits, chunk, kept, far, shared);
    pack<true>(product, int(H), [&](int i, int k) {
        return w_hh[(int64_t(i % 2) * H + own.begin + i / 2) * H + k];
    });
    Product second =
        product_of(own.size(), units_2, H, pass_rows_2, splits_2, chunk_2, kept_2, far_2, shared);
    pack<true>(second, int(H), [&](int i, int k) { return w_hh[(2 * H + own.begin + i) * H + k]; });
    product.space = second.space = shared;
    const State state{y,
                      h_last,
                      h_in,
                      mask_h,
                      clip_h,
                      {zoneout_h, threshold_h, philox_purpose(kZoneoutH, layer), sample, seed, draw,
                       draw_at, time0, row_ids},
                      exchange_of(states, B, H),
                      H};

    each_element(group.begin, group.end, own, [&](int64_t r, int64_t u) { state.start(r, u, h0); });
    others.barrier();
    for (int64_t t = 0; t < T; ++t) {
        const int count = active_rows(lengths, group, t);
        multiply(product, state.exchange.row(t, group.begin), count, [&](int first, int n) {
            const int from = group.begin + first;
            each_element(from, from + n, own, [&](int64_t r, int64_t u) {
                REAL* const saved = gates + (t * B + r) * G * H + u;
                const int at = (int(u) - own.begin) * 2, column = int(r) - from;
                REAL reset = product.at(at, column) + saved[0] + b[u], rest;
                REAL z = product.at(at + 1, column) + saved[H] + b[H + u];
                gru_reset<CudaFn<REAL>>(reset, z, rest, state.entering(r, u));
                saved[0] = reset;
                saved[H] = z;
                between.put(t, r, u, rest);
                if (rh != nullptr) rh[(t * B + r) * H + u] = rest;
            });
        });
        if (count > 0) others.barrier();
        multiply(second, between.row(t, group.begin), count, [&](int first, int rows_now) {
            const int from = group.begin + first;
            each_element(from, from + rows_now, own, [&](int64_t r, int64_t u) {
                REAL* const saved = gates + (t * B + r) * G * H + u;
                REAL n = second.at(int(u) - own.begin, int(r) - from) + saved[2 * H] + b[2 * H + u];
                REAL h = h_last[r * H + u];
                gru_update<CudaFn<REAL>>(n, h, saved[H]);
                saved[2 * H] = n;
                state.finish(t, r, u, h);
            });
        });
        each_element(group.begin + count, group.end, own,
                     [&](int64_t r, int64_t u) { state.clear(t, r, u); });
        if (count > 0) others.barrier();
    }
}

// dh0: on entry the gradient of the last state. gates: in: saved; out: gradients of the
// pre-activations; rh: 0 beyond the lengths. rec [B,H]: zeros.
NLM_KERNEL(gru_before_backward, 256, REAL* dh0, REAL* gates, REAL* rh, const REAL* y,
           const REAL* h0, const REAL* w_hh, const REAL* mask_h, const REAL* dy,
           const int32_t* lengths, REAL* rec, int64_t T, int64_t B, int64_t H, REAL zoneout_h,
           uint32_t threshold_h, REAL clip_h, int sample, uint32_t seed, uint32_t draw,
           const double* draw_at, uint32_t layer, uint32_t time0, const int32_t* row_ids,
           REAL* states, REAL* middle, REAL* far, REAL* far_2, uint32_t* counters, int rows,
           int units, int pass_rows, int splits, int chunk, int kept, int units_2, int pass_rows_2,
           int splits_2, int chunk_2, int kept_2) {
    const Span own = span_of(units, int(blockIdx.x), H), group = span_of(rows, int(blockIdx.y), B);
    const Exchange exchange = exchange_of(states, B, 2 * H), between = exchange_of(middle, B, H);
    RowGroup others = row_group(counters);
    REAL* shared = nlm_shared<REAL>();
    Product product =
        product_of(own.size(), units, 2 * H, pass_rows, splits, chunk, kept, far, shared);
    pack<false>(product, int(2 * H), [&](int i, int k) {
        return w_hh[(int64_t(k % 2) * H + k / 2) * H + own.begin + i];
    });
    Product second =
        product_of(own.size(), units_2, H, pass_rows_2, splits_2, chunk_2, kept_2, far_2, shared);
    pack<false>(second, int(H),
                [&](int i, int k) { return w_hh[(2 * H + k) * H + own.begin + i]; });
    product.space = second.space = shared;
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

    for (int64_t t = T - 1; t >= 0; --t) {
        const int count = active_rows(lengths, group, t), end = group.begin + count;
        const REAL* const before = t > 0 ? y + (t - 1) * B * H : h0;
        each_element(group.begin, end, own, [&](int64_t r, int64_t u) {
            REAL* const saved = gates + (t * B + r) * G * H + u;
            REAL dh = state.fresh(t, r, u), z = saved[H], n = saved[2 * H];
            gru_update_backward<CudaFn<REAL>>(z, n, dh, before[r * H + u]);
            state.direct[r * H + u] += dh;
            exchange.put(t, r, u * 2 + 1, saved[H] = z);
            between.put(t, r, u, saved[2 * H] = n);
        });
        each_element(end, group.end, own, [&](int64_t r, int64_t u) {
            for (int g = 0; g < G; ++g) gates[((t * B + r) * G + g) * H + u] = 0;
            rh[(t * B + r) * H + u] = 0;
        });
        if (count == 0) continue;
        others.barrier();
        multiply(second, between.row(t, group.begin), count, [&](int first, int n) {
            const int from = group.begin + first;
            each_element(from, from + n, own, [&](int64_t r, int64_t u) {
                REAL* const saved = gates + (t * B + r) * G * H + u;
                REAL reset = saved[0], d = second.at(int(u) - own.begin, int(r) - from);
                REAL h = before[r * H + u];
                if (mask_h != nullptr) h *= mask_h[r * H + u];
                gru_reset_backward<CudaFn<REAL>>(reset, d, h);
                exchange.put(t, r, u * 2, saved[0] = reset);
                rec[r * H + u] = d;
            });
        });
        others.barrier();
        multiply(product, exchange.row(t, group.begin), count, [&](int first, int n) {
            const int from = group.begin + first;
            each_element(from, from + n, own, [&](int64_t r, int64_t u) {
                rec[r * H + u] += product.at(int(u) - own.begin, int(r) - from);
            });
        });
    }
    __syncthreads();
    each_element(group.begin, group.end, own,
                 [&](int64_t r, int64_t u) { dh0[r * H + u] = state.at(r, u); });
}
