// Matrix products of one ISA level: register tiles on packed operands, and gemm() over them.
// The one door to products; recurrent loops call the tiles directly on weights packed once.
//
// A tile is R rows by NV vectors of C held in registers. Operand A is packed as row blocks
// [depth][R], operand B as column panels [depth][NV * kLanes], zero beyond the last column. Each
// element of C is one chain of fused multiply-adds over its depth, whatever R, NV and the number
// of threads, so results depend on none of them. (A product of up to four rows may be taken as dot
// products, few_rows-inl.h: as independent of threads, but rounded otherwise.)

// A panel block [depth][width] should stay in the first-level cache while row blocks pass over it,
// and the next of these is fetched; a shorter depth would read and write C more often.
#if defined(NLM_ISA_avx512)
constexpr int64_t kPanelBytes = 36 << 10;
#else
constexpr int64_t kPanelBytes = 32 << 10;
#endif
template <class T>
constexpr int64_t kMaxDepth = kPanelBytes / (kPanelWidth<T> * int64_t(sizeof(T)));
constexpr int64_t kRowBytesInL2 = 384 << 10;

// Length of the equal cuts of a depth in which a panel's part stays in the first-level cache.
template <class T>
constexpr int64_t depth_cut(int64_t depth) {
    const int64_t cuts = (depth + kMaxDepth<T> - 1) / kMaxDepth<T>;
    return (depth + cuts - 1) / cuts;
}

// Where one vector column of a tile goes: row r at p + r * ld, n <= kLanes elements. The sum
// starts from start[0:n] (a bias) or zero, and is added to what stands there if accumulate.
template <class T>
struct TileColumn {
    T* p;
    int64_t ld;
    int64_t n;
    bool accumulate;
    const T* start;
};

template <class T, int R, int NV>
void tile(int64_t depth, const T* __restrict a, const T* __restrict b, const TileColumn<T>* to) {
    Vec<T> sum[R][NV];
#pragma GCC unroll 2
    for (int v = 0; v < NV; ++v) {
        const Vec<T> start = to[v].start ? load_n(to[v].start, to[v].n) : Vec<T>{};
#pragma GCC unroll 14
        for (int r = 0; r < R; ++r) sum[r][v] = start;
    }
    // C comes from afar and is wanted when the products are done. Its rows are asked for one by one
    // meanwhile: all at once they would hold up A and B.
    const int64_t stretch = depth / (R + 1);
    int64_t k = 0;
    for (int64_t row = 0; row <= R; ++row) {
        const int64_t end = row < R ? k + stretch : depth;
        if (row < R)
#pragma GCC unroll 2
            for (int v = 0; v < NV; ++v) {
                const T* const p = to[v].p + row * to[v].ld;
                __builtin_prefetch(p, 1);
                __builtin_prefetch(p + kLanes<T> - 1, 1);
            }
        for (; k < end; ++k) {
            Vec<T> bv[NV];
#pragma GCC unroll 2
            for (int v = 0; v < NV; ++v) {
                bv[v] = load(b + v * kLanes<T>);
                // what follows this panel block is wanted next: to the second-level cache with it
                __builtin_prefetch(b + (depth * NV + v) * kLanes<T>, 0, 2);
            }
            __builtin_prefetch(a + depth * R);  // the next row block
#pragma GCC unroll 14
            for (int r = 0; r < R; ++r) {
                const Vec<T> ar = splat(a[r]);
#pragma GCC unroll 2
                for (int v = 0; v < NV; ++v) sum[r][v] += ar * bv[v];
            }
            a += R;
            b += NV * kLanes<T>;
        }
    }
#pragma GCC unroll 2
    for (int v = 0; v < NV; ++v) {
        T* p = to[v].p;
        const int64_t ld = to[v].ld, n = to[v].n;
        if (n >= kLanes<T>) {
#pragma GCC unroll 14
            for (int r = 0; r < R; ++r)
                store(p + r * ld, to[v].accumulate ? load(p + r * ld) + sum[r][v] : sum[r][v]);
        } else {
#pragma GCC unroll 14
            for (int r = 0; r < R; ++r)
                store_n(p + r * ld,
                        to[v].accumulate ? load_n(p + r * ld, n) + sum[r][v] : sum[r][v], n);
        }
    }
}

