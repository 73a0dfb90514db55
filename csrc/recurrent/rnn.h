// Simple (Elman) recurrent network over a sequence, forward and backward.
//
// Math        h_t = act(w_ih x_t + w_hh h_{t-1} + b), act tanh or relu,  y_t = h_t.
//             Elman 1990; Mikolov et al. 2010, eq. 1-3 with one bias.
// Shapes      x [T,B,I]  y dy dpre [T,B,H]  h0 h_last [B,H]  w_ih [H,I]  w_hh [H,H]  b [H];
//             gradients as what they are of.
// Aliasing    none.
// Saved       y.
// Lengths     as in lstm.h; dpre beyond is 0.
// Variants    zoneout of h, recurrent dropout, layer norm: variant.h. The backward pass only of
// sampled
//             zoneout, because y does not hold the activation otherwise.
// Numerics    as in lstm.h.
// Threading   any number of threads gives the same bits.
#pragma once

#include <cstdint>

#include "pack/pack.h"
#include "recurrent/variant.h"

namespace nlm {

template <class T>
struct RnnForwardArgs {
    T* y;
    T* h_last;
    const T* x;
    const T* h0;
    Weights<T> w_ih;
    Weights<T> w_hh;
    const T* b;
    const std::int32_t* lengths;  // may be null
    bool relu;
    std::int64_t T_, B, I, H;
    RecurrentVariant<T> variant;
};

template <class T>
struct RnnBackwardArgs {
    T* dx;  // may be null
    T* dh0;
    T* dw_ih;
    T* dw_hh;
    T* db;
    T* dpre;  // gradients of the pre-activations
    const T* y;
    const T* x;
    const T* h0;
    const T* w_ih;
    const T* w_hh;
    const T* dy;
    const T* dh_last;  // may be null: zero
    const std::int32_t* lengths;
    bool relu;
    std::int64_t T_, B, I, H;
    RecurrentVariant<T> variant;
};

}  // namespace nlm
