// Products of few rows, which are bound by how fast the packed operand comes from its cache.
//
// One row and two vectors are two chains of multiply-adds, and the latency of those, not the cache,
// would set the pace. So several panels are taken at once. Each element stays the same chain.

// Panels taken together for R rows: eight chains or more, and all sums in registers.
template <int R>
constexpr int kPanelsAtOnce = R == 1 ? 4 : (R == 2 && kTileRows == 14 ? 4 : 2);
constexpr int kFewRows = kTileRows == 14 ? 4 : 2;

// R rows by NP panels of two vectors, `stride` elements apart. to: two columns a panel.
template <class T, int R, int NP>
void tile_panels(int64_t depth, const T* __restrict a, const T* __restrict b, int64_t stride,
                 const TileColumn<T>* to) {
    Vec<T> sum[NP][R][2];
#pragma GCC unroll 4
    for (int p = 0; p < NP; ++p)
#pragma GCC unroll 2
        for (int v = 0; v < 2; ++v) {
            const TileColumn<T>& c = to[2 * p + v];
            const Vec<T> start = c.start ? load_n(c.start, c.n) : Vec<T>{};
#pragma GCC unroll 4
            for (int r = 0; r < R; ++r) sum[p][r][v] = start;
        }
    for (int64_t k = 0; k < depth; ++k) {
#pragma GCC unroll 4
        for (int p = 0; p < NP; ++p) {
            const Vec<T> b0 = load(b + p * stride), b1 = load(b + p * stride + kLanes<T>);
#pragma GCC unroll 4
            for (int r = 0; r < R; ++r) {
                const Vec<T> ar = splat(a[r]);
                sum[p][r][0] += ar * b0;
                sum[p][r][1] += ar * b1;
            }
        }
        a += R;
        b += 2 * kLanes<T>;
    }
#pragma GCC unroll 4
    for (int p = 0; p < NP; ++p)
#pragma GCC unroll 2
        for (int v = 0; v < 2; ++v) {
            const TileColumn<T>& c = to[2 * p + v];
#pragma GCC unroll 4
            for (int r = 0; r < R; ++r) {
                T* const out = c.p + r * c.ld;
                const Vec<T> s = sum[p][r][v];
                store_n(out, c.accumulate ? load_n(out, c.n) + s : s, c.n);
            }
        }
}

// Panels [0, n) of two vectors over `rows` rows, as far as they come in full groups; returns how
// many were taken. column(vector, cut) says where a vector goes, counted from the first panel;
// depth is cut as for all tiles, because a cut is a rounding.
template <class T, int R, class Column>
inline int64_t run_few(int64_t n, int64_t depth, const T* a, const T* panels,
                       const Column& column) {
    constexpr int NP = kPanelsAtOnce<R>;
    const int64_t cuts = (depth + kMaxDepth<T> - 1) / kMaxDepth<T>;
    const int64_t cut = (depth + cuts - 1) / cuts, stride = depth * 2 * kLanes<T>;
    int64_t done = 0;
    for (; done + NP <= n; done += NP)
        for (int64_t k = 0; k < depth; k += cut) {
            TileColumn<T> to[2 * NP];
            for (int v = 0; v < 2 * NP; ++v) {
                to[v] = column(2 * done + v);
                if (k > 0) {
                    to[v].accumulate = true;
                    to[v].start = nullptr;
                }
            }
            tile_panels<T, R, NP>(depth - k < cut ? depth - k : cut, a + k * R,
                                  panels + done * stride + k * 2 * kLanes<T>, stride, to);
        }
    return done;
}

template <class T, class Column>
inline int64_t run_few_rows(int64_t rows, int64_t n, int64_t depth, const T* a, const T* panels,
                            const Column& column) {
    switch (rows) {
        case 1: return run_few<T, 1>(n, depth, a, panels, column);
        case 2: return run_few<T, 2>(n, depth, a, panels, column);
#if defined(NLM_ISA_avx512) || defined(__aarch64__)
        case 3: return run_few<T, 3>(n, depth, a, panels, column);
        case 4: return run_few<T, 4>(n, depth, a, panels, column);
#endif
        default: return 0;
    }
}

// Products of few rows with weights that are used so seldom that packing them would cost more: dot
// products along the rows of w, as they stand in memory.

