// CPU form of the hierarchical softmax (contract: hsoftmax.h): losses and gradients.
//
// Tokens are taken in groups of equal targets, whose path is walked and sorted once. Paths come
// first, so that what follows knows ahead which rows it will read. A path's rows then come from
// memory once: while they are in the first-level cache they give the logits and dh of the group.
// Last, (node, group) pairs sorted by node give drows, each row written once. A path's nodes are
// independent of each other, so up to kGroup rows are taken together: one load of h serves all.
// (The top of the tree as one dense product was slower: its rows stay in the first-level cache
// anyway, and most of what it computes no path asks for.)

constexpr int64_t kWideRows = 32;  // so many and more are a matrix product
constexpr int64_t kAhead = 12;     // pairs whose rows are on their way to the cache

// What a path has at one node: rows [row, row + rows) and the child to go to.
struct PathStep {
    int64_t node, row, rows, child;
};

// Node m's rows; false (and a fault) if they are not in w.
template <class T>
inline bool node_rows(const HsoftmaxTree<T>& t, int64_t m, PathStep& step) {
    step.node = m;
    step.row = t.first[m] - m;
    step.rows = int64_t(t.first[m + 1]) - t.first[m] - 1;
    if (step.row >= 0 && step.rows >= 1 && step.row + step.rows <= t.V - 1) return true;
    __atomic_store_n(t.fault, true, __ATOMIC_RELAXED);
    return false;
}

// From `entry` to its parent; false at the root.
template <class T>
inline bool step_up(const HsoftmaxTree<T>& t, int64_t& entry, PathStep& step) {
    if (entry == t.V || t.V == 1) return false;
    const int64_t m = t.parent[2 * entry];
    step.child = t.parent[2 * entry + 1];
    // numbers fall on the way up, so that it ends
    if (m >= 0 && m < (entry < t.V ? t.M : entry - t.V) && node_rows(t, m, step) &&
        step.child >= 0 && step.child <= step.rows) {
        entry = t.V + m;
        return true;
    }
    __atomic_store_n(t.fault, true, __ATOMIC_RELAXED);
    return false;
}

// z[0:rows] of a node's rows, which follow one another.
template <class T>
inline void node_logits(const HsoftmaxTree<T>& t, const PathStep& s, const T* h, T* z) {
    for (int64_t r = 0; r < s.rows; r += kGroup) {
        const int64_t some = s.rows - r < kGroup ? s.rows - r : kGroup;
        const T* w[kGroup];
        for (int64_t i = 0; i < some; ++i) w[i] = t.w + (s.row + r + i) * t.H;
        dot_group(some, t.H, h, w, z + r);
    }
    for (int64_t r = 0; r < s.rows && t.b != nullptr; ++r) z[r] += t.b[s.row + r];
}

// -log p(child), and with kGradients dz [rows] = weight (p - [child]), in place of z, which is lost
// in any case. The other children are summed apart: what is near 0 keeps its digits.
template <class T, bool kGradients>
inline double node_loss(T* z, int64_t rows, int64_t child, T weight) {
    const T most = row_max(z, rows), chosen = child > 0 ? z[child - 1] : T(0);
    const double top = most < 0 ? 0 : double(most), own = std::exp(double(chosen) - top);
    if (child > 0) z[child - 1] = -std::numeric_limits<T>::infinity();
    const double root = child > 0 ? std::exp(-top) : 0;
    const double others = exp_sum<T, kGradients>(z, rows, T(top)) + root, sum = own + others;
    if (kGradients) {
        const T scale = T(double(weight) / sum);
        for (int64_t r = 0; r < rows; ++r) z[r] *= scale;
        if (child > 0) z[child - 1] = T(-double(weight) * (others / sum));
    }
    return own >= others ? std::log1p(others / own) : (top - double(chosen)) + std::log(sum);
}

// A token that has passed a node.
struct NodeToken {
    int64_t dz, token;
};

// A node on the path of a group of tokens.
struct PathPair {
    int64_t dz;  // where the first token's are; the next one's follow `places` further on
    int32_t group, child, row, rows;
};