template <class T>
using TileFunction = void (*)(int64_t, const T*, const T*, const TileColumn<T>*);

// The tile of `rows` x NV vectors; rows in [1, kTileRows].
template <class T, int NV>
inline TileFunction<T> tile_of(int64_t rows) {
    switch (rows) {
        case 1: return tile<T, 1, NV>;
        case 2: return tile<T, 2, NV>;
        case 3: return tile<T, 3, NV>;
        case 4: return tile<T, 4, NV>;
        case 5: return tile<T, 5, NV>;
        case 6: return tile<T, 6, NV>;
#if defined(NLM_ISA_avx512) || defined(__aarch64__)
        case 7: return tile<T, 7, NV>;
        case 8: return tile<T, 8, NV>;
        case 9: return tile<T, 9, NV>;
        case 10: return tile<T, 10, NV>;
        case 11: return tile<T, 11, NV>;
        case 12: return tile<T, 12, NV>;
        case 13: return tile<T, 13, NV>;
#endif
        default: return tile<T, kTileRows, NV>;
    }
}

template <class T>
inline void run_tile(int64_t rows, int vecs, int64_t depth, const T* a, const T* b,
                     const TileColumn<T>* to) {
    (vecs == 2 ? tile_of<T, 2>(rows) : tile_of<T, 1>(rows))(depth, a, b, to);
}

// The same where row r of C is row at[r] of memory: by way of the stack.
template <class T>
inline void run_tile_apart(const int64_t* at, int64_t rows, int vecs, int64_t depth, const T* a,
                           const T* b, const TileColumn<T>* to) {
    constexpr int64_t L = kLanes<T>, W = kPanelWidth<T>;
    alignas(64) T out[kTileRows * W];
    TileColumn<T> here[kTileVecs];
    for (int v = 0; v < vecs; ++v) {
        here[v] = {out + v * L, W, to[v].n, false, to[v].start};
        for (int64_t r = 0; r < rows; ++r) __builtin_prefetch(to[v].p + at[r] * to[v].ld, 1);
    }
    run_tile(rows, vecs, depth, a, b, here);
    for (int v = 0; v < vecs; ++v)
        for (int64_t r = 0; r < rows; ++r) {
            T* const p = to[v].p + at[r] * to[v].ld;
            const Vec<T> sum = load_n(out + r * W + v * L, to[v].n);
            store_n(p, to[v].accumulate ? load_n(p, to[v].n) + sum : sum, to[v].n);
        }
}

// Rows cut into `blocks` nearly equal blocks of at most kTileRows.
struct RowBlocks {
    int64_t rows, blocks;
    int64_t first(int64_t block) const { return rows * block / blocks; }
    int64_t count(int64_t block) const { return first(block + 1) - first(block); }
};
inline RowBlocks row_blocks(int64_t rows, int64_t multiple = 1) {
    int64_t blocks = (rows + kTileRows - 1) / kTileRows;
    if (blocks > multiple) blocks = (blocks + multiple - 1) / multiple * multiple;
    return {rows, blocks};
}

// C [M, N] = A B (+ C if accumulate) (+ bias [N] on each row). Row i of C is row c_at[i] of memory,
// where c_at, which increases, is not null. a_sum [M], where it is not null, becomes the sum of
// each row of A (+ a_sum if accumulate): a bias' gradient beside the weights'.
template <class T>
struct GemmArgs {
    int64_t M, N, K;
    Factor<T> a, b;
    T* c;
    int64_t ldc;
    bool accumulate = false;
    const T* bias = nullptr;
    T* a_sum = nullptr;
    const int64_t* c_at = nullptr;
    bool part = false;            // of more rows than M, with which it must agree in every bit
    const T* b_panels = nullptr;  // b as pack_columns() left it
};

// Panels of all columns of B [K, N]: those of the first depths, then those of the next.
template <class T>
constexpr int64_t columns_size(int64_t N, int64_t K) {
    return (N + kPanelWidth<T> - 1) / kPanelWidth<T> * kPanelWidth<T> * K;
}

