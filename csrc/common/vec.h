// Vectors of one ISA level and the elementary functions on them. Included inside the level's
// namespace by isa/kernels.cpp; one text for scalar (128-bit baseline), AVX2, AVX-512 and NEON.

#if defined(NLM_ISA_avx512)
constexpr int kVecBytes = 64;
#elif defined(NLM_ISA_avx2)
constexpr int kVecBytes = 32;
#else
constexpr int kVecBytes = 16;
#endif

template <class T>
struct VecTypes;
template <>
struct VecTypes<float> {
    using Int = int32_t;
    typedef float Reals __attribute__((vector_size(kVecBytes)));
    typedef int32_t Ints __attribute__((vector_size(kVecBytes)));
};
template <>
struct VecTypes<double> {
    using Int = int64_t;
    typedef double Reals __attribute__((vector_size(kVecBytes)));
    typedef int64_t Ints __attribute__((vector_size(kVecBytes)));
};
template <class T>
using Vec = typename VecTypes<T>::Reals;
template <class T>
using IntVec = typename VecTypes<T>::Ints;
template <class T>
constexpr int kLanes = kVecBytes / int(sizeof(T));

template <class T>
inline Vec<T> load(const T* p) {
    Vec<T> v;
    __builtin_memcpy(&v, p, sizeof v);
    return v;
}

template <class T>
inline void store(T* p, Vec<T> v) {
    __builtin_memcpy(p, &v, sizeof v);
}

template <class T>
inline Vec<T> splat(T x) {
    return x - Vec<T>{};  // folds to a broadcast; x + 0 does not, because of -0
}

// The first n of kLanes elements, 0 <= n; lanes beyond read as zero and are not written.
template <class T>
inline Vec<T> load_n(const T* p, int64_t n) {
    if (n >= kLanes<T>) return load(p);
#if defined(NLM_ISA_avx512)
    if constexpr (sizeof(T) == 4)
        return (Vec<T>)_mm512_maskz_loadu_ps(__mmask16((1u << n) - 1), p);
    else
        return (Vec<T>)_mm512_maskz_loadu_pd(__mmask8((1u << n) - 1), p);
#else
    Vec<T> v{};
    for (int64_t i = 0; i < n; ++i) v[i] = p[i];
    return v;
#endif
}

template <class T>
inline void store_n(T* p, Vec<T> v, int64_t n) {
    if (n >= kLanes<T>) return store(p, v);
#if defined(NLM_ISA_avx512)
    if constexpr (sizeof(T) == 4)
        _mm512_mask_storeu_ps(p, __mmask16((1u << n) - 1), (__m512)v);
    else
        _mm512_mask_storeu_pd(p, __mmask8((1u << n) - 1), (__m512d)v);
#else
    for (int64_t i = 0; i < n; ++i) p[i] = v[i];
#endif
}

// Asks for x[0:n] to come to the cache.
template <class T>
inline void fetch(const T* x, int64_t n) {
    for (int64_t k = 0; k < n; k += 64 / int64_t(sizeof(T))) __builtin_prefetch(x + k);
}

// Lane by lane in a fixed order, so that the result depends on the data alone.
template <class T>
inline T sum_lanes(Vec<T> v) {
    T s = 0;
    for (int i = 0; i < kLanes<T>; ++i) s += v[i];
    return s;
}

template <class T>
inline T max_lanes(Vec<T> v) {
    T m = v[0];
    for (int i = 1; i < kLanes<T>; ++i) m = v[i] > m ? v[i] : m;
    return m;
}

// NaN in, NaN out: comparisons with NaN are false.
template <class T>
inline Vec<T> clamp_vec(Vec<T> x, T low, T high) {
    const Vec<T> lo = splat(low), hi = splat(high);
#if defined(NLM_ISA_avx512)
    // of min and max with a NaN the second operand counts; the unmasked intrinsics trip
    // -Wmaybe-uninitialized in GCC 12
    constexpr auto kAll = static_cast<std::conditional_t<sizeof(T) == 4, __mmask16, __mmask8>>(-1);
    if constexpr (sizeof(T) == 4)
        return (Vec<T>)_mm512_maskz_min_ps(kAll, (__m512)hi,
                                           _mm512_maskz_max_ps(kAll, (__m512)lo, (__m512)x));
    else
        return (Vec<T>)_mm512_maskz_min_pd(kAll, (__m512d)hi,
                                           _mm512_maskz_max_pd(kAll, (__m512d)lo, (__m512d)x));
#endif
    x = x < lo ? lo : x;
    return x > hi ? hi : x;
}

template <class T>
struct ExpConstants;
template <>
struct ExpConstants<float> {
    static constexpr float kLog2e = 1.44269504088896341f;
    static constexpr float kLn2High = 0.693359375f, kLn2Low = -2.12194440e-4f;
    static constexpr float kRound = 12582912.f;  // 1.5 * 2^23: adding it rounds to an integer
    static constexpr int kBias = 127, kMantissaBits = 23;
    static constexpr float kLowest = -87.33f, kHighest = 88.37f;
};
template <>
struct ExpConstants<double> {
    static constexpr double kLog2e = 1.4426950408889634074;
    static constexpr double kLn2High = 0.693145751953125, kLn2Low = 1.42860682030941723212e-6;
    static constexpr double kRound = 6755399441055744.0;  // 1.5 * 2^52
    static constexpr int kBias = 1023, kMantissaBits = 52;
    static constexpr double kLowest = -708.3, kHighest = 709.4;
};

