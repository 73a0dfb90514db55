// Layer norm of the rows of recurrent pre-activations (contract: variant.h).

// v becomes N(v); returns 1 / sqrt(var(v) + epsilon).
template <class T>
inline T normalise(T* v, int64_t n) {
    constexpr int64_t L = kLanes<T>;
    Vec<T> sum{}, squares{};
    for (int64_t u = 0; u < n; u += L) sum += load_n(v + u, n - u);
    const T mean = sum_lanes<T>(sum) / T(n);
    for (int64_t u = 0; u < n; u += L) {
        store_n(v + u, load_n(v + u, n - u) - mean, n - u);
        const Vec<T> d = load_n(v + u, n - u);  // zero beyond n
        squares += d * d;
    }
    const T rstd = T(1) / T(__builtin_sqrt(double(sum_lanes<T>(squares) / T(n)) + kNormEpsilon));
    for (int64_t u = 0; u < n; u += L) store_n(v + u, load_n(v + u, n - u) * rstd, n - u);
    return rstd;
}

// Gradient of v where N(v) was taken: d is the gradient of N(v), mean_d and mean_dn the means over
// the row of d and of d N(v).
template <class T>
inline Vec<T> normalise_back(Vec<T> d, Vec<T> normalised, T mean_d, T mean_dn, T rstd) {
    return (d - mean_d - normalised * mean_dn) * rstd;
}

// v = gain N(w) + bias for the rows of n values of steps [t0, t1), those of t0 first; N(w) goes to
// `norm` and 1/sqrt to `rstd` if not null.
template <class T>
void normalise_inputs(const Sequence<T>& s, int64_t t0, int64_t t1, T* v, T* norm, T* rstd,
                      const T* gain, const T* bias, int64_t n) {
    auto body = [&](int tid, int size) {
        const Range mine = share((t1 - t0) * s.batch, 1, tid, size);
        for (int64_t r = mine.begin; r < mine.end; ++r) {
            if (!s.takes_part(t0 + r / s.batch, r % s.batch)) continue;
            T* const row = v + r * n;
            const T scale = normalise(row, n);
            if (norm != nullptr) {
                __builtin_memcpy(norm + r * n, row, std::size_t(n) * sizeof(T));
                rstd[r] = scale;
            }
            for (int64_t u = 0; u < n; u += kLanes<T>)
                store_n(row + u,
                        load_n(gain + u, n - u) * load_n(row + u, n - u) + load_n(bias + u, n - u),
                        n - u);
        }
    };
    parallel(threads_for(double((t1 - t0) * s.batch) * double(n) * 8), body);
}

// out = sum of the rows of m [steps, batch, ld] that take part, columns [0, n), times those of `by`
// where it is not null.
template <class T>
void sum_rows(const Sequence<T>& s, T* out, const T* m, int64_t ld, const T* by, int64_t n) {
    auto body = [&](int tid, int size) {
        const Range mine = share(n, kLanes<T>, tid, size);
        for (int64_t u = mine.begin; u < mine.end; u += kLanes<T>) {
            Vec<T> total{};
            for (int64_t t = 0; t < s.steps; ++t) {
                const int64_t end = t * s.batch + s.active_end(t, 0, s.batch);
                Vec<T> sum{};  // of a step: keeps digits in long sums
                for (int64_t r = t * s.batch; r < end; ++r) {
                    const Vec<T> value = load_n(m + r * ld + u, n - u);
                    sum += by != nullptr ? value * load_n(by + r * n + u, n - u) : value;
                }
                total += sum;
            }
            store_n(out + u, total, n - u);
        }
    };
    parallel(threads_for(double(s.steps * s.batch) * double(n) * 4), body);
}

// From the pre-activations' gradients d [steps, batch, n]: those of the gain and the bias, and
// `norm`, the normalised products, becomes the gradient of the products.
template <class T>
void input_norm_gradients(const Sequence<T>& s, T* dgain, T* dbias, const T* d, T* norm,
                          const T* rstd, const T* gain, int64_t n) {
    sum_rows(s, dgain, d, n, static_cast<const T*>(norm), n);
    sum_rows<T>(s, dbias, d, n, nullptr, n);
    const int64_t rows = s.steps * s.batch;
    auto body = [&](int tid, int size) {
        const Range mine = share(rows, 1, tid, size);
        for (int64_t r = mine.begin; r < mine.end; ++r) {
            const T* const from = d + r * n;
            T* const row = norm + r * n;
            if (!s.takes_part(r / s.batch, r % s.batch)) {
                __builtin_memset(row, 0, std::size_t(n) * sizeof(T));
                continue;
            }
            Vec<T> sum{}, sum_n{};
            for (int64_t u = 0; u < n; u += kLanes<T>) {
                const Vec<T> q = load_n(gain + u, n - u) * load_n(from + u, n - u);
                sum += q;
                sum_n += q * load_n(row + u, n - u);
            }
            const T mean = sum_lanes<T>(sum) / T(n), mean_n = sum_lanes<T>(sum_n) / T(n);
            for (int64_t u = 0; u < n; u += kLanes<T>)
                store_n(row + u,
                        normalise_back<T>(load_n(gain + u, n - u) * load_n(from + u, n - u),
                                          load_n(row + u, n - u), mean, mean_n, rstd[r]),
                        n - u);
        }
    };
    parallel(threads_for(double(rows) * double(n) * 12), body);
}

