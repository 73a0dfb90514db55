// CPU loops of the GRU (contract: gru.h, equations: gru_math.h).

template <class T>
struct GruForwardCell {
    static constexpr int kGates = 3;
    static constexpr bool kGeneral = false;
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
struct GruGeneralForwardCell : GruForwardCell<T>, GeneralCell<T> {
    static constexpr bool kGeneral = true;
    using GruForwardCell<T>::a;
    Zoneout<T> zoneout;
    StateNorm<T> norm;

    TileColumn<T> column(int64_t t, int64_t row, int64_t g, int64_t unit, int64_t n) const {
        if (norm.gain == nullptr) return GruForwardCell<T>::column(t, row, g, unit, n);
        return {norm.row(t, row) + g * a.H + unit, 3 * a.H, n, false, nullptr};
    }

    void finish(int64_t t, Range rows, int64_t unit, int64_t count) const {
        GruForwardCell<T>::finish(t, rows, unit, count);
        const T* const h_prev = t > 0 ? a.y + (t - 1) * a.B * a.H : a.h0;
        finish_general(a.variant, zoneout, t, rows, unit, count, h_prev, a.y + t * a.B * a.H, a.B,
                       a.H);
    }

    void finish_row(int64_t t, int64_t row) const {
        const int64_t H = a.H;
        norm.forward(t, row);
        const T* const hat = norm.row(t, row);
        T* const p = this->gate(t, row);
        T* const product_n = this->recurrent(t, row);
        const auto product = [&](int64_t at, int64_t n) {
            return load_n(norm.gain + at, n) * load_n(hat + at, n);
        };
        for (int64_t u = 0; u < H; u += kLanes<T>) {
            const int64_t n = H - u;
            store_n(p + u, load_n(p + u, n) + product(u, n), n);
            store_n(p + H + u, load_n(p + H + u, n) + product(H + u, n), n);
            store_n(product_n + u, load_n(a.b_hn + u, n) + product(2 * H + u, n), n);
            finish(t, Range{row, row + 1}, u, n);
        }
    }
};

// Reset before the product: a second product makes n.
template <class T>
struct GruBeforeForwardCell : GeneralCell<T> {
    static constexpr int kGates = 2;
    const GruForwardArgs<T>& a;
    T* gates;  // of step `base` and later
    T* rh;     // of step t at t * rh_step: 0 if it is not saved
    int64_t base, rh_step;
    StateInput<T> input;
    Zoneout<T> zoneout;

    T* gate(int64_t t, int64_t row) const { return gates + ((t - base) * a.B + row) * 3 * a.H; }
    const T* before(const T* first, const T* later, int64_t t) const {
        return t > 0 ? later + (t - 1) * a.B * a.H : first;
    }

