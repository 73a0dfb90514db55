// Named checks between Python arrays and kernel arguments, and the call itself.
//
//   m.def("linear_forward",
//         [](py::object y, py::object x, py::object w, py::object b) {
//             run("linear_forward", "x", x, [&]<class T>(Call<T>& call) {
//                 LinearForwardArgs<T> a{};
//                 a.x = call.in("x", x, "N I");
//                 a.w = call.in("w", w, "O I");
//                 a.y = call.out("y", y, "N O");
//                 a.b = call.in("b", b, "O", optional);
//                 a.N = call.dim('N'), a.I = call.dim('I'), a.O = call.dim('O');
//                 call.launch(kernels<T>().linear_forward, a);
//             });
//         },
//         py::kw_only(), "y"_a, "x"_a, "w"_a, "b"_a);
//
// A shape is written as symbols, each an upper-case letter with an optional factor ("T B 4H"), or
// as bare digits; the first array in which a bare symbol stands gives it its size, and all later
// ones must agree. Arrays are taken as they are: nothing is cast, copied or made contiguous.
#pragma once

#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <array>
#include <cstdint>
#include <string>
#include <type_traits>

#include "common/floats.h"
#include "isa/dispatch.h"

namespace nlm {

namespace py = pybind11;
using namespace py::literals;

struct Optional {};
inline constexpr Optional optional;  // the array may be None, which gives a null pointer

namespace bind_detail {

template <class E>
constexpr const char* dtype_name() {
    if constexpr (std::is_same_v<E, float>) return "float32";
    if constexpr (std::is_same_v<E, double>) return "float64";
    if constexpr (std::is_same_v<E, std::int32_t>) return "int32";
}

using Dims = std::array<std::int64_t, 26>;  // size of each symbol, -1 while unknown

// Compares an array's shape with a pattern, and learns the sizes of new symbols.
bool matches(const py::array& array, const char* shape, Dims& dims);

// "function: name must be float32 [4H=512, H=128]".
std::string wanted(const char* function, const char* name, const char* dtype, const char* shape,
                   const Dims& dims);

// "float32 [512, 64]" for an array, the name of the type for anything else.
std::string describe(const py::object& got);

[[noreturn]] void fail_id(const char* function, const char* name, std::int64_t position,
                          std::int32_t got, char range, std::int64_t size);
[[noreturn]] void fail_gates(const char* function, const char* name, const py::object& got,
                             int gates, int second);

// A NumPy array of no subclass.
bool is_plain(const py::object& array);
[[noreturn]] void fail_length(const char* function, const char* name, std::int64_t position,
                              std::int32_t got, std::int64_t steps);

}  // namespace bind_detail

// The arguments of one call of one kernel, whose floating-point arrays all have the type T.
template <class T>
class Call {
public:
    explicit Call(const char* function) : function_(function) { dims_.fill(-1); }

    const T* in(const char* name, const py::object& got, const char* shape) {
        return pointer<T>(name, got, shape, false);
    }
    const T* in(const char* name, const py::object& got, const char* shape, Optional) {
        return got.is_none() ? nullptr : in(name, got, shape);
    }
    // Weights, plain or from pynlm.kernels.pack with the same `gates`.
    Weights<T> weights(const char* name, const py::object& got, const char* shape, int gates = 0,
                       int second = 0) {
        Weights<T> w{in(name, got, shape), nullptr};
        if (bind_detail::is_plain(got)) return w;
        const py::object panels = py::getattr(got, "panels", py::none());
        if (panels.is_none()) return w;
        const auto array = py::reinterpret_borrow<py::array>(got);
        std::int64_t size = 0;
        kernels<T>().pack_weights(
            {nullptr, w.p, array.shape(0), array.shape(1), {gates, second}, &size});
        if (got.attr("gates").template cast<std::array<int, 2>>() != std::array{gates, second})
            bind_detail::fail_gates(function_, name, got.attr("gates"), gates, second);
        if (!py::array_t<T>::check_(panels) || py::len(panels) != std::size_t(size) ||
            !got.attr("packed_shape").equal(got.attr("shape")))
            throw py::value_error(std::string(function_) + ": the packed copy of " + name +
                                  " does not fit it; pack it again");
        w.panels = static_cast<const T*>(py::reinterpret_borrow<py::array>(panels).data());
        return w;
    }
    T* out(const char* name, const py::object& got, const char* shape) {
        return pointer<T>(name, got, shape, true);
    }
    T* out(const char* name, const py::object& got, const char* shape, Optional) {
        return got.is_none() ? nullptr : out(name, got, shape);
    }

