// What the update kernels share: how flat arrays and tables with a row-sparse gradient are dealt
// out to the team as spans of consecutive elements, and the functions of the equations.

// For threads_for: a member is worth waking for 800 kB of traffic, 6 us or more.
constexpr double kOptimFlopsAByte = 0.25;
constexpr int64_t kOptimGrain = 1024;  // elements

template <class T>
struct OptimFn {
    using Scalar = T;
    using Real = Vec<T>;
    static Real sqrt(Real x) {
        Real y;
        for (int i = 0; i < kLanes<T>; ++i)  // becomes one vector instruction
            if constexpr (sizeof(T) == 4)
                y[i] = __builtin_sqrtf(x[i]);
            else
                y[i] = __builtin_sqrt(x[i]);
        return y;
    }
};

// step(i, lanes) for the vectors of n elements; inlined, it has no branch on `lanes` but the
// tail's.
template <class T, class Step>
inline void each_vector(int64_t n, const Step& step) {
    int64_t i = 0;
    for (; i + kLanes<T> <= n; i += kLanes<T>) step(i, int64_t(kLanes<T>));
    if (i < n) step(i, n - i);
}

// span(first, n, g) over flat parameters with gradient g; `arrays` of them are read or written.
template <class T, class Span>
inline void update_flat(const T* g, int64_t N, int arrays, Span& span) {
    auto body = [&](int tid, int size) {
        const Range mine = share(N, kOptimGrain, tid, size);
        if (mine.begin < mine.end) span(mine.begin, mine.end - mine.begin, g + mine.begin);
    };
    parallel(threads_for(kOptimFlopsAByte * sizeof(T) * arrays * double(N)), body);
}

// The gradient of a table w [V, D]: drows[i] in row rows[i], rising and distinct; zero elsewhere.
template <class T>
struct RowGradient {
    const int32_t* rows;
    const T* drows;
    int64_t count, V, D;
};

// span(first, n, g) over the elements of a table, g null where the gradient is zero. Those spans
// are left out if `absent_too` is false: the step does not change them.
template <class T, class Span>
inline void update_rows(const RowGradient<T>& r, bool absent_too, int arrays, Span& span) {
    auto present = [&](int tid, int size) {
        const Range mine = share(r.count, 1, tid, size);
        for (int64_t i = mine.begin; i < mine.end; ++i)
            span(r.rows[i] * r.D, r.D, r.drows + i * r.D);
    };
    auto all = [&](int tid, int size) {
        const Range mine = share(r.V, 1, tid, size);
        int64_t i = 0, row = mine.begin;  // i: first given row at or beyond mine.begin
        for (int64_t end = r.count; i < end;) {
            const int64_t middle = (i + end) / 2;
            if (r.rows[middle] < row)
                i = middle + 1;
            else
                end = middle;
        }
        for (; i < r.count && r.rows[i] < mine.end; ++i) {
            const int64_t next = r.rows[i];
            if (next > row) span(row * r.D, (next - row) * r.D, static_cast<const T*>(nullptr));
            span(next * r.D, r.D, r.drows + i * r.D);
            row = next + 1;
        }
        if (mine.end > row) span(row * r.D, (mine.end - row) * r.D, static_cast<const T*>(nullptr));
    };
    const double bytes = double(sizeof(T)) * arrays * double(r.D);
    if (absent_too)
        parallel(threads_for(kOptimFlopsAByte * bytes * double(r.V)), all);
    else
        parallel(threads_for(kOptimFlopsAByte * bytes * double(r.count)), present);
}
