// Embedding on a GPU (contract: embedding.h); sums over equal ids: common/sums.cu.
#include "common/cuda.h"
#include "common/packet.h"

// A warp a row; NaN where an id is out of range. Moves 2 N D numbers; bound by memory, or the
// launch where N is small.
NLM_KERNEL(embedding_forward, 256, REAL* y, const int32_t* ids, const REAL* w, int64_t N, int64_t V,
           int64_t D) {
    with_packets<REAL>(uint64_t(y) | uint64_t(w), D, [=](auto lanes) {
        constexpr int kLanes = decltype(lanes)::count;
        const int64_t warps = grid_threads() / kWarp;
        for (int64_t n = grid_thread() / kWarp; n < N; n += warps) {
            const bool known = ids[n] >= 0 && ids[n] < V;
            const REAL* const row = w + (known ? ids[n] : 0) * D;
            for (int64_t c = grid_thread() % kWarp * kLanes; c < D; c += kWarp * kLanes) {
                auto packet = load_packet<REAL, kLanes>(row + c);
                for (int l = 0; l < kLanes && !known; ++l) packet.at[l] = REAL(nan(""));
                store_packet(y + n * D + c, packet);
            }
        }
    });
}
