// CPU loops of the LSTM (contract: lstm.h, equations: lstm_math.h).

template <class T>
struct LstmForwardCell {
    static constexpr int kGates = 4;
    const LstmForwardArgs<T>& a;
    T* gates;  // of step `base` and later
    int64_t base;

    T* gate(int64_t t, int64_t row) const { return gates + ((t - base) * a.B + row) * 4 * a.H; }

    TileColumn<T> column(int64_t t, int64_t row, int64_t g, int64_t unit, int64_t n) const {
        return {gate(t, row) + g * a.H + unit, 4 * a.H, n, true, nullptr};
    }

    void finish(int64_t t, Range rows, int64_t unit, int64_t n) const {
        const int64_t H = a.H;
        for (int64_t r = rows.begin; r < rows.end; ++r) {
            T* const p = gate(t, r) + unit;
            T* const state = a.c_last + r * H + unit;  // runs along with the sequence
            Vec<T> i = load_n(p, n), f = load_n(p + H, n), g = load_n(p + 2 * H, n);
            Vec<T> o = load_n(p + 3 * H, n), c = load_n(state, n), h;
            lstm_cell<VecFn<T>>(i, f, g, o, c, h);
            store_n(state, c, n);
            store_n(a.y + (t * a.B + r) * H + unit, h, n);
            if (a.c != nullptr) {
                store_n(p, i, n);
                store_n(p + H, f, n);
                store_n(p + 2 * H, g, n);
                store_n(p + 3 * H, o, n);
                store_n(a.c + (t * a.B + r) * H + unit, c, n);
            }
        }
    }
};

// What the general loops read besides: peephole weights, a clipping, zoneout.
template <class T>
struct LstmGeneral {
    const LstmVariant<T>& v;
    int64_t H;
    Zoneout<T> zoneout_h, zoneout_c;
    Vec<T> clip;

    LstmGeneral(const LstmVariant<T>& variant, int64_t hidden)
        : v(variant),
          H(hidden),
          zoneout_h(v, v.zoneout_h, kZoneoutH),
          zoneout_c(v, v.zoneout_c, kZoneoutC),
          clip(splat(v.clip_c > 0 ? T(v.clip_c) : std::numeric_limits<T>::infinity())) {}

    Vec<T> peephole(int which, int64_t unit, int64_t n) const {
        return v.peephole != nullptr ? load_n(v.peephole + which * H + unit, n) : Vec<T>{};
    }
};

template <class T>
struct LstmGeneralForwardCell : LstmForwardCell<T> {
    using LstmForwardCell<T>::a;
    LstmGeneral<T> general;

    void finish(int64_t t, Range rows, int64_t unit, int64_t n) const {
        const int64_t H = a.H;
        const T* const h_prev = t > 0 ? a.y + (t - 1) * a.B * H : a.h0;
        const Vec<T> p_i = general.peephole(0, unit, n), p_f = general.peephole(1, unit, n);
        const Vec<T> p_o = general.peephole(2, unit, n);
        for (int64_t r = rows.begin; r < rows.end; ++r) {
            T* const p = this->gate(t, r) + unit;
            const int64_t at = r * H + unit, step = t * a.B * H;
            Vec<T> i = load_n(p, n), f = load_n(p + H, n), g = load_n(p + 2 * H, n);
            Vec<T> o = load_n(p + 3 * H, n), h;
            const Vec<T> c_prev = load_n(a.c_last + at, n);
            Vec<T> c = c_prev;
            lstm_cell_general<VecFn<T>>(i, f, g, o, c, h, p_i, p_f, p_o, general.clip);
            c = general.zoneout_c.mix(t, r, unit, c_prev, c);
            store_n(a.c_last + at, c, n);
            store_n(a.y + step + at, h, n);
            if (a.c != nullptr) {
                store_n(p, i, n);
                store_n(p + H, f, n);
                store_n(p + 2 * H, g, n);
                store_n(p + 3 * H, o, n);
                store_n(a.c + step + at, c, n);
            }
        }
        finish_general(a.variant, general.zoneout_h, t, rows, unit, n, h_prev, a.y + t * a.B * H,
                       a.B, H);
    }
};

