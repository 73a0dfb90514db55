// The loops over time that all recurrent cells share. A cell gives its gates' places and its
// pointwise equations; here are the packed weights, the threads and the order of the work.
//
// Weights are packed once a call. A member of the team owns either some rows of the batch, and
// then needs no barrier in the whole sequence (weights that its cache holds, or many rows), or
// some units, and then waits for the others once a step. Gates are computed in vectors of units,
// all gates of a vector one after another, so the pointwise equations read them from the
// first-level cache. General cells may have equations on whole rows (layer norm) and a second
// product a step (projection, reset before the product); for plain ones none of that is compiled.

template <class T>
struct Sequence {
    int64_t steps, batch, hidden;
    const int32_t* lengths;  // not increasing, or null
    int64_t projected = 0;   // width of the state h, if not hidden

    bool takes_part(int64_t t, int64_t row) const { return lengths == nullptr || t < lengths[row]; }

    // Whether a pass has more rows than products take as few (gemm-inl.h), whatever pieces it is
    // computed in.
    bool many_rows() const {
        int64_t rows = lengths == nullptr ? steps * batch : 0;
        for (int64_t r = 0; lengths != nullptr && r < batch; ++r) rows += lengths[r];
        return rows > kMostDotRows;
    }

    int64_t width() const { return projected > 0 ? projected : hidden; }

    // Rows of [begin, end) that take part in step t: a prefix, because rows are sorted.
    int64_t active_end(int64_t t, int64_t begin, int64_t end) const {
        if (lengths != nullptr)
            while (end > begin && lengths[end - 1] <= t) --end;
        return end;
    }
};

// The rows of the matrix of steps [t0, t1) that take part: products leave out those that have
// ended. `at` is null where all take part.
struct ActiveRows {
    Scratch scratch;
    int64_t count;
    const int64_t* at = nullptr;

    template <class T>
    ActiveRows(const Sequence<T>& s, int64_t t0, int64_t t1) : count((t1 - t0) * s.batch) {
        if (s.active_end(t1 - 1, 0, s.batch) == s.batch) return;
        int64_t* const places = scratch.take<int64_t>(count);
        at = places;
        count = 0;
        int64_t end = s.batch;
        for (int64_t t = t0; t < t1; ++t) {
            end = s.active_end(t, 0, end);
            for (int64_t r = 0; r < end; ++r) places[count++] = (t - t0) * s.batch + r;
        }
    }
};

// Zeroes `columns` of each row of p [steps * batch, ld] that has ended.
template <class T>
inline void clear_ended(const Sequence<T>& s, T* p, int64_t columns, int64_t ld) {
    int64_t end = s.batch;
    for (int64_t t = 0; t < s.steps && s.lengths != nullptr; ++t) {
        end = s.active_end(t, 0, end);
        for (int64_t r = end; r < s.batch; ++r)
            __builtin_memset(p + (t * s.batch + r) * ld, 0, std::size_t(columns) * sizeof(T));
    }
}

struct Split {
    int threads;
    bool by_rows;
};

// How a loop of `steps` products [batch, depth] x [depth, columns] is divided.
inline Split split_of(int64_t steps, int64_t batch, int64_t depth, int64_t columns,
                      int64_t weight_bytes) {
    const double step = 2.0 * double(batch) * double(depth) * double(columns);
    const int most = get_num_threads();
    if (batch >= 8 * int64_t(most) && weight_bytes <= (int64_t(3) << 20))
        return {threads_for(step * double(steps)), true};
    const int worth = int(step / 100e3);  // a barrier a step
    return {worth < 1 ? 1 : (worth < most ? worth : most), false};
}

// Rows of the batch with nearly the same number of steps for each member.
template <class T>
inline Range share_of_rows(const Sequence<T>& s, int tid, int size) {
    if (s.lengths == nullptr) return share(s.batch, 1, tid, size);
    int64_t total = 0;
    for (int64_t r = 0; r < s.batch; ++r) total += s.lengths[r];
    const auto first = [&](int member) {
        if (member == 0) return int64_t(0);
        int64_t row = 0, steps = 0;
        for (; row < s.batch && (steps + s.lengths[row]) * size <= total * member; ++row)
            steps += s.lengths[row];
        return row;
    };
    return {first(tid), first(tid + 1)};
}

