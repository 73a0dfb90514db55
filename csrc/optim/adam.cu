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

NLM_KERNEL(adam_update, 256, REAL* w, const REAL* g, REAL* m, REAL* v, int64_t n, REAL scale,
           const double* scale_at, REAL keep, REAL decay, REAL beta1, REAL one_minus_beta1,
           REAL beta2, REAL one_minus_beta2, REAL step, REAL correction, REAL eps) {
    const AdamStep one{{gradient_scale(scale, scale_at), keep, decay, beta1, one_minus_beta1, beta2,
                        one_minus_beta2, step, correction, eps}};
    REAL* const arrays[] = {w, m, v};
    update_flat(arrays, g, n, one);
}

NLM_KERNEL(adam_update_rows, 256, REAL* w, const int32_t* rows, const REAL* drows, REAL* m, REAL* v,
           int count, int V, int D, int absent_too, REAL scale, const double* scale_at, REAL keep,
           REAL decay, REAL beta1, REAL one_minus_beta1, REAL beta2, REAL one_minus_beta2,
           REAL step, REAL correction, REAL eps) {
    const AdamStep one{{gradient_scale(scale, scale_at), keep, decay, beta1, one_minus_beta1, beta2,
                        one_minus_beta2, step, correction, eps}};
    REAL* const arrays[] = {w, m, v};
    update_rows(arrays, rows, drows, count, V, D, absent_too, one);
}
