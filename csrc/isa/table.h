// The list of kernels, and the table that every instruction-set level fills.
// A new kernel is one line of NLM_KERNELS and one #include, here and in kernels.cpp.
#pragma once

#include "common/peak.h"
#include "dropout/dropout.h"
#include "embedding/embedding.h"
#include "linear/linear.h"
#include "optim/adagrad.h"
#include "optim/adam.h"
#include "optim/clip.h"
#include "optim/sgd.h"
#include "pack/pack.h"
#include "recurrent/gru.h"
#include "recurrent/lstm.h"
#include "recurrent/rnn.h"
#include "softmax/candidates.h"
#include "softmax/hsoftmax.h"
#include "softmax/xent.h"

// X(function, argument struct)
#define NLM_KERNELS(X)                               \
    X(lstm_forward, LstmForwardArgs)                 \
    X(lstm_backward, LstmBackwardArgs)               \
    X(gru_forward, GruForwardArgs)                   \
    X(gru_backward, GruBackwardArgs)                 \
    X(rnn_forward, RnnForwardArgs)                   \
    X(rnn_backward, RnnBackwardArgs)                 \
    X(linear_forward, LinearForwardArgs)             \
    X(linear_backward, LinearBackwardArgs)           \
    X(xent_forward, XentForwardArgs)                 \
    X(xent_gradients, XentGradientsArgs)             \
    X(xent_log_prob, XentLogProbArgs)                \
    X(xent_top_k, XentTopKArgs)                      \
    X(xent_sample, XentSampleArgs)                   \
    X(xent_entropy, XentEntropyArgs)                 \
    X(candidates_forward, CandidatesForwardArgs)     \
    X(candidates_gradients, CandidatesGradientsArgs) \
    X(hsoftmax_forward, HsoftmaxForwardArgs)         \
    X(hsoftmax_gradients, HsoftmaxGradientsArgs)     \
    X(hsoftmax_log_prob, HsoftmaxLogProbArgs)        \
    X(hsoftmax_top_k, HsoftmaxTopKArgs)              \
    X(hsoftmax_sample, HsoftmaxSampleArgs)           \
    X(embedding_forward, EmbeddingForwardArgs)       \
    X(embedding_backward, EmbeddingBackwardArgs)     \
    X(dropout, DropoutArgs)                          \
    X(sum_squares, SumSquaresArgs)                   \
    X(clip_values, ClipValuesArgs)                   \
    X(sgd_update, SgdUpdateArgs)                     \
    X(sgd_update_rows, SgdUpdateRowsArgs)            \
    X(adam_update, AdamUpdateArgs)                   \
    X(adam_update_rows, AdamUpdateRowsArgs)          \
    X(adagrad_update, AdagradUpdateArgs)             \
    X(adagrad_update_rows, AdagradUpdateRowsArgs)    \
    X(pack_weights, PackWeightsArgs)                 \
    X(fma_peak, FmaPeakArgs)

namespace nlm {

// One pointer a kernel, for one dtype. Results that are not arrays come back through pointers in
// the argument struct.
template <class T>
struct Kernels {
#define NLM_FIELD(name, Args) void (*name)(const Args<T>&);
    NLM_KERNELS(NLM_FIELD)
#undef NLM_FIELD
};

struct KernelTable {
    Kernels<float> f32;
    Kernels<double> f64;
};

}  // namespace nlm
