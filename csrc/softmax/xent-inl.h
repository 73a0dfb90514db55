// CPU form of the fused cross-entropy (contract: xent.h). Tokens go in blocks: the block's logits,
// then one pass over its rows, then its share of the gradients.

// Tokens a block, equal over the blocks.
inline int64_t token_block(int64_t tokens, int64_t vocabulary, int64_t element) {
    int64_t most = (int64_t(10) << 20) / (vocabulary * element);
    most = most < 128 ? 128 : most;  // fewer, and reading the weights bounds the block's products
    const int64_t blocks = (tokens + most - 1) / most;
    return blocks == 0 ? 1 : (tokens + blocks - 1) / blocks;
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
    const T scale = T(1 / temperature);
    int64_t v = 0;
    for (; v + L <= count; v += L) store(z + v, load(z + v) * scale);
    for (; v < count; ++v) z[v] *= scale;
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

template <class T>
struct RowSum {
    T top;
    double sum;
};

// nll and loss of token n from its logits z, of which exp(z - top) is left if kStore.
template <class T, bool kStore, class Args>
inline RowSum<T> row_losses(const Args& a, int64_t n, T* z) {
    const T z_target = z[a.targets[n]], top = row_max(z, a.V);
    const bool smooth = a.loss != nullptr && a.label_smoothing > 0;
    const double mean = smooth ? offset_sum(z, a.V, top) / double(a.V) : 0;
    const double sum = exp_sum<T, kStore>(z, a.V, top);
    const double log_sum = std::log(sum), offset = double(top) - double(z_target);
    a.nll[n] = T(offset + log_sum);
    if (a.loss != nullptr) {
        double loss = (1 - a.label_smoothing) * offset + log_sum;
        if (smooth) loss -= a.label_smoothing * mean;
        const double log_z = double(top) + log_sum;
        if (a.z_loss > 0) loss += a.z_loss * log_z * log_z;
        a.loss[n] = T(loss);
    }
    return {top, sum};
}

template <class T>
void xent_forward(const XentForwardArgs<T>& a) {
    each_row<T>(a, [&](int64_t n, T* z) { row_losses<T, false>(a, n, z); });
}

// dz of token n, in place of its logits; nll and loss.
template <class T>
inline void row_gradient(const XentGradientsArgs<T>& a, int64_t n, T* z) {
    constexpr int64_t L = kLanes<T>;
    const RowSum<T> row = row_losses<T, true>(a, n, z);
    const double weight = a.weights != nullptr ? double(a.weights[n]) : 1;
    const double slope = weight / a.temperature, smoothing = a.label_smoothing;
    double factor = 1;
    if (a.z_loss > 0) factor += 2 * a.z_loss * (double(row.top) + std::log(row.sum));
    const T scale = T(slope * factor / row.sum);
    // adding -0 leaves every number as it is, signs of zeros too
    const T shift = smoothing > 0 ? T(-slope * smoothing / double(a.V)) : T(-0.0);
    int64_t v = 0;
    for (; v + L <= a.V; v += L) store(z + v, load(z + v) * scale + shift);
    for (; v < a.V; ++v) z[v] = z[v] * scale + shift;
    z[a.targets[n]] -= T(slope * (1 - smoothing));
}

template <class T>
void xent_gradients(const XentGradientsArgs<T>& a) {
    const int64_t block = token_block(a.N, a.V, int64_t(sizeof(T)));
    Scratch scratch;
    T* const z = scratch.take<T>(block * a.V);
    if (a.N == 0) {
        __builtin_memset(a.dw, 0, std::size_t(a.V * a.H) * sizeof(T));
        if (a.db != nullptr) __builtin_memset(a.db, 0, std::size_t(a.V) * sizeof(T));
    }
    for (int64_t n0 = 0; n0 < a.N; n0 += block) {
        const int64_t tokens = a.N - n0 < block ? a.N - n0 : block;
        const T* const h = a.h + n0 * a.H;
        block_logits(z, h, Weights<T>{a.w}, a.b, tokens, a.H, a.V);
        auto softmax = [&](int tid, int size) {
            const Range mine = share(tokens, 1, tid, size);
            for (int64_t n = mine.begin; n < mine.end; ++n) {
                divide_by_temperature(z + n * a.V, a.V, a.temperature);
                row_gradient(a, n0 + n, z + n * a.V);
            }
        };
        parallel(threads_for(32.0 * double(tokens) * double(a.V)), softmax);
        gemm(GemmArgs<T>{.M = tokens,
                         .N = a.H,
                         .K = a.V,
                         .a = {z, a.V, false},
                         .b = {a.w, a.H, true},
                         .c = a.dh + n0 * a.H,
                         .ldc = a.H});
        gemm(GemmArgs<T>{.M = a.V,
                         .N = a.H,
                         .K = tokens,
                         .a = {z, a.V, true},
                         .b = {h, a.H, true},
                         .c = a.dw,
                         .ldc = a.H,
                         .accumulate = n0 > 0,
                         .a_sum = a.db});
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

constexpr uint32_t kPhiloxSample = 7;  // site

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
        const double u =
            (double(drawn.word[0] >> 5) * 67108864.0 + double(drawn.word[1] >> 6)) * 0x1p-53;
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
