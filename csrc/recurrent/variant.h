// What all recurrent cells can have besides their plain equations.
//
// Math        Variational recurrent dropout: h_{t-1} enters w_hh as h_{t-1} mask_h, one mask for
//             all steps (Gal & Ghahramani, arXiv:1512.05287, eq. 7).
//             Zoneout: the new state s' becomes s_t = d s_{t-1} + (1 - d) s', where d is 1 with the
//             given probability if `sample`, drawn for each step, row and unit, and the probability
//             itself if not (Krueger et al., arXiv:1606.01305, eq. 5-7).
//             State clipping: s' is first held to [-clip_h, clip_h], clip_h > 0 (for h alone).
//             Layer norm: the pre-activations are n_x + n_h + b, where n_x = ln_gates[0] N(w_ih
//             x_t), n_h = ln_gates[1] N(w_hh h_{t-1}) and N(v) = (v - mean(v)) / sqrt(var(v) +
//             1e-5) over all gates of a row (Ba, Kiros & Hinton, arXiv:1607.06450, eq. 20-21 with
//             one bias).
// Shapes      mask_h [B,H]  h_in [T,B,H]  rows [B]  ln_gates [2,GH]  norm [2,T,B,GH]  rstd [2,T,B]
//             (G gates; with projection mask_h and h_in are P wide; an LSTM's rstd is [3,T,B])
// Saved       h_in = y mask_h, given if and only if mask_h is. norm: N(w_ih x), N(w_hh h), and rstd
//             their 1 / sqrt(var + 1e-5); null for a forward pass that saves nothing.
// Random      numbers of unit u, row rows[r] (or r), time time0 + t (philox.h).
#pragma once

#include <cstdint>

namespace nlm {

template <class T>
struct RecurrentVariant {
    const T* mask_h = nullptr;
    T* h_in = nullptr;  // forward: written; backward: read
    double zoneout_h = 0, clip_h = 0;
    bool sample = false;
    std::uint32_t seed = 0, step = 0, layer = 0;
    std::int64_t time0 = 0;
    const std::int32_t* rows = nullptr;
    const T* ln_gates = nullptr;
    T* norm = nullptr;  // backward: read, then overwritten
    T* rstd = nullptr;
    T* dln_gates = nullptr;  // backward

    bool any() const {
        return mask_h != nullptr || zoneout_h > 0 || clip_h > 0 || ln_gates != nullptr;
    }
};

}  // namespace nlm
