// CPU form of the hierarchical softmax (contract: hsoftmax.h): what it predicts, from the root
// down.

// Child c of node s; false (and a fault) if it is no entry below the node.
template <class T>
inline bool child_of(const HsoftmaxTree<T>& t, const PathStep& s, int64_t c, int64_t& entry) {
    entry = t.children[s.row + s.node + c];
    if (entry >= 0 && (entry < t.V || entry > t.V + s.node) && entry < t.V + t.M) return true;
    __atomic_store_n(t.fault, true, __ATOMIC_RELAXED);
    return false;
}

template <class T>
struct NodeSum {
    T top;
    double sum;
};

// Maximum of the logits and 0, and the sum of all exponentials less it; with kStore those of z
// replace it.
template <class T, bool kStore>
inline NodeSum<T> node_sum(T* z, int64_t rows) {
    T top = row_max(z, rows);
    top = top < 0 ? 0 : top;
    const double sum = exp_sum<T, kStore>(z, rows, top);
    return {top, sum + std::exp(-double(top))};
}

// In a tree every token is met, and no entry twice.
template <class T>
inline bool once(const HsoftmaxTree<T>& t, bool possible) {
    if (!possible) __atomic_store_n(t.fault, true, __ATOMIC_RELAXED);
    return possible;
}

// log1p(exp(-|z|)) of all rows.
template <class T>
inline void soft_parts(T* out, const T* z, int64_t count) {
    for (int64_t i = 0; i < count; i += kLanes<T>) {
        const Vec<T> x = load_n(z + i, count - i);
        store_n(out + i, log1p_of<T>(exp_of<T>(x < T(0) ? x : -x)), count - i);
    }
}

// Log-probabilities of all tokens from all rows' logits; `above` [M] and `soft` [V] are working
// memory. Parents come before their children.
template <class T>
inline void log_probs_down(const HsoftmaxTree<T>& t, T* out, const T* z, double* above, T* soft) {
    if (t.V == 1) out[0] = 0;
    if (t.M == t.V - 1) soft_parts(soft, z, t.M);
    if (t.M > 0) above[0] = 0;
    int64_t tokens = t.V == 1;
    for (int64_t m = 0; m < t.M; ++m) {
        PathStep s;
        if (!node_rows(t, m, s)) return;
        const T* const own = z + s.row;
        double top = 0, log_sum = 0;
        if (s.rows == 1) {
            top = own[0] > 0 ? double(own[0]) : 0.0;
            log_sum = t.M == t.V - 1 ? double(soft[s.row])
                                     : std::log1p(std::exp(-std::fabs(double(own[0]))));
        } else {
            const NodeSum<T> sum = node_sum<T, false>(const_cast<T*>(own), s.rows);
            top = double(sum.top), log_sum = std::log(sum.sum);
        }
        for (int64_t c = 0; c <= s.rows; ++c) {
            int64_t entry;
            if (!child_of(t, s, c, entry)) return;
            const double x = c > 0 ? double(own[c - 1]) : 0.0;
            const double log_p = above[m] + ((x - top) - log_sum);
            tokens += entry < t.V;
            if (entry < t.V)
                out[entry] = T(log_p);
            else
                above[entry - t.V] = log_p;
        }
    }
    once(t, tokens == t.V);
}

template <class T>
void hsoftmax_log_prob(const HsoftmaxLogProbArgs<T>& a) {
    const HsoftmaxTree<T>& t = a.tree;
    const int64_t rows = t.V - 1, block = token_block(a.N, t.V, int64_t(sizeof(T)));
    const int threads = threads_for(64.0 * double(block) * double(t.V));
    Scratch scratch;
    T* const z = scratch.take<T>(block * rows);
    T* const soft = scratch.take<T>(t.V * threads);
    double* const above = scratch.take<double>(t.M * threads);
    for (int64_t n0 = 0; n0 < a.N; n0 += block) {
        const int64_t some = a.N - n0 < block ? a.N - n0 : block;
        gemm(GemmArgs<T>{.M = some,
                         .N = rows,
                         .K = t.H,
                         .a = {a.h + n0 * t.H, t.H, false},
                         .b = {t.w, t.H, false},
                         .c = z,
                         .ldc = rows,
                         .bias = t.b});
        auto body = [&](int tid, int size) {
            const Range mine = share(some, 1, tid, size);
            for (int64_t n = mine.begin; n < mine.end; ++n)
                log_probs_down(t, a.log_prob + (n0 + n) * t.V, z + n * rows, above + tid * t.M,
                               soft + tid * t.V);
        };
        parallel(threads, body);
    }
}

// Entries still to be opened, as a heap with the best on top: the more probable, NaN last; of equal
// ones nodes before tokens, so that their tokens can come in order, and smaller numbers first.
struct OpenEntries {
    double* log_p;
    int32_t* entry;
    int64_t V, count;

