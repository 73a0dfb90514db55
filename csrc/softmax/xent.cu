// The fused cross-entropy on a GPU (contract: xent.h): what happens to the logits of a chunk of
// tokens between cuBLAS's products.
#include "common/cuda.h"
#include "softmax/rows.cuh"

// What a row's gradients need; arrays of N numbers one after another.
enum { kTop, kScale, kShift, kTarget, kBound, kFacts };

// Losses of N rows of logits z [N, width], and with `facts` [kFacts, N] what their gradients need;
// NaN where a target is out of range.
// Reads z once, 4 N V bytes in float32, with an exponential each: bound by memory (V of some
// thousands: by the second-level cache).
NLM_KERNEL(xent_losses, 256, REAL* nll, REAL* loss, REAL* facts, const REAL* z, const REAL* b,
           const int32_t* targets, const REAL* weights, int64_t N, int V, int64_t width,
           REAL inverse, double temperature, double label_smoothing, double z_loss,
           double gradient_filter) {
    const bool smooth = loss != nullptr && label_smoothing > 0;
    for (int64_t n = first_row(); n < N; n += row_step()) {
        const Row row{z + n * width, b, V, inverse, true};
        const RowSums sums = smooth ? row_sums<true>(row) : row_sums<false>(row);
        if (row_thread() != 0) continue;
        const double log_sum = log(sums.sum);
        const bool known = targets[n] >= 0 && targets[n] < V;
        const double offset = double(sums.top) - (known ? double(row.at(targets[n])) : nan(""));
        const double log_z = double(sums.top) + log_sum;
        nll[n] = REAL(offset + log_sum);
        if (loss != nullptr) {
            double all = (1 - label_smoothing) * offset + log_sum;
            if (smooth) all += label_smoothing * (double(sums.top) - sums.total / V);
            if (z_loss > 0) all += z_loss * log_z * log_z;
            loss[n] = REAL(all);
        }
        if (facts != nullptr) {
            const double slope = (weights != nullptr ? double(weights[n]) : 1) / temperature;
            const double factor = z_loss > 0 ? 1 + 2 * z_loss * log_z : 1;
            facts[kTop * N + n] = sums.top;
            facts[kScale * N + n] = REAL(slope * factor / sums.sum);
            // adding -0 leaves every number as it is
            facts[kShift * N + n] =
                label_smoothing > 0 ? REAL(-slope * label_smoothing / V) : REAL(-0.0);
            facts[kTarget * N + n] = REAL(slope * (1 - label_smoothing));
            facts[kBound * N + n] = REAL(gradient_filter * sums.sum);
        }
    }
}

// dz in place of z, and its sums over each span of rows; `filtered`: 0 for words that are probable
// in no row of the span and the target of none.
NLM_KERNEL(xent_dlogits, 256, REAL* z, REAL* sums, const REAL* b, const REAL* facts,
           const int32_t* targets, int64_t N, int V, int64_t width, int rows, REAL inverse,
           int filtered) {
    const Span span = load_span(facts, kFacts, targets, N, rows);
    unsigned kept = ~0u;
    if (filtered) {
        const int thread = int(threadIdx.x);
        uint32_t* const marks = static_cast<uint32_t*>(span.rest);  // [8, 32]
        uint32_t mine = 0;
        each_tile_packet(span, z, b, V, width, inverse, [&](int r, int v, const Logits& x) {
            const REAL top = span.fact(kTop, r), bound = span.fact(kBound, r);
#pragma unroll
            for (int j = 0; j < kPacket; ++j)
                mine |= uint32_t(exp(x.at[j] - top) >= bound || v + j == span.ids[r]) << j;
        });
        marks[thread] = mine;
        __syncthreads();
        kept = 0;
        for (int w = 0; w < kTileWarps; ++w) kept |= marks[w * kWarp + thread % kWarp];
    }
    tile_gradients(span, z, sums, b, V, width, inverse, [=](int r, int v, const Logits& x) {
        const REAL top = span.fact(kTop, r), scale = span.fact(kScale, r);
        const REAL shift = span.fact(kShift, r), target = span.fact(kTarget, r);
        Logits dz;
#pragma unroll
        for (int j = 0; j < kPacket; ++j) {
            dz.at[j] = exp(x.at[j] - top) * scale + shift;
            if (v + j == span.ids[r]) dz.at[j] -= target;
            if ((kept >> j & 1) == 0) dz.at[j] = 0;
        }
        return dz;
    });
}