    TileColumn<T> column(int64_t t, int64_t row, int64_t g, int64_t unit, int64_t n) const {
        return {gate(t, row) + g * a.H + unit, 3 * a.H, n, true, nullptr};
    }
    void finish(int64_t t, Range rows, int64_t unit, int64_t count) const {
        const T* const h_in = before(input.h0, input.y, t);
        for (int64_t row = rows.begin; row < rows.end; ++row) {
            T* const p = gate(t, row) + unit;
            const int64_t at = row * a.H + unit;
            Vec<T> r = load_n(p, count), z = load_n(p + a.H, count), reset;
            gru_reset<VecFn<T>>(r, z, reset, load_n(h_in + at, count));
            store_n(p, r, count);
            store_n(p + a.H, z, count);
            store_n(rh + t * rh_step + at, reset, count);
        }
    }
    const T* operand(int64_t t) const { return rh + t * rh_step; }
    TileColumn<T> second_column(int64_t t, int64_t row, int64_t unit, int64_t n) const {
        return {gate(t, row) + 2 * a.H + unit, 3 * a.H, n, true, nullptr};
    }
    void finish_second(int64_t t, Range rows, int64_t unit, int64_t count) const {
        const T* const h_prev = before(a.h0, a.y, t);
        for (int64_t row = rows.begin; row < rows.end; ++row) {
            T* const p = gate(t, row) + unit;
            const int64_t at = row * a.H + unit;
            Vec<T> n = load_n(p + 2 * a.H, count), h = load_n(h_prev + at, count);
            gru_update<VecFn<T>>(n, h, load_n(p + a.H, count));
            store_n(p + 2 * a.H, n, count);
            store_n(a.y + t * a.B * a.H + at, h, count);
        }
        finish_general(a.variant, zoneout, t, rows, unit, count, h_prev, a.y + t * a.B * a.H, a.B,
                       a.H);
    }
};

template <class T>
void gru_forward(const GruForwardArgs<T>& a) {
    const Sequence<T> s{a.T_, a.B, a.H, a.lengths};
    const RecurrentVariant<T>& v = a.variant;
    const int64_t H = a.H;
    const bool saves = a.gates != nullptr, reset_before = a.b_hn == nullptr;
    Scratch scratch;
    const StateInput<T> input(v, a.h0, a.y, a.B * H, scratch);
    if (v.h_in != nullptr) clear_ended(s, v.h_in, H, H);
    const Zoneout<T> zoneout(v, v.zoneout_h, kZoneoutH);
    const int64_t chunk = saves ? s.steps : chunk_steps(s);
    T* const gates = saves ? a.gates : scratch.take<T>(chunk * a.B * 3 * H);
    T* const hn = saves ? a.hn : scratch.take<T>((reset_before ? 1 : chunk) * a.B * H);
    T* const panels = scratch.take<T>(panel_size<T>(H, 3 * H));  // reset before: n's are the last
    T* const states = scratch.take<T>(2 * a.B * H);
    const StateNorm<T> norm = forward_norm(v, s.steps, a.B, 3 * H, scratch);
    Second<T> second;
    if (reset_before) {
        const int64_t first = panel_size<T>(H, 2 * H);
        const T* const packed = a.w_hh.panels != nullptr ? a.w_hh.panels + first : nullptr;
        second = {{a.w_hh.p + 2 * H * H, packed}, H, H, panels + first, scratch.take<T>(a.B * H)};
    }
    const Split split = split_of(s.steps, a.B, H, 3 * H, 3 * H * H * int64_t(sizeof(T)));
    for (int64_t t = 0; t < s.steps; t += chunk) {
        const int64_t end = t + chunk < s.steps ? t + chunk : s.steps;
        const ActiveRows rows(s, t, end);
        gemm(GemmArgs<T>{.M = rows.count,
                         .N = 3 * H,
                         .K = a.I,
                         .a = {a.x + t * a.B * a.I, a.I, false, rows.at},
                         .b = {a.w_ih.p, a.I, false},
                         .c = gates,
                         .ldc = 3 * H,
                         .bias = v.ln_gates != nullptr ? nullptr : a.b,
                         .c_at = rows.at,
                         .part = s.many_rows(),
                         .b_panels = a.w_ih.panels});
        if (v.ln_gates != nullptr)
            normalise_inputs(s, t, end, gates, v.norm, v.rstd, v.ln_gates, a.b, 3 * H);
        const T* const h_start = t == 0 ? input.h0 : input.y + (t - 1) * a.B * H;
        const auto run = [&](const auto& cell) {
            forward_loop(cell, s, t, end, a.w_hh, h_start, input.y, a.y, split, panels, states,
                         t == 0);
        };
        const GruForwardCell<T> cell{a, gates, hn, t};
        if (reset_before)
            run(GruBeforeForwardCell<T>{
                {false, second}, a, gates, hn, t, saves ? a.B * H : 0, input, zoneout});
        else if (v.any())
            run(GruGeneralForwardCell<T>{cell, {v.ln_gates != nullptr}, zoneout, norm});
        else
            run(cell);
    }
    last_states(s, a.y, a.h0, a.h_last);
}

template <class T>
struct GruBackwardCell {
    static constexpr int kGates = 3;
    static constexpr bool kGeneral = false;
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
struct GruGeneralBackwardCell : GruBackwardCell<T>, GeneralCell<T> {
    static constexpr bool kGeneral = true, kDirect = false;
    using GruBackwardCell<T>::a;
    Zoneout<T> zoneout;
    StateGradient<T> state;
    StateNorm<T> norm;

