// Python bindings of the hierarchical softmax (contract: csrc/softmax/hsoftmax.h).
#include "bind/array.h"
#include "bind/bind.h"

#include <string>

namespace nlm {
namespace {

using O = py::object;

// The tree over w's rows; V is one more than there are rows. A path needs no children, a
// distribution no parents: null. `fault` is for the kernel to set.
template <class T>
HsoftmaxTree<T> tree_of(Call<T>& call, const std::string& function, const O& w, const O& b,
                        const O& first, const O* children, const O* parent, bool& fault) {
    HsoftmaxTree<T> t{};
    t.w = call.in("w", w, "R H");
    t.b = call.in("b", b, "R", optional);
    t.H = call.dim('H'), t.V = call.dim('R') + 1;
    t.fault = &fault;
    t.first = call.indices("first", first, "F");
    t.M = call.dim('F') - 1;
    const auto sized = [&](const char* name, std::int64_t got, std::int64_t size) {
        if (got != size)
            throw py::value_error(function + ": " + name + " must have " + std::to_string(size) +
                                  " rows for w of " + std::to_string(t.V - 1) + " and first of " +
                                  std::to_string(t.M + 1) + ", got " + std::to_string(got));
    };
    if (t.M < 0) sized("first", 0, 1);
    if (t.first[0] != 0 || t.first[t.M] != t.V + t.M - 1)
        throw py::value_error(
            function + ": first must run from 0 to V+M-1=" + std::to_string(t.V + t.M - 1) +
            ", got " + std::to_string(t.first[0]) + " to " + std::to_string(t.first[t.M]));
    if (children != nullptr) {
        t.children = call.indices("children", *children, "C");
        sized("children", call.dim('C'), t.V + t.M - 1);
    }
    if (parent != nullptr) {
        t.parent = call.indices("parent", *parent, "E 2");
        sized("parent", call.dim('E'), t.V + t.M);
    }
    return t;
}

void check_tree(const char* function, bool fault) {
    if (fault)
        throw py::value_error(std::string(function) +
                              ": first, children and parent must be a tree of all tokens, whose "
                              "parents have smaller numbers than their children");
}

void check_rows(const char* function, std::int64_t N) {
    if (N >= std::int64_t(1) << 31)
        throw py::value_error(std::string(function) + ": N must be < 2**31, got " +
                              std::to_string(N));
}

}  // namespace

void bind_hsoftmax(py::module_& m) {
    m.def(
        "hsoftmax_forward",
        [](O nll, O h, O w, O b, O first, O parent, O targets) {
            bool fault = false;
            run("hsoftmax_forward", "h", h, [&]<class T>(Call<T>& call) {
                HsoftmaxForwardArgs<T> a{};
                a.h = call.in("h", h, "N H");
                a.tree = tree_of(call, "hsoftmax_forward", w, b, first, nullptr, &parent, fault);
                a.N = call.dim('N');
                check_rows("hsoftmax_forward", a.N);
                a.nll = call.out("nll", nll, "N");
                a.targets = call.ids("targets", targets, "N", 'V', a.tree.V);
                call.launch(kernels<T>().hsoftmax_forward, a);
            });
            check_tree("hsoftmax_forward", fault);
        },
        py::kw_only(), "nll"_a, "h"_a, "w"_a, "b"_a, "first"_a, "parent"_a, "targets"_a);

    m.def(
        "hsoftmax_gradients",
        [](O nll, O dh, O rows, O drows, O db, O h, O w, O b, O first, O parent, O targets,
           O weights) {
            bool fault = false;
            std::int64_t count = 0;
            run("hsoftmax_gradients", "h", h, [&]<class T>(Call<T>& call) {
                HsoftmaxGradientsArgs<T> a{};
                a.h = call.in("h", h, "N H");
                a.tree = tree_of(call, "hsoftmax_gradients", w, b, first, nullptr, &parent, fault);
                a.N = call.dim('N');
                a.nll = call.out("nll", nll, "N");
                a.dh = call.out("dh", dh, "N H");
                a.rows = call.ids_out("rows", rows, "P");
                a.P = call.dim('P');
                a.drows = call.out("drows", drows, "P H");
                a.db = call.out("db", db, "P", optional);
                a.targets = call.ids("targets", targets, "N", 'V', a.tree.V);
                a.weights = call.in("weights", weights, "N", optional);
                check_rows("hsoftmax_gradients", a.N);
                a.count = &count;
                call.launch(kernels<T>().hsoftmax_gradients, a);
                if (count > a.P)
                    throw py::value_error(
                        "hsoftmax_gradients: rows must have room for the " + std::to_string(count) +
                        " rows on the targets' paths, got " + std::to_string(a.P));
            });
            check_tree("hsoftmax_gradients", fault);
            return count;
        },
        py::kw_only(), "nll"_a, "dh"_a, "rows"_a, "drows"_a, "db"_a, "h"_a, "w"_a, "b"_a, "first"_a,
        "parent"_a, "targets"_a, "weights"_a = py::none());

    m.def(
        "hsoftmax_log_prob",
        [](O log_prob, O h, O w, O b, O first, O children) {
            bool fault = false;
            run("hsoftmax_log_prob", "h", h, [&]<class T>(Call<T>& call) {
                HsoftmaxLogProbArgs<T> a{};
                a.h = call.in("h", h, "N H");
                a.tree = tree_of(call, "hsoftmax_log_prob", w, b, first, &children, nullptr, fault);
                a.N = call.dim('N');
                a.log_prob = call.out("log_prob", log_prob, "N V");
                if (call.dim('V') != a.tree.V)
                    throw py::value_error("hsoftmax_log_prob: log_prob must be [N, V=R+1=" +
                                          std::to_string(a.tree.V) + "], got [N, " +
                                          std::to_string(call.dim('V')) + "]");
                call.launch(kernels<T>().hsoftmax_log_prob, a);
            });
            check_tree("hsoftmax_log_prob", fault);
        },
        py::kw_only(), "log_prob"_a, "h"_a, "w"_a, "b"_a, "first"_a, "children"_a);

    m.def(
        "hsoftmax_top_k",
        [](O log_prob, O ids, O h, O w, O b, O first, O children) {
            bool fault = false;
            run("hsoftmax_top_k", "h", h, [&]<class T>(Call<T>& call) {
                HsoftmaxTopKArgs<T> a{};
                a.h = call.in("h", h, "N H");
                a.tree = tree_of(call, "hsoftmax_top_k", w, b, first, &children, nullptr, fault);
                a.N = call.dim('N');
                a.log_prob = call.out("log_prob", log_prob, "N K");
                a.K = call.dim('K');
                a.ids = call.ids_out("ids", ids, "N K");
                if (a.K < 1 || a.K > a.tree.V)
                    throw py::value_error(
                        "hsoftmax_top_k: K must be in [1, V=" + std::to_string(a.tree.V) +
                        "], got " + std::to_string(a.K));
                call.launch(kernels<T>().hsoftmax_top_k, a);
            });
            check_tree("hsoftmax_top_k", fault);
        },
        py::kw_only(), "log_prob"_a, "ids"_a, "h"_a, "w"_a, "b"_a, "first"_a, "children"_a);

    m.def(
        "hsoftmax_sample",
        [](O ids, O h, O w, O b, O first, O children, std::uint32_t seed, std::uint32_t step,
           std::uint32_t time) {
            bool fault = false;
            run("hsoftmax_sample", "h", h, [&]<class T>(Call<T>& call) {
                HsoftmaxSampleArgs<T> a{};
                a.h = call.in("h", h, "N H");
                a.tree = tree_of(call, "hsoftmax_sample", w, b, first, &children, nullptr, fault);
                a.N = call.dim('N');
                a.ids = call.ids_out("ids", ids, "N");
                a.seed = seed, a.step = step, a.time = time;
                call.launch(kernels<T>().hsoftmax_sample, a);
            });
            check_tree("hsoftmax_sample", fault);
        },
        py::kw_only(), "ids"_a, "h"_a, "w"_a, "b"_a, "first"_a, "children"_a, "seed"_a, "step"_a,
        "time"_a = 0);
}

}  // namespace nlm
