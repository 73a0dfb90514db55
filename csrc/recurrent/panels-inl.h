// Recurrent weights and states in panels, and the products of one step.

template <class T>
inline int64_t units_in(int64_t units, int64_t vector) {
    const int64_t left = units - vector * kLanes<T>;
    return left < kLanes<T> ? left : kLanes<T>;
}

// The units of some vectors.
template <class T>
inline Range units_of(Range vectors, int64_t units) {
    const int64_t end = vectors.end * kLanes<T>;
    return {vectors.begin * kLanes<T>, end < units ? end : units};
}

// Elements of the panels of `units` columns (or gates of units), `depth` (of all gates) deep.
template <class T>
inline int64_t panel_size(int64_t units, int64_t depth) {
    return (units + kLanes<T> - 1) / kLanes<T> * kLanes<T> * depth;
}

// Packs rows [rows.begin, rows.end) of m [batch, ld], columns [c0, c1), as values k0.. of row
// blocks of `depth`.
template <class T>
inline void pack_state(T* out, const RowBlocks& blocks, int64_t first_row, const T* m, int64_t ld,
                       int64_t c0, int64_t c1, int64_t k0, int64_t depth) {
    for (int64_t i = 0; i < blocks.blocks; ++i) {
        const int64_t r = blocks.first(i), n = blocks.count(i);
        pack_transposed(out + (first_row + r) * depth + k0 * n, n, n, m + (first_row + r) * ld + c0,
                        ld, n, c1 - c0);
    }
}

// Panels of w [gates * units, depth] for h w^T, `wide` vectors each: vector j of the panels holds
// gate j % gates of unit vector j / gates.
template <class T>
inline void pack_forward(T* out, int64_t units, int64_t depth, const T* w, int gates, int wide,
                         Range vectors, int tid, int size) {
    constexpr int64_t L = kLanes<T>;
    const int64_t first = vectors.begin * gates, last = vectors.end * gates;
    const Range mine = share((last - first + wide - 1) / wide, 1, tid, size);
    for (int64_t p = mine.begin; p < mine.end; ++p) {
        const int64_t j0 = first + wide * p;
        const int64_t vecs = last - j0 < wide ? last - j0 : wide;
        for (int64_t v = 0; v < vecs; ++v) {
            const int64_t unit = (j0 + v) / gates, gate = (j0 + v) % gates;
            pack_transposed(out + j0 * depth * L + v * L, vecs * L, L,
                            w + (gate * units + unit * L) * depth, depth, units_in<T>(units, unit),
                            depth);
        }
    }
}

// Panels of w [depth, columns] for d w, `wide` vectors each.
template <class T>
inline void pack_backward(T* out, int64_t columns, int64_t depth, const T* w, int wide,
                          Range vectors, int tid, int size) {
    constexpr int64_t L = kLanes<T>;
    const Range mine = share((vectors.end - vectors.begin + wide - 1) / wide, 1, tid, size);
    for (int64_t p = mine.begin; p < mine.end; ++p) {
        const int64_t v0 = vectors.begin + wide * p;
        const int64_t width = (vectors.end - v0 < wide ? vectors.end - v0 : wide) * L;
        const int64_t left = columns - v0 * L;
        pack_straight(out + v0 * depth * L, width, width, w + v0 * L, columns,
                      left < width ? left : width, depth);
    }
}

// All row blocks of one panel, cut in depth so that the panel's part stays in the first-level
// cache while the row blocks pass over it.
template <class T, class Column>
inline void run_panel(const RowBlocks& blocks, int64_t first_row, int vecs, int64_t depth,
                      const T* a, const T* panel, const Column& column) {
    const int64_t cut = depth_cut<T>(depth);
    for (int64_t k = 0; k < depth; k += cut) {
        const int64_t kc = depth - k < cut ? depth - k : cut;
        for (int64_t i = 0; i < blocks.blocks; ++i) {
            const int64_t row = first_row + blocks.first(i), n = blocks.count(i);
            TileColumn<T> to[2];
            for (int v = 0; v < vecs; ++v) {
                to[v] = column(v, row);
                if (k > 0) {
                    to[v].accumulate = true;
                    to[v].start = nullptr;
                }
            }
            run_tile(n, vecs, kc, a + row * depth + k * n, panel + k * vecs * kLanes<T>, to);
        }
    }
}

// Panels of vectors of units, kGates of each, `wide` vectors in a panel, over all row blocks, by
// `at_once` vectors, which are a panel or, for few rows, may be two;
// finish(unit, n) follows when a vector's gates are complete.
template <class T, int kGates, class Column, class Finish>
inline void run_vectors(const RowBlocks& blocks, int64_t first_row, Range vectors, int at_once,
                        int wide, int64_t units, int64_t depth, const T* a, const T* panels,
                        const Column& column, const Finish& finish) {
    constexpr int64_t L = kLanes<T>;
    const int64_t last = vectors.end * kGates;
    int64_t unit = vectors.begin;
    for (int64_t j = vectors.begin * kGates; j < last; j += at_once) {
        const int vecs = int(last - j < at_once ? last - j : at_once);
        const auto to = [&](int v, int64_t row) {
            const int64_t u = (j + v) / kGates;
            return column(row, (j + v) % kGates, u * L, units_in<T>(units, u));
        };
        if (at_once > kTileVecs)
            run_few(blocks.rows, vecs, wide, depth, a + first_row * depth, panels + j * depth * L,
                    [&](int v) { return to(v, first_row); });
        else
            run_panel(blocks, first_row, vecs, depth, a, panels + j * depth * L, to);
        for (; (unit + 1) * kGates <= j + vecs; ++unit) finish(unit * L, units_in<T>(units, unit));
    }
}

// The same of few rows of `a`, depth apart, with w [kGates * units, depth] as it stands in memory:
// gate by gate, along its rows.
template <class T, int kGates, class Column, class Finish>
inline void dot_vectors(int64_t rows, Range vectors, int64_t units, int64_t depth, const T* a,
                        const T* w, const Column& column, const Finish& finish) {
    constexpr int64_t L = kLanes<T>;
    for (int g = 0; g < kGates; ++g)
        for (int64_t v = vectors.begin; v < vectors.end; ++v)
            dot_rows(rows, depth, a, depth, w + (g * units + v * L) * depth, depth,
                     column(0, g, v * L, units_in<T>(units, v)));
    for (int64_t v = vectors.begin; v < vectors.end; ++v) finish(v * L, units_in<T>(units, v));
}
