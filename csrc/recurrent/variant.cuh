// GPU form of what variant.h describes, for the general kernels of all cells.
#pragma once

#include "recurrent/sequence.cuh"
#include "recurrent/layer_norm_math.h"
#include "common/philox.h"

// Draws d, the share of the previous state, anew in each pass.
struct Zoneout {
    REAL p;
    uint32_t threshold, purpose;
    int sample;
    uint32_t seed, step;
    const double* step_at;  // read where it is used: a register for it would be one too many
    uint32_t time0;
    const int32_t* rows;

    NLM_FN REAL share(int64_t t, int64_t row, int64_t unit) const {
        if (p == 0 || !sample) return p;
        const uint32_t id = uint32_t(rows != nullptr ? rows[row] : row);
        const PhiloxWords words = philox(seed, late(step, step_at),
                                         {{uint32_t(unit >> 2), id, time0 + uint32_t(t), purpose}});
        uint32_t word = words.word[0];  // no array in local memory
        for (int i = 1; i < 4; ++i)
            if ((unit & 3) == i) word = words.word[i];
        return word < threshold ? REAL(1) : REAL(0);
    }
    // s_t = d s_{t-1} + (1 - d) s'
    NLM_FN REAL mix(int64_t t, int64_t row, int64_t unit, REAL previous, REAL fresh) const {
        if (p == 0) return fresh;
        const REAL d = share(t, row, unit);
        return d * previous + (1 - d) * fresh;
    }
    // Takes from the gradient of s_t the part that flows past the cell, to s_{t-1}.
    NLM_FN REAL past(int64_t t, int64_t row, int64_t unit, REAL& gradient) const {
        const REAL part = p == 0 ? REAL(0) : share(t, row, unit) * gradient;
        gradient -= part;
        return part;
    }
};

// The gradient of the new state before clipping; y: the state, on the bound (infinite for none) if
// it was clipped.
NLM_FN REAL unclip(REAL bound, REAL y, REAL dh) { return y >= bound || y <= -bound ? REAL(0) : dh; }

// Layer norm. Values of a row stand with all blocks of its group: each reduces its own to two
// numbers, and after a barrier all blocks add up those of all in the same order.
// Numbers of shared memory for so many rows' totals; what follows stays aligned.
NLM_FN int totals_of(int rows) { return (rows + 1) / 2 * 4; }

struct RowNorm {
    REAL* partials;  // [B][blocks][2]: two such, because a block may be a phase ahead
    REAL* totals;    // [rows][2], shared
    Span group;
    int64_t batch;

    NLM_FN REAL* partial(int which, int64_t row, int block) const {
        return partials + (((which * batch + row) * gridDim.x) + block) * 2;
    }
    NLM_FN REAL total(int64_t row, int which) const {
        return totals[(row - group.begin) * 2 + which];
    }

    // Mean of the block's `count` values of each row, and squared distances from it.
    template <class Value>
    NLM_FN void moments(int which, int begin, int end, int count, const Value& value) const {
        const int lane = int(threadIdx.x) % kWarp;
        for (int r = begin + int(threadIdx.x) / kWarp; r < end; r += kThreads / kWarp) {
            REAL sum = 0, squares = 0;
            for (int i = lane; i < count; i += kWarp) sum += value(r, i);
            const REAL mean = warp_sum(sum) / REAL(count > 0 ? count : 1);
            for (int i = lane; i < count; i += kWarp) {
                const REAL d = value(r, i) - mean;
                squares += d * d;
            }
            squares = warp_sum(squares);
            if (lane == 0) {
                partial(which, r, int(blockIdx.x))[0] = mean;
                partial(which, r, int(blockIdx.x))[1] = squares;
            }
        }
    }
    // totals: mean and 1 / sqrt(var + 1e-5) of rows over all blocks, of which block b has
    // count(b) values; also to rstd [B] if not null.
    template <class Count>
    NLM_FN void merge_moments(int which, int begin, int end, REAL* rstd, const Count& count) const {
        const int lane = int(threadIdx.x) % kWarp, blocks = int(gridDim.x);
        for (int r = begin + int(threadIdx.x) / kWarp; r < end; r += kThreads / kWarp) {
            REAL sum = 0, squares = 0, n = 0;
            for (int b = lane; b < blocks; b += kWarp) {
                n += REAL(count(b));
                sum += REAL(count(b)) * nlm_load_global(partial(which, r, b));
            }
            n = warp_sum(n);
            const REAL mean = warp_sum(sum) / n;
            for (int b = lane; b < blocks; b += kWarp) {
                const REAL d = nlm_load_global(partial(which, r, b)) - mean;
                squares += nlm_load_global(partial(which, r, b) + 1) + REAL(count(b)) * d * d;
            }
            squares = warp_sum(squares);
            if (lane == 0) {
                const REAL scale = REAL(1 / sqrt(double(squares / n) + kNormEpsilon));
                totals[(r - group.begin) * 2] = mean;
                totals[(r - group.begin) * 2 + 1] = scale;
                if (rstd != nullptr && blockIdx.x == 0) rstd[r] = scale;
            }
        }
        __syncthreads();
    }