// Binary nodes of one path, taken together.
template <class T>
struct PathGroup {
    static constexpr int kRoom = kGroup > kLanes<T> ? kGroup : kLanes<T>;
    const T* w[kGroup];
    T bias[kRoom];
    T side[kRoom];  // of the child to go to: 1 for child 1, else -1
    int64_t size = 0;
};

// The group's loss, with p = sigmoid(side z): -log p = max(-side z, 0) + log1p(exp(-|z|)). With
// kGradients also dz [size] = weight side (p - 1), and dh += dz w.
template <class T, bool kGradients>
inline double group_loss(PathGroup<T>& group, int64_t H, const T* h, T weight, T* dz, T* dh) {
    constexpr int64_t L = kLanes<T>;
    T z[PathGroup<T>::kRoom], loss[PathGroup<T>::kRoom];
    dot_group(group.size, H, h, group.w, z);
    for (int64_t i = 0; i < group.size; i += L) {
        const int64_t n = group.size - i;
        const Vec<T> side = load_n(group.side + i, n);
        const Vec<T> x = (load_n(z + i, n) + load_n(group.bias + i, n)) * side;
        const Vec<T> e = exp_of<T>(x < T(0) ? x : -x), most = T(1) / (e + T(1));
        store_n(loss + i, (x < T(0) ? -x : Vec<T>{}) + log1p_of<T>(e), n);
        if (kGradients) store_n(dz + i, (x > T(0) ? e * most : most) * -side * weight, n);
    }
    double sum = 0;
    for (int64_t i = 0; i < group.size; ++i) sum += double(loss[i]);
    if (kGradients) add_group(group.size, H, dh, group.w, dz);
    group.size = 0;
    return sum;
}

// Loss of a token but for its wide nodes, and with kGradients its dh and dz. The path's pairs are
// [begin, end); those up to `ahead` are still to be read.
template <class T, bool kGradients>
inline double token_loss(const HsoftmaxTree<T>& t, const PathPair* pairs, int64_t begin,
                         int64_t end, int64_t ahead, const T* h, T* dh, T weight, T* dz) {
    if (kGradients) __builtin_memset(dh, 0, size_t(t.H) * sizeof(T));
    double loss = 0;
    PathGroup<T> group;
    int64_t group_at = 0;
    T z[kWideRows];
    auto finish = [&] {
        T* const own = kGradients ? dz + group_at : z;
        loss += group_loss<T, kGradients>(group, t.H, h, weight, own, dh);
    };
    for (int64_t p = begin; p < end; ++p) {
        const PathPair& pair = pairs[p];
        if (p + kAhead < ahead) fetch(t.w + pairs[p + kAhead].row * t.H, t.H);
        if (pair.rows >= kWideRows) continue;
        if (pair.rows > 1) {
            T* const own = kGradients ? dz + pair.dz : z;
            const PathStep s{0, pair.row, pair.rows, pair.child};
            node_logits(t, s, h, own);
            loss += node_loss<T, kGradients>(own, s.rows, s.child, weight);
            for (int64_t r = 0; r < s.rows && kGradients; r += kGroup) {
                const int64_t some = s.rows - r < kGroup ? s.rows - r : kGroup;
                const T* w[kGroup];
                for (int64_t i = 0; i < some; ++i) w[i] = t.w + (s.row + r + i) * t.H;
                add_group(some, t.H, dh, w, own + r);
            }
            // dz of a group must follow one another
            if (group.size > 0) finish();
            continue;
        }
        if (group.size == 0) group_at = pair.dz;
        group.w[group.size] = t.w + pair.row * t.H;
        group.bias[group.size] = t.b != nullptr ? t.b[pair.row] : T(0);
        group.side[group.size++] = pair.child == 1 ? T(1) : T(-1);
        if (group.size == kGroup) finish();
    }
    if (group.size > 0) finish();
    return loss;
}

