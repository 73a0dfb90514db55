// CPU loops of the LSTM (contract: lstm.h, equations: lstm_math.h).

template <class T>
struct LstmForwardCell {
    static constexpr int kGates = 4;
    static constexpr bool kGeneral = false;
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
            if (a.c != nullptr) store_n(a.c + (t * a.B + r) * H + unit, c, n);
            if (a.gates != nullptr) {
                store_n(p, i, n);
                store_n(p + H, f, n);
                store_n(p + 2 * H, g, n);
                store_n(p + 3 * H, o, n);
            }
        }
    }
};

template <class T>
void lstm_forward(const LstmForwardArgs<T>& a) {
    const Sequence<T> s = lstm_sequence(a.T_, a.B, a.H, a.lengths, a.variant);
    __builtin_memcpy(a.c_last, a.c0, std::size_t(a.B * a.H) * sizeof(T));
    if (a.variant.coupled) return lstm_general_forward<T, 3>(a, s);
    if (a.variant.any()) return lstm_general_forward<T, 4>(a, s);
    Scratch scratch;
    const int64_t chunk = a.gates != nullptr ? s.steps : chunk_steps(s);
    T* const gates = a.gates != nullptr ? a.gates : scratch.take<T>(chunk * a.B * 4 * a.H);
    T* const panels = scratch.take<T>(panel_size<T>(a.H, 4 * a.H));
    T* const states = scratch.take<T>(2 * a.B * a.H);
    const Split split = split_of(s.steps, a.B, a.H, 4 * a.H, 4 * a.H * a.H * int64_t(sizeof(T)));
    for (int64_t t = 0; t < s.steps; t += chunk) {
        const int64_t end = t + chunk < s.steps ? t + chunk : s.steps;
        const ActiveRows rows(s, t, end);
        gemm(GemmArgs<T>{.M = rows.count,
                         .N = 4 * a.H,
                         .K = a.I,
                         .a = {a.x + t * a.B * a.I, a.I, false, rows.at},
                         .b = {a.w_ih.p, a.I, false},
                         .c = gates,
                         .ldc = 4 * a.H,
                         .bias = a.b,
                         .c_at = rows.at,
                         .part = s.many_rows(),
                         .b_panels = a.w_ih.panels});
        forward_loop(LstmForwardCell<T>{a, gates, t}, s, t, end, a.w_hh,
                     t == 0 ? a.h0 : a.y + (t - 1) * a.B * a.H, static_cast<const T*>(a.y), a.y,
                     split, panels, states, t == 0);
    }
    last_states(s, a.y, a.h0, a.h_last);
}

template <class T>
struct LstmBackwardCell {
    static constexpr int kGates = 4;
    static constexpr bool kGeneral = false;
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
void lstm_backward(const LstmBackwardArgs<T>& a) {
    const Sequence<T> s = lstm_sequence(a.T_, a.B, a.H, a.lengths, a.variant);
    // dh0 and dc0 run along with the sequence
    start_gradient(a.dh0, a.dh_last, a.B * s.width());
    start_gradient(a.dc0, a.dc_last, a.B * a.H);
    if (a.variant.coupled) return lstm_general_backward<T, 3>(a, s);
    if (a.variant.any()) return lstm_general_backward<T, 4>(a, s);
    Scratch scratch;
    T* const panels = scratch.take<T>(panel_size<T>(a.H, 4 * a.H));
    T* const states = scratch.take<T>(2 * a.B * 4 * a.H);
    const Split split = split_of(s.steps, a.B, 4 * a.H, a.H, 4 * a.H * a.H * int64_t(sizeof(T)));
    backward_loop(LstmBackwardCell<T>{a, a.dh0, a.dc0}, s, a.w_hh, a.dh0, split, panels, states);
    const T* const d = a.gates;
    layer_gradients(s, a.dx, a.dw_ih, a.dw_hh, a.db, d, d, 4 * a.H, a.x, a.w_ih, a.I, a.h0, a.y);
}
