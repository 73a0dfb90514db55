// Sums of rows with equal keys, in an order that depends on the keys alone. Keys are sorted
// (sort.cu); they are dealt out in tiles of 32, so that a key that half of all rows have costs no
// more than others, and what is summed of a key in several tiles is joined by a second kernel.
#include "common/cuda.h"
#include "common/packet.h"

constexpr int kTile = 32;
constexpr int kThreads = 128;
constexpr int kAhead = 8;  // rows on their way at a time
constexpr uint32_t kNoKey = 0xFFFFFFFFu;

// Where sums go: row `key` of out, or with `ids` row offset + s of the s-th distinct key, if it is
// below `room`; ids then gets the key.
struct Sums {
    REAL* out;
    REAL* factor_sums;  // of each key's factors; may be null
    int32_t* ids;
    const int32_t* begins;  // where the distinct keys begin, rising
    int64_t distinct, offset, room;
    int64_t D;
};

// Which of the distinct keys the one at sorted place i is.
NLM_FN int64_t number_of(const Sums& to, int64_t i) {
    int64_t low = 0;
    for (int64_t high = to.distinct; high - low > 1;) {
        const int64_t middle = (low + high) / 2;
        if (to.begins[middle] <= i)
            low = middle;
        else
            high = middle;
    }
    return low;
}

template <int kLanes>
NLM_FN void finish(const Sums& to, int64_t s, uint32_t key, int64_t column,
                   const Packet<REAL, kLanes>& sum, double factor_sum) {
    const int64_t row = to.ids != nullptr ? to.offset + s : int64_t(key);
    if (row >= to.room) return;
    store_packet(to.out + row * to.D + column, sum);
    if (column != 0) return;
    if (to.ids != nullptr) to.ids[row] = int32_t(key);
    if (to.factor_sums != nullptr) to.factor_sums[row] = REAL(factor_sum);
}

// Sums over equal keys below `limit` of factors[place] x[place / stride] (factors null: 1), rows
// of D numbers; *count distinct keys begin at `begins`, and *found of them, plus offset, are below
// `limit`. What a tile has of its first key, if that began in an earlier one, goes to parts[tile,
// 0] and what it has of its last, if that goes on, to parts[tile, 1] (a key of which it has neither
// beginning nor end: to 0). Reads n D numbers and writes those of the sums; bound by memory, where
// x is in the second-level cache by that.
NLM_KERNEL(sum_sorted, 128, REAL* out, REAL* factor_sums, int32_t* ids, int32_t* found, REAL* parts,
           double* part_sums, const REAL* x, const REAL* factors, const uint32_t* keys,
           const uint32_t* places, const int32_t* begins, const int32_t* count, int64_t n,
           int64_t D, int stride, uint32_t limit, int64_t offset, int64_t room) {
    uint32_t* const key = nlm_shared<uint32_t>();                   // [kTile + 2], from -1
    int32_t* const row = reinterpret_cast<int32_t*>(key + 36);      // [kTile]
    REAL* const factor = reinterpret_cast<REAL*>(row + kTile + 4);  // [kTile]
    const int thread = int(threadIdx.x);
    const Sums to{out, factor_sums, ids, begins, *count, offset, room, D};
    if (found != nullptr && blockIdx.x == 0 && thread == 0)
        *found = int32_t(offset + *count - (keys[n - 1] >= limit));
    with_packets<REAL>(uint64_t(out) | uint64_t(x), D, [&](auto lanes) {
        constexpr int kLanes = decltype(lanes)::count;
        const int64_t chunks = (D + kThreads * kLanes - 1) / (kThreads * kLanes);
        const int64_t items = (n + kTile - 1) / kTile * chunks;
        for (int64_t item = blockIdx.x; item < items; item += gridDim.x) {
            const int64_t tile = item / chunks, begin = tile * kTile;
            const int64_t column = (item % chunks * kThreads + thread) * kLanes;
            __syncthreads();
            if (thread < kTile + 2) {
                const int64_t i = begin + thread - 1;
                const uint32_t own = i >= 0 && i < n ? keys[i] : kNoKey;
                key[thread] = own < limit ? own : kNoKey;
            }
            if (thread < kTile && begin + thread < n) {
                const uint32_t place = places[begin + thread];
                row[thread] = int32_t(place / uint32_t(stride));
                factor[thread] = factors != nullptr ? factors[place] : REAL(1);
            }
            __syncthreads();
            if (key[1] == kNoKey || column >= D) continue;
            int64_t s = ids != nullptr ? number_of(to, begin) : 0;
            bool whole = key[0] != key[1];  // whether the key began in this tile
            Packet<REAL, kLanes> sum{};
            double factor_sum = 0;
            int last = 0;  // before this entry nothing is left to store
            for (int first = 0; first < kTile && key[first + 1] != kNoKey; first += kAhead) {
                Packet<REAL, kLanes> some[kAhead];
#pragma unroll
                for (int k = 0; k < kAhead; ++k)
                    if (key[first + k + 1] != kNoKey)
                        some[k] = load_packet<REAL, kLanes>(x + row[first + k] * D + column);
#pragma unroll
                for (int k = 0; k < kAhead; ++k) {
                    const int at = first + k;
                    if (key[at + 1] == kNoKey) break;
                    for (int l = 0; l < kLanes; ++l) sum.at[l] += factor[at] * some[k].at[l];
                    factor_sum += double(factor[at]);
                    last = at + 1;
                    if (key[at + 2] == key[at + 1]) continue;
                    if (whole) {
                        finish(to, s, key[at + 1], column, sum, factor_sum);
                    } else {
                        store_packet(parts + tile * 2 * D + column, sum);
                        if (column == 0) part_sums[tile * 2] = factor_sum;
                    }
                    ++s, whole = true;
                    sum = {};
                    factor_sum = 0;
                }
            }
            if (last == kTile && key[kTile + 1] == key[kTile]) {
                store_packet(parts + (tile * 2 + whole) * D + column, sum);
                if (column == 0) part_sums[tile * 2 + whole] = factor_sum;
            }
        }
    });
}

