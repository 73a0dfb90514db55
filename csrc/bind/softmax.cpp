// Python bindings of the affine map and the fused cross-entropy (contracts: csrc/linear/linear.h,
// csrc/softmax/xent.h).
#include "bind/array.h"
#include "bind/bind.h"

#include <new>

namespace nlm {

using O = py::object;

void bind_softmax(py::module_& m) {
    m.def(
        "linear_forward",
        [](O y, O x, O w, O b) {
            run("linear_forward", "x", x, [&]<class T>(Call<T>& call) {
                LinearForwardArgs<T> a{};
                a.x = call.in("x", x, "N I");
                a.w = call.weights("w", w, "O I");
                a.y = call.out("y", y, "N O");
                a.b = call.in("b", b, "O", optional);
                a.N = call.dim('N'), a.I = call.dim('I'), a.O = call.dim('O');
                call.launch(kernels<T>().linear_forward, a);
            });
        },
        py::kw_only(), "y"_a, "x"_a, "w"_a, "b"_a);

    m.def(
        "linear_backward",
        [](O dx, O dw, O db, O dy, O x, O w) {
            run("linear_backward", "x", x, [&]<class T>(Call<T>& call) {
                LinearBackwardArgs<T> a{};
                a.x = call.in("x", x, "N I");
                a.w = call.in("w", w, "O I");
                a.dy = call.in("dy", dy, "N O");
                a.dx = call.out("dx", dx, "N I", optional);
                a.dw = call.out("dw", dw, "O I");
                a.db = call.out("db", db, "O", optional);
                a.N = call.dim('N'), a.I = call.dim('I'), a.O = call.dim('O');
                call.launch(kernels<T>().linear_backward, a);
            });
        },
        py::kw_only(), "dx"_a, "dw"_a, "db"_a, "dy"_a, "x"_a, "w"_a);

    m.def(
        "xent_forward",
        [](O nll, O h, O w, O b, O targets) {
            run("xent_forward", "h", h, [&]<class T>(Call<T>& call) {
                XentForwardArgs<T> a{};
                a.h = call.in("h", h, "N H");
                a.w = call.weights("w", w, "V H");
                a.N = call.dim('N'), a.H = call.dim('H'), a.V = call.dim('V');
                a.nll = call.out("nll", nll, "N");
                a.b = call.in("b", b, "V", optional);
                a.targets = call.ids("targets", targets, "N", 'V', a.V);
                call.launch(kernels<T>().xent_forward, a);
            });
        },
        py::kw_only(), "nll"_a, "h"_a, "w"_a, "b"_a, "targets"_a);

    m.def(
        "xent_gradients",
        [](O nll, O dh, O dw, O db, O h, O w, O b, O targets, O weights) {
            run("xent_gradients", "h", h, [&]<class T>(Call<T>& call) {
                XentGradientsArgs<T> a{};
                a.h = call.in("h", h, "N H");
                a.w = call.in("w", w, "V H");
                a.N = call.dim('N'), a.H = call.dim('H'), a.V = call.dim('V');
                a.nll = call.out("nll", nll, "N");
                a.dh = call.out("dh", dh, "N H");
                a.dw = call.out("dw", dw, "V H");
                a.db = call.out("db", db, "V", optional);
                a.b = call.in("b", b, "V", optional);
                a.targets = call.ids("targets", targets, "N", 'V', a.V);
                a.weights = call.in("weights", weights, "N", optional);
                call.launch(kernels<T>().xent_gradients, a);
            });
        },
        py::kw_only(), "nll"_a, "dh"_a, "dw"_a, "db"_a, "h"_a, "w"_a, "b"_a, "targets"_a,
        "weights"_a = py::none());

    m.def(
        "xent_log_prob",
        [](O log_prob, O h, O w, O b) {
            run("xent_log_prob", "h", h, [&]<class T>(Call<T>& call) {
                XentLogProbArgs<T> a{};
                a.h = call.in("h", h, "N H");
                a.w = call.weights("w", w, "V H");
                a.log_prob = call.out("log_prob", log_prob, "N V");
                a.b = call.in("b", b, "V", optional);
                a.N = call.dim('N'), a.H = call.dim('H'), a.V = call.dim('V');
                call.launch(kernels<T>().xent_log_prob, a);
            });
        },
        py::kw_only(), "log_prob"_a, "h"_a, "w"_a, "b"_a);

    m.def(
        "pack_weights",
        [](O w, std::array<int, 2> gates) {
            return run("pack_weights", "w", w, [&]<class T>(Call<T>& call) -> py::object {
                if (gates[0] < 0 || gates[1] < 0)
                    throw py::value_error("pack_weights: gates must be 0 or more");
                std::int64_t size = 0;
                PackWeightsArgs<T> a{};
                a.w = call.in("w", w, "R K");
                a.R = call.dim('R'), a.K = call.dim('K');
                a.gates[0] = gates[0], a.gates[1] = gates[1];
                a.size = &size;
                kernels<T>().pack_weights(a);
                constexpr std::align_val_t kLine{64};
                a.panels = static_cast<T*>(::operator new(std::size_t(size) * sizeof(T), kLine));
                const py::capsule owner(a.panels, [](void* p) { ::operator delete(p, kLine); });
                call.launch(kernels<T>().pack_weights, a);
                return py::array_t<T>(size, a.panels, owner);
            });
        },
        py::kw_only(), "w"_a, "gates"_a, "Panels of w; what pynlm.kernels.pack checks.");

    m.def(
        "fma_peak",
        [](std::int64_t iterations, bool float64) {
            double flops = 0;
            py::gil_scoped_release nogil;
            if (float64)
                kernels<double>().fma_peak({&flops, iterations});
            else
                kernels<float>().fma_peak({&flops, iterations});
            return flops;
        },
        py::kw_only(), "iterations"_a, "float64"_a = false,
        "Floating-point operations done by all threads in this call, for a benchmark to time.");
}

}  // namespace nlm
