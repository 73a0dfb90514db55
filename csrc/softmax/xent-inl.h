// CPU form of the fused cross-entropy (contract: xent.h). Tokens go in blocks: the block's logits,
// then one pass over its rows, then its share of the gradients. Of narrow hidden states the logits
// cost little to compute and much to move, so there they exist for a tile of words only, and losses
// with gradients compute them twice: for the sums of the rows, then for the gradients.

// Tokens a block, equal over the blocks.
inline int64_t token_block(int64_t tokens, int64_t vocabulary, int64_t element) {
    int64_t most = (int64_t(10) << 20) / (vocabulary * element);
    most = most < 128 ? 128 : most;  // fewer, and reading the weights bounds the block's products
    const int64_t blocks = (tokens + most - 1) / most;
    return blocks == 0 ? 1 : (tokens + blocks - 1) / blocks;
}

// Tokens and words whose logits exist at a time.
struct XentTile {
    int64_t tokens, words;
};

constexpr int64_t kNarrow = 128;  // H of at most so much: logits rather twice than out of the cache

template <class T>
inline XentTile xent_tile(int64_t N, int64_t H, int64_t V) {
    static_assert(kNarrow <= kMaxDepth<T>, "packed weights of a tile must be contiguous");
    constexpr int64_t kCached = (int64_t(2) << 20) / int64_t(sizeof(T)), kMostTokens = 512;
    const XentTile whole{token_block(N, V, int64_t(sizeof(T))), V};
    if (N == 0 || H > kNarrow || whole.tokens * V <= 4 * kCached) return whole;
    const int64_t blocks = (N + kMostTokens - 1) / kMostTokens, tokens = (N + blocks - 1) / blocks;
    constexpr int64_t kUnit = 8 * kPanelWidth<T>;
    const int64_t words = kCached / tokens / kUnit * kUnit;
    return {tokens, words < kUnit ? kUnit : words};
}

template <class T>
inline T row_max(const T* z, int64_t count) {
    constexpr int64_t L = kLanes<T>;
    Vec<T> top = splat(z[0]);
    int64_t v = 0;
    for (; v + L <= count; v += L) {
        const Vec<T> x = load(z + v);
        top = x > top ? x : top;
    }
    T most = max_lanes<T>(top);
    for (; v < count; ++v) most = z[v] > most ? z[v] : most;
    return most;
}

// Sum of exp(z - top) over the row; with kStore the exponentials replace z.
template <class T, bool kStore>
inline double exp_sum(T* z, int64_t count, T top) {
    constexpr int64_t L = kLanes<T>;
    double total = 0;
    for (int64_t v0 = 0; v0 < count; v0 += 4096) {
        const int64_t end = v0 + 4096 < count ? v0 + 4096 : count;
        Vec<T> sum{}, more{};
        int64_t v = v0;
        for (; v + 2 * L <= end; v += 2 * L) {
            const Vec<T> e = exp_of<T>(load(z + v) - top);
            const Vec<T> f = exp_of<T>(load(z + v + L) - top);
            if (kStore) store(z + v, e);
            if (kStore) store(z + v + L, f);
            sum += e;
            more += f;
        }
        for (; v < end; v += L) {
            const int64_t n = end - v;
            Vec<T> e = exp_of<T>(load_n(z + v, n) - top);
            if (kStore) store_n(z + v, e, n);
            for (int64_t i = n; i < L; ++i) e[i] = 0;
            sum += e;
        }
        total += double(sum_lanes<T>(sum + more));
    }
    return total;
}

// Sum of z - top over the row.
template <class T>
inline double offset_sum(const T* z, int64_t count, T top) {
    constexpr int64_t L = kLanes<T>;
    double total = 0;
    for (int64_t v0 = 0; v0 < count; v0 += 4096) {
        const int64_t end = v0 + 4096 < count ? v0 + 4096 : count;
        Vec<T> sum{};
        int64_t v = v0;
        for (; v + L <= end; v += L) sum += load(z + v) - top;
        total += double(sum_lanes<T>(sum));
        for (; v < end; ++v) total += double(z[v] - top);
    }
    return total;
}

