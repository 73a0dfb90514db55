// Dot products with, and sums of, up to kGroup rows that stand anywhere: one load of h serves all.

constexpr int kGroup = 8;

template <int... I>
struct Places {};
template <int N, int... I>
struct PlacesTo : PlacesTo<N - 1, N - 1, I...> {};
template <int... I>
struct PlacesTo<0, I...> {
    using Type = Places<I...>;
};

// Of rows that stand one after another in a and b, P lanes each, the halves added: P/2 lanes each.
template <class T, int P, int... I>
inline Vec<T> add_halves(Vec<T> a, Vec<T> b, Places<I...>) {
    return __builtin_shufflevector(a, b, I / (P / 2) * P + I % (P / 2)...) +
           __builtin_shufflevector(a, b, I / (P / 2) * P + I % (P / 2) + P / 2 ...);
}

// Sums of K vectors' lanes become the first lanes of v[0], v[1] and so on; as a tree, in which
// vectors are joined, so that it is short.
template <class T, int K, int P = kLanes<T>>
inline void sum_each(Vec<T>* v) {
    if constexpr (P > 1) {
        constexpr int kJoined = (K + 1) / 2;
#pragma GCC unroll 8
        for (int i = 0; i < kJoined; ++i)
            v[i] = add_halves<T, P>(v[2 * i], v[2 * i + 1 < K ? 2 * i + 1 : 2 * i],
                                    typename PlacesTo<kLanes<T>>::Type{});
        sum_each<T, kJoined, P / 2>(v);
    }
}

// z[r] = h w[r]^T for R rows.
template <class T, int R>
void dot_some(int64_t H, const T* h, const T* const* w, T* z) {
    constexpr int64_t L = kLanes<T>;
    Vec<T> sum[R] = {};
    int64_t k = 0;
    for (; k + L <= H; k += L) {
        const Vec<T> hv = load(h + k);
#pragma GCC unroll 8
        for (int r = 0; r < R; ++r) sum[r] += hv * load(w[r] + k);
    }
    if (k < H) {
        const Vec<T> hv = load_n(h + k, H - k);
#pragma GCC unroll 8
        for (int r = 0; r < R; ++r) sum[r] += hv * load_n(w[r] + k, H - k);
    }
    sum_each<T, R>(sum);
#pragma GCC unroll 8
    for (int r = 0; r < R; r += kLanes<T>)
        store_n(z + r, sum[r / kLanes<T>], R - r < kLanes<T> ? R - r : kLanes<T>);
}

// y += sum_r a[r] w[r] over R rows.
template <class T, int R>
void add_some(int64_t H, T* y, const T* const* w, const T* a) {
    constexpr int64_t L = kLanes<T>;
    Vec<T> av[R];
#pragma GCC unroll 8
    for (int r = 0; r < R; ++r) av[r] = splat(a[r]);
    int64_t k = 0;
    for (; k + L <= H; k += L) {
        Vec<T> sum = load(y + k);
#pragma GCC unroll 8
        for (int r = 0; r < R; ++r) sum += av[r] * load(w[r] + k);
        store(y + k, sum);
    }
    if (k < H) {
        Vec<T> sum = load_n(y + k, H - k);
#pragma GCC unroll 8
        for (int r = 0; r < R; ++r) sum += av[r] * load_n(w[r] + k, H - k);
        store_n(y + k, sum, H - k);
    }
}

template <class T>
inline void dot_group(int64_t rows, int64_t H, const T* h, const T* const* w, T* z) {
    switch (rows) {
        case 1: return dot_some<T, 1>(H, h, w, z);
        case 2: return dot_some<T, 2>(H, h, w, z);
        case 3: return dot_some<T, 3>(H, h, w, z);
        case 4: return dot_some<T, 4>(H, h, w, z);
        case 5: return dot_some<T, 5>(H, h, w, z);
        case 6: return dot_some<T, 6>(H, h, w, z);
        case 7: return dot_some<T, 7>(H, h, w, z);
        case 8: return dot_some<T, 8>(H, h, w, z);
        default: return;
    }
}

template <class T>
inline void add_group(int64_t rows, int64_t H, T* y, const T* const* w, const T* a) {
    switch (rows) {
        case 1: return add_some<T, 1>(H, y, w, a);
        case 2: return add_some<T, 2>(H, y, w, a);
        case 3: return add_some<T, 3>(H, y, w, a);
        case 4: return add_some<T, 4>(H, y, w, a);
        case 5: return add_some<T, 5>(H, y, w, a);
        case 6: return add_some<T, 6>(H, y, w, a);
        case 7: return add_some<T, 7>(H, y, w, a);
        case 8: return add_some<T, 8>(H, y, w, a);
        default: return;
    }
}
