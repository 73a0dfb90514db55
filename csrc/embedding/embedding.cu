// Embedding on a GPU (contract: embedding.h); ids are sorted by common/sort.cu.
#include "common/cuda.h"
#include "common/packet.h"

// A warp a row. Moves 2 N D numbers; bound by memory, or the launch where N is small.
NLM_KERNEL(embedding_forward, 256, REAL* y, const int32_t* ids, const REAL* w, int64_t N,
           int64_t D) {
    with_packets<REAL>(uint64_t(y) | uint64_t(w), D, [=](auto lanes) {
        constexpr int kLanes = decltype(lanes)::count;
        const int64_t warps = grid_threads() / kWarp;
        for (int64_t n = grid_thread() / kWarp; n < N; n += warps) {
            const REAL* const row = w + ids[n] * D;
            for (int64_t c = grid_thread() % kWarp * kLanes; c < D; c += kWarp * kLanes)
                store_packet<REAL, kLanes>(y + n * D + c, load_packet<REAL, kLanes>(row + c));
        }
    });
}

// The sum of `count` rows of dy, at places[0] and so on, in this order.
template <int kLanes>
NLM_FN Packet<REAL, kLanes> sum_places(const REAL* dy, int64_t D, const uint32_t* places,
                                       int32_t count) {
    constexpr int kAhead = 8;  // rows on their way at a time
    Packet<REAL, kLanes> sum = load_packet<REAL, kLanes>(dy + places[0] * D);
    int32_t i = 1;
    for (; i + kAhead <= count; i += kAhead) {
        Packet<REAL, kLanes> row[kAhead];
#pragma unroll
        for (int k = 0; k < kAhead; ++k)
            row[k] = load_packet<REAL, kLanes>(dy + places[i + k] * D);
#pragma unroll
        for (int k = 0; k < kAhead; ++k)
            for (int l = 0; l < kLanes; ++l) sum.at[l] += row[k].at[l];
    }
    for (; i < count; ++i) {
        const Packet<REAL, kLanes> row = load_packet<REAL, kLanes>(dy + places[i] * D);
        for (int l = 0; l < kLanes; ++l) sum.at[l] += row.at[l];
    }
    return sum;
}

// The sums over equal ids: into row `id` of dw, or with `rows` into rows 0 and following of dw,
// whose ids they become. `threads` (a power of 2, 256 at most) of a block share an id. Reads N D
// numbers and writes those of the distinct ids; the most frequent id bounds it, whose rows come
// one after another, 8 at a time.
NLM_KERNEL(embedding_sums, 256, REAL* dw, int32_t* rows, const REAL* dy, const uint32_t* keys,
           const uint32_t* places, const int32_t* begins, const int32_t* count, int64_t D,
           int threads) {
    with_packets<REAL>(uint64_t(dw) | uint64_t(dy), D, [=](auto lanes) {
        constexpr int kLanes = decltype(lanes)::count;
        const int64_t first = grid_thread() / threads, step = grid_threads() / threads;
        const int thread = int(threadIdx.x) % threads;
        for (int64_t s = first; s < *count; s += step) {
            const int32_t begin = begins[s], end = begins[s + 1];
            const uint32_t id = keys[begin];
            REAL* const out = dw + (rows != nullptr ? s : int64_t(id)) * D;
            for (int64_t c = thread * kLanes; c < D; c += threads * kLanes)
                store_packet(out + c,
                             sum_places<kLanes>(dy + c, D, places + begin, end - begin));
            if (rows != nullptr && thread == 0) rows[s] = int32_t(id);
        }
    });
}
