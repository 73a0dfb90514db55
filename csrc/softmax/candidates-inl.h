// CPU loops of the losses over sampled tokens (contract: candidates.h), after xent-inl.h and
// embedding-inl.h. The samples' rows are gathered once; then blocks of tokens as in xent-inl.h,
// over K samples instead of V tokens. Targets are dot products and sums of single rows.

inline double softplus(double x) { return (x > 0 ? x : 0) + std::log1p(std::exp(x > 0 ? -x : x)); }

template <class T>
inline T dot(const T* x, const T* y, int64_t count) {
    constexpr int64_t L = kLanes<T>;
    Vec<T> sum{}, more{};
    int64_t i = 0;
    for (; i + 2 * L <= count; i += 2 * L) {
        sum += load(x + i) * load(y + i);
        more += load(x + i + L) * load(y + i + L);
    }
    for (; i < count; i += L) sum += load_n(x + i, count - i) * load_n(y + i, count - i);
    return sum_lanes<T>(sum + more);
}

// y = (y if add) + scale * x.
template <class T>
inline void add_scaled(T* y, const T* x, T scale, int64_t count, bool add) {
    constexpr int64_t L = kLanes<T>;
    for (int64_t i = 0; i < count; i += L) {
        const int64_t n = count - i;
        const Vec<T> product = load_n(x + i, n) * scale;
        store_n(y + i, add ? load_n(y + i, n) + product : product, n);
    }
}

// Sum of counts * softplus(x) over the row; with kStore counts * sigmoid(x) replaces x.
template <class T, bool kStore>
inline double softplus_sum(T* x, const T* counts, int64_t count) {
    constexpr int64_t L = kLanes<T>;
    double total = 0;
    for (int64_t k0 = 0; k0 < count; k0 += 4096) {
        const int64_t end = k0 + 4096 < count ? k0 + 4096 : count;
        Vec<T> sum{};
        for (int64_t k = k0; k < end; k += L) {
            const int64_t n = end - k;
            const Vec<T> v = load_n(x + k, n), zero{};
            const Vec<T> e = exp_of<T>(v < zero ? v : -v);
            Vec<T> m = counts != nullptr ? load_n(counts + k, n) : splat(T(1));
            for (int64_t i = n; i < L; ++i) m[i] = 0;
            sum += m * ((v > zero ? v : zero) + log1p_of<T>(e));
            if (kStore) store_n(x + k, m * (v < zero ? e : splat(T(1))) / (T(1) + e), n);
        }
        total += double(sum_lanes<T>(sum));
    }
    return total;
}

// The samples' rows of w, and what their logits start from: bias and correction, before they are
// divided by the temperature. A softmax counts a sample m times by adding log m to its logit.
template <class T>
struct Candidates {
    T* w;
    T* start;
};
template <class T, class Args>
inline Candidates<T> gather_candidates(Scratch& scratch, const Args& a) {
    const Candidates<T> c{scratch.take<T>(a.K * a.H), scratch.take<T>(a.K)};
    embedding_forward(EmbeddingForwardArgs<T>{c.w, a.samples, a.w, a.K, a.V, a.H});
    for (int64_t k = 0; k < a.K; ++k) {
        double shift = a.log_expected != nullptr ? double(a.log_expected[k]) : 0;
        if (!a.logistic && a.counts != nullptr) shift -= std::log(double(a.counts[k]));
        c.start[k] = T((a.b != nullptr ? double(a.b[a.samples[k]]) : 0) - a.temperature * shift);
    }
    return c;
}

// The place of an id among the samples, which rise; -1 if it is not there.
inline int64_t find_sample(const int32_t* samples, int64_t count, int32_t id) {
    int64_t low = 0, high = count;
    while (low < high) {
        const int64_t middle = (low + high) / 2;
        if (samples[middle] < id)
            low = middle + 1;
        else
            high = middle;
    }
    return low < count && samples[low] == id ? low : -1;
}

// Loss of token n from its samples' logits x, and the gradient of its target's logit. With kStore
// the gradients of the samples' logits replace x.
template <class T, bool kStore, class Args>
inline T candidates_row(const Args& a, int64_t n, T* x, double weight) {
    constexpr int64_t L = kLanes<T>;
    const int64_t target = a.targets[n];
    const double slope = weight / a.temperature;
    divide_by_temperature(x, a.K, a.temperature);
    const int64_t hit = a.remove_hits ? find_sample(a.samples, a.K, int32_t(target)) : int64_t(-1);
    if (hit >= 0) x[hit] = -std::numeric_limits<T>::infinity();
    double t = double(dot(a.h + n * a.H, a.w + target * a.H, a.H));
    if (a.b != nullptr) t += double(a.b[target]);
    t /= a.temperature;
    if (a.target_log_expected != nullptr) t -= double(a.target_log_expected[n]);
    double dt, scale;
    if (a.logistic) {
        a.loss[n] = T(softplus(-t) + softplus_sum<T, kStore>(x, a.counts, a.K));
        scale = slope;
        dt = -slope / (1 + std::exp(t));
    } else {
        const T most = row_max(x, a.K);
        const T top = double(most) > t ? most : T(t);
        const double others = exp_sum<T, kStore>(x, a.K, top);
        const double sum = others + std::exp(t - double(top));
        a.loss[n] = T(double(top) - t + std::log(sum));
        scale = slope / sum;
        dt = -slope * (others / sum);
    }
    if (kStore) {
        const T factor = T(scale);
        int64_t k = 0;
        for (; k + L <= a.K; k += L) store(x + k, load(x + k) * factor);
        for (; k < a.K; ++k) x[k] *= factor;
    }
    return T(dt);
}

