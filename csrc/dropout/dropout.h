// Dropout, recomputed from its counters at every call: no mask is stored, and the backward pass
// is the same call on dy.
//
// Math       y = keep ? x / (1 - p) : 0, where unit d of row b at step t is kept iff its Philox
//            word >= round(p 2^32); the counter map stands in common/philox.h, time = time0 + t.
//            locked: one mask for all steps (Gal and Ghahramani 2016, arXiv:1512.05287).
// Shapes     y, x [T, B, D]; p in [0, 1); seed, step 32 bits; site, layer < 65536.
// Aliasing   y may be x; no other overlap.
// Saved      nothing.
// Numerics   x times 1 / (1 - p), rounded once from double. A dropped unit is +0 even where x
//            is Inf or NaN.
// Threading  over rows and pieces of rows; same bits for any team size.
#pragma once

#include <cstdint>

namespace nlm {

template <class T>
struct DropoutArgs {
    T* y;
    const T* x;
    int64_t T_, B, D;
    double p;
    uint32_t seed, step, site, layer;
    int64_t time0;
    bool locked;
};

}  // namespace nlm