    // The block's sums over its `count` values of a row of d and of d times along.
    template <class Value>
    NLM_FN void sums(int which, int begin, int end, int count, const Value& value) const {
        const int lane = int(threadIdx.x) % kWarp;
        for (int r = begin + int(threadIdx.x) / kWarp; r < end; r += kThreads / kWarp) {
            REAL sum = 0, product = 0;
            for (int i = lane; i < count; i += kWarp) {
                REAL d, along;
                value(r, i, d, along);
                sum += d;
                product += d * along;
            }
            sum = warp_sum(sum);
            product = warp_sum(product);
            if (lane == 0) {
                partial(which, r, int(blockIdx.x))[0] = sum;
                partial(which, r, int(blockIdx.x))[1] = product;
            }
        }
    }
    // totals: means over the n values of all blocks.
    NLM_FN void merge_sums(int which, int begin, int end, int64_t n) const {
        const int lane = int(threadIdx.x) % kWarp, blocks = int(gridDim.x);
        for (int r = begin + int(threadIdx.x) / kWarp; r < end; r += kThreads / kWarp) {
            REAL sum = 0, product = 0;
            for (int b = lane; b < blocks; b += kWarp) {
                sum += nlm_load_global(partial(which, r, b));
                product += nlm_load_global(partial(which, r, b) + 1);
            }
            sum = warp_sum(sum);
            product = warp_sum(product);
            if (lane == 0) {
                totals[(r - group.begin) * 2] = sum / REAL(n);
                totals[(r - group.begin) * 2 + 1] = product / REAL(n);
            }
        }
        __syncthreads();
    }
    // The gradient of v from d, that of `hat` = N(v), after merge_sums.
    NLM_FN REAL backward(int64_t row, REAL d, REAL hat, REAL rstd) const {
        return (d - total(row, 0) - hat * total(row, 1)) * rstd;
    }
};

// Layer norm of what w_hh h gives to G gates of each unit, in a pass's steps. Members are a
// kernel's parameters as they are: what is derived from them would take registers through all
// steps.
template <int G>
struct GateNorm {
    const REAL* ln_gates;  // [2,GH]; null: no layer norm
    REAL* norm;            // [2,T,B,GH], or without rstd one step's memory [B,GH]
    REAL* rstd;            // [2,T,B] or more
    int64_t T, B, H;
    int units, rows;
    RowNorm stats;

    NLM_FN explicit operator bool() const { return ln_gates != nullptr; }
    // Numbers of shared memory, from its beginning, that stats.totals are.
    NLM_FN int shared() const { return ln_gates != nullptr ? totals_of(rows) : 0; }
    NLM_FN REAL gain(int64_t column) const { return ln_gates[G * H + column]; }
    // N(w_hh h)
    NLM_FN REAL* row(int64_t t, int64_t r) const {
        return norm + (rstd != nullptr ? (T + t) * B + r : r) * G * H;
    }
    NLM_FN REAL* rstd_of(int64_t t) const { return rstd != nullptr ? rstd + (T + t) * B : nullptr; }
};

template <int G>
NLM_FN GateNorm<G> norm_of(const Sequence& s, const REAL* ln_gates, REAL* norm, REAL* rstd,
                           REAL* partials) {
    return {ln_gates, norm,   rstd,
            s.T,      s.B,    s.H,
            s.units,  s.rows, {partials, nlm_shared<REAL>(), s.group(), s.B}};
}

