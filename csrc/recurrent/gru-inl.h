// CPU loops of the GRU (contract: gru.h, equations: gru_math.h).

template <class T>
struct GruForwardCell {
    static constexpr int kGates = 3;
    const GruForwardArgs<T>& a;
    T* gates;  // of step `base` and later
    T* hn;
    int64_t base;

    T* gate(int64_t t, int64_t row) const { return gates + ((t - base) * a.B + row) * 3 * a.H; }
    T* recurrent(int64_t t, int64_t row) const { return hn + ((t - base) * a.B + row) * a.H; }

    TileColumn<T> column(int64_t t, int64_t row, int64_t g, int64_t unit, int64_t n) const {
        if (g == 2) return {recurrent(t, row) + unit, a.H, n, false, a.b_hn + unit};
        return {gate(t, row) + g * a.H + unit, 3 * a.H, n, true, nullptr};
    }

    void finish(int64_t t, Range rows, int64_t unit, int64_t count) const {
        const int64_t H = a.H;
        const T* const h_prev = t > 0 ? a.y + (t - 1) * a.B * H : a.h0;
        for (int64_t row = rows.begin; row < rows.end; ++row) {
            T* const p = gate(t, row) + unit;
            Vec<T> r = load_n(p, count), z = load_n(p + H, count), n = load_n(p + 2 * H, count);
            Vec<T> h = load_n(h_prev + row * H + unit, count);
            gru_cell<VecFn<T>>(r, z, n, load_n(recurrent(t, row) + unit, count), h);
            store_n(a.y + (t * a.B + row) * H + unit, h, count);
            if (a.gates != nullptr) {
                store_n(p, r, count);
                store_n(p + H, z, count);
                store_n(p + 2 * H, n, count);
            }
        }
    }
};

template <class T>
struct GruGeneralForwardCell : GruForwardCell<T> {
    using GruForwardCell<T>::a;
    Zoneout<T> zoneout;

    void finish(int64_t t, Range rows, int64_t unit, int64_t count) const {
        GruForwardCell<T>::finish(t, rows, unit, count);
        const T* const h_prev = t > 0 ? a.y + (t - 1) * a.B * a.H : a.h0;
        finish_general(a.variant, zoneout, t, rows, unit, count, h_prev, a.y + t * a.B * a.H, a.B,
                       a.H);
    }
};

template <class T>
void gru_forward(const GruForwardArgs<T>& a) {
    const Sequence<T> s{a.T_, a.B, a.H, a.lengths};
    Scratch scratch;
    const StateInput<T> input(a.variant, a.h0, a.y, a.B * a.H, scratch);
    clear_beyond(s, a.variant.h_in);
    const Zoneout<T> zoneout(a.variant, a.variant.zoneout_h, kZoneoutH);
    const int64_t chunk = a.gates != nullptr ? s.steps : chunk_steps(s);
    T* const gates = a.gates != nullptr ? a.gates : scratch.take<T>(chunk * a.B * 3 * a.H);
    T* const hn = a.hn != nullptr ? a.hn : scratch.take<T>(chunk * a.B * a.H);
    T* const panels = scratch.take<T>(panel_size(s, 3));
    T* const states = scratch.take<T>(2 * a.B * a.H);
    const Split split = split_of(s.steps, a.B, a.H, 3 * a.H, 3 * a.H * a.H * int64_t(sizeof(T)));
    for (int64_t t = 0; t < s.steps; t += chunk) {
        const int64_t end = t + chunk < s.steps ? t + chunk : s.steps;
        const ActiveRows rows(s, t, end);
        gemm(GemmArgs<T>{.M = rows.count,
                         .N = 3 * a.H,
                         .K = a.I,
                         .a = {a.x + t * a.B * a.I, a.I, false, rows.at},
                         .b = {a.w_ih, a.I, false},
                         .c = gates,
                         .ldc = 3 * a.H,
                         .bias = a.b,
                         .c_at = rows.at});
        const GruForwardCell<T> cell{a, gates, hn, t};
        const T* const h_start = t == 0 ? input.h0 : input.y + (t - 1) * a.B * a.H;
        if (a.variant.any())
            forward_loop(GruGeneralForwardCell<T>{cell, zoneout}, s, t, end, a.w_hh, h_start,
                         input.y, a.y, split, panels, states, t == 0);
        else
            forward_loop(cell, s, t, end, a.w_hh, h_start, input.y, a.y, split, panels, states,
                         t == 0);
    }
    last_states(s, a.y, a.h0, a.h_last);
}

