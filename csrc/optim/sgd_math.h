// The equations of sgd.h, once for all compiled backends. Includes nothing: NVRTC reads it.
#pragma once

template <class Scalar>
struct SgdRates {
    Scalar scale, lr, momentum, weight_decay;
    bool nesterov;
};

// In: w, its gradient g and, with kMomentum, the buffer. Out: w and the buffer after the step.
template <class Fn, bool kMomentum>
NLM_FN void sgd_step(typename Fn::Real& w, const typename Fn::Real& g, typename Fn::Real& buffer,
                     const SgdRates<typename Fn::Scalar>& k) {
    typename Fn::Real d = k.scale * g + k.weight_decay * w;
    if (kMomentum) {
        buffer = k.momentum * buffer + d;
        d = k.nesterov ? d + k.momentum * buffer : buffer;
    }
    w = w - k.lr * d;
}
