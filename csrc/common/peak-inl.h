// Measured work of peak.h: 12 chains hide the latency of a multiply-add at two a cycle.

template <class T>
void fma_peak(const FmaPeakArgs<T>& a) {
    int members = 1;
    auto body = [&](int tid, int size) {
        if (tid == 0) members = size;
        const Vec<T> factor = splat(T(1) - T(1) / T(1 << 20)), term = splat(T(1) / T(1 << 20));
        Vec<T> chain[12];
        for (int i = 0; i < 12; ++i) chain[i] = splat(T(i));
        for (int64_t k = 0; k < a.iterations; ++k) {
#pragma GCC unroll 12
            for (int i = 0; i < 12; ++i) chain[i] = chain[i] * factor + term;
        }
        Vec<T> sum{};
        for (int i = 0; i < 12; ++i) sum += chain[i];
        volatile T sink = sum_lanes<T>(sum);
        (void)sink;
    };
    parallel(get_num_threads(), body);
    *a.flops = 2.0 * 12 * kLanes<T> * double(a.iterations) * members;
}