// Packs panels [panels.begin, panels.end) of the N columns, depths [k, k + kc).
template <class T>
inline void pack_panels(T* out, const Factor<T>& b, Range panels, int64_t N, int64_t k,
                        int64_t kc) {
    constexpr int64_t W = kPanelWidth<T>;
    b.pack_all(panels, kc, [&](int64_t p, int64_t k1, int64_t run) {
        const int64_t n = N - p * W;
        const int64_t width = n <= kLanes<T> ? kLanes<T> : W;
        b.pack(out + (p - panels.begin) * W * kc + k1 * width, width, p * W, n < width ? n : width,
               k + k1, run);
    });
}

template <class T>
void pack_columns(T* out, const Factor<T>& b, int64_t N, int64_t K) {
    constexpr int64_t W = kPanelWidth<T>;
    const int64_t panels = (N + W - 1) / W, depth = depth_cut<T>(K);
    auto body = [&](int tid, int size) {
        const Range mine = share(panels, 1, tid, size);
        for (int64_t k = 0; k < K; k += depth) {
            const int64_t kc = K - k < depth ? K - k : depth;
            pack_panels(out + k * panels * W + mine.begin * W * kc, b, mine, N, k, kc);
        }
    };
    parallel(threads_for(4.0 * double(N) * double(K)), body);
}

// The larger operand is divided among the members: each packs a piece of its own just before it
// is used, while it is in the second-level cache. The smaller one is packed by all, for all. Where
// there is a second product of the same A, its B and C stand beside the first's, from a panel of
// their own on, and A is divided.
template <class T>
class Product {
public:
    explicit Product(const GemmArgs<T>& args, const GemmArgs<T>* beside = nullptr)
        : g(args), second(beside), first_panels((g.N + kWidth - 1) / kWidth) {
        depth = depth_cut<T>(g.K);
        const int64_t depth_blocks = (g.K + depth - 1) / depth;
        own_columns = second == nullptr && g.N > g.M;
        const int64_t whole = own_columns ? g.M : all_columns();
        const int64_t chunks = (whole + kSharedWidth - 1) / kSharedWidth;
        chunk = (whole + chunks - 1) / chunks;
        if (!own_columns) chunk = (chunk + kWidth - 1) / kWidth * kWidth;
        int64_t deep = kSharedBytes / (chunk * depth * int64_t(sizeof(T)));
        deep = deep < 1 ? 1 : (deep < depth_blocks ? deep : depth_blocks);
        span = deep * depth;
        own_size = own_columns ? kOwnPanels * kWidth * depth : own_blocks() * kTileRows * depth;
    }

    void run() const {
        const int threads = threads_for(2.0 * double(g.M) * double(all_columns()) * double(g.K));
        Scratch scratch;
        T* const shared = scratch.take<T>((chunk * span + 15) / 16 * 16);
        T* const own = scratch.take<T>(own_size * threads);
        auto body = [&](int tid, int size) {
            const int64_t whole = own_columns ? g.M : all_columns();
            for (int64_t from = 0; from < whole; from += chunk)
                for (int64_t k = 0; k < g.K; k += span) {
                    if (from > 0 || k > 0) team_barrier(size);  // others still read `shared`
                    const Part part{from, whole - from < chunk ? whole - from : chunk, k,
                                    g.K - k < span ? g.K : k + span};
                    if (own_columns)
                        columns(part, shared, own + tid * own_size, tid, size);
                    else
                        rows(part, shared, own + tid * own_size, tid, size);
                }
        };
        parallel(threads, body);
    }

private:
    static constexpr int64_t kWidth = kPanelWidth<T>;
    static constexpr int64_t kSharedWidth = 2048, kSharedBytes = 1 << 20;
    static constexpr int64_t kOwnPanels = 8;

    const GemmArgs<T>& g;
    const GemmArgs<T>* const second;
    const int64_t first_panels;
    int64_t depth, chunk, span, own_size;
    bool own_columns;

    // Columns of B, where those of a second product begin with a panel.
    int64_t all_columns() const {
        return second == nullptr ? g.N : first_panels * kWidth + second->N;
    }

    // [from, from + count) of the shared operand's rows or columns, depths [k, k_end).
    struct Part {
        int64_t from, count, k, k_end;
    };

    int64_t own_blocks() const {
        return kRowBytesInL2 / 2 / (depth * kTileRows * int64_t(sizeof(T))) + 1;
    }

