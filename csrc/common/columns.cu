// What a bias needs on a GPU: a vector added to every row of a matrix, and the sum over its rows.
#include "common/cuda.h"

// y[r, c] += b[c]. Reads and writes y once; bound by memory.
NLM_KERNEL(add_to_rows, 256, REAL* y, const REAL* b, int64_t R, int64_t C) {
    for (int64_t r = blockIdx.y; r < R; r += gridDim.y)
        for (int64_t c = grid_thread(); c < C; c += grid_threads()) y[r * C + c] += b[c];
}

constexpr int kSumRows = 128;  // summed by a block, for 32 columns
constexpr int kSumWarps = 8;

// sums[s, c] = sum of x[r, c] over rows 128 s and following, times those of `by` if not null, but
// not of rows t B + b with t >= lengths[b], if these are not null; block (columns / 32, s..). With
// `accumulate`, which only a single s may have, it is added to. Reads x once, 128 bytes of a row at
// a time; bound by memory.
NLM_KERNEL(column_sum_blocks, 256, REAL* sums, const REAL* x, const REAL* by,
           const int32_t* lengths, int64_t B, int64_t R, int64_t C, int accumulate) {
    REAL* const parts = nlm_shared<REAL>();  // [8, 32]
    const int lane = int(threadIdx.x) % kWarp, warp = int(threadIdx.x) / kWarp;
    const int64_t c = int64_t(blockIdx.x) * kWarp + lane;
    for (int64_t s = blockIdx.y; s == 0 || s * kSumRows < R; s += gridDim.y) {
        const int64_t first = s * kSumRows, end = first + kSumRows < R ? first + kSumRows : R;
        REAL sum = 0;
        if (c < C) {
#pragma unroll 8
            for (int64_t r = first + warp; r < end; r += kSumWarps) {
                if (lengths != nullptr && r / B >= lengths[r % B]) continue;
                sum += by != nullptr ? x[r * C + c] * by[r * C + c] : x[r * C + c];
            }
        }
        parts[warp * kWarp + lane] = sum;
        __syncthreads();
        if (warp == 0 && c < C) {
            for (int w = 1; w < kSumWarps; ++w) sum += parts[w * kWarp + lane];
            REAL* const out = sums + s * C + c;
            *out = accumulate ? *out + sum : sum;
        }
        __syncthreads();
    }
}

// y[c] = sum of sums[s, c] over all S, added to y with `accumulate`.
NLM_KERNEL(column_sum_total, 256, REAL* y, const REAL* sums, int64_t S, int64_t C, int accumulate) {
    for (int64_t c = grid_thread(); c < C; c += grid_threads()) {
        REAL sum = accumulate ? y[c] : REAL(0);
#pragma unroll 8
        for (int64_t s = 0; s < S; ++s) sum += sums[s * C + c];
        y[c] = sum;
    }
}