// What one member owns.
struct Share {
    Range rows, vectors;  // vectors of units
    bool by_rows;
    int tid, size;
};

// Vectors of recurrent weights that are taken at once.
template <class T>
inline int panel_vecs(const Sequence<T>& s, const Split& split) {
    return s.batch <= kFewRows && !split.by_rows ? kFewVecs : kTileVecs;
}
template <class T>
inline Share share_of(const Sequence<T>& s, int64_t units, const Split& split, int tid, int size,
                      int64_t grain = 1) {
    const int64_t vectors = (units + kLanes<T> - 1) / kLanes<T>;
    if (split.by_rows) return {share_of_rows(s, tid, size), {0, vectors}, true, tid, size};
    return {{0, s.batch}, share(vectors, grain, tid, size), false, tid, size};
}

// A second product in each step of a general cell: its weights are packed beside w_hh's, and its
// operand as `packed` when the step has computed it.
template <class T>
struct Second {
    Weights<T> w{};  // [columns, depth]; null: none
    int64_t columns = 0, depth = 0;
    T* panels = nullptr;
    T* packed = nullptr;  // [batch, depth]
};

// What general cells have not.
template <class T>
struct GeneralCell {
    static constexpr bool kGeneral = true;
    bool whole_rows = false;
    Second<T> second{};

    const T* operand(int64_t) const { return nullptr; }
    int64_t operand_ld() const { return 0; }
    TileColumn<T> second_column(int64_t, int64_t, int64_t, int64_t) const { return {}; }
    void finish_second(int64_t, Range, int64_t, int64_t) const {}
    void before(int64_t, Range, int64_t, int64_t) const {}
    void finish_row(int64_t, int64_t) const {}
    void pointwise_row(int64_t, int64_t) const {}
};

// Whether a forward pass reads weights as they stand: for few rows and steps packing would cost
// more than it saves.
template <class T>
inline bool takes_dots(const Sequence<T>& s, const Split& split) {
    constexpr int64_t kMostSteps = 4;
    const int64_t steps = s.lengths != nullptr && s.batch > 0 ? s.lengths[0] : s.steps;
    return steps <= kMostSteps && s.batch <= kMostDotRows && !split.by_rows;
}

// A member's rows among the active ones, where equations on whole rows are computed.
inline Range own_rows(const Share& own, int64_t begin, int64_t end) {
    if (own.by_rows) return {begin, end};
    const Range mine = share(end - begin, 1, own.tid, own.size);
    return {begin + mine.begin, begin + mine.end};
}

