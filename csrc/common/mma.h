// Products on tensor cores, float32 sums: a warp's fragments of 16 x 8 results. One of the macros
// TF32, BF16 and FP16 says what operands are rounded to; sm_80 and later.
//
// A word is 32 bits of a row: one tf32 number or two neighbouring ones of 16 bits. Lane l holds,
// with g = l / 4 and i = l % 4, of the left matrix (16 rows) words (g, i), (g + 8, i), (g, i + 4)
// and (g + 8, i + 4) of eight; of the right one (8 columns) words i and i + 4 of column g; of the
// sums (g, 2 i), (g, 2 i + 1), (g + 8, 2 i) and (g + 8, 2 i + 1). PTX ISA, "Matrix fragments for
// mma.m16n8k8" and "mma.m16n8k16".
#pragma once

#if defined(TF32)
typedef float Operand;
constexpr int kPerWord = 1;
#else
typedef unsigned short Operand;
constexpr int kPerWord = 2;
#endif
constexpr int kStepWords = 8;  // of the left matrix's columns

struct alignas(16) LeftFragment {
    uint32_t word[4];
};

#if defined(NLM_EMULATED)
// Rounds as the hardware does: tf32 has 10 bits, ties away from zero.
inline Operand to_operand(float value) {
#if defined(TF32)
    uint32_t bits;
    memcpy(&bits, &value, 4);
    if ((bits & 0x7F800000u) != 0x7F800000u) bits = (bits + 0x1000u) & ~0x1FFFu;
    memcpy(&value, &bits, 4);
    return value;
#elif defined(BF16)
    uint32_t bits;
    memcpy(&bits, &value, 4);
    if (value != value) return 0x7FFF;
    return Operand((bits + 0x7FFFu + ((bits >> 16) & 1)) >> 16);
#else
    const _Float16 half = _Float16(value);
    Operand bits;
    memcpy(&bits, &half, 2);
    return bits;
#endif
}
namespace emulated {
// Number k of a word.
inline float of_word(uint32_t word, [[maybe_unused]] int k) {
#if defined(FP16)
    const Operand bits = Operand(word >> (16 * k));
    _Float16 half;
    memcpy(&half, &bits, 2);
    return float(half);
#else
#if defined(BF16)
    word = k == 0 ? word << 16 : word & 0xFFFF0000u;
#endif
    float value;
    memcpy(&value, &word, 4);
    return value;
#endif
}
}  // namespace emulated
inline void mma(float* sum, const LeftFragment& a, const uint32_t* b, int line = __builtin_LINE()) {
    using namespace emulated;
    const int lane = current->lane;
    unsigned char* const fragments = current->fragments;
    memcpy(fragments + lane * kFragment, &a, 16);
    memcpy(fragments + lane * kFragment + 16, b, 8);
    sync_warp(0xFFFFFFFFu, line);
    const auto word_of = [&](int of, int at) {
        uint32_t word;
        memcpy(&word, fragments + of * kFragment + at * 4, 4);
        return word;
    };
    for (int i = 0; i < 4; ++i) {
        const int row = lane / 4 + i / 2 * 8, column = lane % 4 * 2 + i % 2;
        for (int w = 0; w < kStepWords; ++w) {
            const uint32_t left = word_of(row % 8 * 4 + w % 4, row / 8 + w / 4 * 2);
            const uint32_t right = word_of(column * 4 + w % 4, 4 + w / 4);
            for (int k = 0; k < kPerWord; ++k) sum[i] += of_word(left, k) * of_word(right, k);
        }
    }
    sync_warp(0xFFFFFFFFu, line);
}
#else
__device__ __forceinline__ Operand to_operand(float value) {
#if defined(TF32)
    uint32_t bits;
    asm("cvt.rna.tf32.f32 %0, %1;" : "=r"(bits) : "f"(value));
    return __uint_as_float(bits);
#else
    Operand bits;
#if defined(BF16)
    asm("cvt.rn.bf16.f32 %0, %1;" : "=h"(bits) : "f"(value));
#else
    asm("cvt.rn.f16.f32 %0, %1;" : "=h"(bits) : "f"(value));
#endif
    return bits;
#endif
}
#if defined(TF32)
#define NLM_MMA "mma.sync.aligned.m16n8k8.row.col.f32.tf32.tf32.f32 "
#elif defined(BF16)
#define NLM_MMA "mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 "
#else
#define NLM_MMA "mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 "
#endif
__device__ __forceinline__ void mma(float* sum, const LeftFragment& a, const uint32_t* b) {
    asm volatile(NLM_MMA "{%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"
                 : "+f"(sum[0]), "+f"(sum[1]), "+f"(sum[2]), "+f"(sum[3])
                 : "r"(a.word[0]), "r"(a.word[1]), "r"(a.word[2]), "r"(a.word[3]), "r"(b[0]),
                   "r"(b[1]));
}
#endif
