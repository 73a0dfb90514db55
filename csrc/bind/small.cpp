// Python bindings of the embedding, dropout, clipping and the updates (contracts: the headers of
// csrc/embedding, csrc/dropout and csrc/optim).
#include "bind/array.h"
#include "bind/bind.h"

#include <string>

namespace nlm {
namespace {

using O = py::object;

std::string number(double x) { return py::str(py::float_(x)); }

// `rows` of a row-sparse gradient: in [0, V), rising and distinct, because threads update them at
// once.
template <class T>
const std::int32_t* rising_rows(Call<T>& call, const char* function, const O& rows) {
    const std::int32_t* p = call.ids("rows", rows, "N", 'V', call.dim('V'));
    for (std::int64_t i = 1; i < call.dim('N'); ++i)
        if (p[i] <= p[i - 1])
            throw py::value_error(std::string(function) +
                                  ": rows must be rising and distinct, got " +
                                  std::to_string(p[i]) + " after " + std::to_string(p[i - 1]) +
                                  " at position " + std::to_string(i));
    return p;
}

// What every *_update_rows takes: w, rows, drows and the sizes.
template <class T, class Args>
void bind_table(Call<T>& call, const char* function, Args& a, const O& w, const O& rows,
                const O& drows) {
    a.w = call.out("w", w, "V D");
    a.drows = call.in("drows", drows, "N D");
    a.rows = rising_rows(call, function, rows);
    a.N = call.dim('N'), a.V = call.dim('V'), a.D = call.dim('D');
}

void bind_embedding(py::module_& m) {
    m.def(
        "embedding_forward",
        [](O y, O ids, O w) {
            run("embedding_forward", "w", w, [&]<class T>(Call<T>& call) {
                EmbeddingForwardArgs<T> a{};
                a.w = call.in("w", w, "V D");
                a.y = call.out("y", y, "N D");
                a.N = call.dim('N'), a.V = call.dim('V'), a.D = call.dim('D');
                a.ids = call.ids("ids", ids, "N", 'V', a.V);
                call.launch(kernels<T>().embedding_forward, a);
            });
        },
        py::kw_only(), "y"_a, "ids"_a, "w"_a);

    m.def(
        "embedding_backward",
        [](O rows, O drows, O ids, O dy) {
            std::int64_t count = 0;
            run("embedding_backward", "dy", dy, [&]<class T>(Call<T>& call) {
                EmbeddingBackwardArgs<T> a{};
                a.dy = call.in("dy", dy, "N D");
                a.drows = call.out("drows", drows, "N D");
                a.rows = call.ids_out("rows", rows, "N");
                // the table is not here to say its V: whatever an int32 can name
                a.ids = call.ids("ids", ids, "N", 'V', std::int64_t(1) << 31);
                a.N = call.dim('N'), a.D = call.dim('D');
                if (a.N >= std::int64_t(1) << 32)
                    throw py::value_error("embedding_backward: N must be < 2**32, got " +
                                          std::to_string(a.N));
                a.count = &count;
                call.launch(kernels<T>().embedding_backward, a);
            });
            return count;
        },
        py::kw_only(), "rows"_a, "drows"_a, "ids"_a, "dy"_a);
}

void bind_dropout(py::module_& m) {
    m.def(
        "dropout",
        [](O y, O x, double p, std::uint32_t seed, std::uint32_t step, std::uint32_t site,
           std::uint32_t layer, std::int64_t time0, bool locked) {
            if (!(p >= 0 && p < 1))
                throw py::value_error("dropout: p must be in [0, 1), got " + number(p));
            if (site >= 65536 || layer >= 65536)
                throw py::value_error("dropout: site and layer must be < 65536, got " +
                                      std::to_string(site) + " and " + std::to_string(layer));
            run("dropout", "x", x, [&]<class T>(Call<T>& call) {
                DropoutArgs<T> a{};
                a.x = call.in("x", x, "T B D");
                a.y = call.out("y", y, "T B D");
                a.T_ = call.dim('T'), a.B = call.dim('B'), a.D = call.dim('D');
                a.p = p, a.seed = seed, a.step = step, a.site = site, a.layer = layer;
                a.time0 = time0, a.locked = locked;
                call.launch(kernels<T>().dropout, a);
            });
        },
        py::kw_only(), "y"_a, "x"_a, "p"_a, "seed"_a, "step"_a, "site"_a, "layer"_a, "time0"_a = 0,
        "locked"_a = false);
}

void bind_clip(py::module_& m) {
    m.def(
        "sum_squares",
        [](O x) {
            double result = 0;
            run("sum_squares", "x", x, [&]<class T>(Call<T>& call) {
                SumSquaresArgs<T> a{};
                a.x = call.in("x", x, "N");
                a.N = call.dim('N');
                a.result = &result;
                call.launch(kernels<T>().sum_squares, a);
            });
            return result;
        },
        py::kw_only(), "x"_a);

    m.def(
        "clip_values",
        [](O x, double limit) {
            if (!(limit >= 0))
                throw py::value_error("clip_values: limit must be >= 0, got " + number(limit));
            run("clip_values", "x", x, [&]<class T>(Call<T>& call) {
                ClipValuesArgs<T> a{};
                a.x = call.out("x", x, "N");
                a.N = call.dim('N');
                a.limit = limit;
                call.launch(kernels<T>().clip_values, a);
            });
        },
        py::kw_only(), "x"_a, "limit"_a);
}

void bind_sgd(py::module_& m) {
    m.def(
        "sgd_update",
        [](O w, O g, O momentum_buffer, double scale, double lr, double momentum,
           double weight_decay, bool nesterov) {
            run("sgd_update", "w", w, [&]<class T>(Call<T>& call) {
                SgdUpdateArgs<T> a{};
                a.w = call.out("w", w, "N");
                a.g = call.in("g", g, "N");
                a.momentum_buffer = call.out("momentum_buffer", momentum_buffer, "N", optional);
                a.N = call.dim('N');
                a.scale = scale, a.lr = lr, a.momentum = momentum, a.weight_decay = weight_decay;
                a.nesterov = nesterov;
                call.launch(kernels<T>().sgd_update, a);
            });
        },
        py::kw_only(), "w"_a, "g"_a, "momentum_buffer"_a, "scale"_a, "lr"_a, "momentum"_a = 0.0,
        "weight_decay"_a = 0.0, "nesterov"_a = false);

    m.def(
        "sgd_update_rows",
        [](O w, O rows, O drows, O momentum_buffer, double scale, double lr, double momentum,
           double weight_decay, bool nesterov) {
            run("sgd_update_rows", "w", w, [&]<class T>(Call<T>& call) {
                SgdUpdateRowsArgs<T> a{};
                bind_table(call, "sgd_update_rows", a, w, rows, drows);
                a.momentum_buffer = call.out("momentum_buffer", momentum_buffer, "V D", optional);
                a.scale = scale, a.lr = lr, a.momentum = momentum, a.weight_decay = weight_decay;
                a.nesterov = nesterov;
                call.launch(kernels<T>().sgd_update_rows, a);
            });
        },
        py::kw_only(), "w"_a, "rows"_a, "drows"_a, "momentum_buffer"_a, "scale"_a, "lr"_a,
        "momentum"_a = 0.0, "weight_decay"_a = 0.0, "nesterov"_a = false);
}

void bind_adam(py::module_& m) {
    m.def(
        "adam_update",
        [](O w, O g, O m_, O v, double scale, double lr, double beta1, double beta2, double eps,
           double weight_decay, bool decoupled, std::int64_t t) {
            run("adam_update", "w", w, [&]<class T>(Call<T>& call) {
                AdamUpdateArgs<T> a{};
                a.w = call.out("w", w, "N");
                a.g = call.in("g", g, "N");
                a.m = call.out("m", m_, "N");
                a.v = call.out("v", v, "N");
                a.N = call.dim('N');
                a.scale = scale, a.lr = lr, a.beta1 = beta1, a.beta2 = beta2, a.eps = eps;
                a.weight_decay = weight_decay, a.decoupled = decoupled, a.t = t;
                call.launch(kernels<T>().adam_update, a);
            });
        },
        py::kw_only(), "w"_a, "g"_a, "m"_a, "v"_a, "scale"_a, "lr"_a, "beta1"_a, "beta2"_a, "eps"_a,
        "weight_decay"_a, "decoupled"_a, "t"_a);

    m.def(
        "adam_update_rows",
        [](O w, O rows, O drows, O m_, O v, double scale, double lr, double beta1, double beta2,
           double eps, double weight_decay, bool decoupled, std::int64_t t) {
            run("adam_update_rows", "w", w, [&]<class T>(Call<T>& call) {
                AdamUpdateRowsArgs<T> a{};
                bind_table(call, "adam_update_rows", a, w, rows, drows);
                a.m = call.out("m", m_, "V D");
                a.v = call.out("v", v, "V D");
                a.scale = scale, a.lr = lr, a.beta1 = beta1, a.beta2 = beta2, a.eps = eps;
                a.weight_decay = weight_decay, a.decoupled = decoupled, a.t = t;
                call.launch(kernels<T>().adam_update_rows, a);
            });
        },
        py::kw_only(), "w"_a, "rows"_a, "drows"_a, "m"_a, "v"_a, "scale"_a, "lr"_a, "beta1"_a,
        "beta2"_a, "eps"_a, "weight_decay"_a, "decoupled"_a, "t"_a);
}

void bind_adagrad(py::module_& m) {
    m.def(
        "adagrad_update",
        [](O w, O g, O v, double scale, double lr, double eps, double weight_decay) {
            run("adagrad_update", "w", w, [&]<class T>(Call<T>& call) {
                AdagradUpdateArgs<T> a{};
                a.w = call.out("w", w, "N");
                a.g = call.in("g", g, "N");
                a.v = call.out("v", v, "N");
                a.N = call.dim('N');
                a.scale = scale, a.lr = lr, a.eps = eps, a.weight_decay = weight_decay;
                call.launch(kernels<T>().adagrad_update, a);
            });
        },
        py::kw_only(), "w"_a, "g"_a, "v"_a, "scale"_a, "lr"_a, "eps"_a, "weight_decay"_a);

    m.def(
        "adagrad_update_rows",
        [](O w, O rows, O drows, O v, double scale, double lr, double eps, double weight_decay) {
            run("adagrad_update_rows", "w", w, [&]<class T>(Call<T>& call) {
                AdagradUpdateRowsArgs<T> a{};
                bind_table(call, "adagrad_update_rows", a, w, rows, drows);
                a.v = call.out("v", v, "V D");
                a.scale = scale, a.lr = lr, a.eps = eps, a.weight_decay = weight_decay;
                call.launch(kernels<T>().adagrad_update_rows, a);
            });
        },
        py::kw_only(), "w"_a, "rows"_a, "drows"_a, "v"_a, "scale"_a, "lr"_a, "eps"_a,
        "weight_decay"_a);
}

}  // namespace

void bind_small(py::module_& m) {
    bind_embedding(m);
    bind_dropout(m);
    bind_clip(m);
    bind_sgd(m);
    bind_adam(m);
    bind_adagrad(m);
}

}  // namespace nlm
