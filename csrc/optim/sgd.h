// Stochastic gradient descent with momentum, as torch.optim.SGD (dampening 0), fused over flat
// parameters or over a table with a row-sparse gradient.
//
// Math       d = scale g + weight_decay w
//            with a buffer: buffer = momentum buffer + d; d = nesterov ? d + momentum buffer
//            : buffer
//            w = w - lr d
//            _rows: the same with g[rows] = drows and g = 0 elsewhere.
// Shapes     w, g, momentum_buffer [N]; _rows: w, momentum_buffer [V, D], rows int32 [N] rising,
//            distinct and in [0, V), drows [N, D].
// Aliasing   w and momentum_buffer are updated in place; no overlap.
// Saved      momentum_buffer (null: no momentum; zero before the first step).
// Numerics   rates are rounded once from double; _rows gives the bits of the dense update. It
//            passes over absent rows only where they do not change: no decay and no buffer.
// Threading  over elements or rows; same bits for any team size.
#pragma once

#include <cstdint>

namespace nlm {

template <class T>
struct SgdUpdateArgs {
    T* w;
    const T* g;
    T* momentum_buffer;
    int64_t N;
    double scale, lr, momentum, weight_decay;
    bool nesterov;
};

template <class T>
struct SgdUpdateRowsArgs {
    T* w;
    const int32_t* rows;
    const T* drows;
    T* momentum_buffer;
    int64_t N, V, D;
    double scale, lr, momentum, weight_decay;
    bool nesterov;
};

}  // namespace nlm