// Runs steps [t0, t1) forward. Cell: kGates; column(t, row, gate, unit vector, n) says where a
// gate's product goes; finish(t, rows, unit, n) computes the new state into y [steps, batch,
// width]. General cells: finish_row(t, row) instead of it if whole_rows; then, if there is a second
// product, operand(t) [batch, depth], second_column and finish_second.
// h_start is the state before t0 and h_in [steps, batch, width] the states that follow, as they
// enter w_hh (y itself, or y masked); y beyond a row's length becomes zero. pack_weights: the
// panels do not hold w_hh from an earlier call of the same pass. Weights that come packed are read
// where they are, unless the panels are those of few rows.
template <class T, class Cell>
void forward_loop(const Cell& cell, const Sequence<T>& s, int64_t t0, int64_t t1, Weights<T> w_hh,
                  const T* h_start, const T* h_in, T* y, const Split& split, T* panels, T* states,
                  bool pack_weights) {
    constexpr int G = Cell::kGates;
    const int64_t H = s.hidden, P = s.width(), B = s.batch;
    const bool dots = takes_dots(s, split);
    const int at_once = panel_vecs(s, split);
    // for many steps of few rows it pays to pack wider panels than frozen weights come in
    constexpr int64_t kMostSteps = 24;
    const auto packed = [&](const Weights<T>& w) {
        return w.panels != nullptr && (at_once == kTileVecs || s.steps <= kMostSteps);
    };
    const auto wide = [&](const Weights<T>& w) { return packed(w) ? kTileVecs : at_once; };
    const T* const w_panels = packed(w_hh) ? w_hh.panels : panels;
    // a member's units begin where a panel of all units does
    int64_t grain = packed(w_hh) && G % kTileVecs != 0 ? kTileVecs : 1;
    if constexpr (Cell::kGeneral)
        if (packed(cell.second.w)) grain = kTileVecs;
    auto body = [&](int tid, int size) {
        const Share own = share_of(s, H, split, tid, size, grain);
        const Share out = share_of(s, P, split, tid, size, grain);
        // own panels depend on the size of the team, which another caller's work may have changed
        if (!dots && (!own.by_rows || pack_weights)) {
            const int of = own.by_rows ? tid : 0, all = own.by_rows ? size : 1;
            if (!packed(w_hh)) pack_forward(panels, H, P, w_hh.p, G, at_once, own.vectors, of, all);
            if constexpr (Cell::kGeneral) {
                const Second<T>& second = cell.second;
                if (second.w.p != nullptr && !packed(second.w))
                    pack_forward(second.panels, second.columns, second.depth, second.w.p, 1,
                                 at_once, out.vectors, of, all);
            }
        }
        const Range units = units_of<T>(own.vectors, H), kept = units_of<T>(out.vectors, P);
        const int64_t begin = own.rows.begin;
        int64_t end = s.active_end(t0, begin, own.rows.end);
        if (!dots && end > begin && kept.end > kept.begin)
            pack_state(states, row_blocks(end - begin), begin, h_start, P, kept.begin, kept.end,
                       kept.begin, P);
        if (!own.by_rows || pack_weights) team_barrier(size);
        for (int64_t t = t0; t < t1; ++t) {
            T* const now = states + ((t - t0) & 1) * B * P;
            T* const next = states + ((t - t0 + 1) & 1) * B * P;
            const RowBlocks blocks = row_blocks(end - begin);
            const Range rows{begin, end};
            const auto column = [&](int64_t row, int64_t gate, int64_t unit, int64_t n) {
                return cell.column(t, row, gate, unit, n);
            };
            const auto finish = [&](int64_t unit, int64_t n) {
                if constexpr (Cell::kGeneral)
                    if (cell.whole_rows) return;
                cell.finish(t, rows, unit, n);
            };
            if (end > begin && dots)
                dot_vectors<T, G>(end, own.vectors, H, P, t > t0 ? h_in + (t - 1) * B * P : h_start,
                                  w_hh.p, column, finish);
            else if (end > begin)
                run_vectors<T, G>(blocks, begin, own.vectors, at_once, wide(w_hh), H, P, now,
                                  w_panels, column, finish);
            if constexpr (Cell::kGeneral) {
                if (cell.whole_rows) {
                    if (!own.by_rows) team_barrier(size);
                    const Range mine = own_rows(own, begin, end);
                    for (int64_t r = mine.begin; r < mine.end; ++r) cell.finish_row(t, r);
                    if (!own.by_rows) team_barrier(size);
                }
                if (const Second<T>& second = cell.second; second.w.p != nullptr) {
                    if (!dots && end > begin && units.end > units.begin)
                        pack_state(second.packed, blocks, begin, cell.operand(t), H, units.begin,
                                   units.end, units.begin, second.depth);
                    if (!own.by_rows) team_barrier(size);
                    const auto column_2 = [&](int64_t row, int64_t, int64_t unit, int64_t n) {
                        return cell.second_column(t, row, unit, n);
                    };
                    const auto finish_2 = [&](int64_t unit, int64_t n) {
                        cell.finish_second(t, rows, unit, n);
                    };
                    if (end > begin && dots)
                        dot_vectors<T, 1>(end, out.vectors, P, second.depth, cell.operand(t),
                                          second.w.p, column_2, finish_2);
                    else if (end > begin)
                        run_vectors<T, 1>(blocks, begin, out.vectors, at_once, wide(second.w), P,
                                          second.depth, second.packed,
                                          packed(second.w) ? second.w.panels : second.panels,
                                          column_2, finish_2);
                }
            }
            for (int64_t r = end; r < own.rows.end; ++r)
                for (int64_t u = kept.begin; u < kept.end; ++u) y[(t * B + r) * P + u] = T(0);
            if (t + 1 == t1) break;
            end = s.active_end(t + 1, begin, end);
            if (!dots && end > begin && kept.end > kept.begin)
                pack_state(next, row_blocks(end - begin), begin, h_in + t * B * P, P, kept.begin,
                           kept.end, kept.begin, P);
            if (!own.by_rows) team_barrier(size);
        }
    };
    parallel(split.threads, body);
}