// The last of begins[0:count] that is not above `at`; the first, if all are.
inline int64_t last_not_above(const int64_t* begins, int64_t count, int64_t at) {
    int64_t low = 0;
    for (int64_t high = count; high - low > 1;) {
        const int64_t middle = (low + high) / 2;
        (begins[middle] <= at ? low : high) = middle;
    }
    return low;
}

// The groups, the (node, group) pairs of all paths, and the dz of narrow nodes.
template <class T>
struct PathPairs {
    int64_t count, groups, nodes;  // no pairs if they need not be sorted
    int64_t* token;                // [N]: tokens by group
    int64_t* group;                // [groups + 1]: where each begins in `token`
    int64_t* places;               // [groups]: dz of each token
    uint64_t* keys;                // sorted by node, then group
    PathPair* pairs;               // in the order of groups
    T* dz;
    int64_t* begins;  // [nodes + 1]: where each of the nodes met begins in keys
    int64_t* work;    // [nodes + 1]: and how many tokens there are before it
    NodeToken* on;    // [work[nodes]]: the tokens of each node, see list_tokens
};

// Groups of equal targets.
template <class T>
void group_tokens(const int32_t* targets, int64_t N, PathPairs<T>& all, Scratch& scratch) {
    uint64_t* keys = scratch.take<uint64_t>(N);
    uint64_t* const spare = scratch.take<uint64_t>(N);
    all.token = scratch.take<int64_t>(N);
    all.group = scratch.take<int64_t>(N + 1);
    for (int64_t n = 0; n < N; ++n) keys[n] = sort_key(targets[n], n);
    keys = radix_sort_ids(keys, spare, N);
    all.groups = 0;
    for (int64_t i = 0; i < N; ++i) {
        if (i == 0 || key_id(keys[i]) != key_id(keys[i - 1])) all.group[all.groups++] = i;
        all.token[i] = key_position(keys[i]);
    }
    all.group[all.groups] = N;
}

// All pairs by node.
template <class T>
void sort_pairs(PathPairs<T>& all, uint64_t* spare, Scratch& scratch) {
    all.keys = radix_sort_ids(all.keys, spare, all.count);
    all.begins = scratch.take<int64_t>(all.count + 1);
    all.work = scratch.take<int64_t>(all.count + 1);
    int64_t tokens = 0;
    for (int64_t i = 0; i < all.count; ++i) {
        if (i == 0 || key_id(all.keys[i]) != key_id(all.keys[i - 1])) {
            all.begins[all.nodes] = i;
            all.work[all.nodes++] = tokens;
        }
        const int32_t group = all.pairs[key_position(all.keys[i])].group;
        tokens += all.group[group + 1] - all.group[group];
    }
    all.begins[all.nodes] = all.count;
    all.work[all.nodes] = tokens;
}

// The tokens on all nodes: narrow_nodes reads them once for each block of columns.
template <class T>
void list_tokens(PathPairs<T>& all, Scratch& scratch) {
    all.on = scratch.take<NodeToken>(all.work[all.nodes]);
    NodeToken* next = all.on;
    for (int64_t i = 0; i < all.count; ++i) {
        const PathPair& pair = all.pairs[key_position(all.keys[i])];
        int64_t dz = pair.dz;
        for (int64_t j = all.group[pair.group]; j < all.group[pair.group + 1]; ++j) {
            *next++ = {dz, all.token[j]};
            dz += all.places[pair.group];
        }
    }
}

