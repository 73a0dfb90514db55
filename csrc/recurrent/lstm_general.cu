// The LSTM with all its variants on a GPU (contract: lstm.h and variant.h, equations: lstm_math.h).
//
// The loop of lstm.cu with more in a step: projection is a second product behind one more barrier,
// layer norm two more barriers, at which blocks add up what they know of a row. GATES is 4, or 3
// for coupled gates.
#include "recurrent/variant.cuh"
// one cell of all of them
#include "recurrent/lstm_math.h"

constexpr int G = GATES;
constexpr bool kCoupled = G == 3;
constexpr int kCell = G - 2, kOutput = G - 1;  // places of g and o

// Weights of peepholes, zero for none.
struct Peephole {
    const REAL* p;
    int64_t H;
    NLM_FN REAL at(int which, int64_t u) const { return p != nullptr ? p[which * H + u] : REAL(0); }
    NLM_FN REAL i(int64_t u) const { return at(0, u); }
    NLM_FN REAL f(int64_t u) const { return kCoupled ? REAL(0) : at(1, u); }
    NLM_FN REAL o(int64_t u) const { return at(G - 2, u); }
};

// gates: on entry what enters the gates besides w_hh h (with layer norm gain N(w_ih x) + b, and b
// is null) [T,B,GH]; replaced. norm, norm_c, m: of all steps if `saves`, else of one (m null).
// clip_h, clip_c: infinite for none. states, middle, far, far_2, partials: working memory;
// counters: zeros.
NLM_KERNEL(lstm_general_forward, 256, REAL* y, REAL* h_last, REAL* c_last, REAL* gates, REAL* c,
           REAL* h_in, REAL* m, REAL* norm, REAL* norm_c, REAL* rstd, const REAL* h0,
           const REAL* c0, const REAL* w_hh, const REAL* b, const REAL* peephole, const REAL* w_hr,
           const REAL* ln_gates, const REAL* ln_cell, const REAL* mask_h, const int32_t* lengths,
           int64_t T, int64_t B, int64_t H, int64_t P, int saves, REAL zoneout_h, REAL zoneout_c,
           uint32_t threshold_h, uint32_t threshold_c, REAL clip_h, REAL clip_c, int norm_state,
           int sample, uint32_t seed, uint32_t draw, const double* draw_at, uint32_t layer,
           uint32_t time0, const int32_t* row_ids, REAL* states, REAL* middle, REAL* far,
           REAL* far_2, REAL* partials, uint32_t* counters, int rows, int units, int pass_rows,
           int splits, int chunk, int kept, int units_2, int pass_rows_2, int splits_2, int chunk_2,
           int kept_2) {
    const Span own = span_of(units, int(blockIdx.x), H), group = span_of(rows, int(blockIdx.y), B);
    const Span outs = span_of(w_hr != nullptr ? units_2 : units, int(blockIdx.x), P);
    const Exchange exchange = exchange_of(states, B, P), between = exchange_of(middle, B, H);
    RowGroup others = row_group(counters);
    const GateNorm<G> gate_norm{
        ln_gates, norm, rstd, T, B, H, units, rows, {partials, nlm_shared<REAL>(), group, B}};
    const RowNorm& stats = gate_norm.stats;
    REAL* shared = nlm_shared<REAL>() + gate_norm.shared();
    Product product =
        product_of(G * own.size(), G * units, P, pass_rows, splits, chunk, kept, far, shared);
    pack<true>(product, int(P), [&](int i, int k) {
        return w_hh[(int64_t(i % G) * H + own.begin + i / G) * P + k];
    });
    Product second = product;
    if (w_hr != nullptr) {
        second = product_of(outs.size(), units_2, H, pass_rows_2, splits_2, chunk_2, kept_2, far_2,
                            shared);
        pack<true>(second, int(H), [&](int i, int k) { return w_hr[(outs.begin + i) * H + k]; });
    }
    product.space = second.space = shared;
    const Zoneout zone_h{zoneout_h, threshold_h, philox_purpose(kZoneoutH, layer),
                         sample,    seed,        draw,
                         draw_at,   time0,       row_ids};
    const Zoneout zone_c{zoneout_c, threshold_c, philox_purpose(kZoneoutC, layer),
                         sample,    seed,        draw,
                         draw_at,   time0,       row_ids};
    const Peephole peep{peephole, H};
    const State hidden{y, h_last, h_in, mask_h, clip_h, zone_h, exchange, P};

    // fresh: the new cell state, seen: what of it the output sees
    const auto output = [&](int64_t t, int64_t r, int64_t u, REAL o, REAL fresh, REAL seen) {
        const int64_t at = (t * B + r) * H + u, state = r * H + u;
        REAL h;
        lstm_output<CudaFn<REAL>>(o, h, fresh, seen, peep.o(u));
        gates[((t * B + r) * G + kOutput) * H + u] = o;
        const REAL cell = zone_c.mix(t, r, u, c_last[state], fresh);
        c_last[state] = cell;
        if (c != nullptr) c[at] = cell;
        if (m != nullptr) m[at] = h;
        if (w_hr != nullptr)
            between.put(t, r, u, h);
        else
            hidden.finish(t, r, u, h);
    };
    // From pre-activations in a, o's left out: gates saved, the new cell state returned.
    const auto state = [&](int64_t t, int64_t r, int64_t u, REAL* a) {
        REAL* const saved = gates + (t * B + r) * G * H + u;
        REAL cell = c_last[r * H + u], f = kCoupled ? REAL(0) : a[1];
        lstm_state<CudaFn<REAL>, kCoupled>(a[0], f, a[kCell], cell, peep.i(u), peep.f(u), clip_c);
        saved[0] = a[0];
        if (!kCoupled) saved[H] = f;
        saved[kCell * H] = a[kCell];
        return cell;
    };

    each_element(group.begin, group.end, outs,
                 [&](int64_t r, int64_t u) { hidden.start(r, u, h0); });
    each_element(group.begin, group.end, own,
                 [&](int64_t r, int64_t u) { c_last[r * H + u] = c0[r * H + u]; });
    others.barrier();
    for (int64_t t = 0; t < T; ++t) {
        const int count = active_rows(lengths, group, t), end = group.begin + count;
        const auto cell_of = [&](int64_t r) { return norm_c + (saves ? t * B + r : r) * H; };
        // gates_of() written out: by a function of its own, registers spill.
        multiply(product, exchange.row(t, group.begin), count, [&](int first, int n) {
            const int from = group.begin + first;
            if (gate_norm)
                stats.moments(0, from, from + n, product.columns,
                              [&](int r, int i) { return product.at(i, r - from); });
            each_element(from, from + n, own, [&](int64_t r, int64_t u) {
                const REAL* const saved = gates + (t * B + r) * G * H + u;
                const int at = (int(u) - own.begin) * G, column = int(r) - from;
                REAL a[G];
                for (int g = 0; g < G; ++g) {
                    a[g] = product.at(at + g, column);
                    if (gate_norm)
                        gate_norm.row(t, r)[g * H + u] = a[g];
                    else
                        a[g] += saved[g * H] + b[g * H + u];
                }
                if (gate_norm) return;
                const REAL cell = state(t, r, u, a);
                output(t, r, u, a[kOutput], cell, cell);
            });
        });
        if (gate_norm && count > 0) {
            others.barrier();
            stats.merge_moments(0, group.begin, end, gate_norm.rstd_of(t),
                                [&](int x) { return G * span_of(units, x, H).size(); });
            each_element(group.begin, end, own, [&](int64_t r, int64_t u) {
                REAL* const saved = gates + (t * B + r) * G * H + u;
                REAL a[G];
                for (int g = 0; g < G; ++g) {
                    REAL& hat = gate_norm.row(t, r)[g * H + u];
                    hat = (hat - stats.total(r, 0)) * stats.total(r, 1);
                    a[g] = saved[g * H] + gate_norm.gain(g * H + u) * hat;
                }
                cell_of(r)[u] = state(t, r, u, a);
                saved[kOutput * H] = a[kOutput];
            });
            __syncthreads();
            stats.moments(1, group.begin, end, own.size(),
                          [&](int r, int i) { return cell_of(r)[own.begin + i]; });
            others.barrier();
            stats.merge_moments(1, group.begin, end, saves ? rstd + (2 * T + t) * B : nullptr,
                                [&](int x) { return span_of(units, x, H).size(); });
            each_element(group.begin, end, own, [&](int64_t r, int64_t u) {
                const REAL cell = cell_of(r)[u];
                const REAL hat = (cell - stats.total(r, 0)) * stats.total(r, 1);
                const REAL seen = ln_cell[u] * hat + ln_cell[H + u];
                cell_of(r)[u] = hat;
                output(t, r, u, gates[((t * B + r) * G + kOutput) * H + u],
                       norm_state ? seen : cell, seen);
            });
        }
        if (w_hr != nullptr && count > 0) {
            others.barrier();
            multiply(second, between.row(t, group.begin), count, [&](int first, int n) {
                const int from = group.begin + first;
                each_element(from, from + n, outs, [&](int64_t r, int64_t u) {
                    hidden.finish(t, r, u, second.at(int(u) - outs.begin, int(r) - from));
                });
            });
        }
        each_element(end, group.end, outs, [&](int64_t r, int64_t u) { hidden.clear(t, r, u); });
        if (m != nullptr)
            each_element(end, group.end, own,
                         [&](int64_t r, int64_t u) { m[(t * B + r) * H + u] = 0; });
        if (count > 0) others.barrier();
    }
}

