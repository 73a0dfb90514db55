// CPU loops of the simple recurrent network (contract: rnn.h, equations: rnn_math.h).

template <class T, bool kRelu>
struct RnnForwardCell {
    static constexpr int kGates = 1;
    static constexpr bool kGeneral = false;
    const RnnForwardArgs<T>& a;

    T* state(int64_t t, int64_t row) const { return a.y + (t * a.B + row) * a.H; }

    // y holds the pre-activation until finish() replaces it.
    TileColumn<T> column(int64_t t, int64_t row, int64_t, int64_t unit, int64_t n) const {
        return {state(t, row) + unit, a.H, n, true, nullptr};
    }

    void finish(int64_t t, Range rows, int64_t unit, int64_t n) const {
        for (int64_t r = rows.begin; r < rows.end; ++r) {
            T* const p = state(t, r) + unit;
            store_n(p, rnn_cell<VecFn<T>, kRelu>(load_n(p, n)), n);
        }
    }
};

template <class T, bool kRelu>
struct RnnGeneralForwardCell : RnnForwardCell<T, kRelu>, GeneralCell<T> {
    static constexpr bool kGeneral = true;
    using RnnForwardCell<T, kRelu>::a;
    Zoneout<T> zoneout;
    StateNorm<T> norm;

    TileColumn<T> column(int64_t t, int64_t row, int64_t g, int64_t unit, int64_t n) const {
        if (norm.gain == nullptr) return RnnForwardCell<T, kRelu>::column(t, row, g, unit, n);
        return {norm.row(t, row) + unit, a.H, n, false, nullptr};
    }

    void finish(int64_t t, Range rows, int64_t unit, int64_t n) const {
        RnnForwardCell<T, kRelu>::finish(t, rows, unit, n);
        finish_general(a.variant, zoneout, t, rows, unit, n, t > 0 ? this->state(t - 1, 0) : a.h0,
                       this->state(t, 0), a.B, a.H);
    }

    void finish_row(int64_t t, int64_t row) const {
        norm.forward(t, row);
        const T* const hat = norm.row(t, row);
        T* const p = this->state(t, row);
        for (int64_t u = 0; u < a.H; u += kLanes<T>) {
            const int64_t n = a.H - u;
            store_n(p + u, load_n(p + u, n) + load_n(norm.gain + u, n) * load_n(hat + u, n), n);
            finish(t, Range{row, row + 1}, u, n);
        }
    }
};

template <class T, bool kRelu>
void rnn_forward_loop(const RnnForwardArgs<T>& a, const Sequence<T>& s, const StateInput<T>& input,
                      const Split& split, T* panels, T* states) {
    const RnnForwardCell<T, kRelu> cell{a};
    if (!a.variant.any())
        return forward_loop(cell, s, 0, s.steps, a.w_hh, input.h0, input.y, a.y, split, panels,
                            states, true);
    Scratch scratch;
    const Zoneout<T> zoneout(a.variant, a.variant.zoneout_h, kZoneoutH);
    const StateNorm<T> norm = forward_norm(a.variant, s.steps, a.B, a.H, scratch);
    forward_loop(RnnGeneralForwardCell<T, kRelu>{cell, {norm.gain != nullptr}, zoneout, norm}, s, 0,
                 s.steps, a.w_hh, input.h0, input.y, a.y, split, panels, states, true);
}

template <class T>
void rnn_forward(const RnnForwardArgs<T>& a) {
    const Sequence<T> s{a.T_, a.B, a.H, a.lengths};
    Scratch scratch;
    T* const panels = scratch.take<T>(panel_size<T>(a.H, a.H));
    T* const states = scratch.take<T>(2 * a.B * a.H);
    const Split split = split_of(s.steps, a.B, a.H, a.H, a.H * a.H * int64_t(sizeof(T)));
    const ActiveRows rows(s, 0, s.steps);
    gemm(GemmArgs<T>{.M = rows.count,
                     .N = a.H,
                     .K = a.I,
                     .a = {a.x, a.I, false, rows.at},
                     .b = {a.w_ih.p, a.I, false},
                     .c = a.y,
                     .ldc = a.H,
                     .bias = a.variant.ln_gates != nullptr ? nullptr : a.b,
                     .c_at = rows.at,
                     .b_panels = a.w_ih.panels});
    if (a.variant.ln_gates != nullptr)
        normalise_inputs(s, 0, s.steps, a.y, a.variant.norm, a.variant.rstd, a.variant.ln_gates,
                         a.b, a.H);
    const StateInput<T> input(a.variant, a.h0, a.y, a.B * a.H, scratch);
    if (a.variant.h_in != nullptr) clear_ended(s, a.variant.h_in, a.H, a.H);
    if (a.relu)
        rnn_forward_loop<T, true>(a, s, input, split, panels, states);
    else
        rnn_forward_loop<T, false>(a, s, input, split, panels, states);
    last_states(s, a.y, a.h0, a.h_last);
}