template <class T>
inline void divide_by_temperature(T* z, int64_t count, double temperature) {
    constexpr int64_t L = kLanes<T>;
    if (temperature == 1) return;
    const T scale = T(1 / temperature), by = T(temperature);
    if (scale <= std::numeric_limits<T>::max()) {
        int64_t v = 0;
        for (; v + L <= count; v += L) store(z + v, load(z + v) * scale);
        for (; v < count; ++v) z[v] *= scale;
    } else {
        for (int64_t v = 0; v < count; ++v) z[v] /= by;  // 0 stays 0
    }
}

template <class T>
inline void block_logits(T* z, const T* h, Weights<T> w, const T* b, int64_t tokens, int64_t H,
                         int64_t V) {
    gemm(GemmArgs<T>{.M = tokens,
                     .N = V,
                     .K = H,
                     .a = {h, H, false},
                     .b = {w.p, H, false},
                     .c = z,
                     .ldc = V,
                     .bias = b,
                     .b_panels = w.panels});
}

// Calls body(n, z) with the logits of each token n, which it may overwrite.
template <class T, class Args, class Body>
inline void each_row(const Args& a, Body body) {
    const int64_t block = token_block(a.N, a.V, int64_t(sizeof(T)));
    Scratch scratch;
    T* const z = scratch.take<T>(block * a.V);
    for (int64_t n0 = 0; n0 < a.N; n0 += block) {
        const int64_t tokens = a.N - n0 < block ? a.N - n0 : block;
        block_logits(z, a.h + n0 * a.H, a.w, a.b, tokens, a.H, a.V);
        auto rows = [&](int tid, int size) {
            const Range mine = share(tokens, 1, tid, size);
            for (int64_t n = mine.begin; n < mine.end; ++n) {
                divide_by_temperature(z + n * a.V, a.V, a.temperature);
                body(n0 + n, z + n * a.V);
            }
        };
        parallel(threads_for(16.0 * double(tokens) * double(a.V)), rows);
    }
}

// What a row's losses are made of, over the words seen so far.
template <class T>
struct RowSums {
    T top = std::numeric_limits<T>::lowest();
    double sum = 0, offsets = 0;  // of exp(z - top), of z - top
    T z_target = 0;
};

// Logits z of the words from `first` on, of which exp(z - top) is left if kStore.
template <class T, bool kStore, class Args>
inline void add_words(RowSums<T>& row, const Args& a, int64_t n, T* z, int64_t first,
                      int64_t count) {
    const int64_t target = a.targets[n] - first;
    if (target >= 0 && target < count) row.z_target = z[target];
    const T before = row.top, top = row_max(z, count);
    if (top > before) row.top = top;
    const double fall = double(before) - double(row.top);
    if (a.loss != nullptr && a.label_smoothing > 0)
        row.offsets += double(first) * fall + offset_sum(z, count, row.top);
    if (first > 0) row.sum *= std::exp(fall);
    row.sum += exp_sum<T, kStore>(z, count, row.top);
}

template <class T, class Args>
inline void row_losses(const Args& a, int64_t n, const RowSums<T>& row) {
    const double log_sum = std::log(row.sum), offset = double(row.top) - double(row.z_target);
    a.nll[n] = T(offset + log_sum);
    if (a.loss != nullptr) {
        double loss = (1 - a.label_smoothing) * offset + log_sum;
        if (a.label_smoothing > 0) loss -= a.label_smoothing * (row.offsets / double(a.V));
        const double log_z = double(row.top) + log_sum;
        if (a.z_loss > 0) loss += a.z_loss * log_z * log_z;
        a.loss[n] = T(loss);
    }
}