    // int32 indices that the kernel writes.
    std::int32_t* ids_out(const char* name, const py::object& got, const char* shape) {
        return pointer<std::int32_t>(name, got, shape, true);
    }
    // int32 indices that the kernel checks as it meets them.
    const std::int32_t* indices(const char* name, const py::object& got, const char* shape) {
        return pointer<std::int32_t>(name, got, shape, false);
    }
    // int32 indices, each in [0, size), where `range` is the symbol of that size.
    const std::int32_t* ids(const char* name, const py::object& got, const char* shape, char range,
                            std::int64_t size) {
        const std::int32_t* p = pointer<std::int32_t>(name, got, shape, false);
        const std::int64_t n = py::reinterpret_borrow<py::array>(got).size();
        for (std::int64_t i = 0; i < n; ++i)
            if (p[i] < 0 || p[i] >= size)
                bind_detail::fail_id(function_, name, i, p[i], range, size);
        return p;
    }
    // int32 lengths of the B rows, not increasing, each in [0, T]; None stands for T throughout.
    const std::int32_t* lengths(const char* name, const py::object& got, std::int64_t steps) {
        if (got.is_none()) return nullptr;
        const std::int32_t* p = pointer<std::int32_t>(name, got, "B", false);
        for (std::int64_t i = 0; i < dim('B'); ++i)
            if (p[i] < 0 || p[i] > steps || (i > 0 && p[i] > p[i - 1]))
                bind_detail::fail_length(function_, name, i, p[i], steps);
        return p;
    }
    // The size of a symbol that a required array has bound.
    std::int64_t dim(char symbol) const { return dims_[symbol - 'A']; }

    // Runs the kernel without the GIL.
    template <class Args>
    void launch(void (*kernel)(const Args&), const Args& args) const {
        py::gil_scoped_release nogil;
        const DefaultFloats floats;
        kernel(args);
    }

private:
    template <class E>
    E* pointer(const char* name, const py::object& got, const char* shape, bool write) {
        const auto wanted = [&] {
            return bind_detail::wanted(function_, name, bind_detail::dtype_name<E>(), shape, dims_);
        };
        if (!py::array_t<E>::check_(got))
            throw py::type_error(wanted() + ", got " + bind_detail::describe(got));
        const auto array = py::reinterpret_borrow<py::array>(got);
        if (!bind_detail::matches(array, shape, dims_))
            throw py::value_error(wanted() + ", got " + bind_detail::describe(got));
        using Flags = py::detail::npy_api;
        if (!(array.flags() & Flags::NPY_ARRAY_C_CONTIGUOUS_))
            throw py::value_error(wanted() +
                                  " in C order, got strided (np.ascontiguousarray helps)");
        if (!(array.flags() & Flags::NPY_ARRAY_ALIGNED_))
            throw py::value_error(wanted() + ", got an unaligned array (np.copy helps)");
        if (write && !array.writeable())
            throw py::value_error(wanted() + " and writeable, got a read-only array");
        return static_cast<E*>(const_cast<void*>(array.data()));
    }

    const char* function_;
    bind_detail::Dims dims_;
};

// Calls body(Call<float>&) or body(Call<double>&), by the type of the array `got`, and returns what
// it returns.
template <class Body>
auto run(const char* function, const char* name, const py::object& got, Body&& body) {
    if (py::array_t<float>::check_(got)) {
        Call<float> call(function);
        return body(call);
    }
    if (py::array_t<double>::check_(got)) {
        Call<double> call(function);
        return body(call);
    }
    throw py::type_error(std::string(function) + ": " + name +
                         " must be a float32 or float64 array, got " + bind_detail::describe(got));
}

}  // namespace nlm
