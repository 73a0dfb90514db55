// Clipping on a GPU (contract: clip.h).
#include "common/cuda.h"

constexpr int kSumBlock = 4096;

// sums[b] of elements 4096 b and following.
NLM_KERNEL(sum_squares_blocks, 256, double* sums, const REAL* x, int64_t n) {
    double* const warps = nlm_shared<double>();
    const int64_t blocks = (n + kSumBlock - 1) / kSumBlock;
    for (int64_t b = blockIdx.x; b < blocks; b += gridDim.x) {
        const int64_t end = (b + 1) * kSumBlock < n ? (b + 1) * kSumBlock : n;
        double sum = 0;
        for (int64_t i = b * kSumBlock + threadIdx.x; i < end; i += blockDim.x)
            sum += double(x[i]) * double(x[i]);
        sum = block_sum(sum, warps);
        if (threadIdx.x == 0) sums[b] = sum;
    }
}

// *total = sum of sums[0:n], by one block.
NLM_KERNEL(sum_squares_total, 256, double* total, const double* sums, int64_t n) {
    double sum = 0;
    for (int64_t i = threadIdx.x; i < n; i += blockDim.x) sum += sums[i];
    sum = block_sum(sum, nlm_shared<double>());
    if (threadIdx.x == 0) *total = sum;
}

// *scale = min(1, limit / norm), with the sum of totals[0:n] as the norm's square; NaN gives 1. For
// the update kernels, which need no host between them and this one.
NLM_KERNEL(clip_scale, 32, double* scale, const double* totals, int64_t n, double limit) {
    if (threadIdx.x != 0) return;
    double sum = 0;
    for (int64_t i = 0; i < n; ++i) sum += totals[i];
    const double norm = sqrt(sum);
    *scale = norm > limit ? limit / norm : 1.0;
}

// The same of a gradient that is `scaling[0]` times too large, of which the totals are freed in
// place; then the next scale. One that is not finite gives NaN, which the update kernels take for
// "no update", and half the scale; `patience` finite ones in a row (scaling[1] counts) double it.
NLM_KERNEL(clip_scale_scaled, 32, double* scale, double* totals, double* scaling, int64_t n,
           double limit, double most, double patience) {
    if (threadIdx.x != 0) return;
    const double factor = scaling[0];
    double sum = 0;
    for (int64_t i = 0; i < n; ++i) sum += totals[i] /= factor * factor;
    const double norm = sqrt(sum);
    if (!(norm < nlm_infinity())) {
        *scale = nan("");
        scaling[0] = factor > 2.0 ? factor / 2 : 1.0;
        scaling[1] = 0;
        return;
    }
    *scale = (norm > limit ? limit / norm : 1.0) / factor;
    const double finite = scaling[1] + 1;
    const bool grows = finite >= patience;
    if (grows && factor < most) scaling[0] = factor * 2;
    scaling[1] = grows ? 0 : finite;
}

NLM_KERNEL(clip_values, 256, REAL* x, int64_t n, REAL limit, const double* limit_at) {
    const REAL bound = late(limit, limit_at);
    for (int64_t i = grid_thread(); i < n; i += grid_threads())
        x[i] = CudaFn<REAL>::clamp(x[i], bound);
}
