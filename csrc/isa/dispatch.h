// Which instruction-set level runs. Chosen once: the best that this CPU has, or the one that the
// environment variable PYNLM_ISA names.
#pragma once

#include <string>
#include <vector>

#include "isa/table.h"

namespace nlm {

// Throws std::invalid_argument, naming the valid levels, if PYNLM_ISA is none of them.
const KernelTable& kernel_table();

template <class T>
const Kernels<T>& kernels();
template <>
inline const Kernels<float>& kernels<float>() {
    return kernel_table().f32;
}
template <>
inline const Kernels<double>& kernels<double>() {
    return kernel_table().f64;
}

std::string isa_name();                     // the level in use
std::vector<std::string> available_isas();  // levels built in that this CPU can run, best first

}  // namespace nlm
