// The gradient filter of the fused cross-entropy (contract: xent.h), CPU form; after xent-inl.h.

// Gradients without the words that are too improbable after all tokens of a block: the others' are
// gathered, so that the products shrink with their number.
template <class T>
void filtered_gradients(const XentGradientsArgs<T>& a) {
    constexpr int64_t kTokens = 128;  // what is left out depends on it: it is part of the contract
    constexpr int64_t kWords = 4096;  // gathered at a time
    const int64_t blocks = (a.N + kTokens - 1) / kTokens, block = (a.N + blocks - 1) / blocks;
    const int64_t V = a.V, H = a.H;
    const int members = threads_for(32.0 * double(block) * double(V));
    Scratch scratch;
    T* const z = scratch.take<T>(block * V);
    uint8_t* const marks = scratch.take<uint8_t>(members * V);  // of each member
    int32_t* const words = scratch.take<int32_t>(V);
    T* const w = scratch.take<T>(kWords * H);
    T* const dw = scratch.take<T>(kWords * H);
    T* const db = scratch.take<T>(kWords);
    auto clear = [&](int tid, int size) {
        const Range mine = share(V, 1, tid, size);
        __builtin_memset(a.dw + mine.begin * H, 0,
                         std::size_t((mine.end - mine.begin) * H) * sizeof(T));
    };
    parallel(threads_for(double(V) * double(H)), clear);
    if (a.db != nullptr) __builtin_memset(a.db, 0, std::size_t(V) * sizeof(T));
    for (int64_t n0 = 0; n0 < a.N; n0 += block) {
        const int64_t tokens = a.N - n0 < block ? a.N - n0 : block;
        const T* const h = a.h + n0 * H;
        block_logits(z, h, Weights<T>{a.w}, a.b, tokens, H, V);
        __builtin_memset(marks, 0, std::size_t(members * V));
        auto softmax = [&](int tid, int size) {
            uint8_t* const marked = marks + tid * V;
            const Range mine = share(tokens, 1, tid, size);
            for (int64_t n = mine.begin; n < mine.end; ++n) {
                T* const row = z + n * V;
                divide_by_temperature(row, V, a.temperature);
                RowSums<T> sums;
                add_words<T, true>(sums, a, n0 + n, row, 0, V);
                row_losses(a, n0 + n, sums);
                const T bound = T(a.gradient_filter * sums.sum);
                for (int64_t v = 0; v < V; ++v) marked[v] |= uint8_t(row[v] >= bound);
                marked[a.targets[n0 + n]] = 1;
                row_gradient<T, false>(a, n0 + n, sums, row, 0, V);
            }
        };
        parallel(members, softmax);
        int64_t count = 0;
        for (int64_t v = 0; v < V; ++v) {
            uint8_t any = 0;
            for (int64_t t = 0; t < members; ++t) any |= marks[t * V + v];
            words[count] = int32_t(v);
            count += any;
        }
        auto gather = [&](int tid, int size) {
            const Range mine = share(tokens, 1, tid, size);
            for (int64_t n = mine.begin; n < mine.end; ++n)
                for (int64_t i = 0; i < count; ++i) z[n * V + i] = z[n * V + words[i]];
        };
        parallel(threads_for(4.0 * double(tokens) * double(count)), gather);
        for (int64_t first = 0; first < count; first += kWords) {
            const int64_t some = count - first < kWords ? count - first : kWords;
            const std::size_t width = std::size_t(H) * sizeof(T);
            auto take = [&](int tid, int size) {
                const Range mine = share(some, 1, tid, size);
                for (int64_t i = mine.begin; i < mine.end; ++i)
                    __builtin_memcpy(w + i * H, a.w + words[first + i] * H, width);
            };
            parallel(threads_for(4.0 * double(some) * double(H)), take);
            gemm(GemmArgs<T>{.M = tokens,
                             .N = H,
                             .K = some,
                             .a = {z + first, V, false},
                             .b = {w, H, true},
                             .c = a.dh + n0 * H,
                             .ldc = H,
                             .accumulate = first > 0});
            gemm(GemmArgs<T>{.M = some,
                             .N = H,
                             .K = tokens,
                             .a = {z + first, V, true},
                             .b = {h, H, true},
                             .c = dw,
                             .ldc = H,
                             .a_sum = a.db != nullptr ? db : nullptr});
            auto add = [&](int tid, int size) {
                const Range mine = share(some, 1, tid, size);
                for (int64_t i = mine.begin; i < mine.end; ++i) {
                    const int64_t v = words[first + i];
                    for (int64_t j = 0; j < H; ++j) a.dw[v * H + j] += dw[i * H + j];
                    if (a.db != nullptr) a.db[v] += db[i];
                }
            };
            parallel(threads_for(4.0 * double(some) * double(H)), add);
        }
    }
}
