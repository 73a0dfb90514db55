// CPU loops of the embedding (contract: embedding.h).

// For threads_for: a member is worth waking for 400 kB of rows, 5 us or more.
constexpr double kEmbeddingFlopsAByte = 0.5;

constexpr int64_t kRowsAhead = 4;  // of a table that is not in the cache

template <class T>
void embedding_forward(const EmbeddingForwardArgs<T>& a) {
    auto body = [&](int tid, int size) {
        const Range mine = share(a.N, 1, tid, size);
        const size_t bytes = size_t(a.D) * sizeof(T);
        for (int64_t n = mine.begin; n < mine.end; ++n) {
            if (n + kRowsAhead < mine.end) fetch(a.w + int64_t(a.ids[n + kRowsAhead]) * a.D, a.D);
            __builtin_memcpy(a.y + n * a.D, a.w + int64_t(a.ids[n]) * a.D, bytes);
        }
    };
    parallel(threads_for(kEmbeddingFlopsAByte * sizeof(T) * double(a.N) * double(a.D)), body);
}

// (id, position) in one word, so that sorting words by their upper half, stably, brings the
// positions of an id together in rising order.
inline uint64_t sort_key(int32_t id, int64_t position) {
    return uint64_t(uint32_t(id)) << 32 | uint64_t(uint32_t(position));
}
inline int32_t key_id(uint64_t key) { return int32_t(key >> 32); }
inline int64_t key_position(uint64_t key) { return int64_t(key & 0xFFFFFFFFu); }

constexpr int kRadixBits = 8;
constexpr int64_t kRadix = int64_t(1) << kRadixBits;

// Least significant digit first, over as many digits as the largest id has; `keys` and `spare`
// hold n words each. Returns the one that ends sorted.
inline uint64_t* radix_sort_ids(uint64_t* keys, uint64_t* spare, int64_t n) {
    uint64_t all_bits = 0;
    for (int64_t i = 0; i < n; ++i) all_bits |= keys[i] >> 32;
    for (int shift = 32; all_bits != 0; shift += kRadixBits, all_bits >>= kRadixBits) {
        int64_t begins[kRadix] = {};
        for (int64_t i = 0; i < n; ++i) ++begins[keys[i] >> shift & (kRadix - 1)];
        int64_t sum = 0;
        for (int64_t& begin : begins) {
            const int64_t count = begin;
            begin = sum;
            sum += count;
        }
        for (int64_t i = 0; i < n; ++i) spare[begins[keys[i] >> shift & (kRadix - 1)]++] = keys[i];
        uint64_t* sorted = spare;
        spare = keys;
        keys = sorted;
    }
    return keys;
}

// out[0:n] = sum of dy[position * D + 0:n] over the positions of keys[begin:end]. Positions jump
// about, which the hardware does not foresee: each row asks for the next while it is added.
template <class T>
inline void sum_positions(T* __restrict out, int64_t n, const T* __restrict dy, int64_t D,
                          const uint64_t* keys, int64_t begin, int64_t end, int64_t last) {
    for (int64_t i = begin; i < end; ++i) {
        const T* row = dy + key_position(keys[i]) * D;
        fetch(dy + key_position(keys[i < last ? i + 1 : i]) * D, n);
        if (i == begin) {
            __builtin_memcpy(out, row, size_t(n) * sizeof(T));
            continue;
        }
        int64_t c = 0;
        for (; c + kLanes<T> <= n; c += kLanes<T>) store<T>(out + c, load(out + c) + load(row + c));
        if (c < n) store_n<T>(out + c, load_n(out + c, n - c) + load_n(row + c, n - c), n - c);
    }
}

template <class T>
void embedding_backward(const EmbeddingBackwardArgs<T>& a) {
    Scratch scratch;
    uint64_t* keys = scratch.take<uint64_t>(a.N);
    uint64_t* spare = scratch.take<uint64_t>(a.N);
    int64_t* begins = scratch.take<int64_t>(a.N + 1);
    for (int64_t n = 0; n < a.N; ++n) keys[n] = sort_key(a.ids[n], n);
    keys = radix_sort_ids(keys, spare, a.N);

    int64_t count = 0;
    for (int64_t n = 0; n < a.N; ++n) {
        const int32_t id = key_id(keys[n]);
        if (count > 0 && a.rows[count - 1] == id) continue;
        a.rows[count] = id;
        begins[count++] = n;
    }
    begins[count] = a.N;
    *a.count = count;

    // Work is shared by positions times blocks of columns, because in running text a few ids own
    // a good part of all positions; a (row, block) goes to the member that has its first position.
    constexpr int64_t kColumns = 512;
    const int64_t blocks = (a.D + kColumns - 1) / kColumns;
    auto body = [&](int tid, int size) {
        const Range mine = share(a.N * blocks, 1, tid, size);
        for (int64_t block = 0; block < blocks; ++block) {
            const int64_t low = mine.begin - block * a.N, high = mine.end - block * a.N;
            if (high <= 0 || low >= a.N) continue;
            int64_t row = 0;  // first row that begins at `low` or later
            for (int64_t end = count; row < end;) {
                const int64_t middle = (row + end) / 2;
                if (begins[middle] < low)
                    row = middle + 1;
                else
                    end = middle;
            }
            const int64_t column = block * kColumns, rest = a.D - column;
            for (; row < count && begins[row] < high; ++row)
                sum_positions(a.drows + row * a.D + column, rest < kColumns ? rest : kColumns,
                              a.dy + column, a.D, keys, begins[row], begins[row + 1], a.N - 1);
        }
    };
    parallel(threads_for(kEmbeddingFlopsAByte * sizeof(T) * double(a.N) * double(a.D)), body);
}
