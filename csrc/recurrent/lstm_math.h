// The LSTM's equations (lstm.h), once for all compiled backends. Includes nothing: NVRTC reads it.
#pragma once

// In: i f g o pre-activations, c the previous cell state. Out: i f g o gates, c and h the new
// states.
template <class Fn>
NLM_FN void lstm_cell(typename Fn::Real& i, typename Fn::Real& f, typename Fn::Real& g,
                      typename Fn::Real& o, typename Fn::Real& c, typename Fn::Real& h) {
    i = Fn::sigmoid(i);
    f = Fn::sigmoid(f);
    g = Fn::tanh(g);
    o = Fn::sigmoid(o);
    c = f * c + i * g;
    h = o * Fn::tanh(c);
}

// In: i f g o gates, c and c_prev states, dh and dc gradients of the new states. Out: i f g o
// gradients of the pre-activations, dc gradient of the previous cell state.
template <class Fn>
NLM_FN void lstm_cell_backward(typename Fn::Real& i, typename Fn::Real& f, typename Fn::Real& g,
                               typename Fn::Real& o, const typename Fn::Real& c,
                               const typename Fn::Real& c_prev, const typename Fn::Real& dh,
                               typename Fn::Real& dc) {
    const typename Fn::Real tanh_c = Fn::tanh(c);
    dc = dc + dh * o * (1 - tanh_c * tanh_c);
    const typename Fn::Real di = dc * g * i * (1 - i);
    const typename Fn::Real df = dc * c_prev * f * (1 - f);
    const typename Fn::Real dg = dc * i * (1 - g * g);
    o = dh * tanh_c * o * (1 - o);
    dc = dc * f;
    i = di;
    f = df;
    g = dg;
}

// The general form, in two halves, because layer norm of the cell state stands between them.
// Weights p_i p_f p_o of peepholes are zero for none. Coupled: f = 1 - i.
//
// In: i f g pre-activations, c the previous cell state. Out: i f g gates, c the new cell state
// before layer norm and zoneout.
template <class Fn, bool kCoupled>
NLM_FN void lstm_state(typename Fn::Real& i, typename Fn::Real& f, typename Fn::Real& g,
                       typename Fn::Real& c, const typename Fn::Real& p_i,
                       const typename Fn::Real& p_f, const typename Fn::Real& clip) {
    i = Fn::sigmoid(i + p_i * c);
    if (kCoupled)
        f = 1 - i;
    else
        f = Fn::sigmoid(f + p_f * c);
    g = Fn::tanh(g);
    c = Fn::clamp(f * c + i * g, clip);
}

// In: o pre-activation, c the new cell state, seen what of it the output sees. Out: o gate, h.
template <class Fn>
NLM_FN void lstm_output(typename Fn::Real& o, typename Fn::Real& h, const typename Fn::Real& c,
                        const typename Fn::Real& seen, const typename Fn::Real& p_o) {
    o = Fn::sigmoid(o + p_o * c);
    h = o * Fn::tanh(seen);
}

// In: o gate, dh. Out: o gradient of its pre-activation, dseen gradient of `seen`. That of c is
// o p_o, and that of p_o is o c.
template <class Fn>
NLM_FN void lstm_output_backward(typename Fn::Real& o, typename Fn::Real& dseen,
                                 const typename Fn::Real& seen, const typename Fn::Real& dh) {
    const typename Fn::Real tanh_c = Fn::tanh(seen);
    dseen = dh * o * (1 - tanh_c * tanh_c);
    o = dh * tanh_c * o * (1 - o);
}

// In: i f g gates, dc gradient of the new cell state. Out: i f g gradients of the pre-activations
// (f of an uncoupled cell), dc gradient of c_prev. Gradients of p_i and p_f are i c_prev and f
// c_prev.
template <class Fn, bool kCoupled>
NLM_FN void lstm_state_backward(typename Fn::Real& i, typename Fn::Real& f, typename Fn::Real& g,
                                typename Fn::Real& dc, const typename Fn::Real& c_prev,
                                const typename Fn::Real& p_i, const typename Fn::Real& p_f,
                                const typename Fn::Real& clip) {
    dc = Fn::inside(f * c_prev + i * g, clip, dc);
    const typename Fn::Real dg = dc * i * (1 - g * g);
    if (kCoupled) {
        i = dc * (g - c_prev) * i * (1 - i);
        dc = dc * f + i * p_i;
    } else {
        const typename Fn::Real df = dc * c_prev * f * (1 - f);
        i = dc * g * i * (1 - i);
        dc = dc * f + i * p_i + df * p_f;
        f = df;
    }
    g = dg;
}