template <class T>
void lstm_forward(const LstmForwardArgs<T>& a) {
    const Sequence<T> s{a.T_, a.B, a.H, a.lengths};
    Scratch scratch;
    const StateInput<T> input(a.variant, a.h0, a.y, a.B * a.H, scratch);
    clear_beyond(s, a.variant.h_in);
    const LstmGeneral<T> general(a.variant, a.H);
    const int64_t chunk = a.gates != nullptr ? s.steps : chunk_steps(s);
    T* const gates = a.gates != nullptr ? a.gates : scratch.take<T>(chunk * a.B * 4 * a.H);
    T* const panels = scratch.take<T>(panel_size(s, 4));
    T* const states = scratch.take<T>(2 * a.B * a.H);
    const Split split = split_of(s.steps, a.B, a.H, 4 * a.H, 4 * a.H * a.H * int64_t(sizeof(T)));
    __builtin_memcpy(a.c_last, a.c0, std::size_t(a.B * a.H) * sizeof(T));
    for (int64_t t = 0; t < s.steps; t += chunk) {
        const int64_t end = t + chunk < s.steps ? t + chunk : s.steps;
        const ActiveRows rows(s, t, end);
        gemm(GemmArgs<T>{.M = rows.count,
                         .N = 4 * a.H,
                         .K = a.I,
                         .a = {a.x + t * a.B * a.I, a.I, false, rows.at},
                         .b = {a.w_ih, a.I, false},
                         .c = gates,
                         .ldc = 4 * a.H,
                         .bias = a.b,
                         .c_at = rows.at});
        const LstmForwardCell<T> cell{a, gates, t};
        const T* const h_start = t == 0 ? input.h0 : input.y + (t - 1) * a.B * a.H;
        if (a.variant.any())
            forward_loop(LstmGeneralForwardCell<T>{cell, general}, s, t, end, a.w_hh, h_start,
                         input.y, a.y, split, panels, states, t == 0);
        else
            forward_loop(cell, s, t, end, a.w_hh, h_start, input.y, a.y, split, panels, states,
                         t == 0);
    }
    last_states(s, a.y, a.h0, a.h_last);
}

template <class T>
struct LstmBackwardCell {
    static constexpr int kGates = 4;
    static constexpr bool kDirect = false;
    const LstmBackwardArgs<T>& a;
    T* rec;
    T* dc;

    T* gradient(int64_t t, int64_t g) const { return a.gates + t * a.B * 4 * a.H + g * a.H; }
    int64_t gradient_ld(int64_t) const { return 4 * a.H; }

    void pointwise(int64_t t, Range rows, int64_t unit, int64_t n) const {
        const int64_t H = a.H;
        const T* const c_prev = t > 0 ? a.c + (t - 1) * a.B * H : a.c0;
        for (int64_t r = rows.begin; r < rows.end; ++r) {
            T* const p = gradient(t, 0) + r * 4 * H + unit;
            const int64_t at = r * H + unit;
            Vec<T> i = load_n(p, n), f = load_n(p + H, n), g = load_n(p + 2 * H, n);
            Vec<T> o = load_n(p + 3 * H, n), d = load_n(dc + at, n);
            const Vec<T> dh = load_n(a.dy + t * a.B * H + at, n) + load_n(rec + at, n);
            lstm_cell_backward<VecFn<T>>(i, f, g, o, load_n(a.c + t * a.B * H + at, n),
                                         load_n(c_prev + at, n), dh, d);
            store_n(p, i, n);
            store_n(p + H, f, n);
            store_n(p + 2 * H, g, n);
            store_n(p + 3 * H, o, n);
            store_n(dc + at, d, n);
        }
    }
};

template <class T>
struct LstmGeneralBackwardCell : LstmBackwardCell<T> {
    using LstmBackwardCell<T>::a;
    LstmGeneral<T> general;
    StateGradient<T> state;
    T* dpeephole;  // [B, 3H], summed over time