    T* gradient(int64_t t, int64_t g) const {
        return norm.gain != nullptr ? norm.row(t, 0) + g * a.H : GruBackwardCell<T>::gradient(t, g);
    }
    int64_t gradient_ld(int64_t g) const {
        return norm.gain != nullptr ? 3 * a.H : GruBackwardCell<T>::gradient_ld(g);
    }

    void pointwise(int64_t t, Range rows, int64_t unit, int64_t count) const {
        for (int64_t row = rows.begin; row < rows.end; ++row) {
            const int64_t at = row * a.H + unit;
            Vec<T> dh = load_n(a.dy + t * a.B * a.H + at, count) + state.at(row, unit, count);
            const Vec<T> direct = zoneout.past(t, row, unit, dh);
            dh = unclip(a.variant, a.y + t * a.B * a.H + at, count, dh);
            store_n(state.direct + at, direct + this->step_back(t, row, unit, count, dh), count);
        }
    }

    void pointwise_row(int64_t t, int64_t row) const {
        for (int64_t u = 0; u < a.H; u += kLanes<T>) pointwise(t, Range{row, row + 1}, u, a.H - u);
        norm.backward(t, row, a.H, [&](int64_t g, int64_t u, int64_t n) {
            const int64_t at = t * a.B + row;
            return load_n((g == 2 ? a.hn + at * a.H : a.gates + (at * 3 + g) * a.H) + u, n);
        });
    }
};

template <class T>
struct GruBeforeBackwardCell : GeneralCell<T> {
    static constexpr int kGates = 2;
    static constexpr bool kDirect = true;  // the reset state's part of the gradient
    const GruBackwardArgs<T>& a;
    StateInput<T> input;
    Zoneout<T> zoneout;
    StateGradient<T> state;
    T* drh;  // [B, H]

    T* gradient(int64_t t, int64_t g) const { return a.gates + (t * a.B * 3 + g) * a.H; }
    int64_t gradient_ld(int64_t) const { return 3 * a.H; }

