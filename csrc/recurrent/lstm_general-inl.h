// The LSTM's general loops, for all variants (contract: lstm.h, equations: lstm_math.h).

// What the general loops read besides: G gates, 4 (i f g o) or 3 (i g o).
template <class T, int G>
struct LstmGeneral {
    static constexpr bool kCoupled = G == 3;
    static constexpr int kCell = G - 2, kOutput = G - 1;  // places of g and o
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
    Vec<T> p_i(int64_t unit, int64_t n) const { return peephole(0, unit, n); }
    Vec<T> p_f(int64_t unit, int64_t n) const { return kCoupled ? Vec<T>{} : peephole(1, unit, n); }
    Vec<T> p_o(int64_t unit, int64_t n) const { return peephole(G - 2, unit, n); }

    // What the output sees of the cell state, given N(c').
    Vec<T> seen(Vec<T> normalised, int64_t unit, int64_t n) const {
        return load_n(v.ln_cell + unit, n) * normalised + load_n(v.ln_cell + H + unit, n);
    }
};

template <class T, int G>
struct LstmGeneralForwardCell : GeneralCell<T> {
    static constexpr int kGates = G;
    using General = LstmGeneral<T, G>;
    using Fn = VecFn<T>;
    const LstmForwardArgs<T>& a;
    T* gates;  // of step `base` and later
    int64_t base, P;
    T* m;       // with projection; steps stand m_step apart, 0 if none is saved
    T* norm_c;  // with layer norm, likewise
    int64_t step;
    General general;
    StateNorm<T> norm;

    T* gate(int64_t t, int64_t row) const { return gates + ((t - base) * a.B + row) * G * a.H; }
    const T* h_prev(int64_t t) const { return t > 0 ? a.y + (t - 1) * a.B * P : a.h0; }
    T* output(int64_t t, int64_t row) const {
        return m != nullptr ? m + t * step + row * a.H : a.y + (t * a.B + row) * P;
    }

    TileColumn<T> column(int64_t t, int64_t row, int64_t g, int64_t unit, int64_t n) const {
        if (norm.gain != nullptr)
            return {norm.row(t, row) + g * a.H + unit, G * a.H, n, false, nullptr};
        return {gate(t, row) + g * a.H + unit, G * a.H, n, true, nullptr};
    }

    void finish(int64_t t, Range rows, int64_t unit, int64_t n) const {
        const int64_t H = a.H;
        const Vec<T> p_i = general.p_i(unit, n), p_f = general.p_f(unit, n);
        const Vec<T> p_o = general.p_o(unit, n);
        for (int64_t r = rows.begin; r < rows.end; ++r) {
            T* const p = gate(t, r) + unit;
            const Vec<T> c_prev = load_n(a.c_last + r * H + unit, n);
            Vec<T> i = load_n(p, n), f{}, g = load_n(p + General::kCell * H, n);
            Vec<T> o = load_n(p + General::kOutput * H, n), c = c_prev, h;
            if (G == 4) f = load_n(p + H, n);
            lstm_state<Fn, G == 3>(i, f, g, c, p_i, p_f, general.clip);
            lstm_output<Fn>(o, h, c, c, p_o);
            if (a.gates != nullptr) {
                keep_state(p, i, f, g, n);
                store_n(p + General::kOutput * H, o, n);
            }
            store_n(output(t, r) + unit, h, n);
            next_state(t, r, unit, n, c_prev, c);
        }
        if (m == nullptr) finish_h(t, rows, unit, n);
    }

