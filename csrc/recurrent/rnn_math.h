// The simple recurrent cell's equations (rnn.h), once for all compiled backends. Includes nothing.
#pragma once

template <class Fn, bool kRelu>
NLM_FN typename Fn::Real rnn_cell(const typename Fn::Real& pre) {
    if (kRelu) return pre < 0 ? typename Fn::Real{} : pre;
    return Fn::tanh(pre);
}

// The gradient of the pre-activation from that of the new state h.
template <class Fn, bool kRelu>
NLM_FN typename Fn::Real rnn_cell_backward(const typename Fn::Real& h,
                                           const typename Fn::Real& dh) {
    if (kRelu) return h > 0 ? dh : typename Fn::Real{};
    return dh * (1 - h * h);
}
