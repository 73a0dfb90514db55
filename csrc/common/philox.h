// Philox4x32-10 (Salmon et al., "Parallel random numbers: as easy as 1, 2, 3", SC 2011): the
// one random generator, and the one place in C++ of its key and counter map. Its twin is
// pynlm/reference/philox.py. Includes nothing; belongs inside the level's namespace after
// common/vec.h, which gives the width of the vector form.
//
//   key     = (seed, step)
//   counter = (unit >> 2, row, time, site << 16 | layer)
//   unit u takes word u & 3 of its block; a unit is kept iff word >= round(p 2^32)
//
// `row` is the row of the caller's batch, `time` the absolute time step (kPhiloxLocked for a
// mask that all steps share), `site` the purpose, so that no two uses share a number:
// 1 embedding, 2 input, 3 between layers, 4 output, 5 recurrent, 6 weight, 7 sample, 8 init,
// 9 shuffle, 10 zoneout of h, 11 zoneout of c, 12 candidates of a sampled loss (row and time 0).

constexpr uint32_t kPhiloxLocked = 0xFFFFFFFFu;
constexpr uint32_t kPhiloxSample = 7, kZoneoutH = 10, kZoneoutC = 11;  // sites
constexpr uint32_t kPhiloxMul0 = 0xD2511F53u, kPhiloxMul1 = 0xCD9E8D57u;
constexpr uint32_t kPhiloxWeyl0 = 0x9E3779B9u, kPhiloxWeyl1 = 0xBB67AE85u;
constexpr int kPhiloxRounds = 10;

struct PhiloxWords {
    uint32_t word[4];
};

// The four words of one counter.
constexpr PhiloxWords philox(uint32_t seed, uint32_t step, PhiloxWords counter) {
    uint32_t c0 = counter.word[0], c1 = counter.word[1], c2 = counter.word[2], c3 = counter.word[3];
    for (int round = 0; round < kPhiloxRounds; ++round) {
        const uint64_t product0 = uint64_t(kPhiloxMul0) * c0, product1 = uint64_t(kPhiloxMul1) * c2;
        c0 = uint32_t(product1 >> 32) ^ c1 ^ seed;
        c1 = uint32_t(product1);
        c2 = uint32_t(product0 >> 32) ^ c3 ^ step;
        c3 = uint32_t(product0);
        seed += kPhiloxWeyl0;
        step += kPhiloxWeyl1;
    }
    return {{c0, c1, c2, c3}};
}

// u in [0, 1) of 53 bits.
constexpr double uniform_53(const PhiloxWords& drawn) {
    return (double(drawn.word[0] >> 5) * 67108864.0 + double(drawn.word[1] >> 6)) * 0x1p-53;
}

// Known answers of Random123 (its file kat_vectors).
constexpr bool philox_gives(uint32_t seed, uint32_t step, PhiloxWords counter, PhiloxWords words) {
    const PhiloxWords got = philox(seed, step, counter);
    for (int i = 0; i < 4; ++i)
        if (got.word[i] != words.word[i]) return false;
    return true;
}
static_assert(philox_gives(0, 0, {{0, 0, 0, 0}},
                           {{0x6627e8d5, 0xe169c58d, 0xbc57ac4c, 0x9b00dbd8}}));
static_assert(philox_gives(0xffffffff, 0xffffffff,
                           {{0xffffffff, 0xffffffff, 0xffffffff, 0xffffffff}},
                           {{0x408f276d, 0x41c83b0e, 0xa20bc7c6, 0x6d5451fd}}));
static_assert(philox_gives(0xa4093822, 0x299f31d0,
                           {{0x243f6a88, 0x85a308d3, 0x13198a2e, 0x03707344}},
                           {{0xd16cfe09, 0x94fdcceb, 0x5001e420, 0x24126ea1}}));

// The site and layer word of the counter.
constexpr uint32_t philox_purpose(uint32_t site, uint32_t layer) { return site << 16 | layer; }

// round(p 2^32) for p in [0, 1). A p within 2^-33 of 1 keeps one word in 2^32.
inline uint32_t philox_threshold(double p) {
    const double scaled = p * 4294967296.0 + 0.5;
    return scaled < 4294967295.0 ? uint32_t(scaled) : 0xFFFFFFFFu;
}