template <class T>
struct GruBackwardCell {
    static constexpr int kGates = 3;
    static constexpr bool kDirect = true;
    const GruBackwardArgs<T>& a;
    T* rec;

    // The state's gradient flows through dr, dz and, for n, the gradient of its recurrent part.
    T* gradient(int64_t t, int64_t g) const {
        return g == 2 ? a.hn + t * a.B * a.H : a.gates + t * a.B * 3 * a.H + g * a.H;
    }
    int64_t gradient_ld(int64_t g) const { return g == 2 ? a.H : 3 * a.H; }

    void pointwise(int64_t t, Range rows, int64_t unit, int64_t count) const {
        const int64_t H = a.H;
        for (int64_t row = rows.begin; row < rows.end; ++row) {
            const int64_t at = row * H + unit;
            const Vec<T> dh = load_n(a.dy + t * a.B * H + at, count) + load_n(rec + at, count);
            store_n(rec + at, step_back(t, row, unit, count, dh), count);
        }
    }

    // From the gradient of this step's state to the gates' gradients; returns the part of the
    // previous state's that does not pass by them.
    Vec<T> step_back(int64_t t, int64_t row, int64_t unit, int64_t count, Vec<T> dh) const {
        const int64_t H = a.H, at = row * H + unit;
        const T* const h_prev = t > 0 ? a.y + (t - 1) * a.B * H : a.h0;
        T* const p = a.gates + (t * a.B + row) * 3 * H + unit;
        Vec<T> r = load_n(p, count), z = load_n(p + H, count), n = load_n(p + 2 * H, count);
        Vec<T> hn = load_n(a.hn + t * a.B * H + at, count);
        gru_cell_backward<VecFn<T>>(r, z, n, hn, load_n(h_prev + at, count), dh);
        store_n(p, r, count);
        store_n(p + H, z, count);
        store_n(p + 2 * H, n, count);
        store_n(a.hn + t * a.B * H + at, hn, count);
        return dh;
    }
};

template <class T>
struct GruGeneralBackwardCell : GruBackwardCell<T> {
    using GruBackwardCell<T>::a;
    static constexpr bool kDirect = false;
    Zoneout<T> zoneout;
    StateGradient<T> state;

    void pointwise(int64_t t, Range rows, int64_t unit, int64_t count) const {
        for (int64_t row = rows.begin; row < rows.end; ++row) {
            const int64_t at = row * a.H + unit;
            Vec<T> dh = load_n(a.dy + t * a.B * a.H + at, count) + state.at(row, unit, count);
            const Vec<T> direct = zoneout.past(t, row, unit, dh);
            store_n(state.direct + at, direct + this->step_back(t, row, unit, count, dh), count);
        }
    }
};

template <class T>
void gru_backward(const GruBackwardArgs<T>& a) {
    const Sequence<T> s{a.T_, a.B, a.H, a.lengths};
    const int64_t H = a.H;
    Scratch scratch;
    T* const panels = scratch.take<T>(panel_size(s, 3));
    T* const states = scratch.take<T>(2 * a.B * 3 * H);
    const Split split = split_of(s.steps, a.B, 3 * H, H, 3 * H * H * int64_t(sizeof(T)));
    const StateInput<T> input(a.variant, a.h0, a.y, a.B * H, scratch);
    start_gradient(a.dh0, a.dh_last, a.B * H);  // dh0 runs along with the sequence
    if (a.variant.any()) {
        const StateGradient<T> state = general_gradient(a.variant, a.dh0, a.B, H, scratch);
        backward_loop(
            GruGeneralBackwardCell<T>{GruBackwardCell<T>{a, state.rec},
                                      Zoneout<T>(a.variant, a.variant.zoneout_h, kZoneoutH), state},
            s, a.w_hh, state.rec, split, panels, states);
        state.finish(a.dh0, a.B);
    } else {
        backward_loop(GruBackwardCell<T>{a, a.dh0}, s, a.w_hh, a.dh0, split, panels, states);
    }
    clear_ended(s, a.gates + 2 * H, H, 3 * H);  // n's own gradient: the loop cleared the others
    input_gradients(s, a.dx, a.dw_ih, a.db, a.gates, a.x, a.w_ih, a.I, 3 * H);
    recurrent_gradient(s, a.dw_hh, a.gates, 2 * H, 3 * H, input.h0, input.y);
    recurrent_gradient(s, a.dw_hh + 2 * H * H, static_cast<const T*>(a.hn), H, H, input.h0, input.y,
                       a.db_hn);
}