// Calls body(n, z) on the team, with the logits of each of `tokens` tokens from n0 on for `count`
// words from v0 on.
template <class T, class Args, class Body>
inline void each_tile_row(const Args& a, T* z, int64_t n0, int64_t tokens, Weights<T> w, int64_t v0,
                          int64_t count, double work, Body body) {
    // the panels of narrow weights are one depth block: a tile of them is contiguous
    const Weights<T> some{w.p + v0 * a.H, w.panels ? w.panels + v0 * a.H : nullptr};
    block_logits(z, a.h + n0 * a.H, some, a.b ? a.b + v0 : nullptr, tokens, a.H, count);
    auto rows = [&](int tid, int size) {
        const Range mine = share(tokens, 1, tid, size);
        for (int64_t n = mine.begin; n < mine.end; ++n) {
            divide_by_temperature(z + n * count, count, a.temperature);
            body(n0 + n, z + n * count);
        }
    };
    parallel(threads_for(work * double(tokens) * double(count)), rows);
}

// The sums of a block of tokens, and their losses, tile by tile.
template <class T, class Args>
inline void block_losses(const Args& a, T* z, RowSums<T>* sums, int64_t n0, int64_t tokens,
                         Weights<T> w, int64_t words) {
    for (int64_t v0 = 0; v0 < a.V; v0 += words) {
        const int64_t count = a.V - v0 < words ? a.V - v0 : words;
        each_tile_row(a, z, n0, tokens, w, v0, count, 16.0, [&](int64_t n, T* row) {
            RowSums<T>& mine = sums[n - n0];
            if (v0 == 0) mine = {};
            add_words<T, false>(mine, a, n, row, v0, count);
            if (v0 + count == a.V) row_losses(a, n, mine);
        });
    }
}

template <class T>
void xent_forward(const XentForwardArgs<T>& a) {
    const XentTile tile = xent_tile<T>(a.N, a.H, a.V);
    Scratch scratch;
    T* const z = scratch.take<T>(tile.tokens * tile.words);
    RowSums<T>* const sums = scratch.take<RowSums<T>>(tile.tokens);
    for (int64_t n0 = 0; n0 < a.N; n0 += tile.tokens) {
        const int64_t tokens = a.N - n0 < tile.tokens ? a.N - n0 : tile.tokens;
        block_losses(a, z, sums, n0, tokens, a.w, tile.words);
    }
}

// dz of token n, in place of exp(z - top), or with kLogits of the logits.
template <class T, bool kLogits>
inline void row_gradient(const XentGradientsArgs<T>& a, int64_t n, const RowSums<T>& row, T* z,
                         int64_t first, int64_t count) {
    constexpr int64_t L = kLanes<T>;
    const double weight = a.weights != nullptr ? double(a.weights[n]) : 1;
    const double slope = weight / a.temperature, smoothing = a.label_smoothing;
    double factor = 1;
    if (a.z_loss > 0) factor += 2 * a.z_loss * (double(row.top) + std::log(row.sum));
    const T scale = T(slope * factor / row.sum);
    // adding -0 leaves every number as it is, signs of zeros too
    const T shift = smoothing > 0 ? T(-slope * smoothing / double(a.V)) : T(-0.0);
    int64_t v = 0;
    for (; v + L <= count; v += L) {
        const Vec<T> x = load(z + v);
        store(z + v, (kLogits ? exp_of<T>(x - row.top) : x) * scale + shift);
    }
    if (kLogits && v < count) {
        const Vec<T> e = exp_of<T>(load_n(z + v, count - v) - row.top);
        store_n(z + v, e * scale + shift, count - v);
    } else {
        for (; v < count; ++v) z[v] = z[v] * scale + shift;
    }
    const int64_t target = a.targets[n] - first;
    if (target >= 0 && target < count) z[target] -= T(slope * (1 - smoothing));
}

template <class T>
void filtered_gradients(const XentGradientsArgs<T>& a);  // xent_filter-inl.h