// The state after each row's last step.
template <class T>
inline void last_states(const Sequence<T>& s, const T* y, const T* h0, T* h_last) {
    const int64_t H = s.width();
    for (int64_t r = 0; r < s.batch; ++r) {
        const int64_t n = s.lengths != nullptr ? s.lengths[r] : s.steps;
        const T* from = n == 0 ? h0 + r * H : y + ((n - 1) * s.batch + r) * H;
        __builtin_memcpy(h_last + r * H, from, std::size_t(H) * sizeof(T));
    }
}

// Runs all steps backward. Cell: kGates; kDirect, whether part of dh passes by the gates;
// pointwise(t, rows, unit, n) turns dh (dy[t] + rec) into the gates' gradients; gradient(t, gate)
// is where they stand, with their row length. `rec` [batch, width] is the gradient of the state
// before step t; it starts as that of the last state. General cells: if there is a second product,
// before(t, rows, unit, n) first computes operand(t) [batch, depth], and the product goes to
// second_column; pointwise_row(t, row) instead of pointwise if whole_rows.
template <class T, class Cell>
void backward_loop(const Cell& cell, const Sequence<T>& s, const T* w_hh, T* rec,
                   const Split& split, T* panels, T* states) {
    constexpr int64_t L = kLanes<T>;
    constexpr int G = Cell::kGates;
    const int64_t H = s.hidden, P = s.width(), B = s.batch, depth = G * H;
    const int wide = panel_vecs(s, split);
    auto body = [&](int tid, int size) {
        const Share own = share_of(s, H, split, tid, size);
        const Share out = share_of(s, P, split, tid, size);
        const int of = own.by_rows ? tid : 0, all = own.by_rows ? size : 1;
        pack_backward(panels, P, depth, w_hh, wide, out.vectors, of, all);
        if constexpr (Cell::kGeneral) {
            const Second<T>& second = cell.second;
            if (second.w.p != nullptr)
                pack_backward(second.panels, H, second.depth, second.w.p, wide, own.vectors, of,
                              all);
        }
        if (own.by_rows) team_barrier(size);
        const Range units = units_of<T>(own.vectors, H), kept = units_of<T>(out.vectors, P);
        const int64_t begin = own.rows.begin;
        for (int64_t t = s.steps - 1; t >= 0; --t) {
            const int64_t end = s.active_end(t, begin, own.rows.end);
            T* const now = states + (t & 1) * B * depth;
            const RowBlocks blocks = row_blocks(end - begin);
            const Range rows{begin, end};
            bool by_vectors = end > begin;
            if constexpr (Cell::kGeneral) {
                if (const Second<T>& second = cell.second; second.w.p != nullptr) {
                    for (int64_t v = out.vectors.begin; v < out.vectors.end && end > begin; ++v)
                        cell.before(t, rows, v * L, units_in<T>(P, v));
                    if (end > begin && kept.end > kept.begin)
                        pack_state(second.packed, blocks, begin, cell.operand(t), cell.operand_ld(),
                                   kept.begin, kept.end, kept.begin, second.depth);
                    if (!own.by_rows) team_barrier(size);
                    if (end > begin)
                        run_vectors<T, 1>(
                            blocks, begin, own.vectors, wide, wide, H, second.depth, second.packed,
                            second.panels,
                            [&](int64_t row, int64_t, int64_t unit, int64_t n) {
                                return cell.second_column(t, row, unit, n);
                            },
                            [](int64_t, int64_t) {});
                }
                if (cell.whole_rows) {
                    by_vectors = false;
                    if (!own.by_rows) team_barrier(size);
                    const Range mine = own_rows(own, begin, end);
                    for (int64_t r = mine.begin; r < mine.end; ++r) cell.pointwise_row(t, r);
                    if (!own.by_rows) team_barrier(size);
                }
            }
            for (int64_t v = own.vectors.begin; v < own.vectors.end && by_vectors; ++v)
                cell.pointwise(t, rows, v * L, units_in<T>(H, v));
            for (int g = 0; g < G; ++g) {
                T* const gradient = cell.gradient(t, g);
                const int64_t ld = cell.gradient_ld(g);
                for (int64_t r = end; r < own.rows.end; ++r)
                    for (int64_t u = units.begin; u < units.end; ++u) gradient[r * ld + u] = T(0);
                if (end > begin && units.end > units.begin)
                    pack_state(now, blocks, begin, gradient, ld, units.begin, units.end,
                               g * H + units.begin, depth);
            }
            if (!own.by_rows) team_barrier(size);
            if (end > begin)
                run_vectors<T, 1>(
                    blocks, begin, out.vectors, wide, wide, P, depth, now, panels,
                    [&](int64_t row, int64_t, int64_t unit, int64_t n) {
                        return TileColumn<T>{rec + row * P + unit, P, n, Cell::kDirect, nullptr};
                    },
                    [](int64_t, int64_t) {});
        }
    };
    parallel(split.threads, body);
}

