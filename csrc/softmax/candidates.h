// Training losses over sampled tokens: those of a batch share K candidates instead of all V.
//
// Math        x[n, k] = (h[n] w[s_k]^T + b[s_k]) / temperature - log_expected[k],  s = samples,
//             t[n] = (h[n] w[y_n]^T + b[y_n]) / temperature - target_log_expected[n],  y = targets,
//             m = counts.  A sample k with s_k = y_n takes no part in token n if remove_hits.
//             softmax:  loss[n] = log(exp t[n] + sum_k m_k exp x[n, k]) - t[n]
//             logistic: loss[n] = softplus(-t[n]) + sum_k m_k softplus(x[n, k])
//             gradients of sum_n weights[n] loss[n]; with dt, dx those of t and x, divided by the
//             temperature: dh[n] = dt[n] w[y_n] + sum_k dx[n, k] w[s_k],
//             row of token v: sum_k [s_k = v] dx[., k] h + sum_n [y_n = v] dt[n] h[n]; db likewise.
// Shapes      h dh [N,H]  w [V,H]  b [V]  loss targets target_log_expected weights [N]
//             samples counts log_expected [K]  rows db [N+K]  drows [N+K,H];  N < 2^32
//             rows[0:count] are the ids of samples and targets, once each and rising; what comes
//             after is left as it is. Without tokens count is 0.
// Aliasing    none.
// Saved       nothing.
// Numerics    samples are distinct and rise; counts may be null (1), so may both log_expected (0).
//             softplus(x) = max(x, 0) + log1p(exp(-|x|)); sums over K as those over V in xent.h,
//             products as in recurrent/lstm.h; then a row's targets are added in their order.
// Threading   any number of threads gives the same bits.
//             Memory: the samples' rows of w, and a block of logits as in xent.h.
#pragma once

#include <cstdint>

namespace nlm {

template <class T>
struct CandidatesForwardArgs {
    T* loss;
    const T* h;
    const T* w;
    const T* b;  // may be null
    const std::int32_t* targets;
    const std::int32_t* samples;
    const T* counts;               // may be null
    const T* log_expected;         // may be null
    const T* target_log_expected;  // may be null
    std::int64_t N, H, V, K;
    bool logistic, remove_hits;
    double temperature;
};

template <class T>
struct CandidatesGradientsArgs {
    T* loss;
    T* dh;
    std::int32_t* rows;
    T* drows;
    T* db;                // may be null
    std::int64_t* count;  // out: number of rows
    const T* h;
    const T* w;
    const T* b;  // may be null
    const std::int32_t* targets;
    const T* weights;  // may be null: 1
    const std::int32_t* samples;
    const T* counts;               // may be null
    const T* log_expected;         // may be null
    const T* target_log_expected;  // may be null
    std::int64_t N, H, V, K;
    bool logistic, remove_hits;
    double temperature;
};

}  // namespace nlm
