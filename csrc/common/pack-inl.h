// Operands of matrix products, packed as the tiles of gemm-inl.h read them.

#if defined(NLM_ISA_avx512) || defined(__aarch64__)
constexpr int kTileRows = 14;  // 28 accumulators, 2 vectors of B, 1 broadcast: 31 of 32 registers
#else
constexpr int kTileRows = 6;  // 12 + 2 + 1 of 16
#endif
constexpr int kTileVecs = 2;
template <class T>
constexpr int64_t kPanelWidth = kTileVecs * kLanes<T>;

#if defined(NLM_ISA_avx512)
#pragma GCC diagnostic push
#pragma GCC diagnostic ignored "-Wuninitialized"  // GCC 12's own _mm512_undefined_ps
#pragma GCC diagnostic ignored "-Wmaybe-uninitialized"
// out[k * stride + r] = p[r * ld + k] for 16 k and r < fill; rows r >= n count as zero.
inline void transpose_16(float* out, int64_t stride, const float* p, int64_t ld, int64_t n,
                         int64_t fill) {
    __m512 a[16], b[16];
#pragma GCC unroll 16
    for (int i = 0; i < 16; ++i) a[i] = i < n ? _mm512_loadu_ps(p + i * ld) : _mm512_setzero_ps();
#pragma GCC unroll 8
    for (int i = 0; i < 16; i += 2) {
        b[i] = _mm512_unpacklo_ps(a[i], a[i + 1]);
        b[i + 1] = _mm512_unpackhi_ps(a[i], a[i + 1]);
    }
#pragma GCC unroll 4
    for (int i = 0; i < 16; i += 4) {
        const __m512d l0 = _mm512_castps_pd(b[i]), l1 = _mm512_castps_pd(b[i + 2]);
        const __m512d h0 = _mm512_castps_pd(b[i + 1]), h1 = _mm512_castps_pd(b[i + 3]);
        a[i] = _mm512_castpd_ps(_mm512_unpacklo_pd(l0, l1));
        a[i + 1] = _mm512_castpd_ps(_mm512_unpackhi_pd(l0, l1));
        a[i + 2] = _mm512_castpd_ps(_mm512_unpacklo_pd(h0, h1));
        a[i + 3] = _mm512_castpd_ps(_mm512_unpackhi_pd(h0, h1));
    }
#pragma GCC unroll 4
    for (int i = 0; i < 4; ++i) {
        b[i] = _mm512_shuffle_f32x4(a[i], a[i + 4], 0x88);
        b[i + 4] = _mm512_shuffle_f32x4(a[i], a[i + 4], 0xdd);
        b[i + 8] = _mm512_shuffle_f32x4(a[i + 8], a[i + 12], 0x88);
        b[i + 12] = _mm512_shuffle_f32x4(a[i + 8], a[i + 12], 0xdd);
    }
#pragma GCC unroll 4
    for (int i = 0; i < 4; ++i) {
        store_n(out + i * stride, (Vec<float>)_mm512_shuffle_f32x4(b[i], b[i + 8], 0x88), fill);
        store_n(out + (i + 4) * stride, (Vec<float>)_mm512_shuffle_f32x4(b[i + 4], b[i + 12], 0x88),
                fill);
        store_n(out + (i + 8) * stride, (Vec<float>)_mm512_shuffle_f32x4(b[i], b[i + 8], 0xdd),
                fill);
        store_n(out + (i + 12) * stride,
                (Vec<float>)_mm512_shuffle_f32x4(b[i + 4], b[i + 12], 0xdd), fill);
    }
}
#pragma GCC diagnostic pop
#endif

// out[k * stride + r] = p[r * ld + k], r < n; zero for n <= r < width.
template <class T>
inline void pack_transposed(T* out, int64_t stride, int64_t width, const T* p, int64_t ld,
                            int64_t n, int64_t depth) {
    int64_t k = 0;
#if defined(NLM_ISA_avx512)
    if constexpr (sizeof(T) == 4) {
        // runs of `depth` in the many rows of a piece are too short for the hardware to foresee
        constexpr int64_t kAhead = 64;
        for (; k + 16 <= depth; k += 16) {
            const T* ahead = k + kAhead < depth ? p + k + kAhead : p + n * ld + k + kAhead - depth;
            for (int64_t r = 0; r < n; ++r) __builtin_prefetch(ahead + r * ld);
            for (int64_t r = 0; r < width; r += 16)
                transpose_16(out + k * stride + r, stride, p + r * ld + k, ld,
                             n - r < 0 ? 0 : n - r, width - r);
        }
    }
#else
    if constexpr (sizeof(T) == 4) {
        typedef float F4 __attribute__((vector_size(16)));
        for (; k + 4 <= depth; k += 4) {
            int64_t r = 0;
            for (; r + 4 <= n; r += 4) {
                F4 a[4], b[4];
                for (int i = 0; i < 4; ++i) __builtin_memcpy(&a[i], p + (r + i) * ld + k, 16);
                b[0] = __builtin_shufflevector(a[0], a[1], 0, 4, 1, 5);
                b[1] = __builtin_shufflevector(a[0], a[1], 2, 6, 3, 7);
                b[2] = __builtin_shufflevector(a[2], a[3], 0, 4, 1, 5);
                b[3] = __builtin_shufflevector(a[2], a[3], 2, 6, 3, 7);
                a[0] = __builtin_shufflevector(b[0], b[2], 0, 1, 4, 5);
                a[1] = __builtin_shufflevector(b[0], b[2], 2, 3, 6, 7);
                a[2] = __builtin_shufflevector(b[1], b[3], 0, 1, 4, 5);
                a[3] = __builtin_shufflevector(b[1], b[3], 2, 3, 6, 7);
                for (int i = 0; i < 4; ++i) __builtin_memcpy(out + (k + i) * stride + r, &a[i], 16);
            }
            for (; r < width; ++r)
                for (int i = 0; i < 4; ++i)
                    out[(k + i) * stride + r] = r < n ? p[r * ld + k + i] : T(0);
        }
    }
#endif
    for (; k < depth; ++k)
        for (int64_t r = 0; r < width; ++r) out[k * stride + r] = r < n ? p[r * ld + k] : T(0);
}