// A step's products with the state: point(r, u, a) from a[g] = (w_hh h)[gate g of u] of `count`
// rows, normalised if asked for, at the price of a barrier.
template <int G, class Point>
NLM_FN void gates_of(const Product& product, const Exchange& exchange, const GateNorm<G>& norm,
                     const Span& own, int64_t t, int count, RowGroup& others, const Point& point) {
    const int begin = norm.stats.group.begin;
    multiply(product, exchange.row(t, begin), count, [&](int first, int n) {
        const int from = begin + first;
        if (norm)
            norm.stats.moments(0, from, from + n, product.columns,
                               [&](int r, int i) { return product.at(i, r - from); });
        each_element(from, from + n, own, [&](int64_t r, int64_t u) {
            REAL a[G];
            for (int g = 0; g < G; ++g) {
                a[g] = product.at((int(u) - own.begin) * G + g, int(r) - from);
                if (norm) norm.row(t, r)[g * norm.H + u] = a[g];
            }
            if (!norm) point(r, u, a);
        });
    });
    if (!norm || count == 0) return;
    others.barrier();
    norm.stats.merge_moments(0, begin, begin + count, norm.rstd_of(t),
                             [&](int x) { return G * span_of(norm.units, x, norm.H).size(); });
    each_element(begin, begin + count, own, [&](int64_t r, int64_t u) {
        REAL a[G];
        for (int g = 0; g < G; ++g) {
            REAL& hat = norm.row(t, r)[g * norm.H + u];
            hat = (hat - norm.stats.total(r, 0)) * norm.stats.total(r, 1);
            a[g] = norm.gain(g * norm.H + u) * hat;
        }
        point(r, u, a);
    });
}

// From d(r, g, u), the gradient of what gates_of gives, to that of w_hh h, which goes to the other
// blocks and takes the place of N(w_hh h). dgain [B,GH]: sums over time. The block's threads have
// all arrived.
template <int G, class D>
NLM_FN void gates_gradient(const Exchange& exchange, const GateNorm<G>& norm, REAL* dgain,
                           const Span& own, int64_t t, int count, RowGroup& others, const D& d) {
    const int begin = norm.stats.group.begin;
    norm.stats.sums(1, begin, begin + count, G * own.size(),
                    [&](int64_t r, int i, REAL& product, REAL& hat) {
                        const int64_t u = own.begin + i / G, column = i % G * norm.H + u;
                        hat = norm.row(t, r)[column];
                        product = d(r, i % G, u);
                        dgain[r * G * norm.H + column] += product * hat;
                        product *= norm.gain(column);
                    });
    others.barrier();
    norm.stats.merge_sums(1, begin, begin + count, G * norm.H);
    each_element(begin, begin + count, own, [&](int64_t r, int64_t u) {
        for (int g = 0; g < G; ++g) {
            REAL& hat = norm.row(t, r)[g * norm.H + u];
            hat = norm.stats.backward(r, d(r, g, u) * norm.gain(g * norm.H + u), hat,
                                      norm.rstd_of(t)[r]);
            exchange.put(t, r, u * G + g, hat);
        }
    });
}

// The hidden state [B,P] on its way from one step to the next.
struct State {
    REAL *y, *h_last, *h_in;
    const REAL* mask_h;
    REAL clip;  // infinite: none
    Zoneout zoneout;
    Exchange exchange;
    int64_t P;

    // What of the last state enters w_hh.
    NLM_FN REAL entering(int64_t r, int64_t u) const {
        const REAL h = h_last[r * P + u];
        return mask_h != nullptr ? h * mask_h[r * P + u] : h;
    }
    NLM_FN void start(int64_t r, int64_t u, const REAL* h0) const {
        h_last[r * P + u] = h0[r * P + u];
        exchange.put(0, r, u, entering(r, u));
    }
    // h: as step t has computed it.
    NLM_FN void finish(int64_t t, int64_t r, int64_t u, REAL h) const {
        const int64_t at = r * P + u;
        h = zoneout.mix(t, r, u, h_last[at], CudaFn<REAL>::clamp(h, clip));
        y[t * exchange.batch * P + at] = h_last[at] = h;
        if (mask_h != nullptr) {
            h *= mask_h[at];
            h_in[t * exchange.batch * P + at] = h;
        }
        exchange.put(t + 1, r, u, h);
    }
    NLM_FN void clear(int64_t t, int64_t r, int64_t u) const {
        const int64_t at = (t * exchange.batch + r) * P + u;
        y[at] = 0;
        if (h_in != nullptr) h_in[at] = 0;
    }
};

