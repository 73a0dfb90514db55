// Adam and AdamW, as torch.optim.Adam and torch.optim.AdamW, fused over flat parameters or over a
// table with a row-sparse gradient. Kingma and Ba 2015, arXiv:1412.6980; decoupled decay:
// Loshchilov and Hutter 2019, arXiv:1711.05101.
//
// Math       d = scale g; decoupled: w = w (1 - lr weight_decay), else d = d + weight_decay w
//            m = beta1 m + (1 - beta1) d;  v = beta2 v + (1 - beta2) d^2
//            w = w - lr / (1 - beta1^t) m / (sqrt(v) / sqrt(1 - beta2^t) + eps)
//            _rows: the same with g[rows] = drows and g = 0 elsewhere; all rows move.
// Shapes     w, g, m, v [N]; _rows: w, m, v [V, D], rows int32 [N] rising, distinct and in
//            [0, V), drows [N, D]; t >= 1 counts this update.
// Aliasing   w, m and v are updated in place; no overlap.
// Saved      m, v (zero before the first step).
// Numerics   rates and bias corrections are rounded once from double; _rows gives the bits of
//            the dense update.
// Threading  over elements or rows; same bits for any team size.
#pragma once

#include <cstdint>

namespace nlm {

template <class T>
struct AdamUpdateArgs {
    T* w;
    const T* g;
    T* m;
    T* v;
    int64_t N;
    double scale, lr, beta1, beta2, eps, weight_decay;
    bool decoupled;
    int64_t t;
};

template <class T>
struct AdamUpdateRowsArgs {
    T* w;
    const int32_t* rows;
    const T* drows;
    T* m;
    T* v;
    int64_t N, V, D;
    double scale, lr, beta1, beta2, eps, weight_decay;
    bool decoupled;
    int64_t t;
};

}  // namespace nlm
