// CPU loops of clipping (contract: clip.h).

constexpr int64_t kSumBlock = 4096;

// Adds the squares of a vector's elements to two vectors of sums.
inline void add_squares(const float* x, Vec<double>* sums) {
    typedef float Half __attribute__((vector_size(kVecBytes / 2)));
    Half halves[2];
    __builtin_memcpy(halves, x, sizeof halves);
    for (int i = 0; i < 2; ++i) {
        const Vec<double> wide = __builtin_convertvector(halves[i], Vec<double>);
        sums[i] += wide * wide;
    }
}
inline void add_squares(const double* x, Vec<double>* sums) {
    for (int i = 0; i < 2; ++i) {
        const Vec<double> v = load(x + i * kLanes<double>);
        sums[i] += v * v;
    }
}

template <class T>
inline double sum_squares_block(const T* x, int64_t n) {
    constexpr int64_t kStep = 2 * kLanes<double>;  // elements of one add_squares
    Vec<double> even[2] = {}, odd[2] = {};
    int64_t i = 0;
    for (; i + 2 * kStep <= n; i += 2 * kStep) {
        add_squares(x + i, even);
        add_squares(x + i + kStep, odd);
    }
    double sum = sum_lanes<double>((even[0] + even[1]) + (odd[0] + odd[1]));
    for (; i < n; ++i) sum += double(x[i]) * double(x[i]);
    return sum;
}

template <class T>
void sum_squares(const SumSquaresArgs<T>& a) {
    const int64_t blocks = (a.N + kSumBlock - 1) / kSumBlock;
    Scratch scratch;
    double* sums = scratch.take<double>(blocks);
    auto body = [&](int tid, int size) {
        const Range mine = share(blocks, 1, tid, size);
        for (int64_t block = mine.begin; block < mine.end; ++block) {
            const int64_t begin = block * kSumBlock, rest = a.N - begin;
            sums[block] = sum_squares_block(a.x + begin, rest < kSumBlock ? rest : kSumBlock);
        }
    };
    parallel(threads_for(kOptimFlopsAByte * sizeof(T) * double(a.N)), body);
    double total = 0;
    for (int64_t block = 0; block < blocks; ++block) total += sums[block];
    *a.result = total;
}

template <class T>
void clip_values(const ClipValuesArgs<T>& a) {
    const T limit = T(a.limit);
    auto body = [&](int tid, int size) {
        const Range mine = share(a.N, kSumBlock, tid, size);
        T* x = a.x + mine.begin;
        each_vector<T>(mine.end - mine.begin, [&](int64_t i, int64_t lanes) {
            store_n<T>(x + i, clamp_vec<T>(load_n(x + i, lanes), -limit, limit), lanes);
        });
    };
    parallel(threads_for(kOptimFlopsAByte * 2 * sizeof(T) * double(a.N)), body);
}
