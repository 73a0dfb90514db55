// A stable sort of ids in one launch, for sums over equal ids in a fixed order.
#include "common/cuda.h"

constexpr int kDigitBits = 8, kDigits = 1 << kDigitBits;  // a thread of the block for each
constexpr int kWarps = kDigits / kWarp;

// keys[0:n], rising, and the places in `ids` that they come from, equal ids in order; where each
// distinct one begins in keys (begins[*count] = n), and *count of them. Least significant digit
// first: `bits` are those of the largest id. Cooperative; counts has kDigits for each block,
// `spare` is like keys and places one after the other, and *arrived 0. Per digit 24 n bytes and
// two barriers of the grid, which bound it up to n = 10^6.
NLM_KERNEL(sort_ids, 256, uint32_t* keys, uint32_t* places, uint32_t* spare, int32_t* begins,
           int32_t* count, const int32_t* ids, uint32_t* counts, uint32_t* arrived, int64_t n,
           int bits) {
    uint32_t* const next = nlm_shared<uint32_t>();  // [kDigits]: where the next key goes
    uint32_t* const warps = next + kDigits;         // [kWarps]
    uint32_t* const ranks = warps + kWarps;         // [kWarps, kDigits]
    const int thread = int(threadIdx.x), lane = thread % kWarp, warp = thread / kWarp;
    const uint32_t blocks = gridDim.x, block = blockIdx.x;
    // this block's keys: whole tiles of one a thread
    const int64_t tiles = (n + kDigits - 1) / kDigits, share = (tiles + blocks - 1) / blocks;
    const int64_t begin = block * share * kDigits;
    const int64_t end = begin + share * kDigits < n ? begin + share * kDigits : n;
    uint32_t round = 0;

    const int passes = bits > 0 ? (bits + kDigitBits - 1) / kDigitBits : 1;
    for (int pass = 0; pass < passes; ++pass) {
        // the last pass ends in keys and places
        const bool into_spare = (passes - pass) % 2 == 0;
        uint32_t* const to = into_spare ? spare : keys;
        uint32_t* const to_places = into_spare ? spare + n : places;
        const uint32_t* const from_places = into_spare ? places : spare + n;
        const uint32_t* const from =
            pass == 0 ? reinterpret_cast<const uint32_t*>(ids) : (into_spare ? keys : spare);
        const int shift = pass * kDigitBits;

        next[thread] = 0;
        __syncthreads();
        for (int64_t i = begin + thread; i < end; i += kDigits)
            atomicAdd(next + (from[i] >> shift) % kDigits, 1u);
        __syncthreads();
        counts[block * kDigits + thread] = next[thread];
        grid_barrier(arrived, blocks, ++round);

        uint32_t before = 0, total = 0;  // of this thread's digit, in earlier blocks and in all
        for (uint32_t b = 0; b < blocks; ++b) {
            const uint32_t there = counts[b * kDigits + thread];
            before += b < block ? there : 0;
            total += there;
        }
        next[thread] = before + block_sum_before(total, warps);

        for (int64_t tile = begin; tile < end; tile += kDigits) {
            const int64_t i = tile + thread;
            const bool mine = i < end;
            const uint32_t key = mine ? from[i] : 0;
            const uint32_t digit = mine ? (key >> shift) % kDigits : uint32_t(kDigits);
            const unsigned same = __match_any_sync(kAllLanes, digit);
            const uint32_t earlier = uint32_t(__popc(same & ((1u << lane) - 1)));
            for (int w = 0; w < kWarps; ++w) ranks[w * kDigits + thread] = 0;
            __syncthreads();
            if (mine && earlier == 0) ranks[warp * kDigits + int(digit)] = uint32_t(__popc(same));
            __syncthreads();
            uint32_t at = next[thread];
            for (int w = 0; w < kWarps; ++w) {
                const uint32_t some = ranks[w * kDigits + thread];
                ranks[w * kDigits + thread] = at;
                at += some;
            }
            next[thread] = at;
            __syncthreads();
            if (mine) {
                const uint32_t place = ranks[warp * kDigits + int(digit)] + earlier;
                to[place] = key;
                to_places[place] = pass == 0 ? uint32_t(i) : from_places[i];
            }
            __syncthreads();
        }
        grid_barrier(arrived, blocks, ++round);
    }

    // Where a key differs from the one before it.
    uint32_t heads = 0;
    for (int64_t i = begin + thread; i < end; i += kDigits)
        heads += i == 0 || keys[i] != keys[i - 1];
    heads = block_sum(heads, warps);
    if (thread == 0) counts[block] = heads;
    grid_barrier(arrived, blocks, ++round);
    uint32_t at = 0, all = 0;
    for (uint32_t b = 0; b < blocks; ++b) {
        at += b < block ? counts[b] : 0;
        all += counts[b];
    }
    for (int64_t tile = begin; tile < end; tile += kDigits) {
        const int64_t i = tile + thread;
        const bool head = i < end && (i == 0 || keys[i] != keys[i - 1]);
        const uint32_t own = block_sum_before(head, warps);
        if (head) begins[at + own] = int32_t(i);
        at += block_sum(uint32_t(head), warps);
    }
    if (block == 0 && thread == 0) {
        *count = int32_t(all);
        begins[all] = int32_t(n);
    }
}
