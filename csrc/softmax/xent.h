// Exact softmax cross-entropy fused with its projection; logits exist for a block of tokens only.
//
// Math        z = (h w^T + b) / temperature,  log Z[n] = logsumexp(z[n]),  p = softmax(z),
//             nll[n] = log Z[n] - z[n, targets[n]],  e = label_smoothing,
//             loss[n] = (1 - e) nll[n] + e mean_v(log Z[n] - z[n, v]) + z_loss (log Z[n])^2;
//             gradients of sum_n weights[n] loss[n]: dz = weights / temperature
//             ((1 + 2 z_loss log Z) p - (1 - e) onehot - e / V),
//             dh = dz w,  dw = dz^T h,  db = sum over n of dz.
//             gradient_filter > 0, an approximation: the tokens go in ceil(N / 128) blocks of equal
//             size (but the last); dz of a word is 0 throughout a block where p < gradient_filter
//             for all its tokens and the word is the target of none.
//             log_prob[n, v] = z[n, v] - log Z[n].
//             entropy[n] = - sum_v p log p.
//             top_k: the K largest of log_prob[n], falling; of equal logits the smaller id first.
//             sample: the first v with p[n, 0] + ... + p[n, v] > u, u in [0, 1) of 53 bits from
//             words 0 and 1 of counter (row rows[n], time) of site 7, layer (common/philox.h).
// Shapes      h dh [N,H]  w dw [V,H]  b db [V]  targets weights nll loss entropy [N]
//             log_prob [N,V], of top_k [N,K] like its ids;  ids of sample [N]
// Aliasing    none.
// Saved       nothing.
// Numerics    the maximum and the log of the sum are subtracted one after the other, never as
//             their float32 sum; the sum over V runs in lanes over blocks of 4096, the blocks in
//             double; products as in recurrent/lstm.h. A NaN or +inf logit gives NaN throughout its
//             row, and -1 as its sample. Without label smoothing, z-loss and temperature the
//             results have the bits of the plain equations.
// Threading   any number of threads gives the same bits.
//             Memory: a block of about 10 MB of logits (at least 128 tokens; of H <= 128 a tile of
//             2 MB), whatever N.
#pragma once

#include <cstdint>

#include "pack/pack.h"

namespace nlm {

template <class T>
struct XentForwardArgs {
    T* nll;
    T* loss;  // may be null
    const T* h;
    Weights<T> w;
    const T* b;  // may be null
    const std::int32_t* targets;
    std::int64_t N, H, V;
    double label_smoothing, z_loss, temperature;
};

template <class T>
struct XentGradientsArgs {
    T* nll;
    T* loss;  // may be null
    T* dh;
    T* dw;
    T* db;  // may be null
    const T* h;
    const T* w;
    const T* b;  // may be null
    const std::int32_t* targets;
    const T* weights;  // may be null: 1
    std::int64_t N, H, V;
    double label_smoothing, z_loss, temperature, gradient_filter;
};

template <class T>
struct XentLogProbArgs {
    T* log_prob;
    const T* h;
    Weights<T> w;
    const T* b;  // may be null
    std::int64_t N, H, V;
    double temperature;
};

template <class T>
struct XentTopKArgs {
    T* log_prob;
    std::int32_t* ids;
    const T* h;
    Weights<T> w;
    const T* b;  // may be null
    std::int64_t N, H, V, K;
    double temperature;
};

template <class T>
struct XentSampleArgs {
    std::int32_t* ids;
    const T* h;
    Weights<T> w;
    const T* b;                // may be null
    const std::int32_t* rows;  // [N] of the caller's batch; null: 0 ... N - 1
    std::int64_t N, H, V;
    std::uint32_t seed, step, time, layer;
    double temperature;
};

template <class T>
struct XentEntropyArgs {
    T* entropy;
    const T* h;
    Weights<T> w;
    const T* b;  // may be null
    std::int64_t N, H, V;
    double temperature;
};

}  // namespace nlm
