// A step of the GRU that resets after the product, for the plain and the general kernels.
#pragma once

#include "recurrent/gru_math.h"

struct Gru {
    static constexpr int G = 3;
    REAL* gates;  // [T,B,3H]
    REAL* hn;     // [T,B,H]; forward: null if nothing is saved
    int64_t B, H;

    struct Gates {
        REAL r, z, n;
    };
    NLM_FN Gates load(int64_t t, int64_t r, int64_t u) const {
        const REAL* const saved = gates + (t * B + r) * G * H + u;
        return {saved[0], saved[H], saved[2 * H]};
    }
    // The new state, from a = w_hh h, what else enters the gates, and b (null: none).
    NLM_FN REAL forward(int64_t t, int64_t r, int64_t u, const Gates& inputs, const REAL* a, REAL h,
                        const REAL* b, const REAL* b_hn) const {
        const int64_t at = t * B + r;
        REAL* const saved = gates + at * G * H + u;
        REAL reset = a[0] + inputs.r, z = a[1] + inputs.z, n = inputs.n;
        if (b != nullptr) {
            reset += b[u];
            z += b[H + u];
            n += b[2 * H + u];
        }
        const REAL product = a[2] + b_hn[u];
        gru_cell<CudaFn<REAL>>(reset, z, n, product, h);
        if (hn != nullptr) {
            saved[0] = reset;
            saved[H] = z;
            saved[2 * H] = n;
            hn[at * H + u] = product;
        }
        return h;
    }
    // From dh to a, the gradients of w_hh h, and the part of dh that does not pass by the gates.
    NLM_FN void backward(int64_t t, int64_t r, int64_t u, const Gates& of, REAL product,
                         REAL h_prev, REAL& dh, REAL* a) const {
        const int64_t at = t * B + r;
        REAL* const saved = gates + at * G * H + u;
        REAL reset = of.r, z = of.z, n = of.n;
        gru_cell_backward<CudaFn<REAL>>(reset, z, n, product, h_prev, dh);
        saved[0] = a[0] = reset;
        saved[H] = a[1] = z;
        saved[2 * H] = n;
        hn[at * H + u] = a[2] = product;
    }
    NLM_FN void clear(int64_t t, int64_t r, int64_t u) const {
        const int64_t at = t * B + r;
        for (int g = 0; g < G; ++g) gates[(at * G + g) * H + u] = 0;
        hn[at * H + u] = 0;
    }
};
