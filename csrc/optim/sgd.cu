// SGD on a GPU (contract: sgd.h, equations: sgd_math.h). Reads and writes each array once: 12
// bytes an element in float32 (20 with a buffer), which memory bounds.
#include "common/cuda.h"
#include "common/packet.h"
#include "optim/sgd_math.h"
#include "optim/update-inl.h"

// walk(arrays, step) over one array or, with a buffer, two.
template <class Walk>
NLM_FN void sgd(REAL* w, REAL* buffer, const SgdRates<REAL>& rates, const Walk& walk) {
    if (buffer == nullptr) {
        REAL* const arrays[] = {w};
        walk(arrays,
             [&](REAL(&x)[1], REAL g) { sgd_step<CudaFn<REAL>, false>(x[0], g, x[0], rates); });
    } else {
        REAL* const arrays[] = {w, buffer};
        walk(arrays,
             [&](REAL(&x)[2], REAL g) { sgd_step<CudaFn<REAL>, true>(x[0], g, x[1], rates); });
    }
}

NLM_KERNEL(sgd_update, 256, REAL* w, const REAL* g, REAL* momentum_buffer, int64_t n, REAL scale,
           const double* scale_at, REAL lr, const double* lr_at, REAL momentum, REAL weight_decay,
           int nesterov) {
    const REAL factor = late(scale, scale_at);
    if (no_update(factor)) return;
    const SgdRates<REAL> rates{factor, late(lr, lr_at), momentum, weight_decay, nesterov != 0};
    sgd(w, momentum_buffer, rates,
        [&](auto& arrays, const auto& step) { update_flat(arrays, g, n, step); });
}

NLM_KERNEL(sgd_update_rows, 256, REAL* w, const int32_t* rows, const REAL* drows,
           REAL* momentum_buffer, int count, int V, int D, int absent_too, REAL scale,
           const double* scale_at, REAL lr, const double* lr_at, REAL momentum, REAL weight_decay,
           int nesterov) {
    const REAL factor = late(scale, scale_at);
    if (no_update(factor)) return;
    const SgdRates<REAL> rates{factor, late(lr, lr_at), momentum, weight_decay, nesterov != 0};
    sgd(w, momentum_buffer, rates, [&](auto& arrays, const auto& step) {
        update_rows(arrays, rows, drows, count, V, D, absent_too, step);
    });
}