// Lane by lane sums over k of a[r][k] w[j][k] for R rows of a and four of w, as out[r][j].
template <class T, int R>
inline void dot_4(int64_t depth, const T* const* a, const T* w, int64_t ldw, Vec<T> (*out)[4]) {
    constexpr int64_t L = kLanes<T>;
    Vec<T> sum[R][4] = {};
    int64_t k = 0;
    for (; k + L <= depth; k += L) {
        Vec<T> row[R];
#pragma GCC unroll 4
        for (int r = 0; r < R; ++r) row[r] = load(a[r] + k);
#pragma GCC unroll 4
        for (int j = 0; j < 4; ++j) {
            const Vec<T> wv = load(w + j * ldw + k);
            __builtin_prefetch(w + j * ldw + k + 4 * ldw, 0, 3);  // the next four rows
#pragma GCC unroll 4
            for (int r = 0; r < R; ++r) sum[r][j] += row[r] * wv;
        }
    }
    for (int j = 0; j < 4; ++j)
        for (int r = 0; r < R; ++r) {
            if (k < depth)
                sum[r][j] += load_n(a[r] + k, depth - k) * load_n(w + j * ldw + k, depth - k);
            out[r][j] = sum[r][j];
        }
}

// The to.n columns of a w^T, with rows of w `ldw` apart, to `to` for the rows that begin at
// a[0..R).
template <class T, int R>
void dot_column(int64_t depth, const T* const* a, const T* w, int64_t ldw,
                const TileColumn<T>& to) {
    constexpr int64_t L = kLanes<T>;
    T lanes[R][L * L] = {}, turned[L * L];  // [column][lane], and the other way
    for (int64_t j = 0; j < to.n; j += j + 4 <= to.n ? 4 : 1) {
        const bool four = j + 4 <= to.n;
        Vec<T> part[R][4];
        dot_4<T, R>(depth, a, w + j * ldw, four ? ldw : 0, part);  // or the same row four times
        for (int r = 0; r < R; ++r)
            for (int i = 0; i < (four ? 4 : 1); ++i) store(lanes[r] + (j + i) * L, part[r][i]);
    }
    for (int r = 0; r < R; ++r) {
        pack_transposed(turned, L, L, lanes[r], L, L, L);
        Vec<T> sum{};
        for (int64_t l = 0; l < L; ++l) sum += load(turned + l * L);
        T* const out = to.p + r * to.ld;
        if (to.accumulate)
            sum += load_n(out, to.n);
        else if (to.start != nullptr)
            sum += load_n(to.start, to.n);
        store_n(out, sum, to.n);
    }
}

// For up to kMostDotRows rows of a, `lda` apart.
template <class T>
inline void dot_rows(int64_t rows, int64_t depth, const T* a, int64_t lda, const T* w, int64_t ldw,
                     const TileColumn<T>& to) {
    const T* starts[kMostDotRows];
    for (int64_t r = 0; r < rows; ++r) starts[r] = a + r * lda;
    switch (rows) {
        case 1: return dot_column<T, 1>(depth, starts, w, ldw, to);
        case 2: return dot_column<T, 2>(depth, starts, w, ldw, to);
        case 3: return dot_column<T, 3>(depth, starts, w, ldw, to);
        case 4: return dot_column<T, 4>(depth, starts, w, ldw, to);
        default: return;
    }
}

// gemm() where A has up to kMostDotRows rows and both factors stand along their depth.
template <class T>
void dot_product(const GemmArgs<T>& g) {
    auto body = [&](int tid, int size) {
        const Range mine = share(g.N, kLanes<T>, tid, size);
        for (int64_t j = mine.begin; j < mine.end; j += kLanes<T>) {
            const int64_t n = mine.end - j < kLanes<T> ? mine.end - j : kLanes<T>;
            const T* const w = g.b.p + j * g.b.ld;
            TileColumn<T> to{g.c + j, g.ldc, n, g.accumulate, nullptr};
            if (g.bias != nullptr) to.start = g.bias + j;
            if (g.a.at == nullptr && g.c_at == nullptr) {
                dot_rows(g.M, g.K, g.a.p, g.a.ld, w, g.b.ld, to);
                continue;
            }
            for (int64_t m = 0; m < g.M; ++m) {
                const int64_t from = g.a.at != nullptr ? g.a.at[m] : m;
                to.p = g.c + j + (g.c_at != nullptr ? g.c_at[m] : m) * g.ldc;
                dot_rows(int64_t(1), g.K, g.a.p + from * g.a.ld, g.a.ld, w, g.b.ld, to);
            }
        }
    };
    parallel(threads_for(2.0 * double(g.M) * double(g.N) * double(g.K)), body);
}

// All gates of vectors of units: w [kGates * units, depth], rows of `a` depth apart; otherwise as
// run_vectors.
template <class T, int kGates, class Column, class Finish>
inline void dot_vectors(int64_t rows, Range vectors, int64_t units, int64_t depth, const T* a,
                        const T* w, const Column& column, const Finish& finish) {
    for (int64_t v = vectors.begin; v < vectors.end; ++v) {
        const int64_t unit = v * kLanes<T>;
        const int64_t n = units - unit < kLanes<T> ? units - unit : kLanes<T>;
        for (int g = 0; g < kGates; ++g)
            dot_rows(rows, depth, a, depth, w + (g * units + unit) * depth, depth,
                     column(0, g, unit, n));
        finish(unit, n);
    }
}
