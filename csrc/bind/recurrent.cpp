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

// Fields of pynlm.kernels.Variant, whose ranges are checked there; and the arrays that go with it.
template <class T>
void read_variant(Call<T>& call, RecurrentVariant<T>& v, const O& h_in, const O& mask_h,
                  const O& variant) {
    v.h_in = call.out("h_in", h_in, "T B H", optional);
    v.mask_h = call.in("mask_h", mask_h, "B H", optional);
    if (h_in.is_none() != mask_h.is_none())
        throw py::value_error("recurrent kernel: h_in and mask_h must both be arrays or both None");
    if (variant.is_none()) return;
    v.zoneout_h = variant.attr("zoneout_h").cast<double>();
    v.sample = variant.attr("sample").cast<bool>();
    v.seed = variant.attr("seed").cast<std::uint32_t>();
    v.step = variant.attr("step").cast<std::uint32_t>();
    v.layer = variant.attr("layer").cast<std::uint32_t>();
    v.time0 = variant.attr("time0").cast<std::int64_t>();
    const O rows = variant.attr("rows");
    if (!rows.is_none()) v.rows = call.ids("variant.rows", rows, "B", 'B', call.dim('B'));
}

template <class T>
void read_variant(Call<T>& call, LstmVariant<T>& v, const O& h_in, const O& peephole,
                  const O& mask_h, const O& variant) {
    read_variant(call, v, h_in, mask_h, variant);
    v.peephole = call.in("peephole", peephole, "3H", optional);
    if (variant.is_none()) return;
    v.zoneout_c = variant.attr("zoneout_c").cast<double>();
    v.clip_c = variant.attr("clip_c").cast<double>();
}

}  // namespace