// dh0, dc0: on entry gradients of the last states. gates: in: saved; out: gradients of the
// pre-activations; norm's second half likewise (with layer norm). rec [B,P], zeros; dr [T,B,P]
// zeros: gradients of h' (projection); q, rest [B,H]: working memory (layer norm); sums over
// time, zeros: dpeephole [B,(G-1)H], dln_gates [B,GH], dln_cell [B,2H].
NLM_KERNEL(lstm_general_backward, 256, REAL* dh0, REAL* dc0, REAL* gates, const REAL* c,
           const REAL* y, REAL* norm, const REAL* norm_c, REAL* rstd, const REAL* c0,
           const REAL* w_hh, const REAL* peephole, const REAL* w_hr, const REAL* ln_gates,
           const REAL* ln_cell, const REAL* mask_h, const REAL* dy, const int32_t* lengths,
           REAL* rec, REAL* dr, REAL* q, REAL* rest, REAL* dpeephole, REAL* dln_gates,
           REAL* dln_cell, int64_t T, int64_t B, int64_t H, int64_t P, REAL zoneout_h,
           REAL zoneout_c, uint32_t threshold_h, uint32_t threshold_c, REAL clip_h, REAL clip_c,
           int norm_state, int sample, uint32_t seed, uint32_t draw, const double* draw_at,
           uint32_t layer, uint32_t time0, const int32_t* row_ids, REAL* states, REAL* middle,
           REAL* far, REAL* far_2, REAL* partials, uint32_t* counters, int rows, int units,
           int pass_rows, int splits, int chunk, int kept, int units_2, int pass_rows_2,
           int splits_2, int chunk_2, int kept_2) {
    // the first product's columns are the state's, the second's the units
    const Span outs = span_of(units, int(blockIdx.x), P), group = span_of(rows, int(blockIdx.y), B);
    const int own_units = w_hr != nullptr ? units_2 : units;
    const Span own = span_of(own_units, int(blockIdx.x), H);
    const Exchange exchange = exchange_of(states, B, G * H), between = exchange_of(middle, B, P);
    RowGroup others = row_group(counters);
    const GateNorm<G> gate_norm{
        ln_gates, norm, rstd, T, B, H, own_units, rows, {partials, nlm_shared<REAL>(), group, B}};
    const RowNorm& stats = gate_norm.stats;
    REAL* shared = nlm_shared<REAL>() + gate_norm.shared();
    Product product =
        product_of(outs.size(), units, G * H, pass_rows, splits, chunk, kept, far, shared);
    pack<false>(product, int(G * H), [&](int i, int k) {
        return w_hh[(int64_t(k % G) * H + k / G) * P + outs.begin + i];
    });
    Product second = product;
    if (w_hr != nullptr) {
        second = product_of(own.size(), units_2, P, pass_rows_2, splits_2, chunk_2, kept_2, far_2,
                            shared);
        pack<false>(second, int(P), [&](int i, int k) { return w_hr[k * H + own.begin + i]; });
    }
    product.space = second.space = shared;
    const Zoneout zone_h{zoneout_h, threshold_h, philox_purpose(kZoneoutH, layer),
                         sample,    seed,        draw,
                         draw_at,   time0,       row_ids};
    const Zoneout zone_c{zoneout_c, threshold_c, philox_purpose(kZoneoutC, layer),
                         sample,    seed,        draw,
                         draw_at,   time0,       row_ids};
    const Peephole peep{peephole, H};
    const StateGradient hidden{dh0, rec, mask_h, y, dy, clip_h, zone_h, B, P};

    const auto add_peephole = [&](int64_t r, int which, int64_t u, REAL value) {
        if (peephole != nullptr) dpeephole[(r * (G - 1) + which) * H + u] += value;
    };
    const auto c_before = [&](int64_t t, int64_t r, int64_t u) {
        return t > 0 ? c[((t - 1) * B + r) * H + u] : c0[r * H + u];
    };
    // The last part: from the gradient d of the new cell state to the gates' and c_prev's.
    const auto finish = [&](int64_t t, int64_t r, int64_t u, REAL d, REAL direct) {
        REAL* const saved = gates + (t * B + r) * G * H + u;
        const REAL c_prev = c_before(t, r, u);
        REAL i = saved[0], f = kCoupled ? 1 - i : saved[H], g = saved[kCell * H];
        lstm_state_backward<CudaFn<REAL>, kCoupled>(i, f, g, d, c_prev, peep.i(u), peep.f(u),
                                                    clip_c);
        saved[0] = i;
        if (!kCoupled) saved[H] = f;
        saved[kCell * H] = g;
        dc0[r * H + u] = d + direct;
        add_peephole(r, 0, u, i * c_prev);
        if (!kCoupled) add_peephole(r, 1, u, f * c_prev);
        if (ln_gates == nullptr)
            for (int k = 0; k < G; ++k) exchange.put(t, r, u * G + k, saved[k * H]);
    };
    // dm: gradient of o tanh(seen)
    const auto pointwise = [&](int64_t t, int64_t r, int64_t u, REAL dm) {
        REAL* const saved = gates + (t * B + r) * G * H + u;
        const int64_t at = r * H + u;
        const REAL i = saved[0], f = kCoupled ? 1 - i : saved[H], g = saved[kCell * H];
        REAL o = saved[kOutput * H], d = dc0[at], dseen;
        const REAL direct = zone_c.past(t, r, u, d);
        REAL cell = CudaFn<REAL>::clamp(f * c_before(t, r, u) + i * g, clip_c);
        if (ln_gates == nullptr) {
            lstm_output_backward<CudaFn<REAL>>(o, dseen, cell, dm);
            saved[kOutput * H] = o;
            add_peephole(r, G - 2, u, o * cell);
            finish(t, r, u, d + dseen + o * peep.o(u), direct);
            return;
        }
        const REAL hat = norm_c[t * B * H + at], seen = ln_cell[u] * hat + ln_cell[H + u];
        lstm_output_backward<CudaFn<REAL>>(o, dseen, seen, dm);
        saved[kOutput * H] = o;
        if (norm_state) cell = seen;
        add_peephole(r, G - 2, u, o * cell);
        const REAL past = d + o * peep.o(u);
        if (norm_state) dseen += past;
        rest[at] = norm_state ? REAL(0) : past;
        dc0[at] = direct;
        dln_cell[r * 2 * H + u] += dseen * hat;
        dln_cell[r * 2 * H + H + u] += dseen;
        q[at] = dseen * ln_cell[u];
    };

    for (int64_t t = T - 1; t >= 0; --t) {
        const int count = active_rows(lengths, group, t), end = group.begin + count;
        each_element(end, group.end, own, [&](int64_t r, int64_t u) {
            for (int g = 0; g < G; ++g) {
                const int64_t at = ((t * B + r) * G + g) * H + u;
                gates[at] = 0;
                if (gate_norm) gate_norm.row(t, r)[g * H + u] = 0;
            }
        });
        if (count == 0) continue;
        if (w_hr != nullptr) {
            each_element(group.begin, end, outs, [&](int64_t r, int64_t u) {
                between.put(t, r, u, dr[(t * B + r) * P + u] = hidden.fresh(t, r, u));
            });
            others.barrier();
            multiply(second, between.row(t, group.begin), count, [&](int first, int n) {
                const int from = group.begin + first;
                each_element(from, from + n, own, [&](int64_t r, int64_t u) {
                    pointwise(t, r, u, second.at(int(u) - own.begin, int(r) - from));
                });
            });
        } else {
            each_element(group.begin, end, own,
                         [&](int64_t r, int64_t u) { pointwise(t, r, u, hidden.fresh(t, r, u)); });
        }
        if (ln_gates != nullptr) {
            __syncthreads();
            stats.sums(0, group.begin, end, own.size(), [&](int64_t r, int i, REAL& d, REAL& hat) {
                d = q[r * H + own.begin + i];
                hat = norm_c[(t * B + r) * H + own.begin + i];
            });
            others.barrier();
            stats.merge_sums(0, group.begin, end, H);
            each_element(group.begin, end, own, [&](int64_t r, int64_t u) {
                const int64_t at = r * H + u;
                const REAL d =
                    stats.backward(r, q[at], norm_c[t * B * H + at], rstd[(2 * T + t) * B + r]);
                finish(t, r, u, rest[at] + d, dc0[at]);
            });
            __syncthreads();
            gates_gradient(
                exchange, gate_norm, dln_gates, own, t, count, others,
                [&](int64_t r, int g, int64_t u) { return gates[((t * B + r) * G + g) * H + u]; });
        }
        others.barrier();
        multiply(product, exchange.row(t, group.begin), count, [&](int first, int n) {
            const int from = group.begin + first;
            each_element(from, from + n, outs, [&](int64_t r, int64_t u) {
                rec[r * P + u] = product.at(int(u) - outs.begin, int(r) - from);
            });
        });
    }
    __syncthreads();
    each_element(group.begin, group.end, outs,
                 [&](int64_t r, int64_t u) { dh0[r * P + u] = hidden.at(r, u); });
}
