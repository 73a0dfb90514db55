// CPU loops of dropout (contract: dropout.h).

constexpr int kDropoutWords = kVecBytes / 4;          // one vector of Philox words
constexpr int64_t kDropoutPiece = 64 * kPhiloxUnits;  // of a row, the unit of work sharing
// For threads_for: a member is worth waking for 25,000 elements, 7 us or more.
constexpr double kDropoutFlops = 8;

// y[0:n] for n <= kDropoutWords units.
template <class T>
inline void drop(T* y, const T* x, int64_t n, T scale, PhiloxHalves words, uint32_t threshold) {
    const IntVec<float> keep = words >= threshold;
    if constexpr (sizeof(T) == 4) {
        store_n<T>(y, keep ? load_n(x, n) * scale : Vec<T>{}, n);
    } else {
        typedef int32_t Half __attribute__((vector_size(kVecBytes / 2)));
        Half halves[2];
        __builtin_memcpy(halves, &keep, sizeof keep);
        for (int i = 0; i < 2; ++i) {
            const int64_t first = i * kLanes<T>, rest = n - first;
            if (rest <= 0) return;
            const IntVec<T> wide = __builtin_convertvector(halves[i], IntVec<T>);
            const Vec<T> kept = load_n(x + first, rest) * scale;
            store_n<T>(y + first, (Vec<T>)((IntVec<T>)kept & wide), rest);
        }
    }
}

template <class T>
void dropout(const DropoutArgs<T>& a) {
    const PhiloxKeys keys(a.seed, a.step);
    const uint32_t threshold = philox_threshold(a.p), purpose = philox_purpose(a.site, a.layer);
    const T scale = T(1 / (1 - a.p));
    const int64_t pieces = (a.D + kDropoutPiece - 1) / kDropoutPiece;
    const int64_t count = a.T_ * a.B * pieces;

    auto body = [&](int tid, int size) {
        const Range mine = share(count, 1, tid, size);
        for (int64_t i = mine.begin; i < mine.end; ++i) {
            const int64_t row = i / pieces, begin = i % pieces * kDropoutPiece;
            const int64_t end = begin + kDropoutPiece < a.D ? begin + kDropoutPiece : a.D;
            const uint32_t b = uint32_t(row % a.B);
            const uint32_t time = a.locked ? kPhiloxLocked : uint32_t(a.time0 + row / a.B);
            T* y = a.y + row * a.D;
            const T* x = a.x + row * a.D;
            int64_t u = begin;
            for (; u + kPhiloxUnits <= end; u += kPhiloxUnits) {
                const PhiloxUnits words = philox_units(keys, uint32_t(u >> 2), b, time, purpose);
                drop(y + u, x + u, kDropoutWords, scale, words.first, threshold);
                drop(y + u + kDropoutWords, x + u + kDropoutWords, kDropoutWords, scale,
                     words.second, threshold);
            }
            if (u < end) {
                const PhiloxUnits words = philox_units(keys, uint32_t(u >> 2), b, time, purpose);
                drop(y + u, x + u, end - u, scale, words.first, threshold);
                if (end - u > kDropoutWords)
                    drop(y + u + kDropoutWords, x + u + kDropoutWords, end - u - kDropoutWords,
                         scale, words.second, threshold);
            }
        }
    };
    parallel(threads_for(kDropoutFlops * double(a.T_ * a.B) * double(a.D)), body);
}