    void before(int64_t t, Range rows, int64_t unit, int64_t count) const {
        const T* const h_prev = t > 0 ? a.y + (t - 1) * a.B * a.H : a.h0;
        for (int64_t row = rows.begin; row < rows.end; ++row) {
            const int64_t at = row * a.H + unit;
            T* const p = gradient(t, 0) + row * 3 * a.H + unit;
            Vec<T> z = load_n(p + a.H, count), n = load_n(p + 2 * a.H, count);
            Vec<T> dh = load_n(a.dy + t * a.B * a.H + at, count) + state.at(row, unit, count);
            const Vec<T> direct = zoneout.past(t, row, unit, dh);
            dh = unclip(a.variant, a.y + t * a.B * a.H + at, count, dh);
            gru_update_backward<VecFn<T>>(z, n, dh, load_n(h_prev + at, count));
            store_n(p + a.H, z, count);
            store_n(p + 2 * a.H, n, count);
            store_n(state.direct + at, direct + dh, count);
        }
    }
    const T* operand(int64_t t) const { return gradient(t, 2); }
    int64_t operand_ld() const { return 3 * a.H; }
    TileColumn<T> second_column(int64_t, int64_t row, int64_t unit, int64_t n) const {
        return {drh + row * a.H + unit, a.H, n, false, nullptr};
    }
    void pointwise(int64_t t, Range rows, int64_t unit, int64_t count) const {
        const T* const h_in = t > 0 ? input.y + (t - 1) * a.B * a.H : input.h0;
        for (int64_t row = rows.begin; row < rows.end; ++row) {
            const int64_t at = row * a.H + unit;
            T* const p = gradient(t, 0) + row * 3 * a.H + unit;
            Vec<T> r = load_n(p, count), d = load_n(drh + at, count);
            gru_reset_backward<VecFn<T>>(r, d, load_n(h_in + at, count));
            store_n(p, r, count);
            store_n(state.rec + at, d, count);
        }
    }
};

template <class T>
void gru_backward(const GruBackwardArgs<T>& a) {
    const Sequence<T> s{a.T_, a.B, a.H, a.lengths};
    const RecurrentVariant<T>& v = a.variant;
    const int64_t H = a.H;
    const bool reset_before = a.db_hn == nullptr, norms = v.ln_gates != nullptr;
    Scratch scratch;
    T* const panels = scratch.take<T>(panel_size<T>(H, 3 * H));
    T* const states = scratch.take<T>(2 * a.B * 3 * H);
    const Split split = split_of(s.steps, a.B, 3 * H, H, 3 * H * H * int64_t(sizeof(T)));
    const StateInput<T> input(v, a.h0, a.y, a.B * H, scratch);
    const StateNorm<T> norm = backward_norm(v, s.steps, a.B, 3 * H, scratch);
    start_gradient(a.dh0, a.dh_last, a.B * H);  // dh0 runs along with the sequence
    if (v.any() || reset_before) {
        const StateGradient<T> state = general_gradient(v, a.dh0, a.B, H, scratch);
        const Zoneout<T> zoneout(v, v.zoneout_h, kZoneoutH);
        const auto run = [&](const auto& cell) {
            backward_loop(cell, s, a.w_hh, state.rec, split, panels, states);
        };
        if (reset_before) {
            const Second<T> second{{a.w_hh + 2 * H * H},
                                   H,
                                   H,
                                   panels + panel_size<T>(H, 2 * H),
                                   scratch.take<T>(a.B * H)};
            run(GruBeforeBackwardCell<T>{
                {false, second}, a, input, zoneout, state, scratch.take<T>(a.B * H)});
        } else {
            run(GruGeneralBackwardCell<T>{
                GruBackwardCell<T>{a, state.rec}, {norms}, zoneout, state, norm});
        }
        state.finish(a.dh0, a.B);
    } else {
        backward_loop(GruBackwardCell<T>{a, a.dh0}, s, a.w_hh, a.dh0, split, panels, states);
    }
    // what the loop does not know as gradients that flow to h
    if (norms)
        clear_ended(s, a.gates, 3 * H, 3 * H);
    else
        clear_ended(s, a.gates + 2 * H, H, 3 * H);
    if (norms || reset_before) clear_ended(s, a.hn, H, H);
    const T* const d = norms ? v.norm : a.gates;
    if (norms) {
        norm_gradients(s, v, norm, a.db, static_cast<const T*>(a.gates));
        sum_rows<T>(s, a.db_hn, a.hn, H, nullptr, H);
    }
    if (norms)
        return layer_gradients<T>(s, a.dx, a.dw_ih, a.dw_hh, nullptr, d, norm.norm, 3 * H, a.x,
                                  a.w_ih, a.I, input.h0, input.y);
    const ActiveRows rows(s, 0, s.steps);
    data_gradient(s, rows, a.dx, d, a.w_ih, a.I, 3 * H);
    gemm(input_product(rows, a.dw_ih, a.db, d, a.x, a.I, 3 * H));
    gemm(recurrent_product(s, rows, a.dw_hh, d, 2 * H, 3 * H, input.h0, input.y));
    if (!reset_before)
        return gemm(recurrent_product(s, rows, a.dw_hh + 2 * H * H, static_cast<const T*>(a.hn), H,
                                      H, input.h0, input.y, a.db_hn));
    gemm(GemmArgs<T>{.M = H,
                     .N = H,
                     .K = rows.count,
                     .a = {d + 2 * H, 3 * H, true, rows.at},
                     .b = {a.hn, H, true, rows.at},
                     .c = a.dw_hh + 2 * H * H,
                     .ldc = H});
}
