// The recurrent kernels as custom calls of XLA (its typed FFI), for pynlm.jax. Compiled only where
// XLA's headers are, which jaxlib carries; nothing of it is linked.
//
// Arrays are told apart by name: the settings `inputs` and `results` list the names, divided by
// commas, in the order of the call's arrays. What an argument struct has and a call does not name
// is null. An array that stands in both lists is changed in place; XLA gives both one buffer.
#include <xla/ffi/api/ffi.h>

#include <cstdint>
#include <cstring>
#include <stdexcept>
#include <string>
#include <string_view>

#include "bind/bind.h"
#include "common/floats.h"
#include "isa/dispatch.h"

namespace nlm {
namespace {

namespace ffi = xla::ffi;

// Place of a name in "a,b,c", -1 if it is not there.
int place(std::string_view list, std::string_view name) {
    for (int i = 0; !list.empty(); ++i) {
        const std::size_t comma = list.find(',');
        if (list.substr(0, comma) == name) return i;
        list.remove_prefix(comma == list.npos ? list.size() : comma + 1);
    }
    return -1;
}

// The arrays and settings of one call, by name.
class Given {
public:
    Given(const ffi::RemainingArgs& inputs, const ffi::RemainingRets& results,
          const ffi::Dictionary& settings)
        : inputs_(inputs), results_(results), settings_(settings) {}

    template <class T>
    T setting(const char* name) const {
        const auto found = settings_.get<T>(name);
        if (!found.has_value()) throw std::invalid_argument(found.error().message());
        return found.value();
    }
    bool has(const char* name) const { return place(names_of_inputs_, name) >= 0; }
    ffi::AnyBuffer array(const char* name) const {
        const auto found = inputs_.get<ffi::AnyBuffer>(place(names_of_inputs_, name));
        if (!found.has_value()) throw std::invalid_argument(std::string("no input ") + name);
        return found.value();
    }
    std::int64_t dim(const char* name, int axis) const { return array(name).dimensions()[axis]; }

    template <class T>
    const T* in(const char* name) const {
        return has(name) ? pointer<T>(array(name)) : nullptr;
    }
    template <class T>
    T* out(const char* name) const {
        const int i = place(names_of_results_, name);
        if (i < 0) return nullptr;
        auto found = results_.get<ffi::AnyBuffer>(i);
        if (!found.has_value()) throw std::invalid_argument(std::string("no result ") + name);
        T* to = pointer<T>(*found.value());
        const T* from = in<T>(name);
        if (from != nullptr && from != to) std::memcpy(to, from, array(name).size_bytes());
        return to;
    }
    // Lengths of the B rows, not increasing, each in [0, T].
    const std::int32_t* lengths(std::int64_t T_, std::int64_t B) const {
        const auto* p = in<std::int32_t>("lengths");
        for (std::int64_t i = 0; p != nullptr && i < B; ++i)
            if (p[i] < 0 || p[i] > T_ || (i > 0 && p[i] > p[i - 1]))
                throw std::invalid_argument("lengths must be in [0, T=" + std::to_string(T_) +
                                            "], got " + std::to_string(p[i]));
        return p;
    }

private:
    template <class T>
    static T* pointer(const ffi::AnyBuffer& buffer) {
        alignas(64) static char nothing[64];  // an empty array is there, too, unlike a null one
        void* data = buffer.untyped_data();
        return static_cast<T*>(data == nullptr ? nothing : data);
    }

