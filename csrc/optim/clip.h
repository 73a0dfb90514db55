// What gradient clipping needs: the sum of squares for the global norm (whose factor then goes
// into the `scale` of the update kernels), and clipping by value.
//
// Math       *result = sum x^2;  clip_values: x = min(max(x, -limit), limit).
// Shapes     x [N]; limit >= 0.
// Aliasing   clip_values works in place.
// Saved      nothing.
// Numerics   squares and sums in double, over blocks of 4096 elements whose sums are added in
//            order. NaN stays NaN in both.
// Threading  over blocks; same bits for any team size.
#pragma once

#include <cstdint>

namespace nlm {

template <class T>
struct SumSquaresArgs {
    double* result;
    const T* x;
    int64_t N;
};

template <class T>
struct ClipValuesArgs {
    T* x;
    int64_t N;
    double limit;
};

}  // namespace nlm
