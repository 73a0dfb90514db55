// Python bindings of the recurrent kernels (contracts: csrc/recurrent/*.h).
#include <string>

#include "bind/array.h"
#include "bind/bind.h"

namespace nlm {
namespace {

bool is_relu(const char* function, const std::string& nonlinearity) {
    if (nonlinearity == "relu") return true;
    if (nonlinearity == "tanh") return false;
    throw py::value_error(std::string(function) + ": nonlinearity must be 'tanh' or 'relu', got '" +
                          nonlinearity + "'");
}

using O = py::object;

// Sizes that differ among variants, as the patterns of array.h.
struct Shapes {
    std::string gates;  // "4H"
    std::string state = "H";

    std::string rows_of_gates() const { return "T B " + gates; }
    std::string states() const { return "T B " + state; }
    std::string row() const { return "B " + state; }
};

// Fields of pynlm.kernels.Variant, whose ranges are checked there; and the arrays that go with it.
template <class T>
void read_variant(Call<T>& call, const char* function, RecurrentVariant<T>& v, const Shapes& shapes,
                  const O& h_in, const O& mask_h, const O& ln_gates, const O& norm, const O& rstd,
                  bool saves, const O& variant, const char* rstd_shape = "2 T B") {
    v.h_in = call.out("h_in", h_in, shapes.states().c_str(), optional);
    v.mask_h = call.in("mask_h", mask_h, shapes.row().c_str(), optional);
    if (h_in.is_none() != mask_h.is_none())
        throw py::value_error(std::string(function) +
                              ": h_in and mask_h must both be arrays or both None");
    v.ln_gates = call.in("ln_gates", ln_gates, ("2 " + shapes.gates).c_str(), optional);
    v.norm = call.out("norm", norm, ("2 T B " + shapes.gates).c_str(), optional);
    v.rstd = call.out("rstd", rstd, rstd_shape, optional);
    const bool wanted = saves && v.ln_gates != nullptr;
    if (norm.is_none() == wanted || rstd.is_none() == wanted)
        throw py::value_error(
            std::string(function) +
            ": norm and rstd must be arrays if ln_gates is one and the pass saves, "
            "else None");
    if (variant.is_none()) return;
    v.zoneout_h = variant.attr("zoneout_h").cast<double>();
    v.clip_h = variant.attr("clip_h").cast<double>();
    v.sample = variant.attr("sample").cast<bool>();
    v.seed = variant.attr("seed").cast<std::uint32_t>();
    v.step = variant.attr("step").cast<std::uint32_t>();
    v.layer = variant.attr("layer").cast<std::uint32_t>();
    v.time0 = variant.attr("time0").cast<std::int64_t>();
    const O rows = variant.attr("rows");
    if (!rows.is_none()) v.rows = call.ids("variant.rows", rows, "B", 'B', call.dim('B'));
}

// An array that must be there exactly if another is.
void same(const char* function, const char* name, const O& array, const char* other, bool there) {
    if (array.is_none() == there)
        throw py::value_error(std::string(function) + ": " + name + " must be " +
                              (there ? "an array, because " : "None, because ") + other +
                              (there ? " is one" : " is None or nothing is saved"));
}

void no_norm_before(const char* function, const O& b_hn, const O& ln_gates) {
    if (b_hn.is_none() && !ln_gates.is_none())
        throw py::value_error(std::string(function) +
                              ": layer norm is not defined for the GRU that resets before the "
                              "product: ln_gates must be None without b_hn");
}

Shapes lstm_shapes(const O& variant, const O& w_hr) {
    const bool coupled = !variant.is_none() && variant.attr("coupled").cast<bool>();
    return {coupled ? "3H" : "4H", w_hr.is_none() ? "H" : "P"};
}

template <class T>
void read_lstm_variant(Call<T>& call, const char* function, LstmVariant<T>& v, const Shapes& shapes,
                       const O& h_in, const O& m, const O& norm, const O& norm_c, const O& rstd,
                       const O& peephole, const O& w_hr, const O& ln_gates, const O& ln_cell,
                       const O& mask_h, const O& variant, bool saves) {
    if (!w_hr.is_none()) {
        v.w_hr = call.weights("w_hr", w_hr, "P H", 1);
        v.P = call.dim('P');
    }
    if (v.w_hr.p != nullptr && v.P == 0)
        throw py::value_error(std::string(function) + ": w_hr must have a row or more");
    read_variant(call, function, v, shapes, h_in, mask_h, ln_gates, norm, rstd, saves, variant,
                 "3 T B");
    v.coupled = shapes.gates == "3H";
    v.peephole = call.in("peephole", peephole, v.coupled ? "2H" : "3H", optional);
    v.ln_cell = call.in("ln_cell", ln_cell, "2 H", optional);
    v.norm_c = call.out("norm_c", norm_c, "T B H", optional);
    v.m = call.out("m", m, "T B H", optional);
    same(function, "ln_cell", ln_cell, "ln_gates", v.ln_gates != nullptr);
    same(function, "norm_c", norm_c, "ln_gates", saves && v.ln_gates != nullptr);
    same(function, "m", m, "w_hr", saves && v.w_hr.p != nullptr);
    if (variant.is_none()) return;
    v.zoneout_c = variant.attr("zoneout_c").cast<double>();
    v.clip_c = variant.attr("clip_c").cast<double>();
    v.norm_state = variant.attr("norm_state").cast<bool>();
}

}  // namespace

void bind_recurrent(py::module_& module) {
    module.def(
        "lstm_forward",
        [](O y, O h_last, O c_last, O gates, O c, O h_in, O m, O norm, O norm_c, O rstd, O x, O h0,
           O c0, O w_ih, O w_hh, O b, O peephole, O w_hr, O ln_gates, O ln_cell, O mask_h,
           O lengths, O variant) {
            const char* const f = "lstm_forward";
            if (c.is_none() && !gates.is_none())
                throw py::value_error("lstm_forward: c must be an array, because gates is one");
            run(f, "x", x, [&]<class T>(Call<T>& call) {
                const Shapes shapes = lstm_shapes(variant, w_hr);
                const bool saves = !gates.is_none();
                LstmForwardArgs<T> a{};
                a.x = call.in("x", x, "T B I");
                a.c0 = call.in("c0", c0, "B H");
                a.y = call.out("y", y, shapes.states().c_str());
                a.T_ = call.dim('T'), a.B = call.dim('B');
                a.I = call.dim('I'), a.H = call.dim('H');
                a.h_last = call.out("h_last", h_last, shapes.row().c_str());
                a.c_last = call.out("c_last", c_last, "B H");
                a.gates = call.out("gates", gates, shapes.rows_of_gates().c_str(), optional);
                a.c = call.out("c", c, "T B H", optional);
                a.h0 = call.in("h0", h0, shapes.row().c_str());
                a.w_ih = call.weights("w_ih", w_ih, (shapes.gates + " I").c_str());
                a.w_hh = call.weights("w_hh", w_hh, (shapes.gates + " " + shapes.state).c_str(),
                                      shapes.gates[0] - '0');
                a.b = call.in("b", b, shapes.gates.c_str());
                a.lengths = call.lengths("lengths", lengths, a.T_);
                read_lstm_variant(call, f, a.variant, shapes, h_in, m, norm, norm_c, rstd, peephole,
                                  w_hr, ln_gates, ln_cell, mask_h, variant, saves);
                call.launch(kernels<T>().lstm_forward, a);
            });
        },
        py::kw_only(), "y"_a, "h_last"_a, "c_last"_a, "gates"_a, "c"_a, "h_in"_a = py::none(),
        "m"_a = py::none(), "norm"_a = py::none(), "norm_c"_a = py::none(), "rstd"_a = py::none(),
        "x"_a, "h0"_a, "c0"_a, "w_ih"_a, "w_hh"_a, "b"_a, "peephole"_a = py::none(),
        "w_hr"_a = py::none(), "ln_gates"_a = py::none(), "ln_cell"_a = py::none(),
        "mask_h"_a = py::none(), "lengths"_a = py::none(), "variant"_a = py::none());

    module.def(
        "lstm_backward",
        [](O dx, O dh0, O dc0, O dw_ih, O dw_hh, O db, O dpeephole, O dw_hr, O dln_gates,
           O dln_cell, O gates, O c, O h_in, O m, O norm, O norm_c, O rstd, O y, O x, O h0, O c0,
           O w_ih, O w_hh, O peephole, O w_hr, O ln_gates, O ln_cell, O mask_h, O dy, O dh_last,
           O dc_last, O lengths, O variant) {
            const char* const f = "lstm_backward";
            run(f, "x", x, [&]<class T>(Call<T>& call) {
                const Shapes shapes = lstm_shapes(variant, w_hr);
                const std::string w_hh_shape = shapes.gates + " " + shapes.state;
                const std::string w_ih_shape = shapes.gates + " I";
                LstmBackwardArgs<T> a{};
                a.x = call.in("x", x, "T B I");
                a.c0 = call.in("c0", c0, "B H");
                a.y = call.in("y", y, shapes.states().c_str());
                a.T_ = call.dim('T'), a.B = call.dim('B');
                a.I = call.dim('I'), a.H = call.dim('H');
                a.dx = call.out("dx", dx, "T B I", optional);
                a.dh0 = call.out("dh0", dh0, shapes.row().c_str());
                a.dc0 = call.out("dc0", dc0, "B H");
                a.dw_ih = call.out("dw_ih", dw_ih, w_ih_shape.c_str());
                a.dw_hh = call.out("dw_hh", dw_hh, w_hh_shape.c_str());
                a.db = call.out("db", db, shapes.gates.c_str());
                a.gates = call.out("gates", gates, shapes.rows_of_gates().c_str());
                a.c = call.in("c", c, "T B H");
                a.h0 = call.in("h0", h0, shapes.row().c_str());
                a.w_ih = call.in("w_ih", w_ih, w_ih_shape.c_str());
                a.w_hh = call.in("w_hh", w_hh, w_hh_shape.c_str());
                a.dy = call.in("dy", dy, shapes.states().c_str());
                a.dh_last = call.in("dh_last", dh_last, shapes.row().c_str(), optional);
                a.dc_last = call.in("dc_last", dc_last, "B H", optional);
                a.lengths = call.lengths("lengths", lengths, a.T_);
                LstmVariant<T>& v = a.variant;
                read_lstm_variant(call, f, v, shapes, h_in, m, norm, norm_c, rstd, peephole, w_hr,
                                  ln_gates, ln_cell, mask_h, variant, true);
                v.dpeephole = call.out("dpeephole", dpeephole, v.coupled ? "2H" : "3H", optional);
                v.dw_hr = call.out("dw_hr", dw_hr, "P H", optional);
                v.dln_gates =
                    call.out("dln_gates", dln_gates, ("2 " + shapes.gates).c_str(), optional);
                v.dln_cell = call.out("dln_cell", dln_cell, "2 H", optional);
                same(f, "dpeephole", dpeephole, "peephole", v.peephole != nullptr);
                same(f, "dw_hr", dw_hr, "w_hr", v.w_hr.p != nullptr);
                same(f, "dln_gates", dln_gates, "ln_gates", v.ln_gates != nullptr);
                same(f, "dln_cell", dln_cell, "ln_cell", v.ln_cell != nullptr);
                call.launch(kernels<T>().lstm_backward, a);
            });
        },
        py::kw_only(), "dx"_a, "dh0"_a, "dc0"_a, "dw_ih"_a, "dw_hh"_a, "db"_a,
        "dpeephole"_a = py::none(), "dw_hr"_a = py::none(), "dln_gates"_a = py::none(),
        "dln_cell"_a = py::none(), "gates"_a, "c"_a, "h_in"_a = py::none(), "m"_a = py::none(),
        "norm"_a = py::none(), "norm_c"_a = py::none(), "rstd"_a = py::none(), "y"_a, "x"_a, "h0"_a,
        "c0"_a, "w_ih"_a, "w_hh"_a, "peephole"_a = py::none(), "w_hr"_a = py::none(),
        "ln_gates"_a = py::none(), "ln_cell"_a = py::none(), "mask_h"_a = py::none(), "dy"_a,
        "dh_last"_a = py::none(), "dc_last"_a = py::none(), "lengths"_a = py::none(),
        "variant"_a = py::none());

    module.def(
        "gru_forward",
        [](O y, O h_last, O gates, O hn, O h_in, O norm, O rstd, O x, O h0, O w_ih, O w_hh, O b,
           O b_hn, O ln_gates, O mask_h, O lengths, O variant) {
            if (gates.is_none() != hn.is_none())
                throw py::value_error("gru_forward: gates and hn must both be arrays or both None");
            run("gru_forward", "x", x, [&]<class T>(Call<T>& call) {
                GruForwardArgs<T> a{};
                a.x = call.in("x", x, "T B I");
                a.y = call.out("y", y, "T B H");
                a.T_ = call.dim('T'), a.B = call.dim('B');
                a.I = call.dim('I'), a.H = call.dim('H');
                a.h_last = call.out("h_last", h_last, "B H");
                a.gates = call.out("gates", gates, "T B 3H", optional);
                a.hn = call.out("hn", hn, "T B H", optional);
                a.h0 = call.in("h0", h0, "B H");
                a.w_ih = call.weights("w_ih", w_ih, "3H I");
                a.w_hh = b_hn.is_none() ? call.weights("w_hh", w_hh, "3H H", 2, 1)
                                        : call.weights("w_hh", w_hh, "3H H", 3);
                a.b = call.in("b", b, "3H");
                a.b_hn = call.in("b_hn", b_hn, "H", optional);
                a.lengths = call.lengths("lengths", lengths, a.T_);
                read_variant(call, "gru_forward", a.variant, {"3H"}, h_in, mask_h, ln_gates, norm,
                             rstd, a.gates != nullptr, variant);
                no_norm_before("gru_forward", b_hn, ln_gates);
                call.launch(kernels<T>().gru_forward, a);
            });
        },
        py::kw_only(), "y"_a, "h_last"_a, "gates"_a, "hn"_a, "h_in"_a = py::none(),
        "norm"_a = py::none(), "rstd"_a = py::none(), "x"_a, "h0"_a, "w_ih"_a, "w_hh"_a, "b"_a,
        "b_hn"_a, "ln_gates"_a = py::none(), "mask_h"_a = py::none(), "lengths"_a = py::none(),
        "variant"_a = py::none());

    module.def(
        "gru_backward",
        [](O dx, O dh0, O dw_ih, O dw_hh, O db, O db_hn, O dln_gates, O gates, O hn, O h_in, O norm,
           O rstd, O y, O x, O h0, O w_ih, O w_hh, O ln_gates, O mask_h, O dy, O dh_last, O lengths,
           O variant) {
            run("gru_backward", "x", x, [&]<class T>(Call<T>& call) {
                GruBackwardArgs<T> a{};
                a.x = call.in("x", x, "T B I");
                a.y = call.in("y", y, "T B H");
                a.T_ = call.dim('T'), a.B = call.dim('B');
                a.I = call.dim('I'), a.H = call.dim('H');
                a.dx = call.out("dx", dx, "T B I", optional);
                a.dh0 = call.out("dh0", dh0, "B H");
                a.dw_ih = call.out("dw_ih", dw_ih, "3H I");
                a.dw_hh = call.out("dw_hh", dw_hh, "3H H");
                a.db = call.out("db", db, "3H");
                a.db_hn = call.out("db_hn", db_hn, "H", optional);
                a.gates = call.out("gates", gates, "T B 3H");
                a.hn = call.out("hn", hn, "T B H");
                a.h0 = call.in("h0", h0, "B H");
                a.w_ih = call.in("w_ih", w_ih, "3H I");
                a.w_hh = call.in("w_hh", w_hh, "3H H");
                a.dy = call.in("dy", dy, "T B H");
                a.dh_last = call.in("dh_last", dh_last, "B H", optional);
                a.lengths = call.lengths("lengths", lengths, a.T_);
                read_variant(call, "gru_backward", a.variant, {"3H"}, h_in, mask_h, ln_gates, norm,
                             rstd, true, variant);
                a.variant.dln_gates = call.out("dln_gates", dln_gates, "2 3H", optional);
                same("gru_backward", "dln_gates", dln_gates, "ln_gates", !ln_gates.is_none());
                no_norm_before("gru_backward", db_hn, ln_gates);
                call.launch(kernels<T>().gru_backward, a);
            });
        },
        py::kw_only(), "dx"_a, "dh0"_a, "dw_ih"_a, "dw_hh"_a, "db"_a, "db_hn"_a,
        "dln_gates"_a = py::none(), "gates"_a, "hn"_a, "h_in"_a = py::none(), "norm"_a = py::none(),
        "rstd"_a = py::none(), "y"_a, "x"_a, "h0"_a, "w_ih"_a, "w_hh"_a, "ln_gates"_a = py::none(),
        "mask_h"_a = py::none(), "dy"_a, "dh_last"_a = py::none(), "lengths"_a = py::none(),
        "variant"_a = py::none());

    module.def(
        "rnn_forward",
        [](O y, O h_last, O h_in, O norm, O rstd, O x, O h0, O w_ih, O w_hh, O b, O ln_gates,
           O mask_h, const std::string& nonlinearity, O lengths, O variant) {
            run("rnn_forward", "x", x, [&]<class T>(Call<T>& call) {
                RnnForwardArgs<T> a{};
                a.x = call.in("x", x, "T B I");
                a.y = call.out("y", y, "T B H");
                a.T_ = call.dim('T'), a.B = call.dim('B');
                a.I = call.dim('I'), a.H = call.dim('H');
                a.h_last = call.out("h_last", h_last, "B H");
                a.h0 = call.in("h0", h0, "B H");
                a.w_ih = call.weights("w_ih", w_ih, "H I");
                a.w_hh = call.weights("w_hh", w_hh, "H H", 1);
                a.b = call.in("b", b, "H");
                a.relu = is_relu("rnn_forward", nonlinearity);
                a.lengths = call.lengths("lengths", lengths, a.T_);
                // without norms to save the pass may still be one for a backward pass
                read_variant(call, "rnn_forward", a.variant, {"H"}, h_in, mask_h, ln_gates, norm,
                             rstd, !norm.is_none(), variant);
                call.launch(kernels<T>().rnn_forward, a);
            });
        },
        py::kw_only(), "y"_a, "h_last"_a, "h_in"_a = py::none(), "norm"_a = py::none(),
        "rstd"_a = py::none(), "x"_a, "h0"_a, "w_ih"_a, "w_hh"_a, "b"_a, "ln_gates"_a = py::none(),
        "mask_h"_a = py::none(), "nonlinearity"_a, "lengths"_a = py::none(),
        "variant"_a = py::none());

    module.def(
        "rnn_backward",
        [](O dx, O dh0, O dw_ih, O dw_hh, O db, O dln_gates, O dpre, O h_in, O norm, O rstd, O y,
           O x, O h0, O w_ih, O w_hh, O ln_gates, O mask_h, O dy, O dh_last,
           const std::string& nonlinearity, O lengths, O variant) {
            run("rnn_backward", "x", x, [&]<class T>(Call<T>& call) {
                RnnBackwardArgs<T> a{};
                a.x = call.in("x", x, "T B I");
                a.y = call.in("y", y, "T B H");
                a.T_ = call.dim('T'), a.B = call.dim('B');
                a.I = call.dim('I'), a.H = call.dim('H');
                a.dx = call.out("dx", dx, "T B I", optional);
                a.dh0 = call.out("dh0", dh0, "B H");
                a.dw_ih = call.out("dw_ih", dw_ih, "H I");
                a.dw_hh = call.out("dw_hh", dw_hh, "H H");
                a.db = call.out("db", db, "H");
                a.dpre = call.out("dpre", dpre, "T B H");
                a.h0 = call.in("h0", h0, "B H");
                a.w_ih = call.in("w_ih", w_ih, "H I");
                a.w_hh = call.in("w_hh", w_hh, "H H");
                a.dy = call.in("dy", dy, "T B H");
                a.dh_last = call.in("dh_last", dh_last, "B H", optional);
                a.relu = is_relu("rnn_backward", nonlinearity);
                a.lengths = call.lengths("lengths", lengths, a.T_);
                read_variant(call, "rnn_backward", a.variant, {"H"}, h_in, mask_h, ln_gates, norm,
                             rstd, true, variant);
                a.variant.dln_gates = call.out("dln_gates", dln_gates, "2 H", optional);
                same("rnn_backward", "dln_gates", dln_gates, "ln_gates", !ln_gates.is_none());
                call.launch(kernels<T>().rnn_backward, a);
            });
        },
        py::kw_only(), "dx"_a, "dh0"_a, "dw_ih"_a, "dw_hh"_a, "db"_a, "dln_gates"_a = py::none(),
        "dpre"_a, "h_in"_a = py::none(), "norm"_a = py::none(), "rstd"_a = py::none(), "y"_a, "x"_a,
        "h0"_a, "w_ih"_a, "w_hh"_a, "ln_gates"_a = py::none(), "mask_h"_a = py::none(), "dy"_a,
        "dh_last"_a = py::none(), "nonlinearity"_a, "lengths"_a = py::none(),
        "variant"_a = py::none());
}

}  // namespace nlm