    void pointwise(int64_t t, Range rows, int64_t unit, int64_t n) const {
        const int64_t H = a.H;
        const T* const c_before = t > 0 ? a.c + (t - 1) * a.B * H : a.c0;
        const Vec<T> p_i = general.peephole(0, unit, n), p_f = general.peephole(1, unit, n);
        const Vec<T> p_o = general.peephole(2, unit, n);
        for (int64_t r = rows.begin; r < rows.end; ++r) {
            T* const p = this->gradient(t, 0) + r * 4 * H + unit;
            const int64_t at = r * H + unit;
            Vec<T> i = load_n(p, n), f = load_n(p + H, n), g = load_n(p + 2 * H, n);
            Vec<T> o = load_n(p + 3 * H, n), d = load_n(this->dc + at, n), c;
            const Vec<T> c_prev = load_n(c_before + at, n);
            Vec<T> dh = load_n(a.dy + t * a.B * H + at, n) + state.at(r, unit, n);
            const Vec<T> direct = general.zoneout_h.past(t, r, unit, dh);
            const Vec<T> d_direct = general.zoneout_c.past(t, r, unit, d);
            lstm_cell_general_backward<VecFn<T>>(i, f, g, o, c, c_prev, dh, d, p_i, p_f, p_o,
                                                 general.clip);
            store_n(p, i, n);
            store_n(p + H, f, n);
            store_n(p + 2 * H, g, n);
            store_n(p + 3 * H, o, n);
            store_n(this->dc + at, d + d_direct, n);
            store_n(state.direct + at, direct, n);
            if (dpeephole != nullptr) {
                T* const q = dpeephole + r * 3 * H + unit;
                store_n(q, load_n(q, n) + i * c_prev, n);
                store_n(q + H, load_n(q + H, n) + f * c_prev, n);
                store_n(q + 2 * H, load_n(q + 2 * H, n) + o * c, n);
            }
        }
    }
};

template <class T>
void lstm_general_loop(const LstmBackwardArgs<T>& a, const Sequence<T>& s, const Split& split,
                       T* panels, T* states) {
    Scratch scratch;
    const bool peephole = a.variant.peephole != nullptr;
    const StateGradient<T> state = general_gradient(a.variant, a.dh0, a.B, a.H, scratch);
    T* const dpeephole = peephole ? scratch.take<T>(a.B * 3 * a.H) : nullptr;
    if (peephole) start_gradient<T>(dpeephole, nullptr, a.B * 3 * a.H);
    backward_loop(LstmGeneralBackwardCell<T>{LstmBackwardCell<T>{a, state.rec, a.dc0},
                                             LstmGeneral<T>(a.variant, a.H), state, dpeephole},
                  s, a.w_hh, state.rec, split, panels, states);
    state.finish(a.dh0, a.B);
    for (int64_t j = 0; peephole && j < 3 * a.H; ++j) {
        T sum = 0;
        for (int64_t r = 0; r < a.B; ++r) sum += dpeephole[r * 3 * a.H + j];
        a.dpeephole[j] = sum;
    }
}

template <class T>
void lstm_backward(const LstmBackwardArgs<T>& a) {
    const Sequence<T> s{a.T_, a.B, a.H, a.lengths};
    Scratch scratch;
    const StateInput<T> input(a.variant, a.h0, a.y, a.B * a.H, scratch);
    T* const panels = scratch.take<T>(panel_size(s, 4));
    T* const states = scratch.take<T>(2 * a.B * 4 * a.H);
    const Split split = split_of(s.steps, a.B, 4 * a.H, a.H, 4 * a.H * a.H * int64_t(sizeof(T)));
    start_gradient(a.dh0, a.dh_last, a.B * a.H);  // dh0 and dc0 run along with the sequence
    start_gradient(a.dc0, a.dc_last, a.B * a.H);
    if (a.variant.any())
        lstm_general_loop(a, s, split, panels, states);
    else
        backward_loop(LstmBackwardCell<T>{a, a.dh0, a.dc0}, s, a.w_hh, a.dh0, split, panels,
                      states);
    input_gradients(s, a.dx, a.dw_ih, a.db, a.gates, a.x, a.w_ih, a.I, 4 * a.H);
    recurrent_gradient(s, a.dw_hh, a.gates, 4 * a.H, 4 * a.H, input.h0, input.y);
}