#if defined(NLM_ISA)
// Vector form: kPhiloxBlocks counters side by side, one in the low half of each 64-bit lane. The
// multiplication reads the low halves only, so what the high halves gather needs no clearing:
// a round is two multiplications, two shifts and four exclusive ors (two vpternlog).
typedef uint32_t PhiloxHalves __attribute__((vector_size(kVecBytes)));
typedef uint64_t PhiloxLanes __attribute__((vector_size(kVecBytes)));
constexpr int kPhiloxBlocks = kVecBytes / 8;
constexpr int kPhiloxUnits = 4 * kPhiloxBlocks;  // of one philox_units

inline PhiloxLanes philox_multiply(PhiloxLanes a, uint32_t b) {
    [[maybe_unused]] const PhiloxLanes factor = PhiloxLanes{} + b;
#if defined(NLM_ISA_avx512)
    // the unmasked intrinsic trips -Wmaybe-uninitialized in GCC 12
    return (PhiloxLanes)_mm512_maskz_mul_epu32(__mmask8(-1), (__m512i)a, (__m512i)factor);
#elif defined(NLM_ISA_avx2)
    return (PhiloxLanes)_mm256_mul_epu32((__m256i)a, (__m256i)factor);
#elif defined(__SSE2__)
    return (PhiloxLanes)_mm_mul_epu32((__m128i)a, (__m128i)factor);
#elif defined(__ARM_NEON)
    return (PhiloxLanes)vmull_u32(vmovn_u64((uint64x2_t)a), vdup_n_u32(b));
#else
    return (a & 0xFFFFFFFFu) * factor;
#endif
}

// The round keys of one (seed, step).
struct PhiloxKeys {
    PhiloxLanes seed[kPhiloxRounds], step[kPhiloxRounds];

    PhiloxKeys(uint32_t seed0, uint32_t step0) {
        for (int round = 0; round < kPhiloxRounds; ++round) {
            seed[round] = PhiloxLanes{} + (seed0 + uint32_t(round) * kPhiloxWeyl0);
            step[round] = PhiloxLanes{} + (step0 + uint32_t(round) * kPhiloxWeyl1);
        }
    }
};

// Words of the units 4 * block ... 4 * block + kPhiloxUnits - 1, in order, in two vectors.
struct PhiloxUnits {
    PhiloxHalves first, second;
};
inline PhiloxUnits philox_units(const PhiloxKeys& keys, uint32_t block, uint32_t row, uint32_t time,
                                uint32_t purpose) {
    // Blocks are dealt to the lanes so that the two unpacks below end in unit order.
#if defined(NLM_ISA_avx512)
    PhiloxLanes c0 = {0, 4, 1, 5, 2, 6, 3, 7};
#elif defined(NLM_ISA_avx2)
    PhiloxLanes c0 = {0, 2, 1, 3};
#else
    PhiloxLanes c0 = {0, 1};
#endif
    c0 += block;
    PhiloxLanes c1 = PhiloxLanes{} + row, c2 = PhiloxLanes{} + time, c3 = PhiloxLanes{} + purpose;
    for (int round = 0; round < kPhiloxRounds; ++round) {
        const PhiloxLanes product0 = philox_multiply(c0, kPhiloxMul0);
        const PhiloxLanes product1 = philox_multiply(c2, kPhiloxMul1);
        c0 = (product1 >> 32) ^ c1 ^ keys.seed[round];
        c1 = product1;
        c2 = (product0 >> 32) ^ c3 ^ keys.step[round];
        c3 = product0;
    }
    const PhiloxLanes low = (c0 & 0xFFFFFFFFu) | (c1 << 32);
    const PhiloxLanes high = (c2 & 0xFFFFFFFFu) | (c3 << 32);
#if defined(NLM_ISA_avx512)
    return {(PhiloxHalves)__builtin_shufflevector(low, high, 0, 8, 2, 10, 4, 12, 6, 14),
            (PhiloxHalves)__builtin_shufflevector(low, high, 1, 9, 3, 11, 5, 13, 7, 15)};
#elif defined(NLM_ISA_avx2)
    return {(PhiloxHalves)__builtin_shufflevector(low, high, 0, 4, 2, 6),
            (PhiloxHalves)__builtin_shufflevector(low, high, 1, 5, 3, 7)};
#else
    return {(PhiloxHalves)__builtin_shufflevector(low, high, 0, 2),
            (PhiloxHalves)__builtin_shufflevector(low, high, 1, 3)};
#endif
}
#endif
