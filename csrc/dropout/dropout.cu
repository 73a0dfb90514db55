// Dropout on a GPU (contract: dropout.h): a thread draws the four words of a block of units.
#include "common/cuda.h"
#include "common/philox.h"

NLM_KERNEL(dropout, 256, REAL* y, const REAL* x, int64_t T, int64_t B, int64_t D, REAL scale,
           uint32_t threshold, uint32_t seed, uint32_t step, const double* step_at,
           uint32_t purpose, uint32_t time0, int locked) {
    const int64_t pieces = (D + 3) / 4;
    const uint32_t now = late(step, step_at);
    for (int64_t i = grid_thread(); i < T * B * pieces; i += grid_threads()) {
        const int64_t row = i / pieces, unit = i % pieces * 4;
        const uint32_t time = locked ? kPhiloxLocked : time0 + uint32_t(row / B);
        const PhiloxWords words =
            philox(seed, now, {{uint32_t(unit >> 2), uint32_t(row % B), time, purpose}});
        for (int u = 0; u < 4 && unit + u < D; ++u) {
            const int64_t at = row * D + unit + u;
            y[at] = words.word[u] >= threshold ? x[at] * scale : REAL(0);
        }
    }
}
