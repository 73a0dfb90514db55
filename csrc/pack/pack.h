// Frozen weights packed once, in the order in which forward products read them.
//
// Math        none: panels hold w's elements, and zeros beyond the last column.
// Shapes      w [R,K]; panels [size], as the instruction-set level in use wants them.
// Aliasing    none.
// Saved       nothing.
// Numerics    a product gives the same bits with panels and without.
// Threading   any number of threads may read the panels, however many packed them.
#pragma once

#include <cstdint>

namespace nlm {

// Weights of a forward pass. The panels, which may be null, hold the same numbers.
template <class T>
struct Weights {
    const T* p = nullptr;
    const T* panels = nullptr;
};

template <class T>
struct PackWeightsArgs {
    T* panels;  // null: nothing is packed
    const T* w;
    std::int64_t R, K;
    // Of weights inside a loop over time, how many blocks of rows are computed together: {4, 0} for
    // an LSTM's w_hh. The second number is of a product of its own: {2, 1} for a GRU that resets
    // before. {0, 0}: weights outside the loop.
    int gates[2];
    std::int64_t* size;  // becomes the number of elements that panels has
};

}  // namespace nlm