void bind_recurrent(py::module_& m) {
    m.def(
        "lstm_forward",
        [](O y, O h_last, O c_last, O gates, O c, O h_in, O x, O h0, O c0, O w_ih, O w_hh, O b,
           O peephole, O mask_h, O lengths, O variant) {
            if (gates.is_none() != c.is_none())
                throw py::value_error("lstm_forward: gates and c must both be arrays or both None");
            run("lstm_forward", "x", x, [&]<class T>(Call<T>& call) {
                LstmForwardArgs<T> a{};
                a.x = call.in("x", x, "T B I");
                a.y = call.out("y", y, "T B H");
                a.T_ = call.dim('T'), a.B = call.dim('B');
                a.I = call.dim('I'), a.H = call.dim('H');
                a.h_last = call.out("h_last", h_last, "B H");
                a.c_last = call.out("c_last", c_last, "B H");
                a.gates = call.out("gates", gates, "T B 4H", optional);
                a.c = call.out("c", c, "T B H", optional);
                a.h0 = call.in("h0", h0, "B H");
                a.c0 = call.in("c0", c0, "B H");
                a.w_ih = call.in("w_ih", w_ih, "4H I");
                a.w_hh = call.in("w_hh", w_hh, "4H H");
                a.b = call.in("b", b, "4H");
                a.lengths = call.lengths("lengths", lengths, a.T_);
                read_variant(call, a.variant, h_in, peephole, mask_h, variant);
                call.launch(kernels<T>().lstm_forward, a);
            });
        },
        py::kw_only(), "y"_a, "h_last"_a, "c_last"_a, "gates"_a, "c"_a, "h_in"_a = py::none(),
        "x"_a, "h0"_a, "c0"_a, "w_ih"_a, "w_hh"_a, "b"_a, "peephole"_a = py::none(),
        "mask_h"_a = py::none(), "lengths"_a = py::none(), "variant"_a = py::none());

    m.def(
        "lstm_backward",
        [](O dx, O dh0, O dc0, O dw_ih, O dw_hh, O db, O dpeephole, O gates, O c, O h_in, O y, O x,
           O h0, O c0, O w_ih, O w_hh, O peephole, O mask_h, O dy, O dh_last, O dc_last, O lengths,
           O variant) {
            run("lstm_backward", "x", x, [&]<class T>(Call<T>& call) {
                LstmBackwardArgs<T> a{};
                a.x = call.in("x", x, "T B I");
                a.y = call.in("y", y, "T B H");
                a.T_ = call.dim('T'), a.B = call.dim('B');
                a.I = call.dim('I'), a.H = call.dim('H');
                a.dx = call.out("dx", dx, "T B I", optional);
                a.dh0 = call.out("dh0", dh0, "B H");
                a.dc0 = call.out("dc0", dc0, "B H");
                a.dw_ih = call.out("dw_ih", dw_ih, "4H I");
                a.dw_hh = call.out("dw_hh", dw_hh, "4H H");
                a.db = call.out("db", db, "4H");
                a.gates = call.out("gates", gates, "T B 4H");
                a.c = call.in("c", c, "T B H");
                a.h0 = call.in("h0", h0, "B H");
                a.c0 = call.in("c0", c0, "B H");
                a.w_ih = call.in("w_ih", w_ih, "4H I");
                a.w_hh = call.in("w_hh", w_hh, "4H H");
                a.dy = call.in("dy", dy, "T B H");
                a.dh_last = call.in("dh_last", dh_last, "B H", optional);
                a.dc_last = call.in("dc_last", dc_last, "B H", optional);
                a.lengths = call.lengths("lengths", lengths, a.T_);
                read_variant(call, a.variant, h_in, peephole, mask_h, variant);
                a.dpeephole = call.out("dpeephole", dpeephole, "3H", optional);
                if (dpeephole.is_none() != peephole.is_none())
                    throw py::value_error(
                        "lstm_backward: dpeephole and peephole must both be arrays or both None");
                call.launch(kernels<T>().lstm_backward, a);
            });
        },
        py::kw_only(), "dx"_a, "dh0"_a, "dc0"_a, "dw_ih"_a, "dw_hh"_a, "db"_a,
        "dpeephole"_a = py::none(), "gates"_a, "c"_a, "h_in"_a = py::none(), "y"_a, "x"_a, "h0"_a,
        "c0"_a, "w_ih"_a, "w_hh"_a, "peephole"_a = py::none(), "mask_h"_a = py::none(), "dy"_a,
        "dh_last"_a = py::none(), "dc_last"_a = py::none(), "lengths"_a = py::none(),
        "variant"_a = py::none());

    m.def(
        "gru_forward",
        [](O y, O h_last, O gates, O hn, O h_in, O x, O h0, O w_ih, O w_hh, O b, O b_hn, O mask_h,
           O lengths, O variant) {
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
                a.w_ih = call.in("w_ih", w_ih, "3H I");
                a.w_hh = call.in("w_hh", w_hh, "3H H");
                a.b = call.in("b", b, "3H");
                a.b_hn = call.in("b_hn", b_hn, "H");
                a.lengths = call.lengths("lengths", lengths, a.T_);
                read_variant(call, a.variant, h_in, mask_h, variant);
                call.launch(kernels<T>().gru_forward, a);
            });
        },
        py::kw_only(), "y"_a, "h_last"_a, "gates"_a, "hn"_a, "h_in"_a = py::none(), "x"_a, "h0"_a,
        "w_ih"_a, "w_hh"_a, "b"_a, "b_hn"_a, "mask_h"_a = py::none(), "lengths"_a = py::none(),
        "variant"_a = py::none());

    m.def(
        "gru_backward",
        [](O dx, O dh0, O dw_ih, O dw_hh, O db, O db_hn, O gates, O hn, O h_in, O y, O x, O h0,
           O w_ih, O w_hh, O mask_h, O dy, O dh_last, O lengths, O variant) {
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
                a.db_hn = call.out("db_hn", db_hn, "H");
                a.gates = call.out("gates", gates, "T B 3H");
                a.hn = call.out("hn", hn, "T B H");
                a.h0 = call.in("h0", h0, "B H");
                a.w_ih = call.in("w_ih", w_ih, "3H I");
                a.w_hh = call.in("w_hh", w_hh, "3H H");
                a.dy = call.in("dy", dy, "T B H");
                a.dh_last = call.in("dh_last", dh_last, "B H", optional);
                a.lengths = call.lengths("lengths", lengths, a.T_);
                read_variant(call, a.variant, h_in, mask_h, variant);
                call.launch(kernels<T>().gru_backward, a);
            });
        },
        py::kw_only(), "dx"_a, "dh0"_a, "dw_ih"_a, "dw_hh"_a, "db"_a, "db_hn"_a, "gates"_a, "hn"_a,
        "h_in"_a = py::none(), "y"_a, "x"_a, "h0"_a, "w_ih"_a, "w_hh"_a, "mask_h"_a = py::none(),
        "dy"_a, "dh_last"_a = py::none(), "lengths"_a = py::none(), "variant"_a = py::none());

    m.def(
        "rnn_forward",
        [](O y, O h_last, O h_in, O x, O h0, O w_ih, O w_hh, O b, O mask_h,
           const std::string& nonlinearity, O lengths, O variant) {
            run("rnn_forward", "x", x, [&]<class T>(Call<T>& call) {
                RnnForwardArgs<T> a{};
                a.x = call.in("x", x, "T B I");
                a.y = call.out("y", y, "T B H");
                a.T_ = call.dim('T'), a.B = call.dim('B');
                a.I = call.dim('I'), a.H = call.dim('H');
                a.h_last = call.out("h_last", h_last, "B H");
                a.h0 = call.in("h0", h0, "B H");
                a.w_ih = call.in("w_ih", w_ih, "H I");
                a.w_hh = call.in("w_hh", w_hh, "H H");
                a.b = call.in("b", b, "H");
                a.relu = is_relu("rnn_forward", nonlinearity);
                a.lengths = call.lengths("lengths", lengths, a.T_);
                read_variant(call, a.variant, h_in, mask_h, variant);
                call.launch(kernels<T>().rnn_forward, a);
            });
        },
        py::kw_only(), "y"_a, "h_last"_a, "h_in"_a = py::none(), "x"_a, "h0"_a, "w_ih"_a, "w_hh"_a,
        "b"_a, "mask_h"_a = py::none(), "nonlinearity"_a, "lengths"_a = py::none(),
        "variant"_a = py::none());

    m.def(
        "rnn_backward",
        [](O dx, O dh0, O dw_ih, O dw_hh, O db, O dpre, O h_in, O y, O x, O h0, O w_ih, O w_hh,
           O mask_h, O dy, O dh_last, const std::string& nonlinearity, O lengths, O variant) {
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
                read_variant(call, a.variant, h_in, mask_h, variant);
                call.launch(kernels<T>().rnn_backward, a);
            });
        },
        py::kw_only(), "dx"_a, "dh0"_a, "dw_ih"_a, "dw_hh"_a, "db"_a, "dpre"_a,
        "h_in"_a = py::none(), "y"_a, "x"_a, "h0"_a, "w_ih"_a, "w_hh"_a, "mask_h"_a = py::none(),
        "dy"_a, "dh_last"_a = py::none(), "nonlinearity"_a, "lengths"_a = py::none(),
        "variant"_a = py::none());
}

}  // namespace nlm