// Its gradient [B,P]: what comes through the product with w_hh, and what does not.
struct StateGradient {
    REAL *direct, *rec;
    const REAL *mask_h, *y, *dy;
    REAL clip;
    Zoneout zoneout;
    int64_t B, P;

    NLM_FN REAL at(int64_t r, int64_t u) const {
        const REAL d = rec[r * P + u];
        return (mask_h != nullptr ? d * mask_h[r * P + u] : d) + direct[r * P + u];
    }
    // That of the state as step t computed it; `direct` keeps what flows past the step.
    NLM_FN REAL fresh(int64_t t, int64_t r, int64_t u) const {
        const int64_t place = (t * B + r) * P + u;
        REAL dh = dy[place] + at(r, u);
        direct[r * P + u] = zoneout.past(t, r, u, dh);
        return unclip(clip, y[place], dh);
    }
};

// forward_loop of sequence.cuh with all variants.
template <int G, class Point>
NLM_FN void general_forward_loop(const Sequence& s, const State& state, const GateNorm<G>& norm,
                                 const REAL* h0, const Point& point) {
    const Span own = s.own(), group = s.group();
    RowGroup others = row_group(s.counters);
    const Product product = s.gates<G>(norm.shared());
    each_element(group.begin, group.end, own, [&](int64_t r, int64_t u) { state.start(r, u, h0); });
    others.barrier();
    for (int64_t t = 0; t < s.T; ++t) {
        const int count = active_rows(s.lengths, group, t);
        gates_of(
            product, state.exchange, norm, own, t, count, others,
            [&](int64_t r, int64_t u, const REAL* a) { state.finish(t, r, u, point(t, r, u, a)); });
        each_element(group.begin + count, group.end, own,
                     [&](int64_t r, int64_t u) { state.clear(t, r, u); });
        if (count > 0) others.barrier();
    }
}

// backward_loop of sequence.cuh with all variants. d(t, r, g, u): what point has given as a[g].
template <int G, bool kDirect, class Point, class D, class Clear>
NLM_FN void general_backward_loop(const Sequence& s, const StateGradient& state,
                                  const GateNorm<G>& norm, REAL* dgain, const Point& point,
                                  const D& d, const Clear& clear) {
    const int64_t H = s.H;
    const Span own = s.own(), group = s.group();
    const Exchange exchange = exchange_of(s.states, s.B, G * H);
    RowGroup others = row_group(s.counters);
    const Product product = s.gradient<G>(norm.shared());
    for (int64_t t = s.T - 1; t >= 0; --t) {
        const int count = active_rows(s.lengths, group, t), end = group.begin + count;
        each_element(group.begin, end, own, [&](int64_t r, int64_t u) {
            REAL a[G], dh = state.fresh(t, r, u);
            point(t, r, u, dh, a);
            if (kDirect) state.direct[r * H + u] += dh;
            if (!norm)
                for (int g = 0; g < G; ++g) exchange.put(t, r, u * G + g, a[g]);
        });
        each_element(end, group.end, own, [&](int64_t r, int64_t u) {
            clear(t, r, u);
            if (norm)
                for (int g = 0; g < G; ++g) norm.row(t, r)[g * H + u] = 0;
        });
        if (count == 0) continue;
        if (norm) {
            __syncthreads();
            gates_gradient(exchange, norm, dgain, own, t, count, others,
                           [&](int64_t r, int g, int64_t u) { return d(t, r, g, u); });
        }
        others.barrier();
        multiply(product, exchange.row(t, group.begin), count, [&](int first, int n) {
            const int from = group.begin + first;
            each_element(from, from + n, own, [&](int64_t r, int64_t u) {
                state.rec[r * H + u] = product.at(int(u) - own.begin, int(r) - from);
            });
        });
    }
    __syncthreads();
    each_element(group.begin, group.end, own,
                 [&](int64_t r, int64_t u) { state.direct[r * H + u] = state.at(r, u); });
}