template <class T>
void xent_gradients(const XentGradientsArgs<T>& a) {
    if (a.gradient_filter > 0 && a.N > 0) return filtered_gradients(a);
    const XentTile tile = xent_tile<T>(a.N, a.H, a.V);
    const bool tiled = tile.words < a.V;
    const Weights<T> w{a.w};
    Scratch scratch;
    T* const z = scratch.take<T>(tile.tokens * tile.words);
    RowSums<T>* const sums = scratch.take<RowSums<T>>(tile.tokens);
    if (a.N == 0) {
        __builtin_memset(a.dw, 0, std::size_t(a.V * a.H) * sizeof(T));
        if (a.db != nullptr) __builtin_memset(a.db, 0, std::size_t(a.V) * sizeof(T));
    }
    for (int64_t n0 = 0; n0 < a.N; n0 += tile.tokens) {
        const int64_t tokens = a.N - n0 < tile.tokens ? a.N - n0 : tile.tokens;
        if (tiled) block_losses(a, z, sums, n0, tokens, w, tile.words);
        for (int64_t v0 = 0; v0 < a.V; v0 += tile.words) {
            const int64_t count = a.V - v0 < tile.words ? a.V - v0 : tile.words;
            each_tile_row(a, z, n0, tokens, w, v0, count, 32.0, [&](int64_t n, T* row) {
                if (tiled) return row_gradient<T, true>(a, n, sums[n - n0], row, v0, count);
                RowSums<T> own;
                add_words<T, true>(own, a, n, row, 0, count);
                row_losses(a, n, own);
                row_gradient<T, false>(a, n, own, row, 0, count);
            });
            gemm(GemmArgs<T>{.M = tokens,
                             .N = a.H,
                             .K = count,
                             .a = {z, count, false},
                             .b = {a.w + v0 * a.H, a.H, true},
                             .c = a.dh + n0 * a.H,
                             .ldc = a.H,
                             .accumulate = v0 > 0});
            gemm(GemmArgs<T>{.M = count,
                             .N = a.H,
                             .K = tokens,
                             .a = {z, count, true},
                             .b = {a.h + n0 * a.H, a.H, true},
                             .c = a.dw + v0 * a.H,
                             .ldc = a.H,
                             .accumulate = n0 > 0,
                             .a_sum = a.db ? a.db + v0 : nullptr});
        }
    }
}

template <class T>
void xent_log_prob(const XentLogProbArgs<T>& a) {
    block_logits(a.log_prob, a.h, a.w, a.b, a.N, a.H, a.V);
    auto body = [&](int tid, int size) {
        const Range mine = share(a.N, 1, tid, size);
        for (int64_t n = mine.begin; n < mine.end; ++n) {
            T* const row = a.log_prob + n * a.V;
            divide_by_temperature(row, a.V, a.temperature);
            const T top = row_max(row, a.V);
            const T log_sum = T(std::log(exp_sum<T, false>(row, a.V, top)));
            for (int64_t v = 0; v < a.V; ++v) row[v] = (row[v] - top) - log_sum;
        }
    };
    parallel(threads_for(16.0 * double(a.N) * double(a.V)), body);
}

// The K best of a row as a heap with the worst on top: smaller, or equal with a larger id.
template <class T>
struct BestHeap {
    T* z;
    int32_t* id;
    int64_t K;

    bool worse(T zi, int32_t i, T zj, int32_t j) const { return zi < zj || (zi == zj && i > j); }

    // (x, i) into the hole at the top of the first `count`, and down to its place.
    void sink(int64_t at, int64_t count, T x, int32_t i) const {
        for (int64_t below = 2 * at + 1; below < count; below = 2 * at + 1) {
            if (below + 1 < count && worse(z[below + 1], id[below + 1], z[below], id[below]))
                ++below;
            if (!worse(z[below], id[below], x, i)) break;
            z[at] = z[below], id[at] = id[below];
            at = below;
        }
        z[at] = x, id[at] = i;
    }
    void make() const {
        for (int64_t i = K / 2 - 1; i >= 0; --i) sink(i, K, z[i], id[i]);
    }
    // Best first.
    void sort() const {
        for (int64_t last = K - 1; last > 0; --last) {
            const T x = z[last];
            const int32_t i = id[last];
            z[last] = z[0], id[last] = id[0];
            sink(0, last, x, i);
        }
    }
};

