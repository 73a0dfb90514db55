// The GRU's equations (gru.h), once for all compiled backends. Includes nothing.
#pragma once

// In: r z n pre-activations (n without its recurrent part), hn the recurrent part of n, h the
// previous state. Out: r z n gates, h the new state.
template <class Fn>
NLM_FN void gru_cell(typename Fn::Real& r, typename Fn::Real& z, typename Fn::Real& n,
                     const typename Fn::Real& hn, typename Fn::Real& h) {
    r = Fn::sigmoid(r);
    z = Fn::sigmoid(z);
    n = Fn::tanh(n + r * hn);
    h = n + z * (h - n);
}

// In: r z n gates, hn saved, h_prev the previous state, dh the gradient of the new state. Out:
// r z n gradients of the pre-activations, hn gradient of the recurrent part of n, dh the part of
// the previous state's gradient that does not pass through the gates.
template <class Fn>
NLM_FN void gru_cell_backward(typename Fn::Real& r, typename Fn::Real& z, typename Fn::Real& n,
                              typename Fn::Real& hn, const typename Fn::Real& h_prev,
                              typename Fn::Real& dh) {
    const typename Fn::Real dn = dh * (1 - z) * (1 - n * n);
    const typename Fn::Real dz = dh * (h_prev - n) * z * (1 - z);
    const typename Fn::Real dr = dn * hn * r * (1 - r);
    dh = dh * z;
    hn = dn * r;
    r = dr;
    z = dz;
    n = dn;
}

// Reset before the product. In: r z pre-activations, h the state that enters w_hh. Out: r z gates,
// rh what w_hn multiplies.
template <class Fn>
NLM_FN void gru_reset(typename Fn::Real& r, typename Fn::Real& z, typename Fn::Real& rh,
                      const typename Fn::Real& h) {
    r = Fn::sigmoid(r);
    z = Fn::sigmoid(z);
    rh = r * h;
}

// In: n pre-activation, z gate, h the previous state. Out: n, h the new state.
template <class Fn>
NLM_FN void gru_update(typename Fn::Real& n, typename Fn::Real& h, const typename Fn::Real& z) {
    n = Fn::tanh(n);
    h = n + z * (h - n);
}

// In: z n gates, h_prev, dh gradient of the new state. Out: z n gradients of the pre-activations,
// dh the part of the previous state's gradient that does not pass through the gates.
template <class Fn>
NLM_FN void gru_update_backward(typename Fn::Real& z, typename Fn::Real& n, typename Fn::Real& dh,
                                const typename Fn::Real& h_prev) {
    const typename Fn::Real dn = dh * (1 - z) * (1 - n * n);
    const typename Fn::Real dz = dh * (h_prev - n) * z * (1 - z);
    dh = dh * z;
    z = dz;
    n = dn;
}

// In: r gate, h as in gru_reset, drh gradient of rh. Out: r gradient of its pre-activation, drh
// gradient of h.
template <class Fn>
NLM_FN void gru_reset_backward(typename Fn::Real& r, typename Fn::Real& drh,
                               const typename Fn::Real& h) {
    const typename Fn::Real dr = drh * h * r * (1 - r);
    drh = drh * r;
    r = dr;
}
