// The machine's limit: independent chains of fused multiply-adds in registers, nothing else.
// Benchmarks state their figures as shares of the rate this reaches.
#pragma once

#include <cstdint>

namespace nlm {

template <class T>
struct FmaPeakArgs {
    double* flops;  // out: operations done by all threads
    std::int64_t iterations;
};

}  // namespace nlm
