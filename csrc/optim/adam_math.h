// The equations of adam.h, once for all compiled backends. Includes nothing: NVRTC reads it.
#pragma once

template <class Scalar>
struct AdamRates {
    Scalar scale;
    Scalar keep;   // of w: 1, or 1 - lr weight_decay where the decay is decoupled
    Scalar decay;  // into the gradient: weight_decay, or 0 where it is decoupled
    Scalar beta1, one_minus_beta1;
    Scalar beta2, one_minus_beta2;
    Scalar step;        // lr / (1 - beta1^t)
    Scalar correction;  // 1 / sqrt(1 - beta2^t)
    Scalar eps;
};

// In: w, its gradient g and the moments. Out: w and the moments after the step.
template <class Fn>
NLM_FN void adam_step(typename Fn::Real& w, const typename Fn::Real& g, typename Fn::Real& m,
                      typename Fn::Real& v, const AdamRates<typename Fn::Scalar>& k) {
    const typename Fn::Real d = k.scale * g + k.decay * w;
    m = k.beta1 * m + k.one_minus_beta1 * d;
    v = k.beta2 * v + k.one_minus_beta2 * d * d;
    w = k.keep * w - k.step * m / (k.correction * Fn::sqrt(v) + k.eps);
}
