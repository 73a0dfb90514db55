// Hierarchical softmax: a token's probability is the product, down a tree, of the probabilities of
// the children chosen.
//
// Math        Node m of M has children 0..k, k >= 1. Child c >= 1 has row r = first[m] - m + c - 1
//             of w and the logit z = h w[r]^T + b[r]; child 0 has none, and the logit 0 (so one row
//             makes a sigmoid). log p(c | m) = z[c] - logsumexp(z[0..k]).
//             nll[n] = - the sum of log p over the path from the root to targets[n];
//             gradients of sum_n weights[n] nll[n]: dz[c] = weights (p(c | m) - [c is on the
//             path]) at each node of the path, dh = dz w,
//             rows[0:count] are the rows of all nodes on the targets' paths, rising;
//             drows[i] = sum_n dz h of row rows[i], db[i] = sum_n dz. All other rows' are 0.
//             log_prob[n, v] = -nll of token v.
//             top_k: the K largest of log_prob[n], falling; of equal ones the smaller id first. By
//             best-first search: what is opened are the nodes more probable than the K-th token.
//             sample: at the node of depth d the first c with p(0) + ... + p(c) > u, u in [0, 1) of
//             53 bits from words 0 and 1 of counter (block d, row n, time) of site 7.
// Shapes      h dh [N,H]  w [R,H]  b [R]  R = V-1  targets weights nll [N]  log_prob [N,V]
//             of top_k [N,K] like its ids;  ids of sample [N];  rows db [P]  drows [P,H], of which
//             what lies beyond count is left as it is; count > P: none of these is complete.
//             N < 2^31.
//             An entry is a token v or, as V+m, a node m; a tree of V tokens has V-1 rows.
//             first [M+1]: children[first[m]:first[m+1]] are the entries of node m's children.
//             parent [V+M,2]: an entry's parent (a node's number) and which child of it; -1, -1
//             for the root, which is node 0, or the token if V = 1. A parent has the smaller
//             number.
// Aliasing    none.
// Saved       nothing.
// Numerics    log p as max(-z, 0) + log1p(exp(-|z|)), or with (max, log-sum) apart; sums of them in
//             double; dz keeps its digits however close p is to 0 or 1. Dot products in lanes;
//             nodes of kWideRows rows and more are products of all their tokens, whose losses are
//             added in T. NaN logits give NaN, and -1 as the sample; +inf has no defined result.
//             `fault` is set where following first, parent or children would leave the arrays or
//             miss a token; of other arrays that are no tree results mean nothing.
// Threading   any number of threads gives the same bits: over tokens for nll and dh, then over
//             nodes and columns for drows.
#pragma once

#include <cstdint>

namespace nlm {

template <class T>
struct HsoftmaxTree {
    const T* w;
    const T* b;  // may be null
    const std::int32_t* first;
    const std::int32_t* children;  // null where paths are all that is asked for
    const std::int32_t* parent;    // null where no path is
    std::int64_t H, V, M;
    bool* fault;  // out: only ever set
};

template <class T>
struct HsoftmaxForwardArgs {
    T* nll;
    const T* h;
    HsoftmaxTree<T> tree;
    const std::int32_t* targets;
    std::int64_t N;
};

template <class T>
struct HsoftmaxGradientsArgs {
    T* nll;
    T* dh;
    std::int32_t* rows;
    T* drows;
    T* db;                // may be null
    std::int64_t* count;  // out: number of rows
    const T* h;
    HsoftmaxTree<T> tree;
    const std::int32_t* targets;
    const T* weights;  // may be null: 1
    std::int64_t N, P;
};

template <class T>
struct HsoftmaxLogProbArgs {
    T* log_prob;
    const T* h;
    HsoftmaxTree<T> tree;
    std::int64_t N;
};

template <class T>
struct HsoftmaxTopKArgs {
    T* log_prob;
    std::int32_t* ids;
    const T* h;
    HsoftmaxTree<T> tree;
    std::int64_t N, K;
};

template <class T>
struct HsoftmaxSampleArgs {
    std::int32_t* ids;
    const T* h;
    HsoftmaxTree<T> tree;
    std::int64_t N;
    std::uint32_t seed, step, time;
};

}  // namespace nlm
