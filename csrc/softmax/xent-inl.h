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

// -log softmax(z)[target] from the row's maximum and the sum of its exponentials.
template <class T>
inline T negative_log(T z_target, T top, double sum) {
    return T((double(top) - double(z_target)) + std::log(sum));
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

template <class T>
void xent_forward(const XentForwardArgs<T>& a) {
    const int64_t block = token_block(a.N, a.V, int64_t(sizeof(T)));
    Scratch scratch;
    T* const z = scratch.take<T>(block * a.V);
    for (int64_t n0 = 0; n0 < a.N; n0 += block) {
        const int64_t tokens = a.N - n0 < block ? a.N - n0 : block;
        block_logits(z, a.h + n0 * a.H, a.w, a.b, tokens, a.H, a.V);
        auto body = [&](int tid, int size) {
            const Range mine = share(tokens, 1, tid, size);
            for (int64_t n = mine.begin; n < mine.end; ++n) {
                T* const row = z + n * a.V;
                const T top = row_max(row, a.V);
                a.nll[n0 + n] =
                    negative_log(row[a.targets[n0 + n]], top, exp_sum<T, false>(row, a.V, top));
            }
        };
        parallel(threads_for(16.0 * double(tokens) * double(a.V)), body);
    }
}

template <class T>
void xent_gradients(const XentGradientsArgs<T>& a) {
    constexpr int64_t L = kLanes<T>;
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
                T* const row = z + n * a.V;
                const T weight = a.weights != nullptr ? a.weights[n0 + n] : T(1);
                const int32_t target = a.targets[n0 + n];
                const T top = row_max(row, a.V), z_target = row[target];
                const double sum = exp_sum<T, true>(row, a.V, top);
                a.nll[n0 + n] = negative_log(z_target, top, sum);
                const T scale = T(double(weight) / sum);
                int64_t v = 0;
                for (; v + L <= a.V; v += L) store(row + v, load(row + v) * scale);
                for (; v < a.V; ++v) row[v] *= scale;
                row[target] -= weight;
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
            const T top = row_max(row, a.V);
            const T log_sum = T(std::log(exp_sum<T, false>(row, a.V, top)));
            for (int64_t v = 0; v < a.V; ++v) row[v] = (row[v] - top) - log_sum;
        }
    };
    parallel(threads_for(16.0 * double(a.N) * double(a.V)), body);
}