    // With layer norm, when the products of a row are complete.
    void finish_row(int64_t t, int64_t r) const {
        constexpr int64_t L = kLanes<T>;
        const int64_t H = a.H;
        norm.forward(t, r);
        const T* const hat = norm.row(t, r);
        T* const fresh = norm_c + t * step + r * H;
        for (int64_t u = 0; u < H; u += L) {
            const int64_t n = H - u;
            T* const p = gate(t, r) + u;
            const auto pre = [&](int k) {
                const int64_t at = k * H + u;
                return load_n(p + k * H, n) + load_n(norm.gain + at, n) * load_n(hat + at, n);
            };
            Vec<T> i = pre(0), f{}, g = pre(General::kCell);
            Vec<T> c = load_n(a.c_last + r * H + u, n);
            if (G == 4) f = pre(1);
            lstm_state<Fn, G == 3>(i, f, g, c, general.p_i(u, n), general.p_f(u, n), general.clip);
            keep_state(p, i, f, g, n);
            store_n(p + General::kOutput * H, pre(General::kOutput), n);
            store_n(fresh + u, c, n);
        }
        const T rstd = normalise(fresh, H);
        if (norm.saves) a.variant.rstd[(2 * a.T_ + t) * a.B + r] = rstd;
        for (int64_t u = 0; u < H; u += L) {
            const int64_t n = H - u;
            T* const p = gate(t, r) + u;
            const Vec<T> c_prev = load_n(a.c_last + r * H + u, n);
            const Vec<T> seen = general.seen(load_n(fresh + u, n), u, n);
            const Vec<T> g = load_n(p + General::kCell * H, n), i = load_n(p, n);
            const Vec<T> f = G == 4 ? load_n(p + H, n) : T(1) - i;
            const Vec<T> c =
                a.variant.norm_state ? seen : Fn::clamp(f * c_prev + i * g, general.clip);
            Vec<T> o = load_n(p + General::kOutput * H, n), h;
            lstm_output<Fn>(o, h, c, seen, general.p_o(u, n));
            store_n(p + General::kOutput * H, o, n);
            store_n(output(t, r) + u, h, n);
            next_state(t, r, u, n, c_prev, c);
            if (m == nullptr) finish_h(t, Range{r, r + 1}, u, n);
        }
    }

    const T* operand(int64_t t) const { return m + t * step; }
    TileColumn<T> second_column(int64_t t, int64_t row, int64_t unit, int64_t n) const {
        return {a.y + (t * a.B + row) * P + unit, P, n, false, nullptr};
    }
    void finish_second(int64_t t, Range rows, int64_t unit, int64_t n) const {
        finish_h(t, rows, unit, n);
    }

private:
    void keep_state(T* p, Vec<T> i, Vec<T> f, Vec<T> g, int64_t n) const {
        store_n(p, i, n);
        if (G == 4) store_n(p + a.H, f, n);
        store_n(p + General::kCell * a.H, g, n);
    }
    void next_state(int64_t t, int64_t r, int64_t unit, int64_t n, Vec<T> c_prev, Vec<T> c) const {
        const int64_t at = r * a.H + unit;
        c = general.zoneout_c.mix(t, r, unit, c_prev, c);
        store_n(a.c_last + at, c, n);
        if (a.c != nullptr) store_n(a.c + t * a.B * a.H + at, c, n);
    }
    void finish_h(int64_t t, Range rows, int64_t unit, int64_t n) const {
        finish_general(a.variant, general.zoneout_h, t, rows, unit, n, h_prev(t), a.y + t * a.B * P,
                       a.B, P);
    }
};

template <class T>
Sequence<T> lstm_sequence(int64_t steps, int64_t batch, int64_t hidden, const int32_t* lengths,
                          const LstmVariant<T>& v) {
    return {steps, batch, hidden, lengths, v.w_hr.p != nullptr ? v.P : 0};
}

// The product with w_hr [P, H] (forward: H deep, P columns; backward: the other way).
template <class T>
Second<T> lstm_projection(const LstmVariant<T>& v, int64_t B, int64_t columns, int64_t depth,
                          Scratch& scratch) {
    if (v.w_hr.p == nullptr) return {};
    return {v.w_hr, columns, depth, scratch.take<T>(panel_size<T>(columns, depth)),
            scratch.take<T>(B * depth)};
}

