// Adagrad, as torch.optim.Adagrad (lr_decay 0), fused over flat parameters or over a table with a
// row-sparse gradient. Duchi, Hazan and Singer 2011, JMLR 12.
//
// Math       d = scale g + weight_decay w;  v = v + d^2;  w = w - lr d / (sqrt(v) + eps)
//            _rows: the same with g[rows] = drows and g = 0 elsewhere.
// Shapes     w, g, v [N]; _rows: w, v [V, D], rows int32 [N] rising, distinct and in [0, V),
//            drows [N, D].
// Aliasing   w and v are updated in place; no overlap.
// Saved      v (0 or the initial accumulator before the first step).
// Numerics   rates are rounded once from double; _rows gives the bits of the dense update. It
//            passes over absent rows only where they do not change: no decay and eps > 0.
// Threading  over elements or rows; same bits for any team size.
#pragma once

#include <cstdint>

namespace nlm {

template <class T>
struct AdagradUpdateArgs {
    T* w;
    const T* g;
    T* v;
    int64_t N;
    double scale, lr, eps, weight_decay;
};

template <class T>
struct AdagradUpdateRowsArgs {
    T* w;
    const int32_t* rows;
    const T* drows;
    T* v;
    int64_t N, V, D;
    double scale, lr, eps, weight_decay;
};

}  // namespace nlm