template <class T>
struct ReducedExp {
    Vec<T> minus_one;  // exp(r) - 1, |r| <= ln(2)/2
    Vec<T> power;      // 2^n, with exp(x) = 2^n exp(r)
};

// exp(r) - 1 = r + r^2 q(r), q a Taylor sum long enough that its remainder is below half a unit
// in the last place of r on |r| <= ln(2)/2.
template <class T>
inline ReducedExp<T> reduce_exp(Vec<T> x) {
    using C = ExpConstants<T>;
    const Vec<T> rounded = x * C::kLog2e + C::kRound;
    const Vec<T> n = rounded - C::kRound;
    Vec<T> r = x - n * C::kLn2High;
    r = r - n * C::kLn2Low;
    Vec<T> q;
    if constexpr (sizeof(T) == 4) {
        q = splat(T(1.0 / 5040));
    } else {
        q = splat(T(1.0 / 6227020800.0));
        q = q * r + T(1.0 / 479001600.0);
        q = q * r + T(1.0 / 39916800.0);
        q = q * r + T(1.0 / 3628800.0);
        q = q * r + T(1.0 / 362880.0);
        q = q * r + T(1.0 / 40320.0);
        q = q * r + T(1.0 / 5040);
    }
    q = q * r + T(1.0 / 720);
    q = q * r + T(1.0 / 120);
    q = q * r + T(1.0 / 24);
    q = q * r + T(1.0 / 6);
    q = q * r + T(0.5);
    // the low bits of `rounded` hold n as an integer; moved into the exponent field they are 2^n
    const IntVec<T> bits = (IntVec<T>)rounded + typename VecTypes<T>::Int(C::kBias);
    ReducedExp<T> e;
    e.minus_one = r + (r * r) * q;
    e.power = (Vec<T>)(bits << C::kMantissaBits);
    return e;
}

// exp(x); 0 below -87.33 (float) and -708.3 (double), where the result would be denormal;
// arguments above 88.37 and 709.4 count as that. NaN stays NaN.
template <class T>
inline Vec<T> exp_of(Vec<T> x) {
    using C = ExpConstants<T>;
    const ReducedExp<T> e = reduce_exp<T>(clamp_vec<T>(x, C::kLowest, C::kHighest));
    const Vec<T> y = e.power + e.power * e.minus_one;
    return x < C::kLowest ? Vec<T>{} : y;
}

// 1 / (1 + exp(-x)).
template <class T>
inline Vec<T> sigmoid_of(Vec<T> x) {
    using C = ExpConstants<T>;
    const ReducedExp<T> e = reduce_exp<T>(clamp_vec<T>(-x, C::kLowest, C::kHighest));
    return T(1) / ((T(1) + e.power) + e.power * e.minus_one);
}

// tanh(x) = m / (m + 2) with m = exp(2x) - 1, which keeps its digits near zero. Beyond kTanhOne
// the result is 1 to the last digit. Measured: at most 2.5 units in the last place off.
template <class T>
inline Vec<T> tanh_of(Vec<T> x) {
    constexpr T kTanhOne = sizeof(T) == 4 ? T(9.5) : T(20);
    const ReducedExp<T> e = reduce_exp<T>(clamp_vec<T>(x, -kTanhOne, kTanhOne) * T(2));
    const Vec<T> m = e.power * e.minus_one + (e.power - T(1));
    return m / (m + T(2));
}

// log1p(e), 0 <= e <= 1: 2 artanh(s) with s = e / (2 + e) <= 1/3, by its series.
template <class T>
inline Vec<T> log1p_of(Vec<T> e) {
    constexpr int kTerms = sizeof(T) == 4 ? 8 : 17;
    const Vec<T> s = e / (e + T(2)), square = s * s;
    Vec<T> sum = splat(T(1.0 / (2 * kTerms + 1)));
#pragma GCC unroll 17
    for (int k = kTerms - 1; k > 0; --k) sum = sum * square + T(1.0 / (2 * k + 1));
    return T(2) * (s + s * square * sum);
}

// Runs body(tid, team_size) on up to max_threads members of the team.
template <class Body>
inline void parallel(int max_threads, Body& body) {
    team_run(
        max_threads,
        [](void* context, int tid, int size) { (*static_cast<Body*>(context))(tid, size); }, &body);
}

// Members worth waking for `flops` of work: a wake costs some microseconds.
inline int threads_for(double flops) {
    const int n = get_num_threads();
    const double worth = flops / 200e3;
    return worth >= n ? n : (worth < 1 ? 1 : int(worth));
}

// [begin, end) of member tid's share of `count` items, in multiples of `grain`.
struct Range {
    int64_t begin, end;
};
inline Range share(int64_t count, int64_t grain, int tid, int size) {
    const int64_t grains = (count + grain - 1) / grain;
    const int64_t begin = grains * tid / size * grain, end = grains * (tid + 1) / size * grain;
    return {begin < count ? begin : count, end < count ? end : count};
}

// The functions that the equations of *_math.h files call, on vectors.
template <class T>
struct VecFn {
    using Real = Vec<T>;
    static Real sigmoid(Real x) { return sigmoid_of<T>(x); }
    static Real tanh(Real x) { return tanh_of<T>(x); }
    // x held to [-limit, limit], and y where x is inside, else 0
    static Real clamp(Real x, Real limit) {
        x = x < -limit ? -limit : x;
        return x > limit ? limit : x;
    }
    static Real inside(Real x, Real limit, Real y) {
        y = x < -limit ? Real{} : y;
        return x > limit ? Real{} : y;
    }
};