    // Row blocks of A whose first row is `row`, depths [k, k + kc).
    void pack_a(T* out, const RowBlocks& blocks, Range range, int64_t row, int64_t k, int64_t kc,
                bool sum) const {
        g.a.pack_all(range, kc, [&](int64_t i, int64_t k1, int64_t run) {
            const int64_t n = blocks.count(i), m = row + blocks.first(i);
            T* const to = out + (blocks.first(i) - blocks.first(range.begin)) * kc + k1 * n;
            g.a.pack(to, n, m, n, k + k1, run);
            if (sum) add_sums(g.a_sum + m, to, n, run, k + k1 > 0 || g.accumulate);
        });
    }

    static void add_sums(T* to, const T* packed, int64_t n, int64_t run, bool add) {
        for (int64_t r = 0; r < n; r += kLanes<T>) {
            Vec<T> total{};
            for (int64_t k = 0; k < run; ++k) total += load_n(packed + k * n + r, n - r);
            store_n(to + r, add ? load_n(to + r, n - r) + total : total, n - r);
        }
    }

    // Panels `range` of all columns, depths [k, k + kc), where panel `first` stands at out.
    void pack_some(T* out, Range range, int64_t first, int64_t k, int64_t kc) const {
        const int64_t cut = range.end < first_panels ? range.end : first_panels;
        const auto at = [&](int64_t p) { return out + (p - first) * kWidth * kc; };
        if (range.begin < cut) pack_panels(at(range.begin), g.b, {range.begin, cut}, g.N, k, kc);
        const int64_t from = range.begin > cut ? range.begin : cut;
        if (from < range.end)
            pack_panels(at(from), second->b, {from - first_panels, range.end - first_panels},
                        second->N, k, kc);
    }

    // Where panel p of all columns begins in packed B, depths [k, k + kc).
    const T* panel_of(int64_t p, int64_t k, int64_t kc) const {
        return g.b_panels + (k * ((g.N + kWidth - 1) / kWidth) + p * kc) * kWidth;
    }

    // Row blocks of A, of which the first is packed at ap, by panel p of all columns.
    void tiles(const RowBlocks& blocks, Range range, int64_t row, const T* ap, const T* panel,
               int64_t p, int64_t k, int64_t kc) const {
        if (p < first_panels)
            tiles(g, blocks, range, row, ap, panel, p * kWidth, k, kc);
        else
            tiles(*second, blocks, range, row, ap, panel, (p - first_panels) * kWidth, k, kc);
    }

    static void tiles(const GemmArgs<T>& g, const RowBlocks& blocks, Range range, int64_t row,
                      const T* ap, const T* panel, int64_t column, int64_t k, int64_t kc) {
        const int64_t n = g.N - column;
        const int vecs = n <= kLanes<T> ? 1 : 2;
        const bool add = g.accumulate || k > 0;
        const T* bias = k == 0 ? g.bias : nullptr;
        TileColumn<T> to[2];
        for (int v = 0; v < vecs; ++v)
            to[v] = {nullptr, g.ldc, n - v * kLanes<T>, add,
                     bias ? bias + column + v * kLanes<T> : nullptr};
        for (int64_t i = range.begin; i < range.end; ++i) {
            const int64_t m = row + blocks.first(i), count = blocks.count(i);
            const T* const a = ap + (blocks.first(i) - blocks.first(range.begin)) * kc;
            const bool apart = g.c_at != nullptr && run_length(g.c_at + m, count) < count;
            const int64_t first = apart ? 0 : (g.c_at != nullptr ? g.c_at[m] : m);
            for (int v = 0; v < vecs; ++v) to[v].p = g.c + first * g.ldc + column + v * kLanes<T>;
            if (apart)
                run_tile_apart(g.c_at + m, count, vecs, kc, a, panel, to);
            else
                run_tile(count, vecs, kc, a, panel, to);
        }
    }

    int64_t depth_from(const Part& part, int64_t k) const {
        return part.k_end - k < depth ? part.k_end - k : depth;
    }

