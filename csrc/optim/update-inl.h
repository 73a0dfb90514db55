// What the CUDA update kernels share (CPU: span-inl.h): walks over flat arrays and over tables
// with a row-sparse gradient, one pass, 16 bytes at a time where arrays are aligned alike.

// Whether a gradient was not finite and is left out (clip_scale_scaled).
NLM_FN bool no_update(REAL scale) { return scale != scale; }

// step(x, g) for the kLanes elements that begin at `at` of each array; g null: a gradient of 0.
template <int kLanes, int kArrays, class Step>
NLM_FN void update_packet(REAL* const (&arrays)[kArrays], int64_t at, const REAL* g,
                          const Step& step) {
    Packet<REAL, kLanes> x[kArrays], gradient{};
#pragma unroll
    for (int a = 0; a < kArrays; ++a) x[a] = load_packet<REAL, kLanes>(arrays[a] + at);
    if (g != nullptr) gradient = load_packet<REAL, kLanes>(g);
#pragma unroll
    for (int i = 0; i < kLanes; ++i) {
        REAL one[kArrays];
        for (int a = 0; a < kArrays; ++a) one[a] = x[a].at[i];
        step(one, gradient.at[i]);
        for (int a = 0; a < kArrays; ++a) x[a].at[i] = one[a];
    }
#pragma unroll
    for (int a = 0; a < kArrays; ++a) store_packet(arrays[a] + at, x[a]);
}

// n elements of arrays with gradient g.
template <int kArrays, class Step>
NLM_FN void update_flat(REAL* const (&arrays)[kArrays], const REAL* g, int64_t n,
                        const Step& step) {
    constexpr int kLanes = 16 / sizeof(REAL);
    uint64_t apart = uint64_t(arrays[0]) ^ uint64_t(g);
    for (int a = 1; a < kArrays; ++a) apart |= uint64_t(arrays[0]) ^ uint64_t(arrays[a]);
    // elements before the first aligned one, and whole packets from there
    int64_t head = int64_t((0 - uint64_t(arrays[0])) % 16 / sizeof(REAL));
    if (apart % 16 != 0 || head > n) head = n;
    const int64_t packets = (n - head) / kLanes, rest = n - packets * kLanes;
    for (int64_t i = grid_thread(); i < packets; i += grid_threads()) {
        const int64_t at = head + i * kLanes;
        update_packet<kLanes>(arrays, at, g + at, step);
    }
    for (int64_t i = grid_thread(); i < rest; i += grid_threads()) {
        const int64_t at = i < head ? i : i + packets * kLanes;
        update_packet<1>(arrays, at, g + at, step);
    }
}

// A table [V, D] with gradient drows[i] in row rows[i], `count` of them, rising; a warp a row.
// With absent_too all V rows move, else only those.
template <int kArrays, class Step>
NLM_FN void update_rows(REAL* const (&arrays)[kArrays], const int32_t* rows, const REAL* drows,
                        int count, int V, int D, int absent_too, const Step& step) {
    uint64_t addresses = uint64_t(drows);
    for (int a = 0; a < kArrays; ++a) addresses |= uint64_t(arrays[a]);
    with_packets<REAL>(addresses, D, [&](auto lanes) {
        constexpr int kLanes = decltype(lanes)::count;
        const int items = absent_too ? V : count, warps = int(grid_threads() / kWarp);
        for (int item = int(grid_thread() / kWarp); item < items; item += warps) {
            int i = item, row = item;
            if (absent_too) {  // the first given row that is not before this one
                i = 0;
                for (int end = count; i < end;) {
                    const int middle = (i + end) / 2;
                    if (rows[middle] < row)
                        i = middle + 1;
                    else
                        end = middle;
                }
                if (i == count || rows[i] != row) i = -1;
            } else {
                row = rows[i];
            }
            for (int c = int(threadIdx.x) % kWarp * kLanes; c < D; c += kWarp * kLanes)
                update_packet<kLanes>(arrays, int64_t(row) * D + c,
                                      i < 0 ? nullptr : drows + int64_t(i) * D + c, step);
        }
    });
}
