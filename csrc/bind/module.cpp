// The Python module pynlm._kernels.
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <optional>
#include <stdexcept>
#include <string>

#include "bind/bind.h"
#include "common/threads.h"
#include "isa/dispatch.h"

namespace py = pybind11;
using namespace py::literals;

PYBIND11_MODULE(_kernels, m) {
    m.doc() = "Compiled CPU kernels. Call them through pynlm.kernels, which checks the contract.";

    nlm::kernel_table();  // a wrong PYNLM_ISA fails here, at import, and not in the middle of a run

    nlm::bind_recurrent(m);
    nlm::bind_softmax(m);
    nlm::bind_candidates(m);
    nlm::bind_hsoftmax(m);
    nlm::bind_pack(m);
    nlm::bind_small(m);

    m.def(
        "xla_handlers",
        [] {
#if defined(NLM_HAVE_XLA)
            return nlm::xla_handlers();
#else
            return py::dict();
#endif
        },
        "XLA custom calls by kernel, for pynlm.jax; none in a build without XLA's headers.");

    m.def("isa_name", &nlm::isa_name, "Instruction-set level in use.");
    m.def("available_isas", &nlm::available_isas,
          "Levels that this build and this CPU have, best first; PYNLM_ISA takes any of them.");
    m.def("get_num_threads", &nlm::get_num_threads, "Number of threads that kernels use.");
    m.def(
        "set_num_threads",
        [](int n) {
            if (n < 1)
                throw py::value_error("set_num_threads: n must be at least 1, got " +
                                      std::to_string(n));
            nlm::set_num_threads(n);
        },
        "n"_a, "Set the number of threads that kernels use (>= 1).");
    m.def(
        "borrow_threads",
        [](const std::optional<std::string>& library) {
            return nlm::borrow_threads(library ? library->c_str() : nullptr);
        },
        "library"_a,
        "Run kernels on the OpenMP threads of a library that the process has loaded (None: on our "
        "own again); False if it has none.");
}