// One pass over the tokens: nll, and with kGradients dh.
template <class T, bool kGradients, class Args>
PathPairs<T> walk_paths(const Args& a, T* dh, const T* weights, Scratch& scratch) {
    const HsoftmaxTree<T>& t = a.tree;
    PathPairs<T> all{};
    group_tokens(a.targets, a.N, all, scratch);
    int64_t* const first_pair = scratch.take<int64_t>(all.groups + 1);
    int64_t* const first_dz = scratch.take<int64_t>(all.groups + 1);
    all.places = scratch.take<int64_t>(all.groups);
    const int walkers = threads_for(double(all.groups) * 1024);
    bool wide = false;  // whether there are wide nodes on the paths
    auto count = [&](int tid, int size) {
        const Range mine = share(all.groups, 1, tid, size);
        for (int64_t g = mine.begin; g < mine.end; ++g) {
            int64_t entry = a.targets[all.token[all.group[g]]], pairs = 0, places = 0;
            for (PathStep s; step_up(t, entry, s); ++pairs)
                places += s.rows < kWideRows ? s.rows : 0;
            first_pair[g + 1] = pairs;
            all.places[g] = places;
        }
    };
    parallel(walkers, count);
    first_pair[0] = first_dz[0] = 0;
    for (int64_t g = 0; g < all.groups; ++g) {
        first_pair[g + 1] += first_pair[g];
        first_dz[g + 1] = first_dz[g] + all.places[g] * (all.group[g + 1] - all.group[g]);
    }
    all.count = first_pair[all.groups];
    all.keys = scratch.take<uint64_t>(all.count);
    uint64_t* const spare = scratch.take<uint64_t>(all.count);
    all.pairs = scratch.take<PathPair>(all.count);
    all.dz = kGradients ? scratch.take<T>(first_dz[all.groups]) : nullptr;
    auto store_paths = [&](int tid, int size) {
        const Range mine = share(all.groups, 1, tid, size);
        for (int64_t g = mine.begin; g < mine.end; ++g) {
            int64_t entry = a.targets[all.token[all.group[g]]], p = first_pair[g], at = first_dz[g];
            for (PathStep s; step_up(t, entry, s); ++p) {
                const bool narrow = s.rows < kWideRows;
                all.keys[p] = sort_key(int32_t(s.node), p);
                all.pairs[p] = {at, int32_t(g), int32_t(s.child), int32_t(s.row), int32_t(s.rows)};
                at += narrow ? s.rows : 0;
                if (!narrow) __atomic_store_n(&wide, true, __ATOMIC_RELAXED);
            }
        }
    };
    parallel(walkers, store_paths);
    auto body = [&](int tid, int size) {
        const Range mine = share(a.N, 1, tid, size);
        int64_t g = last_not_above(all.group, all.groups, mine.begin);
        for (int64_t i = mine.begin; i < mine.end; ++i) {
            while (i >= all.group[g + 1]) ++g;
            const int64_t n = all.token[i], before = (i - all.group[g]) * all.places[g];
            // while it is the group's last token, the next groups' rows come
            const int64_t ahead = i + 1 == all.group[g + 1] ? all.count : 0;
            if (i + 1 < mine.end) {
                fetch(a.h + all.token[i + 1] * t.H, t.H);
                if (kGradients) fetch(dh + all.token[i + 1] * t.H, t.H);
            }
            a.nll[n] = T(token_loss<T, kGradients>(
                t, all.pairs, first_pair[g], first_pair[g + 1], ahead, a.h + n * t.H,
                kGradients ? dh + n * t.H : nullptr, weights != nullptr ? weights[n] : T(1),
                kGradients ? all.dz + before : nullptr));
        }
    };
    parallel(threads_for(double(a.N) * (double(t.H) + 16) * 64), body);
    if (*t.fault || (!kGradients && !wide)) all.count = 0;
    sort_pairs(all, spare, scratch);
    return all;
}

