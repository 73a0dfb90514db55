// The most probable tokens and drawn tokens from rows of logits on a GPU (contract: xent.h); a
// block a row.
#include "common/cuda.h"
#include "common/philox.h"
#include "softmax/rows.cuh"

static_assert(kRowWarps == 8, "a block a row");
constexpr int kThreads = kRowThreads;

// A token and its logit; the better is the more probable or, if equally so, has the smaller id.
// NaN is better than nothing.
struct Found {
    REAL x;
    int32_t id;
};
constexpr int32_t kNone = 0x7FFFFFFF;

NLM_FN bool better(const Found& a, const Found& b) {
    return a.x > b.x || (a.x == b.x && a.id < b.id);
}

// The best of this thread's share that is worse than `bound`.
NLM_FN Found thread_best(const Row& row, const Found& bound) {
    Found best{REAL(-nlm_infinity()), kNone};
    Found* const found = &best;
    each_packet(row, [=](int v, const Logits& x) {
#pragma unroll
        for (int j = 0; j < kPacket; ++j) {
            const Found one{x.at[j], v + j};
            if (v + j < row.V && better(one, *found) && better(bound, one)) *found = one;
        }
    });
    return best;
}

// The K <= kThreads best of each row, best first. Every thread's best is found, and the K-th best
// of these: what is as good is a few hundred tokens, which are ranked by counting. Should they be
// more than kCandidates, K searches do it. Reads z three times; bound by the second-level cache.
constexpr int kCandidates = 1024;

NLM_KERNEL(xent_top_k, 256, REAL* log_prob, int32_t* ids, const REAL* z, const REAL* b, int64_t N,
           int V, int64_t width, int K, REAL inverse) {
    // shared memory behind what join takes
    int32_t* const count = reinterpret_cast<int32_t*>(nlm_shared<double>() + kJoinBytes / 8);
    int32_t* const place = count + 1;
    int32_t* const best_id = count + 2;                              // [kThreads]
    int32_t* const id = best_id + kThreads;                          // [kCandidates]
    REAL* const best_x = reinterpret_cast<REAL*>(id + kCandidates);  // [kThreads]
    REAL* const x = best_x + kThreads;                               // [kCandidates]
    const int thread = row_thread();
    const Found anything{REAL(nlm_infinity()), -1};
    for (int64_t n = first_row(); n < N; n += row_step()) {
        const Row row{z + n * width, b, V, inverse, true};
        const RowSums sums = row_sums<false>(row);
        const REAL log_sum = log(REAL(sums.sum));
        REAL* const out = log_prob + n * K;
        int32_t* const out_ids = ids + n * K;
        const auto put = [=](int k, const Found& found) {
            out[k] = (found.x - sums.top) - log_sum;
            out_ids[k] = found.id == kNone ? 0 : found.id;
        };

        Found best = thread_best(row, anything);
        best_x[thread] = best.x;
        best_id[thread] = best.id;
        if (thread == 0) *count = 0, *place = 0;
        __syncthreads();
        int rank = 0;
        for (int t = 0; t < kThreads; ++t) {
            const Found other{best_x[t], best_id[t]};
            rank += better(other, best) || (other.id == best.id && t < thread);
        }
        if (rank == K - 1) *place = thread;
        __syncthreads();
        const Found floor{best_x[*place], best_id[*place]};
        each_packet(row, [=](int v, const Logits& logits) {
#pragma unroll
            for (int j = 0; j < kPacket; ++j) {
                const Found one{logits.at[j], v + j};
                if (v + j >= V || !(better(one, floor) || one.id == floor.id)) continue;
                const int at = atomicAdd(count, 1);
                if (at < kCandidates) x[at] = one.x, id[at] = one.id;
            }
        });
        __syncthreads();
        const int found = *count;
        if (found <= kCandidates) {
            for (int i = thread; i < found; i += kThreads) {
                const Found one{x[i], id[i]};
                int before = 0;
                for (int k = 0; k < found; ++k) before += better({x[k], id[k]}, one);
                if (before < K) put(before, one);
            }
            // a row with NaN may have fewer
            for (int k = found + thread; k < K; k += kThreads) put(k, {REAL(0), kNone});
        } else {
            Found last = anything;
            for (int k = 0; k < K; ++k) {
                best = thread_best(row, last);
                best_x[thread] = best.x;
                best_id[thread] = best.id;
                __syncthreads();
                last = best;
                for (int t = 0; t < kThreads; ++t) {
                    const Found other{best_x[t], best_id[t]};
                    if (better(other, last)) last = other;
                }
                if (thread == 0) put(k, last);
                __syncthreads();
            }
        }
        __syncthreads();
    }
}

