// GPU form of rnn_math.h, for the plain and the general kernels: which activation is asked for when
// they run.
#pragma once

#include "recurrent/rnn_math.h"

NLM_FN REAL activation(int relu, REAL pre) {
    return relu ? rnn_cell<CudaFn<REAL>, true>(pre) : rnn_cell<CudaFn<REAL>, false>(pre);
}
NLM_FN REAL activation_backward(int relu, REAL h, REAL dh) {
    return relu ? rnn_cell_backward<CudaFn<REAL>, true>(h, dh)
                : rnn_cell_backward<CudaFn<REAL>, false>(h, dh);
}