// Wide nodes, one after another, each a block of its tokens at a time. Their nll is added to the
// tokens', with drows not null also dh; drows and db are written at position[node].
template <class T, class Args>
void wide_nodes(const Args& a, const PathPairs<T>& all, T* dh, const T* weights, T* drows, T* db,
                const int64_t* position) {
    const HsoftmaxTree<T>& t = a.tree;
    for (int64_t i = 0; i < all.nodes; ++i) {
        PathStep s;
        if (!node_rows(t, key_id(all.keys[all.begins[i]]), s) || s.rows < kWideRows) continue;
        const int64_t tokens = all.work[i + 1] - all.work[i];
        const int64_t block = token_block(tokens, s.rows, int64_t(sizeof(T)));
        Scratch scratch;
        T* const z = scratch.take<T>(block * s.rows);
        int64_t* const at = scratch.take<int64_t>(block);
        // tokens in their own order, with the child in place of a position
        uint64_t* keys = scratch.take<uint64_t>(tokens);
        uint64_t* const spare = scratch.take<uint64_t>(tokens);
        int64_t stored = 0;
        for (int64_t k = all.begins[i]; k < all.begins[i + 1]; ++k) {
            const PathPair& pair = all.pairs[key_position(all.keys[k])];
            for (int64_t j = all.group[pair.group]; j < all.group[pair.group + 1]; ++j)
                keys[stored++] = sort_key(int32_t(all.token[j]), pair.child);
        }
        keys = radix_sort_ids(keys, spare, tokens);
        const T* const w = t.w + s.row * t.H;
        for (int64_t n0 = 0; n0 < tokens; n0 += block) {
            const int64_t some = tokens - n0 < block ? tokens - n0 : block;
            for (int64_t n = 0; n < some; ++n) at[n] = key_id(keys[n0 + n]);
            gemm(GemmArgs<T>{.M = some,
                             .N = s.rows,
                             .K = t.H,
                             .a = {a.h, t.H, false, at},
                             .b = {w, t.H, false},
                             .c = z,
                             .ldc = s.rows,
                             .bias = t.b != nullptr ? t.b + s.row : nullptr});
            auto body = [&](int tid, int size) {
                const Range mine = share(some, 1, tid, size);
                for (int64_t n = mine.begin; n < mine.end; ++n) {
                    const int64_t child = key_position(keys[n0 + n]);
                    T* const row = z + n * s.rows;
                    const T weight = weights != nullptr ? weights[at[n]] : T(1);
                    a.nll[at[n]] +=
                        T(drows != nullptr ? node_loss<T, true>(row, s.rows, child, weight)
                                           : node_loss<T, false>(row, s.rows, child, weight));
                }
            };
            parallel(threads_for(32.0 * double(some) * double(s.rows)), body);
            if (drows == nullptr) continue;
            gemm(GemmArgs<T>{.M = some,
                             .N = t.H,
                             .K = s.rows,
                             .a = {z, s.rows, false},
                             .b = {w, t.H, true},
                             .c = dh,
                             .ldc = t.H,
                             .accumulate = true,
                             .c_at = at});
            gemm(GemmArgs<T>{.M = s.rows,
                             .N = t.H,
                             .K = some,
                             .a = {z, s.rows, true},
                             .b = {a.h, t.H, true, at},
                             .c = drows + position[i] * t.H,
                             .ldc = t.H,
                             .accumulate = n0 > 0,
                             .a_sum = db != nullptr ? db + position[i] : nullptr});
        }
    }
}

// out[0:n] = sum over on[begin:end] of dz[r] h[0:n], n at most NV vectors.
template <class T, int NV>
void sum_tokens(T* out, int64_t n, const PathPairs<T>& all, int64_t begin, int64_t end, int64_t r,
                const T* h, int64_t H) {
    constexpr int64_t L = kLanes<T>;
    const int64_t last = n - (NV - 1) * L, all_tokens = all.work[all.nodes];
    Vec<T> sum[NV] = {};
    for (int64_t i = begin; i < end; ++i) {
        // where h outgrows the second-level cache; the next node's first ones, too
        if (i + kAhead < all_tokens) fetch(h + all.on[i + kAhead].token * H, n);
        const T* const row = h + all.on[i].token * H;
        const Vec<T> dz = splat(all.dz[all.on[i].dz + r]);
#pragma GCC unroll 8
        for (int v = 0; v < NV; ++v)
            sum[v] += dz * (v < NV - 1 ? load(row + v * L) : load_n(row + v * L, last));
    }
#pragma GCC unroll 8
    for (int v = 0; v < NV; ++v) store_n(out + v * L, sum[v], v < NV - 1 ? L : last);
}