template <class T, bool kRelu>
struct RnnBackwardCell {
    static constexpr int kGates = 1;
    static constexpr bool kGeneral = false;
    static constexpr bool kDirect = false;
    const RnnBackwardArgs<T>& a;
    T* rec;

    T* gradient(int64_t t, int64_t) const { return a.dpre + t * a.B * a.H; }
    int64_t gradient_ld(int64_t) const { return a.H; }

    void pointwise(int64_t t, Range rows, int64_t unit, int64_t n) const {
        for (int64_t r = rows.begin; r < rows.end; ++r) {
            const int64_t at = r * a.H + unit, step = t * a.B * a.H;
            const Vec<T> dh = load_n(a.dy + step + at, n) + load_n(rec + at, n);
            store_n(a.dpre + step + at,
                    rnn_cell_backward<VecFn<T>, kRelu>(load_n(a.y + step + at, n), dh), n);
        }
    }
};

template <class T, bool kRelu>
struct RnnGeneralBackwardCell : RnnBackwardCell<T, kRelu>, GeneralCell<T> {
    static constexpr bool kGeneral = true;
    using RnnBackwardCell<T, kRelu>::a;
    Zoneout<T> zoneout;
    StateGradient<T> state;
    StateNorm<T> norm;

    T* gradient(int64_t t, int64_t g) const {
        return norm.gain != nullptr ? norm.row(t, 0) : RnnBackwardCell<T, kRelu>::gradient(t, g);
    }

    void pointwise(int64_t t, Range rows, int64_t unit, int64_t n) const {
        const int64_t step = t * a.B * a.H;
        for (int64_t r = rows.begin; r < rows.end; ++r) {
            const int64_t at = r * a.H + unit;
            Vec<T> dh = load_n(a.dy + step + at, n) + state.at(r, unit, n);
            const Vec<T> h = load_n(a.y + step + at, n);
            // where a unit kept its state, h is no activation, and its gradient is 0
            const Vec<T> direct = zoneout.past(t, r, unit, dh);
            dh = unclip(a.variant, a.y + step + at, n, dh);
            store_n(a.dpre + step + at, rnn_cell_backward<VecFn<T>, kRelu>(h, dh), n);
            store_n(state.direct + at, direct, n);
        }
    }

    void pointwise_row(int64_t t, int64_t row) const {
        for (int64_t u = 0; u < a.H; u += kLanes<T>) pointwise(t, Range{row, row + 1}, u, a.H - u);
        norm.backward(t, row, a.H, [&](int64_t, int64_t u, int64_t n) {
            return load_n(a.dpre + (t * a.B + row) * a.H + u, n);
        });
    }
};

template <class T, bool kRelu>
void rnn_backward_loop(const RnnBackwardArgs<T>& a, const Sequence<T>& s, const StateNorm<T>& norm,
                       const Split& split, T* panels, T* states) {
    start_gradient(a.dh0, a.dh_last, a.B * a.H);  // dh0 runs along with the sequence
    if (!a.variant.any())
        return backward_loop(RnnBackwardCell<T, kRelu>{a, a.dh0}, s, a.w_hh, a.dh0, split, panels,
                             states);
    Scratch scratch;
    const StateGradient<T> state = general_gradient(a.variant, a.dh0, a.B, a.H, scratch);
    const Zoneout<T> zoneout(a.variant, a.variant.zoneout_h, kZoneoutH);
    backward_loop(
        RnnGeneralBackwardCell<T, kRelu>{
            RnnBackwardCell<T, kRelu>{a, state.rec}, {norm.gain != nullptr}, zoneout, state, norm},
        s, a.w_hh, state.rec, split, panels, states);
    state.finish(a.dh0, a.B);
}

template <class T>
void rnn_backward(const RnnBackwardArgs<T>& a) {
    const Sequence<T> s{a.T_, a.B, a.H, a.lengths};
    const int64_t H = a.H;
    const bool norms = a.variant.ln_gates != nullptr;
    Scratch scratch;
    T* const panels = scratch.take<T>(panel_size<T>(a.H, a.H));
    T* const states = scratch.take<T>(2 * a.B * H);
    const Split split = split_of(s.steps, a.B, H, H, H * H * int64_t(sizeof(T)));
    const StateInput<T> input(a.variant, a.h0, a.y, a.B * H, scratch);
    const StateNorm<T> norm = backward_norm(a.variant, s.steps, a.B, H, scratch);
    if (a.relu)
        rnn_backward_loop<T, true>(a, s, norm, split, panels, states);
    else
        rnn_backward_loop<T, false>(a, s, norm, split, panels, states);
    const T* const d = norms ? a.variant.norm : a.dpre;
    if (norms) {
        clear_ended(s, a.dpre, H, H);
        norm_gradients(s, a.variant, norm, a.db, static_cast<const T*>(a.dpre));
    }
    layer_gradients(s, a.dx, a.dw_ih, a.dw_hh, norms ? nullptr : a.db, d,
                    norms ? static_cast<const T*>(norm.norm) : d, H, a.x, a.w_ih, a.I, input.h0,
                    input.y);
}
