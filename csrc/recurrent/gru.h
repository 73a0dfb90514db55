// Gated recurrent unit over a sequence, reset after or before the product, forward and backward.
//
// Math        r, z = sigmoid(w_ih x_t + w_hh h_{t-1} + b),  hn = w_hn h_{t-1} + b_hn,
//             n = tanh(w_in x_t + b_n + r hn),  h_t = (1 - z) n + z h_{t-1},  y_t = h_t; gate order
//             r z n. Cho et al. 2014 (arXiv:1406.1078v1), in cuDNN's form.
//             Without b_hn, reset before: n = tanh(w_in x_t + b_n + w_hn (r h_{t-1})) (Cho et al.
//             2014, arXiv:1406.1078v3, eq. 8).
// Shapes      x [T,B,I]  y hn dy [T,B,H]  gates [T,B,3H]  h0 h_last [B,H]
//             w_ih [3H,I]  w_hh [3H,H]  b [3H]  b_hn [H]; gradients as what they are of.
// Aliasing    none, but gates and hn of the backward call, which the gradients replace.
// Saved       gates (after activation) and hn (reset before: r h_{t-1}); both null for a forward
// pass
//             that saves nothing.
// Lengths     as in lstm.h.
// Variants    zoneout of h, recurrent dropout: variant.h. Layer norm, of the reset-after form: as
//             there, hn = ln_gates[1] N(w_hh h_{t-1}) + b_hn in n's rows.
// Numerics    as in lstm.h.
// Threading   any number of threads gives the same bits.
#pragma once

#include <cstdint>

#include "pack/pack.h"
#include "recurrent/variant.h"

namespace nlm {

template <class T>
struct GruForwardArgs {
    T* y;
    T* h_last;
    T* gates;  // saved, may be null with hn
    T* hn;
    const T* x;
    const T* h0;
    Weights<T> w_ih;
    Weights<T> w_hh;
    const T* b;
    const T* b_hn;                // null: reset before
    const std::int32_t* lengths;  // may be null
    std::int64_t T_, B, I, H;
    RecurrentVariant<T> variant;
};

template <class T>
struct GruBackwardArgs {
    T* dx;  // may be null
    T* dh0;
    T* dw_ih;
    T* dw_hh;
    T* db;
    T* db_hn;  // null: reset before
    T* gates;  // in: saved; out: gradients of the pre-activations
    T* hn;     // in: saved; out: its gradient (reset after)
    const T* y;
    const T* x;
    const T* h0;
    const T* w_ih;
    const T* w_hh;
    const T* dy;
    const T* dh_last;  // may be null: zero
    const std::int32_t* lengths;
    std::int64_t T_, B, I, H;
    RecurrentVariant<T> variant;
};

}  // namespace nlm
