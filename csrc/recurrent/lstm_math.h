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

// The general form: peephole weights p_i p_f p_o (zero for none) and a clipping of the cell state.
// In as lstm_cell; out: c the new cell state before zoneout, h its output.
template <class Fn>
NLM_FN void lstm_cell_general(typename Fn::Real& i, typename Fn::Real& f, typename Fn::Real& g,
                              typename Fn::Real& o, typename Fn::Real& c, typename Fn::Real& h,
                              const typename Fn::Real& p_i, const typename Fn::Real& p_f,
                              const typename Fn::Real& p_o, const typename Fn::Real& clip) {
    i = Fn::sigmoid(i + p_i * c);
    f = Fn::sigmoid(f + p_f * c);
    g = Fn::tanh(g);
    c = Fn::clamp(f * c + i * g, clip);
    o = Fn::sigmoid(o + p_o * c);
    h = o * Fn::tanh(c);
}

// In: i f g o gates, c_prev, dh and dc gradients of h and of the new cell state before zoneout.
// Out: i f g o gradients of the pre-activations, dc gradient of c_prev, c the new cell state (for
// the gradient of p_o, which is o c; those of p_i and p_f are i c_prev and f c_prev).
template <class Fn>
NLM_FN void lstm_cell_general_backward(typename Fn::Real& i, typename Fn::Real& f,
                                       typename Fn::Real& g, typename Fn::Real& o,
                                       typename Fn::Real& c, const typename Fn::Real& c_prev,
                                       const typename Fn::Real& dh, typename Fn::Real& dc,
                                       const typename Fn::Real& p_i, const typename Fn::Real& p_f,
                                       const typename Fn::Real& p_o,
                                       const typename Fn::Real& clip) {
    const typename Fn::Real u = f * c_prev + i * g;
    c = Fn::clamp(u, clip);
    const typename Fn::Real tanh_c = Fn::tanh(c);
    const typename Fn::Real d_o = dh * tanh_c * o * (1 - o);
    dc = dc + dh * o * (1 - tanh_c * tanh_c) + d_o * p_o;
    dc = Fn::inside(u, clip, dc);
    const typename Fn::Real di = dc * g * i * (1 - i);
    const typename Fn::Real df = dc * c_prev * f * (1 - f);
    const typename Fn::Real dg = dc * i * (1 - g * g);
    dc = dc * f + di * p_i + df * p_f;
    i = di;
    f = df;
    g = dg;
    o = d_o;
}
