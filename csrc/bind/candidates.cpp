// Python bindings of the losses over sampled tokens (contract: csrc/softmax/candidates.h).
#include "bind/array.h"
#include "bind/bind.h"

#include <string>

namespace nlm {
namespace {

using O = py::object;

// What both functions read.
template <class T, class Args>
void take_inputs(Call<T>& call, Args& a, const std::string& function, const O& h, const O& w,
                 const O& b, const O& targets, const O& samples, const O& counts,
                 const O& log_expected, const O& target_log_expected, const std::string& objective,
                 bool remove_hits, double temperature) {
    a.h = call.in("h", h, "N H");
    a.w = call.in("w", w, "V H");
    a.b = call.in("b", b, "V", optional);
    a.N = call.dim('N'), a.H = call.dim('H'), a.V = call.dim('V');
    a.targets = call.ids("targets", targets, "N", 'V', a.V);
    a.samples = call.ids("samples", samples, "K", 'V', a.V);
    a.K = call.dim('K');
    if (a.K < 1) throw py::value_error(function + ": samples must be one or more, got none");
    for (std::int64_t k = 1; k < a.K; ++k)
        if (a.samples[k] <= a.samples[k - 1])
            throw py::value_error(function + ": samples must be rising and distinct, got " +
                                  std::to_string(a.samples[k]) + " after " +
                                  std::to_string(a.samples[k - 1]) + " at " + std::to_string(k));
    if (a.N >= std::int64_t(1) << 32)
        throw py::value_error(function + ": N must be < 2**32, got " + std::to_string(a.N));
    a.counts = call.in("counts", counts, "K", optional);
    a.log_expected = call.in("log_expected", log_expected, "K", optional);
    a.target_log_expected = call.in("target_log_expected", target_log_expected, "N", optional);
    if (objective != "softmax" && objective != "logistic")
        throw py::value_error(function + ": objective must be one of softmax, logistic, got '" +
                              objective + "'");
    a.logistic = objective == "logistic";
    a.remove_hits = remove_hits, a.temperature = temperature;
}

}  // namespace

void bind_candidates(py::module_& m) {
    m.def(
        "candidates_forward",
        [](O loss, O h, O w, O b, O targets, O samples, O counts, O log_expected,
           O target_log_expected, const std::string& objective, bool remove_hits,
           double temperature) {
            const char* const f = "candidates_forward";
            run(f, "h", h, [&]<class T>(Call<T>& call) {
                CandidatesForwardArgs<T> a{};
                take_inputs(call, a, f, h, w, b, targets, samples, counts, log_expected,
                            target_log_expected, objective, remove_hits, temperature);
                a.loss = call.out("loss", loss, "N");
                call.launch(kernels<T>().candidates_forward, a);
            });
        },
        py::kw_only(), "loss"_a, "h"_a, "w"_a, "b"_a, "targets"_a, "samples"_a,
        "counts"_a = py::none(), "log_expected"_a = py::none(),
        "target_log_expected"_a = py::none(), "objective"_a = "softmax", "remove_hits"_a = true,
        "temperature"_a = 1.0);

    m.def(
        "candidates_gradients",
        [](O loss, O dh, O rows, O drows, O db, O h, O w, O b, O targets, O weights, O samples,
           O counts, O log_expected, O target_log_expected, const std::string& objective,
           bool remove_hits, double temperature) {
            const char* const f = "candidates_gradients";
            std::int64_t count = 0;
            run(f, "h", h, [&]<class T>(Call<T>& call) {
                CandidatesGradientsArgs<T> a{};
                take_inputs(call, a, f, h, w, b, targets, samples, counts, log_expected,
                            target_log_expected, objective, remove_hits, temperature);
                a.weights = call.in("weights", weights, "N", optional);
                a.loss = call.out("loss", loss, "N");
                a.dh = call.out("dh", dh, "N H");
                a.rows = call.ids_out("rows", rows, "R");
                if (call.dim('R') != a.N + a.K)
                    throw py::value_error(std::string(f) +
                                          ": rows must be int32 [N+K=" + std::to_string(a.N + a.K) +
                                          "], got [" + std::to_string(call.dim('R')) + "]");
                a.drows = call.out("drows", drows, "R H");
                a.db = call.out("db", db, "R", optional);
                a.count = &count;
                call.launch(kernels<T>().candidates_gradients, a);
            });
            return count;
        },
        py::kw_only(), "loss"_a, "dh"_a, "rows"_a, "drows"_a, "db"_a, "h"_a, "w"_a, "b"_a,
        "targets"_a, "weights"_a = py::none(), "samples"_a, "counts"_a = py::none(),
        "log_expected"_a = py::none(), "target_log_expected"_a = py::none(),
        "objective"_a = "softmax", "remove_hits"_a = true, "temperature"_a = 1.0);
}

}  // namespace nlm