template <class T>
void xent_top_k(const XentTopKArgs<T>& a) {
    constexpr int64_t kSpan = 64;  // looked through only if its greatest would enter
    each_row<T>(a, [&](int64_t n, T* z) {
        const BestHeap<T> best{a.log_prob + n * a.K, a.ids + n * a.K, a.K};
        for (int64_t v = 0; v < a.K; ++v) best.z[v] = z[v], best.id[v] = int32_t(v);
        best.make();
        for (int64_t v0 = a.K; v0 < a.V; v0 += kSpan) {
            const int64_t end = v0 + kSpan < a.V ? v0 + kSpan : a.V;
            if (!(row_max(z + v0, end - v0) > best.z[0])) continue;
            for (int64_t v = v0; v < end; ++v)
                if (z[v] > best.z[0]) best.sink(0, a.K, z[v], int32_t(v));
        }
        best.sort();
        const T top = row_max(z, a.V);
        const T log_sum = T(std::log(exp_sum<T, false>(z, a.V, top)));
        for (int64_t k = 0; k < a.K; ++k) best.z[k] = (best.z[k] - top) - log_sum;
    });
}

// The first v whose running sum of e exceeds `rest` >= 0.
template <class T>
inline int32_t find_share(const T* e, int64_t count, double rest) {
    constexpr int64_t L = kLanes<T>, kSpan = 256;
    for (int64_t v0 = 0; v0 < count; v0 += kSpan) {
        const int64_t end = v0 + kSpan < count ? v0 + kSpan : count;
        Vec<T> lanes{};
        int64_t v = v0;
        for (; v + L <= end; v += L) lanes += load(e + v);
        double sum = double(sum_lanes<T>(lanes));
        for (; v < end; ++v) sum += double(e[v]);
        if (rest >= sum) {
            rest -= sum;
            continue;
        }
        for (v = v0; v < end; ++v) {
            rest -= double(e[v]);
            if (rest < 0) return int32_t(v);
        }
        rest = 0;
    }
    while (count > 1 && !(e[count - 1] > 0)) --count;  // the sums rounded below `rest`
    return int32_t(count - 1);
}

template <class T>
void xent_sample(const XentSampleArgs<T>& a) {
    each_row<T>(a, [&](int64_t n, T* z) {
        const double sum = exp_sum<T, true>(z, a.V, row_max(z, a.V));
        const uint32_t row = uint32_t(a.rows != nullptr ? a.rows[n] : n);
        const PhiloxWords drawn =
            philox(a.seed, a.step, {{0, row, a.time, philox_purpose(kPhiloxSample, a.layer)}});
        const double u = uniform_53(drawn);
        a.ids[n] = sum < std::numeric_limits<double>::infinity() ? find_share(z, a.V, u * sum) : -1;
    });
}

// With t = z - top: log sum_v exp(t) - sum_v exp(t) t / sum_v exp(t), whose terms are all >= 0.
template <class T>
inline double row_entropy(const T* z, int64_t count) {
    constexpr int64_t L = kLanes<T>;
    const T top = row_max(z, count);
    double total = 0, weighted = 0;
    for (int64_t v0 = 0; v0 < count; v0 += 4096) {
        const int64_t end = v0 + 4096 < count ? v0 + 4096 : count;
        Vec<T> sum{}, more{};
        for (int64_t v = v0; v < end; v += L) {
            const int64_t n = end - v;
            const Vec<T> t = load_n(z + v, n) - top;
            Vec<T> e = exp_of<T>(t);
            for (int64_t i = n; i < L; ++i) e[i] = 0;
            sum += e;
            // a logit of -inf has no part: 0 times the bound
            more -= e * clamp_vec<T>(t, ExpConstants<T>::kLowest, 0);
        }
        total += double(sum_lanes<T>(sum));
        weighted += double(sum_lanes<T>(more));
    }
    return std::log(total) + weighted / total;
}

template <class T>
void xent_entropy(const XentEntropyArgs<T>& a) {
    each_row<T>(a, [&](int64_t n, T* z) { a.entropy[n] = T(row_entropy(z, a.V)); });
}