    bool better(double p, int32_t e, int64_t j) const {
        const bool number = p == p, other_number = log_p[j] == log_p[j];
        if (number != other_number) return number;
        if (number && p != log_p[j]) return p > log_p[j];
        const bool node = e >= V, other_node = entry[j] >= V;
        return node != other_node ? node : e < entry[j];
    }
    void push(double p, int32_t e) {
        int64_t at = count++;
        for (; at > 0 && better(p, e, (at - 1) / 2); at = (at - 1) / 2) move(at, (at - 1) / 2);
        log_p[at] = p, entry[at] = e;
    }
    void pop() {
        const double p = log_p[--count];
        const int32_t e = entry[count];
        int64_t at = 0;
        for (int64_t below = 1; below < count; below = 2 * at + 1) {
            if (below + 1 < count && better(log_p[below + 1], entry[below + 1], below)) ++below;
            if (better(p, e, below)) break;
            move(at, below);
            at = below;
        }
        log_p[at] = p, entry[at] = e;
    }
    void move(int64_t to, int64_t from) const { log_p[to] = log_p[from], entry[to] = entry[from]; }
};

// The K best of one token; `z` [V] is working memory.
template <class T>
inline void best_first(const HsoftmaxTree<T>& t, const T* h, int64_t K, T* log_prob, int32_t* ids,
                       OpenEntries open, T* z) {
    open.count = 0;
    open.push(0, t.V == 1 ? 0 : int32_t(t.V));
    for (int64_t k = 0, opened = 0; k < K;) {
        if (!once(t, open.count > 0)) return;
        const double above = open.log_p[0];
        const int32_t entry = open.entry[0];
        open.pop();
        if (entry < t.V) {
            log_prob[k] = T(above), ids[k++] = entry;
            continue;
        }
        PathStep s;
        if (!node_rows(t, entry - t.V, s) || !once(t, ++opened <= t.M)) return;
        node_logits(t, s, h, z);
        const NodeSum<T> sum = node_sum<T, false>(z, s.rows);
        const double log_sum =
            s.rows == 1 ? std::log1p(std::exp(-std::fabs(double(z[0])))) : std::log(sum.sum);
        for (int64_t c = 0; c <= s.rows; ++c) {
            int64_t child;
            if (!child_of(t, s, c, child) || !once(t, open.count < t.V + t.M)) return;
            const double x = c > 0 ? double(z[c - 1]) : 0.0;
            open.push(above + ((x - double(sum.top)) - log_sum), int32_t(child));
        }
    }
}

template <class T>
void hsoftmax_top_k(const HsoftmaxTopKArgs<T>& a) {
    const HsoftmaxTree<T>& t = a.tree;
    const int threads = threads_for(64.0 * double(a.N) * double(a.K) * double(t.H));
    Scratch scratch;
    const int64_t most = t.V + t.M;
    double* const log_p = scratch.take<double>(most * threads);
    int32_t* const entry = scratch.take<int32_t>(most * threads);
    T* const z = scratch.take<T>(t.V * threads);
    auto body = [&](int tid, int size) {
        const OpenEntries open{log_p + tid * most, entry + tid * most, t.V, 0};
        const Range mine = share(a.N, 1, tid, size);
        for (int64_t n = mine.begin; n < mine.end; ++n)
            best_first(t, a.h + n * t.H, a.K, a.log_prob + n * a.K, a.ids + n * a.K, open,
                       z + tid * t.V);
    };
    parallel(threads, body);
}

// The child of a node for u in [0, 1); -1 where there is no distribution.
template <class T>
inline int64_t draw_child(T* z, int64_t rows, double u) {
    const NodeSum<T> all = node_sum<T, true>(z, rows);
    if (!(all.sum < std::numeric_limits<double>::infinity())) return -1;
    double rest = u * all.sum - std::exp(-double(all.top));
    if (rest < 0) return 0;
    int64_t last = 0;  // if the sums rounded below `rest`
    for (int64_t r = 0; r < rows; ++r) {
        rest -= double(z[r]);
        if (rest < 0) return r + 1;
        if (z[r] > 0) last = r + 1;
    }
    return last;
}

template <class T>
void hsoftmax_sample(const HsoftmaxSampleArgs<T>& a) {
    const HsoftmaxTree<T>& t = a.tree;
    const int threads = threads_for(64.0 * double(a.N) * double(t.H));
    Scratch scratch;
    T* const working = scratch.take<T>(t.V * threads);
    auto body = [&](int tid, int size) {
        T* const z = working + tid * t.V;
        const Range mine = share(a.N, 1, tid, size);
        for (int64_t n = mine.begin; n < mine.end; ++n) {
            int64_t entry = t.V == 1 ? 0 : t.V;
            for (uint32_t depth = 0; entry >= t.V; ++depth) {
                PathStep s;
                if (!node_rows(t, entry - t.V, s)) break;
                node_logits(t, s, a.h + n * t.H, z);
                const PhiloxWords drawn =
                    philox(a.seed, a.step,
                           {{depth, uint32_t(n), a.time, philox_purpose(kPhiloxSample, 0)}});
                const int64_t c = draw_child(z, s.rows, uniform_53(drawn));
                if (c < 0) entry = c;
                if (c < 0 || !child_of(t, s, c, entry)) break;
            }
            a.ids[n] = int32_t(entry);
        }
    };
    parallel(threads, body);
}
