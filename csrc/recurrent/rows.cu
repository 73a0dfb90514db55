// What precedes and follows the loops over time on a GPU. Each moves its arrays once.
#include "common/cuda.h"
#include "recurrent/layer_norm_math.h"

// out = x [T,B,columns], 0 beyond the rows' lengths.
NLM_KERNEL(rows_taking_part, 256, REAL* out, const REAL* x, const int32_t* lengths, int64_t T,
           int64_t B, int64_t columns) {
    for (int64_t i = grid_thread(); i < T * B * columns; i += grid_threads()) {
        const int64_t row = i / columns;
        out[i] = row / B < lengths[row % B] ? x[i] : REAL(0);
    }
}

// v = gain N(v) + bias for each row of n values; N(v) goes to `norm` and 1/sqrt to `rstd` if not
// null. A warp has a row.
NLM_KERNEL(normalise_rows, 256, REAL* v, REAL* norm, REAL* rstd, const REAL* gain, const REAL* bias,
           int64_t rows, int64_t n) {
    const int lane = int(threadIdx.x) % kWarp;
    for (int64_t r = grid_thread() / kWarp; r < rows; r += grid_threads() / kWarp) {
        REAL* const row = v + r * n;
        REAL sum = 0, squares = 0;
        for (int64_t u = lane; u < n; u += kWarp) sum += row[u];
        const REAL mean = warp_sum(sum) / REAL(n);
        for (int64_t u = lane; u < n; u += kWarp) squares += (row[u] - mean) * (row[u] - mean);
        squares = warp_sum(squares);
        const REAL scale = REAL(1 / sqrt(double(squares / REAL(n)) + kNormEpsilon));
        for (int64_t u = lane; u < n; u += kWarp) {
            const REAL hat = (row[u] - mean) * scale;
            if (norm != nullptr) norm[r * n + u] = hat;
            row[u] = gain[u] * hat + bias[u];
        }
        if (rstd != nullptr && lane == 0) rstd[r] = scale;
    }
}

// From d, the gradient of gain N(v): N(v) in `norm` becomes that of v, 0 beyond the lengths.
NLM_KERNEL(normalise_rows_backward, 256, REAL* norm, const REAL* d, const REAL* rstd,
           const REAL* gain, const int32_t* lengths, int64_t B, int64_t rows, int64_t n) {
    const int lane = int(threadIdx.x) % kWarp;
    for (int64_t r = grid_thread() / kWarp; r < rows; r += grid_threads() / kWarp) {
        REAL* const row = norm + r * n;
        const bool ended = lengths != nullptr && r / B >= lengths[r % B];
        REAL sum = 0, product = 0;
#pragma unroll 2
        for (int64_t u = lane; u < n; u += kWarp) {
            sum += d[r * n + u] * gain[u];
            product += d[r * n + u] * gain[u] * row[u];
        }
        const REAL mean = warp_sum(sum) / REAL(n), mean_n = warp_sum(product) / REAL(n);
#pragma unroll 2
        for (int64_t u = lane; u < n; u += kWarp)
            row[u] = ended ? REAL(0) : (d[r * n + u] * gain[u] - mean - row[u] * mean_n) * rstd[r];
    }
}
