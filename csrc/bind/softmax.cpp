// Python bindings of the affine map and the fused cross-entropy (contracts: csrc/linear/linear.h,
// csrc/softmax/xent.h).
#include "bind/array.h"
#include "bind/bind.h"

namespace nlm {

using O = py::object;

// h, w, b and their sizes.
template <class T, class Args>
static void take_map(Call<T>& call, Args& a, const O& h, const O& w, const O& b) {
    a.h = call.in("h", h, "N H");
    if constexpr (std::is_same_v<decltype(a.w), Weights<T>>)
        a.w = call.weights("w", w, "V H");
    else
        a.w = call.in("w", w, "V H");
    a.b = call.in("b", b, "V", optional);
    a.N = call.dim('N'), a.H = call.dim('H'), a.V = call.dim('V');
}

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
        [](O nll, O loss, O h, O w, O b, O targets, double label_smoothing, double z_loss,
           double temperature) {
            run("xent_forward", "h", h, [&]<class T>(Call<T>& call) {
                XentForwardArgs<T> a{};
                take_map(call, a, h, w, b);
                a.nll = call.out("nll", nll, "N");
                a.loss = call.out("loss", loss, "N", optional);
                a.targets = call.ids("targets", targets, "N", 'V', a.V);
                a.label_smoothing = label_smoothing, a.z_loss = z_loss;
                a.temperature = temperature;
                call.launch(kernels<T>().xent_forward, a);
            });
        },
        py::kw_only(), "nll"_a, "loss"_a = py::none(), "h"_a, "w"_a, "b"_a, "targets"_a,
        "label_smoothing"_a = 0.0, "z_loss"_a = 0.0, "temperature"_a = 1.0);

    m.def(
        "xent_gradients",
        [](O nll, O loss, O dh, O dw, O db, O h, O w, O b, O targets, O weights,
           double label_smoothing, double z_loss, double temperature, double gradient_filter) {
            run("xent_gradients", "h", h, [&]<class T>(Call<T>& call) {
                XentGradientsArgs<T> a{};
                take_map(call, a, h, w, b);
                a.nll = call.out("nll", nll, "N");
                a.loss = call.out("loss", loss, "N", optional);
                a.dh = call.out("dh", dh, "N H");
                a.dw = call.out("dw", dw, "V H");
                a.db = call.out("db", db, "V", optional);
                a.targets = call.ids("targets", targets, "N", 'V', a.V);
                a.weights = call.in("weights", weights, "N", optional);
                a.label_smoothing = label_smoothing, a.z_loss = z_loss;
                a.temperature = temperature, a.gradient_filter = gradient_filter;
                call.launch(kernels<T>().xent_gradients, a);
            });
        },
        py::kw_only(), "nll"_a, "loss"_a = py::none(), "dh"_a, "dw"_a, "db"_a, "h"_a, "w"_a, "b"_a,
        "targets"_a, "weights"_a = py::none(), "label_smoothing"_a = 0.0, "z_loss"_a = 0.0,
        "temperature"_a = 1.0, "gradient_filter"_a = 0.0);

    m.def(
        "xent_log_prob",
        [](O log_prob, O h, O w, O b, double temperature) {
            run("xent_log_prob", "h", h, [&]<class T>(Call<T>& call) {
                XentLogProbArgs<T> a{};
                take_map(call, a, h, w, b);
                a.log_prob = call.out("log_prob", log_prob, "N V");
                a.temperature = temperature;
                call.launch(kernels<T>().xent_log_prob, a);
            });
        },
        py::kw_only(), "log_prob"_a, "h"_a, "w"_a, "b"_a, "temperature"_a = 1.0);

    m.def(
        "xent_top_k",
        [](O log_prob, O ids, O h, O w, O b, double temperature) {
            run("xent_top_k", "h", h, [&]<class T>(Call<T>& call) {
                XentTopKArgs<T> a{};
                take_map(call, a, h, w, b);
                a.log_prob = call.out("log_prob", log_prob, "N K");
                a.ids = call.ids_out("ids", ids, "N K");
                a.K = call.dim('K');
                if (a.K < 1 || a.K > a.V)
                    throw py::value_error("xent_top_k: K must be in [1, V=" + std::to_string(a.V) +
                                          "], got " + std::to_string(a.K));
                a.temperature = temperature;
                call.launch(kernels<T>().xent_top_k, a);
            });
        },
        py::kw_only(), "log_prob"_a, "ids"_a, "h"_a, "w"_a, "b"_a, "temperature"_a = 1.0);

    m.def(
        "xent_sample",
        [](O ids, O h, O w, O b, O rows, std::uint32_t seed, std::uint32_t step, std::uint32_t time,
           std::uint32_t layer, double temperature) {
            if (layer >= 65536)
                throw py::value_error("xent_sample: layer must be < 65536, got " +
                                      std::to_string(layer));
            run("xent_sample", "h", h, [&]<class T>(Call<T>& call) {
                XentSampleArgs<T> a{};
                take_map(call, a, h, w, b);
                a.ids = call.ids_out("ids", ids, "N");
                if (!rows.is_none())
                    a.rows = call.ids("rows", rows, "N", 'R', std::int64_t(1) << 31);
                a.seed = seed, a.step = step, a.time = time, a.layer = layer;
                a.temperature = temperature;
                call.launch(kernels<T>().xent_sample, a);
            });
        },
        py::kw_only(), "ids"_a, "h"_a, "w"_a, "b"_a, "rows"_a, "seed"_a, "step"_a, "time"_a = 0,
        "layer"_a = 0, "temperature"_a = 1.0);

    m.def(
        "xent_entropy",
        [](O entropy, O h, O w, O b, double temperature) {
            run("xent_entropy", "h", h, [&]<class T>(Call<T>& call) {
                XentEntropyArgs<T> a{};
                take_map(call, a, h, w, b);
                a.entropy = call.out("entropy", entropy, "N");
                a.temperature = temperature;
                call.launch(kernels<T>().xent_entropy, a);
            });
        },
        py::kw_only(), "entropy"_a, "h"_a, "w"_a, "b"_a, "temperature"_a = 1.0);

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