template <class T>
inline void sum_columns(T* out, int64_t n, const PathPairs<T>& all, int64_t begin, int64_t end,
                        int64_t r, const T* h, int64_t H) {
    switch ((n + kLanes<T> - 1) / kLanes<T>) {
        case 1: return sum_tokens<T, 1>(out, n, all, begin, end, r, h, H);
        case 2: return sum_tokens<T, 2>(out, n, all, begin, end, r, h, H);
        case 3: return sum_tokens<T, 3>(out, n, all, begin, end, r, h, H);
        case 4: return sum_tokens<T, 4>(out, n, all, begin, end, r, h, H);
        case 5: return sum_tokens<T, 5>(out, n, all, begin, end, r, h, H);
        case 6: return sum_tokens<T, 6>(out, n, all, begin, end, r, h, H);
        case 7: return sum_tokens<T, 7>(out, n, all, begin, end, r, h, H);
        default: return sum_tokens<T, 8>(out, n, all, begin, end, r, h, H);
    }
}

// drows and db of narrow nodes. Work is shared by tokens on the nodes times blocks of columns,
// because the root has all tokens; a (node, block) goes to the member that has its first token.
template <class T>
void narrow_nodes(const HsoftmaxGradientsArgs<T>& a, const PathPairs<T>& all,
                  const int64_t* position) {
    constexpr int64_t kColumns = 8 * kLanes<T>;
    const int64_t H = a.tree.H, blocks = (H + kColumns - 1) / kColumns;
    const int64_t tokens = all.work[all.nodes];
    auto body = [&](int tid, int size) {
        const Range mine = share(tokens * blocks, 1, tid, size);
        for (int64_t block = 0; block < blocks; ++block) {
            const int64_t low = mine.begin - block * tokens, high = mine.end - block * tokens;
            if (high <= 0 || low >= tokens) continue;
            int64_t i = 0;  // first node that begins at `low` or later
            for (int64_t end = all.nodes; i < end;) {
                const int64_t middle = (i + end) / 2;
                if (all.work[middle] < low)
                    i = middle + 1;
                else
                    end = middle;
            }
            const int64_t column = block * kColumns, rest = H - column;
            for (; i < all.nodes && all.work[i] < high; ++i) {
                const int64_t begin = all.work[i], end = all.work[i + 1];
                const int64_t rows = position[i + 1] - position[i];
                for (int64_t r = 0; r < rows && rows < kWideRows; ++r) {
                    T* const out = a.drows + (position[i] + r) * H + column;
                    sum_columns(out, rest < kColumns ? rest : kColumns, all, begin, end, r,
                                a.h + column, H);
                    if (block > 0 || a.db == nullptr) continue;
                    double sum = 0;
                    for (int64_t k = begin; k < end; ++k) sum += double(all.dz[all.on[k].dz + r]);
                    a.db[position[i] + r] = T(sum);
                }
            }
        }
    };
    parallel(threads_for(4.0 * double(tokens) * double(H)), body);
}

template <class T>
void hsoftmax_forward(const HsoftmaxForwardArgs<T>& a) {
    Scratch scratch;
    const PathPairs<T> all = walk_paths<T, false>(a, nullptr, nullptr, scratch);
    wide_nodes<T>(a, all, nullptr, nullptr, nullptr, nullptr, nullptr);
}

template <class T>
void hsoftmax_gradients(const HsoftmaxGradientsArgs<T>& a) {
    Scratch scratch;
    PathPairs<T> all = walk_paths<T, true>(a, a.dh, a.weights, scratch);
    int64_t* const position = scratch.take<int64_t>(all.nodes + 1);
    position[0] = 0;
    for (int64_t i = 0; i < all.nodes; ++i) {
        PathStep s;
        if (!node_rows(a.tree, key_id(all.keys[all.begins[i]]), s)) return;
        position[i + 1] = position[i] + s.rows;
        if (position[i + 1] > a.P) continue;
        for (int64_t r = 0; r < s.rows; ++r) a.rows[position[i] + r] = int32_t(s.row + r);
    }
    *a.count = position[all.nodes];
    if (*a.count > a.P) return;
    list_tokens(all, scratch);
    narrow_nodes(a, all, position);
    wide_nodes<T>(a, all, a.dh, a.weights, a.drows, a.db, position);
}