template <class T, int G>
void lstm_general_forward(const LstmForwardArgs<T>& a, const Sequence<T>& s) {
    const LstmVariant<T>& v = a.variant;
    const int64_t H = a.H, P = s.width(), columns = G * H;
    const bool saves = a.gates != nullptr;
    Scratch scratch;
    const StateInput<T> input(v, a.h0, a.y, a.B * P, scratch);
    if (v.h_in != nullptr) clear_ended(s, v.h_in, P, P);
    if (v.m != nullptr) clear_ended(s, v.m, H, H);
    const int64_t chunk = saves ? s.steps : chunk_steps(s);
    T* const gates = saves ? a.gates : scratch.take<T>(chunk * a.B * columns);
    T* const m = v.w_hr.p == nullptr || saves ? v.m : scratch.take<T>(a.B * H);
    T* const norm_c = v.ln_gates == nullptr || saves ? v.norm_c : scratch.take<T>(a.B * H);
    T* const panels = scratch.take<T>(panel_size<T>(H, G * P));
    T* const states = scratch.take<T>(2 * a.B * P);
    const StateNorm<T> norm = forward_norm(v, s.steps, a.B, columns, scratch);
    const Second<T> second = lstm_projection(v, a.B, P, H, scratch);
    const Split split = split_of(s.steps, a.B, P, columns, columns * P * int64_t(sizeof(T)));
    for (int64_t t = 0; t < s.steps; t += chunk) {
        const int64_t end = t + chunk < s.steps ? t + chunk : s.steps;
        const ActiveRows rows(s, t, end);
        gemm(GemmArgs<T>{.M = rows.count,
                         .N = columns,
                         .K = a.I,
                         .a = {a.x + t * a.B * a.I, a.I, false, rows.at},
                         .b = {a.w_ih.p, a.I, false},
                         .c = gates,
                         .ldc = columns,
                         .bias = v.ln_gates != nullptr ? nullptr : a.b,
                         .c_at = rows.at,
                         .part = s.many_rows(),
                         .b_panels = a.w_ih.panels});
        if (v.ln_gates != nullptr)
            normalise_inputs(s, t, end, gates, v.norm, v.rstd, v.ln_gates, a.b, columns);
        const LstmGeneralForwardCell<T, G> cell{
            {v.ln_gates != nullptr, second}, a,   gates, t, P, m, norm_c, saves ? a.B * H : 0,
            LstmGeneral<T, G>(v, H),         norm};
        forward_loop(cell, s, t, end, a.w_hh, t == 0 ? input.h0 : input.y + (t - 1) * a.B * P,
                     input.y, a.y, split, panels, states, t == 0);
    }
    last_states(s, a.y, a.h0, a.h_last);
}

template <class T, int G>
struct LstmGeneralBackwardCell : GeneralCell<T> {
    static constexpr int kGates = G;
    static constexpr bool kDirect = false;
    using General = LstmGeneral<T, G>;
    using Fn = VecFn<T>;
    const LstmBackwardArgs<T>& a;
    T* dc;
    int64_t P;
    General general;
    StateGradient<T> state;
    StateNorm<T> norm;
    T* dr;  // with projection: gradients of h' [T,B,P], and of m at a step [B,H]
    T* dm;
    T* dpeephole;  // [B, (G-1) H], summed over time
    T* dln_cell;   // [B, 2H], likewise
    T* spare;      // with layer norm: [B, 2H]

    T* gate(int64_t t, int64_t row) const { return a.gates + (t * a.B + row) * G * a.H; }
    T* gradient(int64_t t, int64_t g) const {
        return (norm.gain != nullptr ? norm.row(t, 0) : gate(t, 0)) + g * a.H;
    }
    int64_t gradient_ld(int64_t) const { return G * a.H; }
    const T* c_before(int64_t t) const { return t > 0 ? a.c + (t - 1) * a.B * a.H : a.c0; }

    void before(int64_t t, Range rows, int64_t unit, int64_t n) const {
        for (int64_t r = rows.begin; r < rows.end; ++r)
            store_n(dr + (t * a.B + r) * P + unit, new_state(t, r, unit, n), n);
    }
    const T* operand(int64_t t) const { return dr + t * a.B * P; }
    int64_t operand_ld() const { return P; }
    TileColumn<T> second_column(int64_t, int64_t row, int64_t unit, int64_t n) const {
        return {dm + row * a.H + unit, a.H, n, false, nullptr};
    }

    void pointwise(int64_t t, Range rows, int64_t unit, int64_t n) const {
        const int64_t H = a.H;
        const Vec<T> p_i = general.p_i(unit, n), p_f = general.p_f(unit, n);
        const Vec<T> p_o = general.p_o(unit, n);
        for (int64_t r = rows.begin; r < rows.end; ++r) {
            T* const p = gate(t, r) + unit;
            const int64_t at = r * H + unit;
            const Vec<T> c_prev = load_n(c_before(t) + at, n), dh = output(t, r, unit, n);
            Vec<T> i = load_n(p, n), g = load_n(p + General::kCell * H, n);
            Vec<T> f = G == 4 ? load_n(p + H, n) : T(1) - i;
            Vec<T> o = load_n(p + General::kOutput * H, n), d = load_n(dc + at, n), dseen;
            const Vec<T> direct = general.zoneout_c.past(t, r, unit, d);
            const Vec<T> c = Fn::clamp(f * c_prev + i * g, general.clip);
            lstm_output_backward<Fn>(o, dseen, c, dh);
            store_n(p + General::kOutput * H, o, n);
            add_peephole(r, G - 2, unit, n, o * c);
            finish(t, r, unit, n, i, f, g, d + dseen + o * p_o, c_prev, p_i, p_f, direct);
        }
    }