    const ffi::RemainingArgs& inputs_;
    const ffi::RemainingRets& results_;
    const ffi::Dictionary& settings_;
    std::string_view names_of_inputs_ = setting<std::string_view>("inputs");
    std::string_view names_of_results_ = setting<std::string_view>("results");
};

// What all cells have; `saved` says whose side of the call the saved arrays are on.
template <class T>
void read_variant(const Given& given, RecurrentVariant<T>& v) {
    v.mask_h = given.in<T>("mask_h");
    v.ln_gates = given.in<T>("ln_gates");
    v.zoneout_h = given.setting<double>("zoneout_h");
    v.clip_h = given.setting<double>("clip_h");
    v.rows = given.in<std::int32_t>("rows");
    if (const auto* key = given.in<std::uint32_t>("key")) {
        v.sample = true;
        v.seed = key[0];
        v.step = key[1];
    }
}

// An array that the forward pass writes and the backward pass reads.
template <class T>
T* saved(const Given& given, const char* name) {
    T* written = given.out<T>(name);
    return written != nullptr ? written : const_cast<T*>(given.in<T>(name));
}

template <class T>
void read_saved(const Given& given, RecurrentVariant<T>& v) {
    v.h_in = saved<T>(given, "h_in");
    v.norm = saved<T>(given, "norm");
    v.rstd = saved<T>(given, "rstd");
    v.dln_gates = given.out<T>("dln_gates");
}

template <class T>
void read_lstm_variant(const Given& given, LstmVariant<T>& v) {
    read_variant(given, v);
    read_saved(given, v);
    v.peephole = given.in<T>("peephole");
    v.w_hr.p = given.in<T>("w_hr");
    if (v.w_hr.p != nullptr) v.P = given.dim("w_hr", 0);
    v.ln_cell = given.in<T>("ln_cell");
    v.zoneout_c = given.setting<double>("zoneout_c");
    v.clip_c = given.setting<double>("clip_c");
    v.coupled = given.setting<bool>("coupled");
    v.norm_state = given.setting<bool>("norm_state");
    v.m = saved<T>(given, "m");
    v.norm_c = saved<T>(given, "norm_c");
    v.dpeephole = given.out<T>("dpeephole");
    v.dw_hr = given.out<T>("dw_hr");
    v.dln_cell = given.out<T>("dln_cell");
}

// Fields that all argument structs have.
template <class T, class Args>
void read_sizes(const Given& given, Args& a, const char* state) {
    a.T_ = given.dim("x", 0), a.B = given.dim("x", 1), a.I = given.dim("x", 2);
    a.H = given.dim(state, 1);
    a.x = given.in<T>("x"), a.h0 = given.in<T>("h0");
    a.lengths = given.lengths(a.T_, a.B);
}

template <class T, class Args>
void read_forward(const Given& given, Args& a) {
    a.y = given.out<T>("y"), a.h_last = given.out<T>("h_last");
    a.w_ih.p = given.in<T>("w_ih"), a.w_hh.p = given.in<T>("w_hh"), a.b = given.in<T>("b");
}

template <class T, class Args>
void read_backward(const Given& given, Args& a) {
    a.dx = given.out<T>("dx"), a.dh0 = given.out<T>("dh0");
    a.dw_ih = given.out<T>("dw_ih"), a.dw_hh = given.out<T>("dw_hh"), a.db = given.out<T>("db");
    a.w_ih = given.in<T>("w_ih"), a.w_hh = given.in<T>("w_hh"), a.y = given.in<T>("y");
    a.dy = given.in<T>("dy"), a.dh_last = given.in<T>("dh_last");
}

struct LstmForward {
    template <class T>
    static void run(const Given& given) {
        LstmForwardArgs<T> a{};
        read_sizes<T>(given, a, "c0");
        read_forward<T>(given, a);
        a.c0 = given.in<T>("c0"), a.c_last = given.out<T>("c_last");
        a.gates = given.out<T>("gates"), a.c = given.out<T>("c");
        read_lstm_variant(given, a.variant);
        kernels<T>().lstm_forward(a);
    }
};

struct LstmBackward {
    template <class T>
    static void run(const Given& given) {
        LstmBackwardArgs<T> a{};
        read_sizes<T>(given, a, "c0");
        read_backward<T>(given, a);
        a.c0 = given.in<T>("c0"), a.c = given.in<T>("c");
        a.dc0 = given.out<T>("dc0"), a.dc_last = given.in<T>("dc_last");
        a.gates = given.out<T>("gates");
        read_lstm_variant(given, a.variant);
        kernels<T>().lstm_backward(a);
    }
};

struct GruForward {
    template <class T>
    static void run(const Given& given) {
        GruForwardArgs<T> a{};
        read_sizes<T>(given, a, "h0");
        read_forward<T>(given, a);
        a.b_hn = given.in<T>("b_hn");
        a.gates = given.out<T>("gates"), a.hn = given.out<T>("hn");
        read_variant(given, a.variant);
        read_saved(given, a.variant);
        kernels<T>().gru_forward(a);
    }
};

struct GruBackward {
    template <class T>
    static void run(const Given& given) {
        GruBackwardArgs<T> a{};
        read_sizes<T>(given, a, "h0");
        read_backward<T>(given, a);
        a.db_hn = given.out<T>("db_hn");
        a.gates = given.out<T>("gates"), a.hn = given.out<T>("hn");
        read_variant(given, a.variant);
        read_saved(given, a.variant);
        kernels<T>().gru_backward(a);
    }
};

struct RnnForward {
    template <class T>
    static void run(const Given& given) {
        RnnForwardArgs<T> a{};
        read_sizes<T>(given, a, "h0");
        read_forward<T>(given, a);
        a.relu = given.setting<bool>("relu");
        read_variant(given, a.variant);
        read_saved(given, a.variant);
        kernels<T>().rnn_forward(a);
    }
};

struct RnnBackward {
    template <class T>
    static void run(const Given& given) {
        RnnBackwardArgs<T> a{};
        read_sizes<T>(given, a, "h0");
        read_backward<T>(given, a);
        a.dpre = given.out<T>("dpre");
        a.relu = given.setting<bool>("relu");
        read_variant(given, a.variant);
        read_saved(given, a.variant);
        kernels<T>().rnn_backward(a);
    }
};

template <class Kernel>
ffi::Error call(ffi::RemainingArgs inputs, ffi::RemainingRets results, ffi::Dictionary settings) {
    try {
        const Given given(inputs, results, settings);
        const DefaultFloats floats;
        if (given.array("x").element_type() == ffi::F64)
            Kernel::template run<double>(given);
        else
            Kernel::template run<float>(given);
        return ffi::Error::Success();
    } catch (const std::invalid_argument& error) {
        return ffi::Error::InvalidArgument(std::string("pynlm: ") + error.what());
    } catch (const std::exception& error) {
        return ffi::Error::Internal(std::string("pynlm: ") + error.what());
    }
}

template <class Kernel>
XLA_FFI_Error* handler(XLA_FFI_CallFrame* frame) {
    static auto* bound = ffi::Ffi::Bind()
                             .RemainingArgs()
                             .RemainingRets()
                             .template Attrs<ffi::Dictionary>()
                             .To(&call<Kernel>)
                             .release();
    return bound->Call(frame);
}

template <class Kernel>
pybind11::capsule capsule() {
    return pybind11::capsule(reinterpret_cast<void*>(&handler<Kernel>));
}

}  // namespace

pybind11::dict xla_handlers() {
    pybind11::dict found;
    found["lstm_forward"] = capsule<LstmForward>();
    found["lstm_backward"] = capsule<LstmBackward>();
    found["gru_forward"] = capsule<GruForward>();
    found["gru_backward"] = capsule<GruBackward>();
    found["rnn_forward"] = capsule<RnnForward>();
    found["rnn_backward"] = capsule<RnnBackward>();
    return found;
}

}  // namespace nlm
