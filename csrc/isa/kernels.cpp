// Every CPU kernel, compiled once an instruction-set level (cmake/isa.cmake) into nlm::NLM_ISA.
// The inner namespace is unnamed, so that no symbol but the table leaves this file: a weak symbol
// compiled with wide instructions could be the copy that the linker keeps for everybody.

#include <cmath>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <limits>
#include <type_traits>

#if defined(__x86_64__)
#include <immintrin.h>
#elif defined(__ARM_NEON)
#include <arm_neon.h>
#endif

#include "common/fn.h"
#include "common/scratch.h"
#include "common/threads.h"
#include "isa/table.h"

namespace nlm::NLM_ISA {
namespace {

// Files here use those before them.
#include "common/vec.h"
#include "common/philox.h"
#include "common/pack-inl.h"
#include "common/gemm-inl.h"
#include "common/few_rows-inl.h"
#include "common/peak-inl.h"
#include "recurrent/panels-inl.h"
#include "recurrent/sequence-inl.h"
#include "recurrent/variant-inl.h"
#include "recurrent/layer_norm_math.h"
#include "recurrent/layer_norm-inl.h"
#include "recurrent/lstm_math.h"
#include "recurrent/lstm_general-inl.h"
#include "recurrent/lstm-inl.h"
#include "recurrent/gru_math.h"
#include "recurrent/gru-inl.h"
#include "recurrent/rnn_math.h"
#include "recurrent/rnn-inl.h"
#include "pack/pack-inl.h"
#include "linear/linear-inl.h"
#include "softmax/xent-inl.h"
#include "softmax/xent_filter-inl.h"
#include "embedding/embedding-inl.h"
#include "softmax/candidates-inl.h"
#include "softmax/hsoftmax_rows-inl.h"
#include "softmax/hsoftmax-inl.h"
#include "softmax/hsoftmax_predict-inl.h"
#include "dropout/dropout-inl.h"
#include "optim/span-inl.h"
#include "optim/clip-inl.h"
#include "optim/sgd_math.h"
#include "optim/sgd-inl.h"
#include "optim/adam_math.h"
#include "optim/adam-inl.h"
#include "optim/adagrad_math.h"
#include "optim/adagrad-inl.h"

#define NLM_ENTRY(name, Args) .name = &name<T>,
template <class T>
constexpr Kernels<T> entries{NLM_KERNELS(NLM_ENTRY)};
#undef NLM_ENTRY

}  // namespace

extern const KernelTable table;
constinit const KernelTable table{.f32 = entries<float>, .f64 = entries<double>};

}  // namespace nlm::NLM_ISA