    // With layer norm. Means over the row stand between its parts.
    void pointwise_row(int64_t t, int64_t r) const {
        constexpr int64_t L = kLanes<T>;
        const int64_t H = a.H;
        const bool norm_state = a.variant.norm_state;
        const T* const hat = a.variant.norm_c + (t * a.B + r) * H;
        const T* const c_prev = c_before(t) + r * H;
        T* const q = spare + r * 2 * H;  // gradient of N(c')
        T* const rest = q + H;           // the part of c's that passes by it
        T* const sums = dln_cell + r * 2 * H;
        Vec<T> sum{}, sum_n{};
        for (int64_t u = 0; u < H; u += L) {
            const int64_t n = H - u;
            T* const p = gate(t, r) + u;
            const Vec<T> normalised = load_n(hat + u, n), seen = general.seen(normalised, u, n);
            const Vec<T> dh = output(t, r, u, n);
            Vec<T> o = load_n(p + General::kOutput * H, n), d = load_n(dc + r * H + u, n), dn;
            const Vec<T> direct = general.zoneout_c.past(t, r, u, d);
            lstm_output_backward<Fn>(o, dn, seen, dh);
            store_n(p + General::kOutput * H, o, n);
            const Vec<T> i = load_n(p, n), f = G == 4 ? load_n(p + H, n) : T(1) - i;
            const Vec<T> c =
                norm_state
                    ? seen
                    : Fn::clamp(f * load_n(c_prev + u, n) + i * load_n(p + General::kCell * H, n),
                                general.clip);
            add_peephole(r, G - 2, u, n, o * c);
            const Vec<T> past = d + o * general.p_o(u, n);
            if (norm_state) dn = dn + past;
            store_n(rest + u, norm_state ? Vec<T>{} : past, n);
            store_n(dc + r * H + u, direct, n);
            store_n(sums + u, load_n(sums + u, n) + dn * normalised, n);
            store_n(sums + H + u, load_n(sums + H + u, n) + dn, n);
            const Vec<T> dhat = dn * load_n(a.variant.ln_cell + u, n);
            store_n(q + u, dhat, n);
            sum += dhat;
            sum_n += dhat * normalised;
        }
        const T mean = sum_lanes<T>(sum) / T(H), mean_n = sum_lanes<T>(sum_n) / T(H);
        const T rstd = a.variant.rstd[(2 * a.T_ + t) * a.B + r];
        for (int64_t u = 0; u < H; u += L) {
            const int64_t n = H - u;
            const T* const p = gate(t, r) + u;
            const Vec<T> i = load_n(p, n), f = G == 4 ? load_n(p + H, n) : T(1) - i;
            const Vec<T> d =
                load_n(rest + u, n) +
                normalise_back<T>(load_n(q + u, n), load_n(hat + u, n), mean, mean_n, rstd);
            finish(t, r, u, n, i, f, load_n(p + General::kCell * H, n), d, load_n(c_prev + u, n),
                   general.p_i(u, n), general.p_f(u, n), load_n(dc + r * H + u, n));
        }
        norm.backward(t, r, H, [&](int64_t g, int64_t u, int64_t n) {
            return load_n(gate(t, r) + g * H + u, n);
        });
    }

private:
    // Gradient of h', of which zoneout leaves the rest to the previous state.
    Vec<T> new_state(int64_t t, int64_t r, int64_t unit, int64_t n) const {
        Vec<T> dh = load_n(a.dy + (t * a.B + r) * P + unit, n) + state.at(r, unit, n);
        store_n(state.direct + r * P + unit, general.zoneout_h.past(t, r, unit, dh), n);
        return unclip(a.variant, a.y + (t * a.B + r) * P + unit, n, dh);
    }
    Vec<T> output(int64_t t, int64_t r, int64_t unit, int64_t n) const {
        return dm != nullptr ? load_n(dm + r * a.H + unit, n) : new_state(t, r, unit, n);
    }
    void add_peephole(int64_t r, int which, int64_t unit, int64_t n, Vec<T> value) const {
        if (dpeephole == nullptr) return;
        T* const sum = dpeephole + (r * (G - 1) + which) * a.H + unit;
        store_n(sum, load_n(sum, n) + value, n);
    }
    // The last part: from the gradient d of the new cell state to the gates' and c_prev's.
    void finish(int64_t t, int64_t r, int64_t unit, int64_t n, Vec<T> i, Vec<T> f, Vec<T> g,
                Vec<T> d, Vec<T> c_prev, Vec<T> p_i, Vec<T> p_f, Vec<T> direct) const {
        T* const p = gate(t, r) + unit;
        lstm_state_backward<Fn, G == 3>(i, f, g, d, c_prev, p_i, p_f, general.clip);
        store_n(p, i, n);
        if (G == 4) store_n(p + a.H, f, n);
        store_n(p + General::kCell * a.H, g, n);
        store_n(dc + r * a.H + unit, d + direct, n);
        add_peephole(r, 0, unit, n, i * c_prev);
        if (G == 4) add_peephole(r, 1, unit, n, f * c_prev);
    }
};

