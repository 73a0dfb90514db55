// What precedes and follows the loops over time on a GPU. Each moves its arrays once.
#include "common/cuda.h"

// out = x [T,B,columns], 0 beyond the rows' lengths.
NLM_KERNEL(rows_taking_part, 256, REAL* out, const REAL* x, const int32_t* lengths, int64_t T,
           int64_t B, int64_t columns) {
    for (int64_t i = grid_thread(); i < T * B * columns; i += grid_threads()) {
        const int64_t row = i / columns;
        out[i] = row / B < lengths[row % B] ? x[i] : REAL(0);
    }
}

// out[y][column] = sum of rows [run y, run (y + 1)) of m, times those of `by` if not null. A warp
// takes every 8th row of 32 columns.
NLM_KERNEL(column_sums, 256, REAL* out, const REAL* m, const REAL* by, int64_t rows,
           int64_t columns, int64_t run) {
    REAL* const sums = nlm_shared<REAL>();
    const int lane = int(threadIdx.x) % kWarp, warp = int(threadIdx.x) / kWarp;
    const int warps = int(blockDim.x) / kWarp;
    const int64_t column = int64_t(blockIdx.x) * kWarp + lane, begin = blockIdx.y * run;
    const int64_t end = begin + run < rows ? begin + run : rows;
    REAL sum = 0;
    if (column < columns) {
#pragma unroll 8
        for (int64_t r = begin + warp; r < end; r += warps) {
            const REAL value = m[r * columns + column];
            sum += by != nullptr ? value * by[r * columns + column] : value;
        }
    }
    sums[threadIdx.x] = sum;
    __syncthreads();
    if (warp > 0 || column >= columns) return;
    for (int w = 1; w < warps; ++w) sum += sums[w * kWarp + lane];
    out[blockIdx.y * columns + column] = sum;
}