// The largest logit of a row, found by its block.
NLM_FN REAL row_top(const Row& row, double* tops, double* result) {
    REAL top = kLowest;
    REAL* const most = &top;
    each_packet(row, [=](int, const Logits& x) {
#pragma unroll
        for (int j = 0; j < kPacket; ++j) *most = x.at[j] > *most ? x.at[j] : *most;
    });
    tops[row_thread()] = double(top);
    __syncthreads();
    if (row_thread() < kWarp) {
        double all = tops[row_thread()];
        for (int w = 1; w < kRowWarps; ++w) {
            const double other = tops[w * kWarp + row_thread()];
            all = other > all ? other : all;
        }
        all = warp_max(all);
        if (row_thread() == 0) *result = all;
    }
    __syncthreads();
    return REAL(*result);
}

// Infinity if there is no distribution.
NLM_FN double sum_parts(const double* parts) {
    double total = 0;
#pragma unroll kAhead
    for (int t = 0; t < kThreads; ++t) total += parts[t];
    return total > 0 ? total : nlm_infinity();
}

// The first part that the running sum exceeds `rest` in, which is left relative to it; -1 if `rest`
// is no number.
NLM_FN int find_share(const double* parts, double* rest) {
    double left = *rest;
    if (!(left < nlm_infinity())) return -1;
    int last = 0;
    for (int t = 0; t < kThreads; ++t) {
        if (left < parts[t]) {
            *rest = left;
            return t;
        }
        left -= parts[t];
        if (parts[t] > 0) last = t;
    }
    *rest = 0;  // the sums rounded below it
    return last;
}

// One token of each row. A range of words, at first all, is divided among the threads; the part
// that the drawn share of the sum falls into is the next range. Reads z twice.
NLM_KERNEL(xent_sample, 256, int32_t* ids, const REAL* z, const REAL* b, const int32_t* rows,
           int64_t first, int64_t N, int V, int64_t width, uint32_t seed, uint32_t step,
           uint32_t time, uint32_t layer, REAL inverse) {
    double* const parts = nlm_shared<double>();  // [kThreads]
    double* const rest = parts + kThreads;       // of the share
    int32_t* const place = reinterpret_cast<int32_t*>(rest + 2);
    const int thread = row_thread();
    for (int64_t n = first_row(); n < N; n += row_step()) {
        if (thread == 0) {
            const uint32_t id = uint32_t(rows != nullptr ? rows[n] : first + n);
            *rest = uniform_53(
                philox(seed, step, {{0, id, time, philox_purpose(kPhiloxSample, layer)}}));
        }
        const Row row{z + n * width, b, V, inverse, true};
        const REAL top = row_top(row, parts, rest + 1);
        int begin = 0, end = V;
        for (bool all = true; begin >= 0 && (all || end - begin > 1); all = false) {
            const int size = (end - begin + kThreads - 1) / kThreads;
            double sum = 0;
            const int from = begin + thread * size, to = from + size < end ? from + size : end;
#pragma unroll kAhead
            for (int v = from; v < to; ++v) sum += double(exp(row.at(v) - top));
            parts[thread] = sum;
            __syncthreads();
            if (thread == 0) {
                if (all) *rest *= sum_parts(parts);
                *place = find_share(parts, rest);
            }
            __syncthreads();
            const int found = *place;
            begin = found < 0 ? -1 : begin + found * size;
            end = begin + size < end ? begin + size : end;
        }
        if (thread == 0) ids[n] = begin;
    }
}