template <class T>
void candidates_forward(const CandidatesForwardArgs<T>& a) {
    const int64_t block = token_block(a.N, a.K, int64_t(sizeof(T)));
    Scratch scratch;
    T* const x = scratch.take<T>(block * a.K);
    const Candidates<T> c = gather_candidates<T>(scratch, a);
    for (int64_t n0 = 0; n0 < a.N; n0 += block) {
        const int64_t tokens = a.N - n0 < block ? a.N - n0 : block;
        block_logits(x, a.h + n0 * a.H, Weights<T>{c.w}, c.start, tokens, a.H, a.K);
        auto body = [&](int tid, int size) {
            const Range mine = share(tokens, 1, tid, size);
            for (int64_t n = mine.begin; n < mine.end; ++n)
                candidates_row<T, false>(a, n0 + n, x + n * a.K, 1);
        };
        parallel(threads_for(24.0 * double(tokens) * double(a.K)), body);
    }
}

// Which rows have a gradient: samples and targets in one rising list.
struct CandidateUnion {
    int64_t count;
    int64_t* at;      // [K] row of each sample
    int64_t* sample;  // [count] sample of each row, or -1
    int64_t* begin;   // [count + 1] first of a row's positions
    uint64_t* keys;   // [N] positions of targets, by id
};
template <class T>
inline CandidateUnion unite_candidates(Scratch& scratch, const CandidatesGradientsArgs<T>& a) {
    CandidateUnion u{0, scratch.take<int64_t>(a.K), scratch.take<int64_t>(a.N + a.K),
                     scratch.take<int64_t>(a.N + a.K + 1), scratch.take<uint64_t>(a.N)};
    for (int64_t n = 0; n < a.N; ++n) u.keys[n] = sort_key(a.targets[n], n);
    u.keys = radix_sort_ids(u.keys, scratch.take<uint64_t>(a.N), a.N);
    int64_t k = 0, n = 0;
    while (k < a.K || n < a.N) {
        const bool of_sample = k < a.K && (n == a.N || a.samples[k] <= key_id(u.keys[n]));
        const int32_t id = of_sample ? a.samples[k] : key_id(u.keys[n]);
        u.sample[u.count] = of_sample ? k : -1;
        u.begin[u.count] = n;
        if (of_sample) u.at[k++] = u.count;
        while (n < a.N && key_id(u.keys[n]) == id) ++n;
        a.rows[u.count++] = id;
    }
    u.begin[u.count] = a.N;
    return u;
}

template <class T>
void candidates_gradients(const CandidatesGradientsArgs<T>& a) {
    *a.count = 0;
    if (a.N == 0) return;
    const int64_t block = token_block(a.N, a.K, int64_t(sizeof(T)));
    Scratch scratch;
    T* const x = scratch.take<T>(block * a.K);
    T* const dt = scratch.take<T>(a.N);
    T* const db = scratch.take<T>(a.K);
    const Candidates<T> c = gather_candidates<T>(scratch, a);
    const CandidateUnion u = unite_candidates(scratch, a);
    for (int64_t n0 = 0; n0 < a.N; n0 += block) {
        const int64_t tokens = a.N - n0 < block ? a.N - n0 : block;
        const T* const h = a.h + n0 * a.H;
        block_logits(x, h, Weights<T>{c.w}, c.start, tokens, a.H, a.K);
        auto losses = [&](int tid, int size) {
            const Range mine = share(tokens, 1, tid, size);
            for (int64_t n = mine.begin; n < mine.end; ++n) {
                const double weight = a.weights != nullptr ? double(a.weights[n0 + n]) : 1;
                dt[n0 + n] = candidates_row<T, true>(a, n0 + n, x + n * a.K, weight);
            }
        };
        parallel(threads_for(40.0 * double(tokens) * double(a.K)), losses);
        gemm(GemmArgs<T>{.M = tokens,
                         .N = a.H,
                         .K = a.K,
                         .a = {x, a.K, false},
                         .b = {c.w, a.H, true},
                         .c = a.dh + n0 * a.H,
                         .ldc = a.H});
        gemm(GemmArgs<T>{.M = a.K,
                         .N = a.H,
                         .K = tokens,
                         .a = {x, a.K, true},
                         .b = {h, a.H, true},
                         .c = a.drows,
                         .ldc = a.H,
                         .accumulate = n0 > 0,
                         .a_sum = db,
                         .c_at = u.at});
    }
    auto targets = [&](int tid, int size) {
        const Range mine = share(a.N, 1, tid, size);
        for (int64_t n = mine.begin; n < mine.end; ++n)
            add_scaled(a.dh + n * a.H, a.w + int64_t(a.targets[n]) * a.H, dt[n], a.H, true);
        const Range own = share(u.count, 1, tid, size);
        for (int64_t i = own.begin; i < own.end; ++i) {
            bool add = u.sample[i] >= 0;
            T sum = add ? db[u.sample[i]] : T(0);
            for (int64_t p = u.begin[i]; p < u.begin[i + 1]; ++p, add = true) {
                const int64_t n = key_position(u.keys[p]);
                add_scaled(a.drows + i * a.H, a.h + n * a.H, dt[n], a.H, add);
                sum += dt[n];
            }
            if (a.db != nullptr) a.db[i] = sum;
        }
    };
    parallel(threads_for(kEmbeddingFlopsAByte * 2 * sizeof(T) * double(a.N) * double(a.H)),
             targets);
    *a.count = u.count;
}
