// What module.cpp calls to fill the Python module: one function a family of kernels.
#pragma once

#include <pybind11/pybind11.h>

namespace nlm {

void bind_recurrent(pybind11::module_& m);
void bind_softmax(pybind11::module_& m);
void bind_candidates(pybind11::module_& m);
void bind_hsoftmax(pybind11::module_& m);
void bind_pack(pybind11::module_& m);
void bind_small(pybind11::module_& m);

// Name of a kernel -> capsule of its XLA custom call (xla.cpp, where XLA's headers are).
pybind11::dict xla_handlers();

}  // namespace nlm