// Rows of a k_major factor that are packed before its next piece is.
constexpr int64_t kPackedRun = 16;

// out[k * stride + r] = p[k * ld + r], r < n; zero for n <= r < width.
// Pieces of a row are too short for the hardware to foresee the next rows'.
template <class T>
inline void pack_straight(T* out, int64_t stride, int64_t width, const T* p, int64_t ld, int64_t n,
                          int64_t depth) {
    for (int64_t k = 0; k < depth; ++k) {
        const T* from = p + k * ld;
        T* to = out + k * stride;
        for (int64_t i = 0; i < n; i += kLanes<T>) __builtin_prefetch(from + kPackedRun * ld + i);
        int64_t r = 0;
        for (; r + kLanes<T> <= n; r += kLanes<T>) store(to + r, load(from + r));
        if (r < n) {
            const int64_t room = width - r;
            store_n(to + r, load_n(from + r, n - r), room < kLanes<T> ? room : kLanes<T>);
            r += kLanes<T>;
        }
        for (; r < width; r += kLanes<T>) store_n(to + r, Vec<T>{}, width - r);
    }
}

// How many of at[0:most], which increase, follow one another without a gap.
inline int64_t run_length(const int64_t* at, int64_t most) {
    if (at[most - 1] - at[0] == most - 1) return most;
    int64_t n = 1;
    while (at[n] == at[0] + n) ++n;
    return n;
}

// As pack_transposed, of rows at[0:n] of p.
template <class T>
inline void pack_transposed_rows(T* out, int64_t width, const T* p, int64_t ld, const int64_t* at,
                                 int64_t n, int64_t depth) {
    if (run_length(at, n) == n)
        return pack_transposed(out, width, width, p + at[0] * ld, ld, n, depth);
    constexpr int64_t kRun = 64, kMost = kTileRows > kPanelWidth<T> ? kTileRows : kPanelWidth<T>;
    alignas(64) T together[kMost * kRun];
    for (int64_t k = 0; k < depth; k += kRun) {
        const int64_t run = depth - k < kRun ? depth - k : kRun;
        for (int64_t r = 0; r < n; ++r)
            for (int64_t i = 0; i < run; i += kLanes<T>)
                store(together + r * kRun + i, load_n(p + at[r] * ld + k + i, run - i));
        pack_transposed(out + k * width, width, width, together, kRun, n, run);
    }
}

// One factor of a product. Element (r, k), r a row of A or a column of B, k the summed index,
// stands at p[r * ld + k], or at p[k * ld + r] if k_major. Where `at` is given, row i of that
// matrix (r, or k if k_major) is row at[i] of memory; at increases. For a k_major factor the first
// head_rows rows of memory may stand elsewhere, at head[k * ld + r], and p begins after them.
template <class T>
struct Factor {
    const T* p;
    int64_t ld;
    bool k_major;
    const int64_t* at = nullptr;
    const T* head = nullptr;
    int64_t head_rows = 0;

    void pack(T* out, int64_t width, int64_t r, int64_t n, int64_t k, int64_t depth) const {
        if (at == nullptr) {
            if (k_major) return pack_run(out, width, r, n, k, depth);
            return pack_transposed(out, width, width, p + r * ld + k, ld, n, depth);
        }
        if (!k_major) return pack_transposed_rows(out, width, p + k, ld, at + r, n, depth);
        for (int64_t run; depth > 0; depth -= run, k += run, out += run * width) {
            run = run_length(at + k, depth);
            pack_run(out, width, r, n, at[k], run);
        }
    }

    // Rows [k, k + depth) of the memory of a k_major factor.
    void pack_run(T* out, int64_t width, int64_t r, int64_t n, int64_t k, int64_t depth) const {
        if (k < head_rows) {
            const int64_t in_head = head_rows - k < depth ? head_rows - k : depth;
            pack_straight(out, width, width, head + k * ld + r, ld, n, in_head);
            out += in_head * width;
            k += in_head;
            depth -= in_head;
        }
        pack_straight(out, width, width, p + (k - head_rows) * ld + r, ld, n, depth);
    }

    // Packs pieces [pieces.begin, pieces.end), pack(piece, k, depth) each, so that memory is read
    // along its rows: those of a k_major factor cross all pieces.
    template <class Pack>
    void pack_all(Range pieces, int64_t depth, const Pack& pack_piece) const {
        const int64_t run = k_major ? kPackedRun : depth;
        for (int64_t k = 0; k < depth; k += run)
            for (int64_t i = pieces.begin; i < pieces.end; ++i)
                pack_piece(i, k, depth - k < run ? depth - k : run);
    }
};
