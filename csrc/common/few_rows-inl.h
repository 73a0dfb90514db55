// Products of few rows, which are bound by how fast the packed operand comes from its cache.
//
// One row and two vectors are two chains of multiply-adds, and their latency, not the cache, would
// set the pace. So four vectors are taken at once: of one panel that is so wide, which is one long
// stream for the hardware to foresee, or of two of the usual width, which frozen weights come in
// (up to a third slower in the second-level cache). Each element stays the same chain.

constexpr int kFewVecs = 4;
constexpr int kFewRows = kTileRows == 14 ? 4 : 2;  // sums in registers

// Where the first two vectors of a panel stand, and the others, each `step` numbers from those of
// the next depth.
template <class T>
struct FewPanels {
    const T* begin[2];
    int64_t step[2];
};

template <class T, int R, int NV>
void tile_few(int64_t depth, const T* __restrict a, FewPanels<T> b, const TileColumn<T>* to) {
    Vec<T> sum[R][NV];
#pragma GCC unroll 4
    for (int v = 0; v < NV; ++v) {
        const Vec<T> start = to[v].start ? load_n(to[v].start, to[v].n) : Vec<T>{};
#pragma GCC unroll 4
        for (int r = 0; r < R; ++r) sum[r][v] = start;
    }
    for (int64_t k = 0; k < depth; ++k) {
        Vec<T> ar[R];
#pragma GCC unroll 4
        for (int r = 0; r < R; ++r) ar[r] = splat(a[r]);
#pragma GCC unroll 4
        for (int v = 0; v < NV; ++v) {
            const Vec<T> bv = load(b.begin[v / 2] + v % 2 * kLanes<T>);
#pragma GCC unroll 4
            for (int r = 0; r < R; ++r) sum[r][v] += ar[r] * bv;
        }
        a += R;
        b.begin[0] += b.step[0];
        b.begin[1] += b.step[1];
    }
#pragma GCC unroll 4
    for (int v = 0; v < NV; ++v)
#pragma GCC unroll 4
        for (int r = 0; r < R; ++r) {
            T* const out = to[v].p + r * to[v].ld;
            store_n(out, to[v].accumulate ? load_n(out, to[v].n) + sum[r][v] : sum[r][v], to[v].n);
        }
}

template <class T>
using FewFunction = void (*)(int64_t, const T*, FewPanels<T>, const TileColumn<T>*);

template <class T, int R>
inline FewFunction<T> few_of(int vecs) {
    switch (vecs) {
        case 1: return tile_few<T, R, 1>;
        case 2: return tile_few<T, R, 2>;
        case 3: return tile_few<T, R, 3>;
        default: return tile_few<T, R, 4>;
    }
}

// Up to kFewVecs vectors of panels `wide` vectors each over `rows` rows. column(v) says where
// vector v goes. The depth is cut as for all tiles, because a cut is a rounding.
template <class T, class Column>
inline void run_few(int64_t rows, int vecs, int wide, int64_t depth, const T* a, const T* panel,
                    const Column& column) {
    constexpr int64_t L = kLanes<T>;
    const int64_t first = vecs < wide ? vecs : wide;  // vectors of the first panel
    FewPanels<T> panels{{panel, panel + 2 * L}, {first * L, first * L}};
    if (wide < kFewVecs) {
        panels.begin[1] = panel + first * L * depth;
        panels.step[1] = (vecs - first) * L;
    }
    FewFunction<T> tile = nullptr;
    switch (rows) {
        case 1: tile = few_of<T, 1>(vecs); break;
        case 2: tile = few_of<T, 2>(vecs); break;
#if defined(NLM_ISA_avx512) || defined(__aarch64__)
        case 3: tile = few_of<T, 3>(vecs); break;
        case 4: tile = few_of<T, 4>(vecs); break;
#endif
        default: return;
    }
    const int64_t cut = depth_cut<T>(depth);
    for (int64_t k = 0; k < depth; k += cut) {
        TileColumn<T> to[kFewVecs];
        for (int v = 0; v < vecs; ++v) {
            to[v] = column(v);
            if (k > 0) {
                to[v].accumulate = true;
                to[v].start = nullptr;
            }
        }
        const FewPanels<T> from{
            {panels.begin[0] + k * panels.step[0], panels.begin[1] + k * panels.step[1]},
            {panels.step[0], panels.step[1]}};
        tile(depth - k < cut ? depth - k : cut, a + k * rows, from, to);
    }
}

// Products of few rows with weights that are used so seldom that packing them would cost more: dot
// products along the rows of w, as they stand in memory.

constexpr int64_t kDotAhead = 12 << 10;  // bytes of w that are on their way

// Lane by lane sums over k of a[r][k] w[j][k] for R rows of a and J of w, to out + (r L + j) L.
template <class T, int R, int J>
inline void dot_some(int64_t depth, const T* const* a, const T* w, int64_t ldw, T* out) {
    constexpr int64_t L = kLanes<T>, kAhead = kDotAhead / int64_t(sizeof(T));
    const int64_t ahead = ldw * J < kAhead ? kAhead / (ldw > 0 ? ldw : 1) * ldw : ldw * J;
    Vec<T> sum[R][J] = {};
    int64_t k = 0;
    for (; k + L <= depth; k += L) {
        Vec<T> row[R];
#pragma GCC unroll 4
        for (int r = 0; r < R; ++r) row[r] = load(a[r] + k);
#pragma GCC unroll 4
        for (int j = 0; j < J; ++j) {
            const Vec<T> wv = load(w + j * ldw + k);
            __builtin_prefetch(w + j * ldw + k + ahead, 0, 3);
#pragma GCC unroll 4
            for (int r = 0; r < R; ++r) sum[r][j] += row[r] * wv;
        }
    }
    for (int j = 0; j < J; ++j)
        for (int r = 0; r < R; ++r) {
            if (k < depth)
                sum[r][j] += load_n(a[r] + k, depth - k) * load_n(w + j * ldw + k, depth - k);
            store(out + (r * L + j) * L, sum[r][j]);
        }
}

// The to.n columns of a w^T, with rows of w `ldw` apart, to `to` for the rows that begin at
// a[0..R). For one row of a, rows of w are read one after the other, which is how memory is
// fastest; for more, four at a time, so that few chains of sums do not set the pace.
template <class T, int R>
void dot_column(int64_t depth, const T* const* a, const T* w, int64_t ldw,
                const TileColumn<T>& to) {
    constexpr int64_t L = kLanes<T>;
    constexpr int J = R == 1 || L < 4 ? 1 : 4;
    T lanes[R * L * L] = {}, turned[L * L];  // [row][column][lane]; [lane][column]
    int64_t j = 0;
    for (; j + J <= to.n; j += J) dot_some<T, R, J>(depth, a, w + j * ldw, ldw, lanes + j * L);
    for (; j < to.n; ++j) dot_some<T, R, 1>(depth, a, w + j * ldw, ldw, lanes + j * L);
    for (int r = 0; r < R; ++r) {
        pack_transposed(turned, L, L, lanes + r * L * L, L, L, L);
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