// log p in place of the row's logits `own`.
NLM_FN void store_log_prob(const Row& row, REAL* own, REAL top, REAL log_sum) {
    each_packet(row, [=](int v, Logits x) {
#pragma unroll
        for (int j = 0; j < kPacket; ++j) x.at[j] = (x.at[j] - top) - log_sum;
        if (row.aligned) {
            store_packet(own + v, x);
        } else {
#pragma unroll
            for (int j = 0; j < kPacket; ++j)
                if (v + j < row.V) own[v + j] = x.at[j];
        }
    });
}

// log p in place of z [N, V]. Reads z twice and writes it once.
NLM_KERNEL(xent_log_prob, 256, REAL* z, const REAL* b, int64_t N, int V, REAL inverse) {
    const bool aligned = V % kPacket == 0 && uint64_t(z) % 16 == 0;
    for (int64_t n = first_row(); n < N; n += row_step()) {
        REAL* const own = z + n * V;
        const Row row{own, b, V, inverse, aligned};
        const RowSums sums = row_sums<false>(row);
        store_log_prob(row, own, sums.top, log(REAL(sums.sum)));
    }
}

// The same for few rows of many words, which blocks divide: block (part, row) has `words` words, a
// multiple of a packet, of a row. First each part's largest logit and sum of exponentials, parts
// [N, parts, 2]; then, from those of all in their order, log p. Bound by launches.
NLM_FN Row part_of(REAL* z, const REAL* b, int V, int words, REAL inverse) {
    const int first = int(blockIdx.x) * words, rest = V - first;
    const bool aligned = V % kPacket == 0 && uint64_t(z) % 16 == 0;
    return {z + int64_t(blockIdx.y) * V + first, b != nullptr ? b + first : nullptr,
            rest < words ? rest : words, inverse, aligned};
}
NLM_KERNEL(xent_part_sums, 256, double* parts, REAL* z, const REAL* b, int V, int words,
           REAL inverse) {
    const RowSums sums = row_sums<false>(part_of(z, b, V, words, inverse));
    if (threadIdx.x != 0) return;
    double* const own = parts + (int64_t(blockIdx.y) * gridDim.x + blockIdx.x) * 2;
    own[0] = double(sums.top);
    own[1] = sums.sum;
}
NLM_KERNEL(xent_part_log_prob, 256, REAL* z, const double* parts, const REAL* b, int V, int words,
           REAL inverse) {
    const double* const all = parts + int64_t(blockIdx.y) * gridDim.x * 2;
    REAL top = kLowest;
    for (int i = 0; i < int(gridDim.x); ++i) top = all[2 * i] > top ? REAL(all[2 * i]) : top;
    double sum = 0;
    for (int i = 0; i < int(gridDim.x); ++i)
        sum += all[2 * i + 1] * double(exp(REAL(all[2 * i]) - top));
    const Row row = part_of(z, b, V, words, inverse);
    store_log_prob(row, const_cast<REAL*>(row.z), top, log(REAL(sum)));
}

// With t = z - top: log sum exp(t) - sum exp(t) t / sum exp(t). Reads z twice.
NLM_KERNEL(xent_entropy, 256, REAL* entropy, const REAL* z, const REAL* b, int64_t N, int V,
           int64_t width, REAL inverse) {
    for (int64_t n = first_row(); n < N; n += row_step()) {
        const Row row{z + n * width, b, V, inverse, true};
        const RowSums sums = row_sums<false>(row);
        RowSums weighted{0, 0, 0};
        double* const weight = &weighted.sum;
        each_packet(row, [=](int, const Logits& x) {
            REAL part = 0;
#pragma unroll
            for (int j = 0; j < kPacket; ++j) {
                const REAL t = x.at[j] - sums.top;
                // a logit of -inf has no part: 0 times the bound
                part -= exp(t) * (t < kLowest ? kLowest : t);
            }
            *weight += double(part);
        });
        weighted = join(weighted);
        if (row_thread() == 0) entropy[n] = REAL(log(sums.sum) + weighted.sum / sums.sum);
    }
}