// dx = d w_ih from the pre-activations' gradient d [N, columns]; dx may be null.
template <class T>
void data_gradient(const Sequence<T>& s, const ActiveRows& rows, T* dx, const T* d, const T* w_ih,
                   int64_t inputs, int64_t columns) {
    if (dx == nullptr) return;
    gemm(GemmArgs<T>{.M = rows.count,
                     .N = inputs,
                     .K = columns,
                     .a = {d, columns, false, rows.at},
                     .b = {w_ih, inputs, true},
                     .c = dx,
                     .ldc = inputs,
                     .c_at = rows.at});
    clear_ended(s, dx, inputs, inputs);
}

// dw_ih = d^T x, db = sum of d's rows.
template <class T>
GemmArgs<T> input_product(const ActiveRows& rows, T* dw_ih, T* db, const T* d, const T* x,
                          int64_t inputs, int64_t columns) {
    return {.M = columns,
            .N = inputs,
            .K = rows.count,
            .a = {d, columns, true, rows.at},
            .b = {x, inputs, true, rows.at},
            .c = dw_ih,
            .ldc = inputs,
            .a_sum = db};
}

// dw_hh = d^T h_prev, d_sum = sum of d's rows, where h_prev is h0 at the first step and y one step
// earlier at the others.
template <class T>
GemmArgs<T> recurrent_product(const Sequence<T>& s, const ActiveRows& rows, T* dw_hh, const T* d,
                              int64_t columns, int64_t ld, const T* h0, const T* y,
                              T* d_sum = nullptr) {
    return {.M = columns,
            .N = s.width(),
            .K = rows.count,
            .a = {d, ld, true, rows.at},
            .b = {y, s.width(), true, rows.at, h0, s.batch},
            .c = dw_hh,
            .ldc = s.width(),
            .a_sum = d_sum};
}

// Gradients of input, weights and bias from those of w_ih x and of w_hh h: d and d_hh [N, columns].
template <class T>
void layer_gradients(const Sequence<T>& s, T* dx, T* dw_ih, T* dw_hh, T* db, const T* d,
                     const T* d_hh, int64_t columns, const T* x, const T* w_ih, int64_t inputs,
                     const T* h0, const T* y) {
    const ActiveRows rows(s, 0, s.steps);
    data_gradient(s, rows, dx, d, w_ih, inputs, columns);
    const auto in = input_product(rows, dw_ih, db, d, x, inputs, columns);
    const auto back = recurrent_product(s, rows, dw_hh, d_hh, columns, columns, h0, y);
    if (d == d_hh) return gemm_both(in, back);
    gemm(in);
    gemm(back);
}

// rec starts as the gradient of the last state, which may be absent.
template <class T>
inline void start_gradient(T* rec, const T* d_last, int64_t count) {
    if (d_last == nullptr)
        __builtin_memset(rec, 0, std::size_t(count) * sizeof(T));
    else
        __builtin_memcpy(rec, d_last, std::size_t(count) * sizeof(T));
}

// Steps whose gates fit a scratch of about 1024 rows, for forward passes that save nothing.
template <class T>
inline int64_t chunk_steps(const Sequence<T>& s) {
    const int64_t steps = s.batch > 0 ? 1024 / s.batch : s.steps;
    return steps < 1 ? 1 : (steps < s.steps ? steps : s.steps);
}