    // A is shared: every member multiplies it by columns of B of its own.
    void columns(const Part& part, T* shared, T* own, int tid, int size) const {
        const RowBlocks blocks = row_blocks(part.count);
        const Range packing = share(blocks.blocks, 1, tid, size);
        for (int64_t k = part.k; k < part.k_end; k += depth) {
            const int64_t kc = depth_from(part, k);
            pack_a(shared + (k - part.k) * part.count + blocks.first(packing.begin) * kc, blocks,
                   packing, part.from, k, kc, g.a_sum != nullptr);
        }
        team_barrier(size);
        const Range mine = share((g.N + kWidth - 1) / kWidth, 1, tid, size);
        for (int64_t p0 = mine.begin; p0 < mine.end; p0 += kOwnPanels) {
            const int64_t p1 = p0 + kOwnPanels < mine.end ? p0 + kOwnPanels : mine.end;
            for (int64_t k = part.k; k < part.k_end; k += depth) {
                const int64_t kc = depth_from(part, k);
                const T* const ap = shared + (k - part.k) * part.count;
                const T* bp = own;
                if (g.b_panels != nullptr)
                    bp = panel_of(p0, k, kc);
                else
                    pack_panels(own, g.b, {p0, p1}, g.N, k, kc);
                const int64_t fit = kRowBytesInL2 / (kc * kTileRows * int64_t(sizeof(T))) + 1;
                for (int64_t i = 0; i < blocks.blocks; i += fit) {
                    const Range range{i, i + fit < blocks.blocks ? i + fit : blocks.blocks};
                    for (int64_t p = p0; p < p1; ++p)
                        tiles(blocks, range, part.from, ap + blocks.first(i) * kc,
                              bp + (p - p0) * kWidth * kc, p, k, kc);
                }
            }
        }
    }

    // B is shared: every member multiplies rows of A of its own by it.
    void rows(const Part& part, T* shared, T* own, int tid, int size) const {
        const int64_t panels = (part.count + kWidth - 1) / kWidth, before = part.from / kWidth;
        const Range packing = share(panels, 1, tid, size);
        for (int64_t k = part.k; k < part.k_end && g.b_panels == nullptr; k += depth) {
            const int64_t kc = depth_from(part, k);
            T* const out = shared + (k - part.k) * panels * kWidth;
            pack_some(out, {before + packing.begin, before + packing.end}, before, k, kc);
        }
        if (g.b_panels == nullptr) team_barrier(size);
        const RowBlocks blocks = row_blocks(g.M, size);
        const Range mine = share(blocks.blocks, 1, tid, size);
        const int64_t most = own_blocks();
        for (int64_t i = mine.begin; i < mine.end; i += most) {
            const Range range{i, i + most < mine.end ? i + most : mine.end};
            for (int64_t k = part.k; k < part.k_end; k += depth) {
                const int64_t kc = depth_from(part, k);
                const T* const bp = g.b_panels != nullptr ? panel_of(before, k, kc)
                                                          : shared + (k - part.k) * panels * kWidth;
                pack_a(own, blocks, range, 0, k, kc, g.a_sum != nullptr && part.from == 0);
                for (int64_t p = 0; p < panels; ++p)
                    tiles(blocks, range, 0, own, bp + p * kWidth * kc, before + p, k, kc);
            }
        }
    }
};

constexpr int kMostDotRows = 4;
template <class T>
void dot_product(const GemmArgs<T>& g);  // few_rows-inl.h

template <class T>
void gemm(const GemmArgs<T>& g) {
    if (g.M == 0 || g.N == 0) return;
    const bool along_depth = !g.a.k_major && !g.b.k_major;
    const bool few = g.M <= kMostDotRows && !g.part;
    if (few && along_depth && g.a_sum == nullptr && g.K > 0) return dot_product(g);
    if (g.K > 0) return Product<T>(g).run();
    for (int64_t m = 0; m < g.M && !g.accumulate; ++m) {
        T* const c = g.c + (g.c_at != nullptr ? g.c_at[m] : m) * g.ldc;
        for (int64_t n = 0; n < g.N; ++n) c[n] = g.bias ? g.bias[n] : T(0);
        if (g.a_sum != nullptr) g.a_sum[m] = T(0);
    }
}

// Both products, which have A and all that is said of it in common: it is packed once.
template <class T>
void gemm_both(const GemmArgs<T>& first, const GemmArgs<T>& second) {
    if (first.M > 0 && first.N > 0 && second.N > 0 && first.K > 0)
        return Product<T>(first, &second).run();
    gemm(first);
    gemm(second);
}
