// Numbers that a thread reads or writes at once: 16 bytes, or fewer where rows are not aligned.
// Includes nothing.
#pragma once

template <class T, int N>
struct alignas(sizeof(T) * N) Packet {
    T at[N];
};

template <class T, int N>
NLM_FN Packet<T, N> load_packet(const T* p) {
    return *reinterpret_cast<const Packet<T, N>*>(p);
}
template <class T, int N>
NLM_FN void store_packet(T* p, const Packet<T, N>& value) {
    *reinterpret_cast<Packet<T, N>*>(p) = value;
}

template <int N>
struct Lanes {
    static constexpr int count = N;
};

// body(Lanes<N>()) with the largest packets of N numbers for rows of D numbers that begin at
// `addresses`, the bits of all arrays' addresses or-ed together.
template <class T, class Body>
NLM_FN void with_packets(uint64_t addresses, int64_t D, const Body& body) {
    const uint64_t bits = addresses | uint64_t(D) * sizeof(T);
    if (bits % 16 == 0) return body(Lanes<16 / sizeof(T)>());
    if (sizeof(T) < 8 && bits % 8 == 0) return body(Lanes<8 / sizeof(T)>());
    body(Lanes<1>());
}
