// Affine map of rows.
//
// Math        y = x w^T + b;  dx = dy w,  dw = dy^T x,  db = sum over rows of dy.
// Shapes      x dx [N,I]  y dy [N,O]  w dw [O,I]  b db [O]
// Aliasing    none.
// Saved       nothing.
// Numerics    as in recurrent/lstm.h.
// Threading   any number of threads gives the same bits.
#pragma once

#include <cstdint>

#include "pack/pack.h"

namespace nlm {

template <class T>
struct LinearForwardArgs {
    T* y;
    const T* x;
    Weights<T> w;
    const T* b;  // may be null
    std::int64_t N, I, O;
};

template <class T>
struct LinearBackwardArgs {
    T* dx;  // may be null
    T* dw;
    T* db;  // may be null
    const T* dy;
    const T* x;
    const T* w;
    std::int64_t N, I, O;
};

}  // namespace nlm