// The recurrent half of the norm, row by row inside the loops. Steps stand `stride` apart: 0 for a
// forward pass that saves nothing.
template <class T>
struct StateNorm {
    const T* gain = nullptr;  // ln_gates[1]; null: no layer norm
    T* norm = nullptr;        // N(w_hh h), [T,B,n] or [B,n]
    T* rstd = nullptr;
    T* dgain = nullptr;  // [B, n], summed over time
    int64_t batch = 0, n = 0;
    bool saves = false;

    T* row(int64_t t, int64_t r) const { return norm + ((saves ? t : 0) * batch + r) * n; }

    // The product of a row is complete: v becomes N(v).
    void forward(int64_t t, int64_t r) const {
        const T scale = normalise(row(t, r), n);
        if (saves) rstd[t * batch + r] = scale;
    }

    // part(k, u, count): the gradient of gain N(v) at unit u of gate k; v's row becomes the
    // gradient of the product.
    template <class Part>
    void backward(int64_t t, int64_t r, int64_t H, const Part& part) const {
        constexpr int64_t L = kLanes<T>;
        T* const v = row(t, r);
        T* const sums = dgain + r * n;
        Vec<T> sum{}, sum_n{};
        for (int64_t g = 0; g < n / H; ++g)
            for (int64_t u = 0; u < H; u += L) {
                const int64_t at = g * H + u;
                const Vec<T> d = part(g, u, H - u), hat = load_n(v + at, H - u);
                const Vec<T> q = d * load_n(gain + at, H - u);
                store_n(sums + at, load_n(sums + at, H - u) + d * hat, H - u);
                sum += q;
                sum_n += q * hat;
            }
        const T mean = sum_lanes<T>(sum) / T(n), mean_n = sum_lanes<T>(sum_n) / T(n);
        for (int64_t g = 0; g < n / H; ++g)
            for (int64_t u = 0; u < H; u += L) {
                const int64_t at = g * H + u;
                const Vec<T> q = part(g, u, H - u) * load_n(gain + at, H - u);
                store_n(
                    v + at,
                    normalise_back<T>(q, load_n(v + at, H - u), mean, mean_n, rstd[t * batch + r]),
                    H - u);
            }
    }
};

template <class T>
inline StateNorm<T> forward_norm(const RecurrentVariant<T>& v, int64_t T_, int64_t B, int64_t n,
                                 Scratch& scratch) {
    if (v.ln_gates == nullptr) return {};
    const bool saves = v.norm != nullptr;
    T* const norm = saves ? v.norm + T_ * B * n : scratch.take<T>(B * n);
    return {v.ln_gates + n, norm, saves ? v.rstd + T_ * B : nullptr, nullptr, B, n, saves};
}

template <class T>
inline StateNorm<T> backward_norm(const RecurrentVariant<T>& v, int64_t T_, int64_t B, int64_t n,
                                  Scratch& scratch) {
    if (v.ln_gates == nullptr) return {};
    T* const dgain = scratch.take<T>(B * n);
    __builtin_memset(dgain, 0, std::size_t(B * n) * sizeof(T));
    return {v.ln_gates + n, v.norm + T_ * B * n, v.rstd + T_ * B, dgain, B, n, true};
}

// What follows the loop: gradients of both gains and of the bias from d, the pre-activations'
// gradients; the saved norm of the inputs becomes the gradient of w_ih x.
template <class T>
inline void norm_gradients(const Sequence<T>& s, const RecurrentVariant<T>& v,
                           const StateNorm<T>& norm, T* db, const T* d) {
    const Sequence<T> rows{1, s.batch, s.hidden, nullptr};
    sum_rows<T>(rows, v.dln_gates + norm.n, norm.dgain, norm.n, nullptr, norm.n);
    input_norm_gradients(s, v.dln_gates, db, d, v.norm, v.rstd, v.ln_gates, norm.n);
}