// The keys that go on beyond the tile they begin in: their parts added up in order.
NLM_KERNEL(join_sorted, 128, REAL* out, REAL* factor_sums, int32_t* ids, const REAL* parts,
           const double* part_sums, const uint32_t* keys, const int32_t* begins,
           const int32_t* count, int64_t n, int64_t D, uint32_t limit, int64_t offset,
           int64_t room) {
    const Sums to{out, factor_sums, ids, begins, *count, offset, room, D};
    with_packets<REAL>(uint64_t(out), D, [&](auto lanes) {
        constexpr int kLanes = decltype(lanes)::count;
        const int64_t chunks = (D + kThreads * kLanes - 1) / (kThreads * kLanes);
        const int64_t items = (n + kTile - 1) / kTile * chunks;
        for (int64_t item = blockIdx.x; item < items; item += gridDim.x) {
            const int64_t tile = item / chunks, begin = tile * kTile, next = begin + kTile;
            const int64_t column = (item % chunks * kThreads + threadIdx.x) * kLanes;
            if (next >= n || column >= D) continue;
            const uint32_t key = keys[next];
            if (key >= limit || keys[next - 1] != key) continue;
            if (begin > 0 && keys[begin - 1] == key) continue;
            int64_t end = next + 1;  // of the key
            for (int64_t high = n; end < high;) {
                const int64_t middle = (end + high) / 2;
                if (keys[middle] == key)
                    end = middle + 1;
                else
                    high = middle;
            }
            const REAL* part = parts + (tile * 2 + 1) * D + column;
            Packet<REAL, kLanes> sum = load_packet<REAL, kLanes>(part);
            double factor_sum = part_sums[tile * 2 + 1];
            part += D;
            const int64_t last = (end - 1) / kTile;
#pragma unroll 8
            for (int64_t t = tile + 1; t <= last; ++t, part += 2 * D) {
                const Packet<REAL, kLanes> more = load_packet<REAL, kLanes>(part);
                for (int l = 0; l < kLanes; ++l) sum.at[l] += more.at[l];
                factor_sum += part_sums[t * 2];
            }
            finish(to, ids != nullptr ? number_of(to, next) : 0, key, column, sum, factor_sum);
        }
    });
}
