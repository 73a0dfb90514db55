// Exact softmax cross-entropy fused with its projection; logits exist for a block of tokens only.
//
// Math        z = h w^T + b,  nll[n] = logsumexp(z[n]) - z[n, targets[n]];
//             gradients of sum_n weights[n] nll[n]: dz = weights (softmax(z) - onehot),
//             dh = dz w,  dw = dz^T h,  db = sum over n of dz.
//             log_prob[n, v] = z[n, v] - logsumexp(z[n]).
// Shapes      h dh [N,H]  w dw [V,H]  b db [V]  targets weights nll [N]  log_prob [N,V]
// Aliasing    none.
// Saved       nothing.
// Numerics    the maximum and the log of the sum are subtracted one after the other, never as
//             their float32 sum; the sum over V runs in lanes over blocks of 4096, the blocks in
//             double; products as in recurrent/lstm.h. A NaN or +inf logit gives a NaN nll.
// Threading   any number of threads gives the same bits.
//             Memory: a block of about 10 MB of logits (at least 128 tokens), whatever N.
#pragma once

#include <cstdint>

#include "pack/pack.h"

namespace nlm {

template <class T>
struct XentForwardArgs {
    T* nll;
    const T* h;
    Weights<T> w;
    const T* b;  // may be null
    const std::int32_t* targets;
    std::int64_t N, H, V;
};

template <class T>
struct XentGradientsArgs {
    T* nll;
    T* dh;
    T* dw;
    T* db;  // may be null
    const T* h;
    const T* w;
    const T* b;  // may be null
    const std::int32_t* targets;
    const T* weights;  // may be null: 1
    std::int64_t N, H, V;
};

template <class T>
struct XentLogProbArgs {
    T* log_prob;
    const T* h;
    Weights<T> w;
    const T* b;  // may be null
    std::int64_t N, H, V;
};

}  // namespace nlm
