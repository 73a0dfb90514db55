// Losses over sampled tokens on a GPU (contract: candidates.h): between cuBLAS's products with the
// samples' rows, and what the targets add. Sums over equal ids are common/sums.cu's.
#include "common/cuda.h"
#include "common/packet.h"
#define ROW_HIDES 1
#include "softmax/rows.cuh"

// What a sample's logits start from, before they are divided by the temperature: its bias and
// correction, with log m for m samples. And each token's place among the samples, which rise, or
// -1. K and N threads; bound by the launch.
NLM_KERNEL(candidates_begin, 256, REAL* start, int32_t* hits, const REAL* b, const int32_t* samples,
           const int32_t* targets, const REAL* counts, const REAL* log_expected, int64_t N, int K,
           int words, double temperature, int logistic, int remove_hits) {
    for (int64_t i = grid_thread(); i < N + K; i += grid_threads()) {
        if (i < K) {
            double shift = log_expected != nullptr ? double(log_expected[i]) : 0;
            if (!logistic && counts != nullptr) shift -= log(double(counts[i]));
            const bool known = samples[i] >= 0 && samples[i] < words;  // else w's row is NaN
            const double bias = b != nullptr && known ? double(b[samples[i]]) : 0;
            start[i] = REAL(bias - temperature * shift);
            continue;
        }
        const int32_t target = targets[i - K];
        int low = 0;
        for (int high = remove_hits ? K : 0; low < high;) {
            const int middle = (low + high) / 2;
            if (samples[middle] < target)
                low = middle + 1;
            else
                high = middle;
        }
        hits[i - K] = remove_hits && low < K && samples[low] == target ? low : -1;
    }
}

enum { kTop, kScale, kFacts };

NLM_FN double softplus(double x) { return (x > 0 ? x : 0) + log1p(exp(x > 0 ? -x : x)); }

// This thread's share of sum m softplus(x).
NLM_FN double softplus_sum(const Row& row, const REAL* counts) {
    double sum = 0;
    double* const all = &sum;
    each_packet(row, [=](int v, const Logits& x) {
        REAL part = 0;
#pragma unroll
        for (int j = 0; j < kPacket; ++j) {
            if (v + j >= row.V) continue;
            const REAL m = counts != nullptr ? counts[v + j] : REAL(1), y = x.at[j];
            part += m * ((y < 0 ? REAL(0) : y) + log1p(exp(y < 0 ? y : -y)));
        }
        *all += double(part);
    });
    return sum;
}

// Losses of N tokens from the logits z [N, width] of K samples, and the gradients of the targets'
// logits; with `facts` [kFacts, N] what the others' need. NaN where a target is not one of the
// `words`. Reads z once, and rows of h and w.
NLM_KERNEL(candidates_losses, 256, REAL* loss, REAL* facts, REAL* dt, const REAL* z,
           const REAL* start, const REAL* h, const REAL* w, const REAL* b, const int32_t* targets,
           const int32_t* hits, const REAL* weights, const REAL* counts,
           const REAL* target_log_expected, int64_t N, int V, int64_t width, int64_t H, int words,
           REAL inverse, double temperature, int logistic) {
    for (int64_t n = first_row(); n < N; n += row_step()) {
        const Row row{z + n * width, start, V, inverse, true, hits[n]};
        RowSums sums{0, 0, 0};
        if (logistic)
            sums.sum = softplus_sum(row, counts);
        else
            sums = thread_sums<false>(row);
        const bool known = targets[n] >= 0 && targets[n] < words;
        const REAL *const mine = h + n * H, *const aim = w + (known ? targets[n] : 0) * H;
        REAL dot = known ? REAL(0) : REAL(nan(""));
        for (int64_t i = row_thread(); i < H; i += kRowThreads) dot += mine[i] * aim[i];
        sums.total = double(dot);
        sums = join(sums);
        if (row_thread() != 0) continue;
        double t = sums.total;
        if (b != nullptr && known) t += double(b[targets[n]]);
        t /= temperature;
        if (target_log_expected != nullptr) t -= double(target_log_expected[n]);
        const double slope = (weights != nullptr ? double(weights[n]) : 1) / temperature;
        double scale = slope, slope_t;
        REAL top = 0;
        if (logistic) {
            loss[n] = REAL(softplus(-t) + sums.sum);
            slope_t = -slope / (1 + exp(t));
        } else {
            top = double(sums.top) > t ? sums.top : REAL(t);
            const double others = sums.sum * exp(double(sums.top) - double(top));
            const double all = others + exp(t - double(top));
            loss[n] = REAL(double(top) - t + log(all));
            scale = slope / all;
            slope_t = -slope * (others / all);
        }
        if (facts == nullptr) continue;
        dt[n] = REAL(slope_t);
        facts[kTop * N + n] = top;
        facts[kScale * N + n] = REAL(scale);
    }
}

// dx in place of z, and its sums over each span of rows.
NLM_KERNEL(candidates_dlogits, 256, REAL* z, REAL* sums, const REAL* start, const REAL* facts,
           const int32_t* hits, const REAL* counts, int64_t N, int V, int64_t width, int rows,
           REAL inverse, int logistic) {
    const Span span = load_span(facts, kFacts, hits, N, rows);
    tile_gradients(span, z, sums, start, V, width, inverse, [=](int r, int v, const Logits& x) {
        const REAL top = span.fact(kTop, r), scale = span.fact(kScale, r);
        Logits dx;
#pragma unroll
        for (int j = 0; j < kPacket; ++j) {
            const REAL y = v + j == span.ids[r] ? REAL(-nlm_infinity()) : x.at[j];
            if (logistic) {
                const REAL m = counts != nullptr && v + j < V ? counts[v + j] : REAL(1);
                const REAL e = exp(y < 0 ? y : -y);
                dx.at[j] = m * (y < 0 ? e : REAL(1)) / (1 + e) * scale;
            } else {
                dx.at[j] = exp(y - top) * scale;
            }
        }
        return dx;
    });
}

// The targets' parts: dh[n] += dt[n] w[targets[n]], and y[n] = dt[n] h[n]. A warp a row; moves
// 5 N H numbers; bound by memory.
NLM_KERNEL(candidates_targets, 256, REAL* dh, REAL* y, const REAL* dt, const REAL* h, const REAL* w,
           const int32_t* targets, int64_t N, int64_t H, int words) {
    with_packets<REAL>(uint64_t(dh) | uint64_t(y) | uint64_t(h) | uint64_t(w), H, [=](auto lanes) {
        constexpr int kLanes = decltype(lanes)::count;
        const int64_t warps = grid_threads() / kWarp;
        for (int64_t n = grid_thread() / kWarp; n < N; n += warps) {
            const REAL factor = dt[n];
            const bool known = targets[n] >= 0 && targets[n] < words;
            const REAL* const aim = w + (known ? targets[n] : 0) * H;  // dt is NaN
            for (int64_t c = grid_thread() % kWarp * kLanes; c < H; c += kWarp * kLanes) {
                auto sum = load_packet<REAL, kLanes>(dh + n * H + c);
                auto mine = load_packet<REAL, kLanes>(h + n * H + c);
                const auto row = load_packet<REAL, kLanes>(aim + c);
                for (int l = 0; l < kLanes; ++l) {
                    sum.at[l] += factor * row.at[l];
                    mine.at[l] *= factor;
                }
                store_packet(dh + n * H + c, sum);
                store_packet(y + n * H + c, mine);
            }
        }
    });
}
