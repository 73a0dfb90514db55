// Long short-term memory over a sequence, forward and backward through time.
//
// Math        i, f, o = sigmoid(w_ih x_t + w_hh h_{t-1} + b), g = tanh(same), gate order i f g o;
//             c_t = f c_{t-1} + i g,  h_t = o tanh(c_t),  y_t = h_t.
//             Hochreiter & Schmidhuber 1997; forget gate: Gers et al. 2000, eq. 3.1-3.8 without
//             peepholes.
// Shapes      x [T,B,I]  y dy [T,B,P]  c [T,B,H]  gates [T,B,GH]  h0 h_last [B,P]  c0 c_last [B,H]
//             w_ih [GH,I]  w_hh [GH,P]  b [GH]  peephole [(G-1)H]  w_hr [P,H]  m [T,B,H]
//             ln_cell [2,H]  norm_c [T,B,H]  rstd [3,T,B]; gradients as what they are of.
//             G is 4, or 3 for coupled gates (i g o); P is H without projection.
// Aliasing    none, but gates of the backward call, which the gradients replace.
// Saved       gates (after activation) and c, with projection m, with layer norm norm, norm_c and
// rstd;
//             all null for a forward pass that saves nothing, but c, which may be asked for alone.
// Lengths     int32 [B], not increasing, in [0, T], or null. Row r takes part in steps
//             0..lengths[r]-1: y is 0 beyond, h_last and c_last are its states after its last step
//             (h0, c0 if it has none), x and dy beyond are not read, the gradients of gates and
//             x beyond are 0. Work is in proportion to the sum of lengths.
// Variants    c' and h' are the new states before zoneout, h' = o tanh(c').
//             peephole p_i p_f p_o: a_i += p_i c_{t-1}, a_f += p_f c_{t-1}, a_o += p_o c' (Gers,
//             Schraudolph & Schmidhuber 2002, eq. 5-8);
//             clip_c > 0: c' = min(max(f c_{t-1} + i g, -clip_c), clip_c);
//             coupled: f = 1 - i (Greff et al., arXiv:1503.04069, CIFG);
//             projection: h' = w_hr m, m = o tanh(c') (Sak, Senior & Beaufays, arXiv:1402.1128);
//             layer norm also of c': n_c = ln_cell[0] N(c') + ln_cell[1], N over a row. h' = o
//             tanh(n_c); with norm_state the new cell state itself is n_c, and so o's peephole;
//             zoneout of c and h, recurrent dropout, layer norm of the products: variant.h.
// Numerics    sums over I, H and T*B in T, each one chain of fused multiply-adds cut every few
//             hundred terms, or (up to four rows) as many chains as a vector has lanes; db over
//             runs of 16 rows.
// Threading   any number of threads gives the same bits.
#pragma once

#include <cstdint>

#include "pack/pack.h"
#include "recurrent/variant.h"

namespace nlm {

template <class T>
struct LstmVariant : RecurrentVariant<T> {
    const T* peephole = nullptr;
    double zoneout_c = 0, clip_c = 0;
    bool coupled = false;
    Weights<T> w_hr;
    T* m = nullptr;
    std::int64_t P = 0;          // width of h with w_hr
    const T* ln_cell = nullptr;  // with ln_gates
    T* norm_c = nullptr;
    bool norm_state = false;
    T* dw_hr = nullptr;  // backward
    T* dln_cell = nullptr;
    T* dpeephole = nullptr;

    bool any() const {
        return RecurrentVariant<T>::any() || peephole != nullptr || zoneout_c > 0 || clip_c > 0 ||
               coupled || w_hr.p != nullptr;
    }
};

template <class T>
struct LstmForwardArgs {
    T* y;
    T* h_last;
    T* c_last;
    T* gates;  // saved, may be null
    T* c;      // may be null without gates
    const T* x;
    const T* h0;
    const T* c0;
    Weights<T> w_ih;
    Weights<T> w_hh;
    const T* b;
    const std::int32_t* lengths;  // may be null
    std::int64_t T_, B, I, H;
    LstmVariant<T> variant;
};

template <class T>
struct LstmBackwardArgs {
    T* dx;  // may be null
    T* dh0;
    T* dc0;
    T* dw_ih;
    T* dw_hh;
    T* db;
    T* gates;  // in: saved; out: gradients of the pre-activations
    const T* c;
    const T* y;
    const T* x;
    const T* h0;
    const T* c0;
    const T* w_ih;
    const T* w_hh;
    const T* dy;
    const T* dh_last;  // may be null: zero
    const T* dc_last;
    const std::int32_t* lengths;
    std::int64_t T_, B, I, H;
    LstmVariant<T> variant;
};

}  // namespace nlm
