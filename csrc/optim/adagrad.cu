// Adagrad on a GPU (contract: adagrad.h, equations: adagrad_math.h). Reads g, w and v and writes w
// and v once: 20 bytes an element in float32, which memory bounds.
#include "common/cuda.h"
#include "common/packet.h"
#include "optim/adagrad_math.h"
#include "optim/update-inl.h"

struct AdagradStep {
    AdagradRates<REAL> rates;
    NLM_FN void operator()(REAL (&x)[2], REAL g) const {
        adagrad_step<CudaFn<REAL>>(x[0], g, x[1], rates);
    }
};

NLM_KERNEL(adagrad_update, 256, REAL* w, const REAL* g, REAL* v, int64_t n, REAL scale,
           const double* scale_at, REAL lr, const double* lr_at, REAL eps, REAL weight_decay) {
    const REAL factor = late(scale, scale_at);
    if (no_update(factor)) return;
    const AdagradStep step{{factor, late(lr, lr_at), eps, weight_decay}};
    REAL* const arrays[] = {w, v};
    update_flat(arrays, g, n, step);
}

NLM_KERNEL(adagrad_update_rows, 256, REAL* w, const int32_t* rows, const REAL* drows, REAL* v,
           int count, int V, int D, int absent_too, REAL scale, const double* scale_at, REAL lr,
           const double* lr_at, REAL eps, REAL weight_decay) {
    const REAL factor = late(scale, scale_at);
    if (no_update(factor)) return;
    const AdagradStep step{{factor, late(lr, lr_at), eps, weight_decay}};
    REAL* const arrays[] = {w, v};
    update_rows(arrays, rows, drows, count, V, D, absent_too, step);
}