template <class T, int G>
void lstm_general_backward(const LstmBackwardArgs<T>& a, const Sequence<T>& s) {
    const LstmVariant<T>& v = a.variant;
    const int64_t B = a.B, H = a.H, P = s.width(), columns = G * H;
    const auto zeros = [](T* p, int64_t count) {
        start_gradient<T>(p, nullptr, count);
        return p;
    };
    Scratch scratch;
    const StateInput<T> input(v, a.h0, a.y, B * P, scratch);
    T* const panels = scratch.take<T>(panel_size<T>(P, columns));
    T* const states = scratch.take<T>(2 * B * columns);
    const StateGradient<T> state = general_gradient(v, a.dh0, B, P, scratch);
    const StateNorm<T> norm = backward_norm(v, s.steps, B, columns, scratch);
    T* const dpeephole =
        v.peephole != nullptr ? zeros(scratch.take<T>(B * (G - 1) * H), B * (G - 1) * H) : nullptr;
    T* const dln_cell =
        v.ln_gates != nullptr ? zeros(scratch.take<T>(B * 2 * H), B * 2 * H) : nullptr;
    T* const spare = v.ln_gates != nullptr ? scratch.take<T>(B * 2 * H) : nullptr;
    T* const dr = v.w_hr.p != nullptr ? scratch.take<T>(s.steps * B * P) : nullptr;
    T* const dm = v.w_hr.p != nullptr ? scratch.take<T>(B * H) : nullptr;
    const Second<T> second = lstm_projection(v, B, H, P, scratch);
    const Split split = split_of(s.steps, B, columns, P, columns * P * int64_t(sizeof(T)));
    const LstmGeneralBackwardCell<T, G> cell{{v.ln_gates != nullptr, second},
                                             a,
                                             a.dc0,
                                             P,
                                             LstmGeneral<T, G>(v, H),
                                             state,
                                             norm,
                                             dr,
                                             dm,
                                             dpeephole,
                                             dln_cell,
                                             spare};
    backward_loop(cell, s, a.w_hh, state.rec, split, panels, states);
    state.finish(a.dh0, B);
    const Sequence<T> batch{1, B, H, nullptr};
    if (v.peephole != nullptr)
        sum_rows<T>(batch, v.dpeephole, dpeephole, (G - 1) * H, nullptr, (G - 1) * H);
    const T* d = a.gates;  // gradient of w_ih x
    const T* d_hh = a.gates;
    T* db = a.db;
    if (v.ln_gates != nullptr) {
        clear_ended(s, a.gates, columns, columns);
        sum_rows<T>(batch, v.dln_cell, dln_cell, 2 * H, nullptr, 2 * H);
        norm_gradients(s, v, norm, a.db, d);
        d = v.norm, d_hh = norm.norm, db = nullptr;
    }
    if (v.w_hr.p != nullptr) {
        const ActiveRows rows(s, 0, s.steps);
        gemm(GemmArgs<T>{.M = P,
                         .N = H,
                         .K = rows.count,
                         .a = {dr, P, true, rows.at},
                         .b = {v.m, H, true, rows.at},
                         .c = v.dw_hr,
                         .ldc = H});
    }
    layer_gradients(s, a.dx, a.dw_ih, a.dw_hh, db, d, d_hh, columns, a.x, a.w_ih, a.I, input.h0,
                    input.y);
}
