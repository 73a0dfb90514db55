// The equations of adagrad.h, once for all compiled backends. Includes nothing: NVRTC reads it.
#pragma once

template <class Scalar>
struct AdagradRates {
    Scalar scale, lr, eps, weight_decay;
};

// In: w, its gradient g and the sum of squares v. Out: w and v after the step.
template <class Fn>
NLM_FN void adagrad_step(typename Fn::Real& w, const typename Fn::Real& g, typename Fn::Real& v,
                         const AdagradRates<typename Fn::Scalar>& k) {
    const typename Fn::Real d = k.scale * g + k.weight_decay * w;
    v = v + d * d;
    w = w - k.lr * d / (Fn::sqrt(v) + k.eps);
}
