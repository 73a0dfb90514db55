// Adam and AdamW on a GPU (contract: adam.h, equations: adam_math.h). Reads g, w, m and v and
// writes w, m and v once: 28 bytes an element in float32, which memory bounds.
#include "common/cuda.h"
#include "common/packet.h"
#include "optim/adam_math.h"
#include "optim/update-inl.h"

struct AdamStep {
    AdamRates<REAL> rates;
    NLM_FN void operator()(REAL (&x)[3], REAL g) const {
        adam_step<CudaFn<REAL>>(x[0], g, x[1], x[2], rates);
    }
};

// What of the rates changes from update to update, {keep, step, correction}, in double precision.
NLM_KERNEL(adam_rates, 32, double* rates, double lr, const double* lr_at, double t,
           const double* t_at, double beta1, double beta2, double weight_decay, int decoupled) {
    if (threadIdx.x != 0) return;
    const double rate = late(lr, lr_at), updates = late(t, t_at);
    rates[0] = decoupled ? 1.0 - rate * weight_decay : 1.0;
    rates[1] = rate / (1.0 - pow(beta1, updates));
    rates[2] = 1.0 / sqrt(1.0 - pow(beta2, updates));
}

NLM_KERNEL(adam_update, 256, REAL* w, const REAL* g, REAL* m, REAL* v, int64_t n, REAL scale,
           const double* scale_at, const double* rates, REAL decay, REAL beta1,
           REAL one_minus_beta1, REAL beta2, REAL one_minus_beta2, REAL eps) {
    const REAL factor = late(scale, scale_at);
    if (no_update(factor)) return;
    const AdamStep one{{factor, REAL(rates[0]), decay, beta1, one_minus_beta1, beta2,
                        one_minus_beta2, REAL(rates[1]), REAL(rates[2]), eps}};
    REAL* const arrays[] = {w, m, v};
    update_flat(arrays, g, n, one);
}

NLM_KERNEL(adam_update_rows, 256, REAL* w, const int32_t* rows, const REAL* drows, REAL* m, REAL* v,
           int count, int V, int D, int absent_too, REAL scale, const double* scale_at,
           const double* rates, REAL decay, REAL beta1, REAL one_minus_beta1, REAL beta2,
           REAL one_minus_beta2, REAL eps) {
    const REAL factor = late(scale, scale_at);
    if (no_update(factor)) return;
    const AdamStep one{{factor, REAL(rates[0]), decay, beta1, one_minus_beta1, beta2,
                        one_minus_beta2, REAL(rates[1]), REAL(rates[2]), eps}};
    REAL* const arrays[] = {w, m, v};
    update_rows(arrays, rows, drows, count, V, D, absent_too, one);
}
