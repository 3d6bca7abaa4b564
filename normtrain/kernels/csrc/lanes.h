// Vectors of LANES floats, by the vector types of GCC and Clang: loads, stores, loops, sums.
// Everything sits in an unnamed namespace: the file is compiled once for each instruction set.
#pragma once

#include <stdint.h>
#include <string.h>
#if defined(__F16C__)
#include <immintrin.h>
#endif

#define INLINE inline __attribute__((always_inline))
#define OUTLINE __attribute__((noinline))
#define INLINE_LAMBDA __attribute__((always_inline))

namespace {

constexpr int L = LANES;
typedef float V __attribute__((vector_size(L * 4)));
typedef uint32_t U __attribute__((vector_size(L * 4)));
typedef int32_t I __attribute__((vector_size(L * 4)));
typedef uint16_t H __attribute__((vector_size(L * 2)));

template <class To, class From>
INLINE To bits(From from) {
  static_assert(sizeof(To) == sizeof(From), "same size");
  To to;
  memcpy(&to, &from, sizeof to);
  return to;
}

INLINE V splat(float value) { return V{} + value; }
INLINE V absolute(V v) { return bits<V>(bits<U>(v) & 0x7fffffffu); }
INLINE V sign(V v) { return v > 0.0f ? splat(1.0f) : (v < 0.0f ? splat(-1.0f) : V{}); }

INLINE float total(V v) {
  float lane[L];
  memcpy(lane, &v, sizeof lane);
  for (int n = L / 2; n; n /= 2)
    for (int i = 0; i < n; i++) lane[i] += lane[i + n];
  return lane[0];
}

struct F32 {
  typedef float E;
  static INLINE V load(const E* p) {
    V v;
    memcpy(&v, p, sizeof v);
    return v;
  }
  static INLINE void store(E* p, V v) { memcpy(p, &v, sizeof v); }
};

struct BF16 {
  typedef uint16_t E;
  static INLINE V load(const E* p) {
    H h;
    memcpy(&h, p, sizeof h);
    return bits<V>(__builtin_convertvector(h, U) << 16);
  }
  static INLINE void store(E* p, V v) {
    U u = bits<U>(v);
    U rounded = (u + 0x7fffu + ((u >> 16) & 1u)) >> 16;
    rounded = v == v ? rounded : U{} + 0x7fc0u;
#if defined(__AVX2__) && LANES == 8
    // known to fit 16 bits, which the compiler does not see
    __m256i packed = _mm256_packus_epi32(bits<__m256i>(rounded), bits<__m256i>(rounded));
    packed = _mm256_permute4x64_epi64(packed, 0x08);
    _mm_storeu_si128(reinterpret_cast<__m128i*>(p), _mm256_castsi256_si128(packed));
    return;
#endif
    H h = __builtin_convertvector(rounded, H);
    memcpy(p, &h, sizeof h);
  }
};

struct FP16 {
  typedef uint16_t E;
#if defined(__F16C__) && LANES == 8
  static INLINE V load(const E* p) {
    return bits<V>(_mm256_cvtph_ps(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p))));
  }
  static INLINE void store(E* p, V v) {
    _mm_storeu_si128(reinterpret_cast<__m128i*>(p), _mm256_cvtps_ph(bits<__m256>(v), 0));
  }
#elif defined(__F16C__) && LANES == 16
  static INLINE V load(const E* p) {
    return bits<V>(_mm512_cvtph_ps(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(p))));
  }
  static INLINE void store(E* p, V v) {
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(p), _mm512_cvtps_ph(bits<__m512>(v), 0));
  }
#else
  static INLINE V load(const E* p) {
    H h;
    memcpy(&h, p, sizeof h);
    U u = __builtin_convertvector(h, U), magnitude = u & 0x7fffu;
    // the exponent is 112 too small, for subnormal numbers as well
    V v = bits<V>(magnitude << 13) * 0x1p112f;
    v = magnitude >= 0x7c00u ? bits<V>((magnitude << 13) | 0x7f800000u) : v;
    return bits<V>(bits<U>(v) | ((u & 0x8000u) << 16));
  }
  static INLINE void store(E* p, V v) {
    U u = bits<U>(v), magnitude = u & 0x7fffffffu, sign = (u >> 16) & 0x8000u;
    U normal = (magnitude - (112u << 23) + 0xfffu + ((magnitude >> 13) & 1u)) >> 13;
    // next to 0.5 a float's last bit is worth the smallest float16
    U small = bits<U>(bits<V>(magnitude) + 0.5f) - 0x3f000000u;
    U half = magnitude < (113u << 23) ? small : normal;
    half = magnitude >= 0x477ff000u ? U{} + 0x7c00u : half;
    half = magnitude > 0x7f800000u ? U{} + 0x7e00u : half;
    H h = __builtin_convertvector(half | sign, H);
    memcpy(p, &h, sizeof h);
  }
#endif
};

// A whole vector, or the first n lanes of the last one; the others are read as 0.
struct Full {};
struct Part {
  int64_t n;
};
template <int N>
struct At {
  static constexpr int n = N;
};

template <class T>
INLINE V load(const typename T::E* p, Full) {
  return T::load(p);
}
template <class T>
OUTLINE V load(const typename T::E* p, Part part) {
  typename T::E lane[L] = {};
  for (int64_t i = 0; i < part.n; i++) lane[i] = p[i];
  return T::load(lane);
}
template <class T>
INLINE void store(typename T::E* p, V v, Full) {
  T::store(p, v);
}
template <class T>
OUTLINE void store(typename T::E* p, V v, Part part) {
  typename T::E lane[L];
  T::store(lane, v);
  for (int64_t i = 0; i < part.n; i++) p[i] = lane[i];
}

INLINE V keep(V v, Full) { return v; }
INLINE V keep(V v, Part part) {
  I lane;
  for (int i = 0; i < L; i++) lane[i] = i;
  return lane < (int32_t)part.n ? v : V{};
}

// Call f(i, Full or Part, At<k>) for each vector of [begin, end); k is 0 to 3, for four sums that
// do not wait for each other.
template <class F>
INLINE void over(int64_t begin, int64_t end, F f) {
  int64_t i = begin;
  for (; i + 4 * L <= end; i += 4 * L) {
    f(i, Full{}, At<0>{});
    f(i + L, Full{}, At<1>{});
    f(i + 2 * L, Full{}, At<2>{});
    f(i + 3 * L, Full{}, At<3>{});
  }
  for (; i + L <= end; i += L) f(i, Full{}, At<0>{});
  if (i < end) f(i, Part{end - i}, At<1>{});
}

// The same where nothing is summed up over the vectors: f(i, Full or Part).
template <class F>
INLINE void each(int64_t begin, int64_t end, F f) {
  int64_t i = begin;
  for (; i + L <= end; i += L) f(i, Full{});
  if (i < end) f(i, Part{end - i});
}

// Four running sums; `lanes` adds them up in a fixed order.
struct Sum {
  V part[4] = {};
  template <class K>
  INLINE void add(K, V v) {
    part[K::n] += v;
  }
  INLINE float lanes() const { return total((part[0] + part[1]) + (part[2] + part[3])); }
};

// tanh by e / (e + 2) with e = exp(2|z|) - 1, to a few units in the last place everywhere.
INLINE V hyperbolic(V z) {
  V twice = absolute(z) * 2.0f;
  twice = twice > 20.0f ? splat(20.0f) : twice;  // tanh(10) is 1
  V whole = twice * 1.44269504f + 12582912.0f;   // 1.5 * 2^23: rounds to a whole number
  I n = bits<I>(whole) - 0x4b400000;
  whole = whole - 12582912.0f;
  V rest = (twice - whole * 0.693145752f) - whole * 1.42860677e-6f;
  // exp(rest) - 1 by its series, |rest| <= ln(2) / 2
  V series = splat(1.0f / 40320);
  const float terms[] = {1.0f / 5040, 1.0f / 720, 1.0f / 120, 1.0f / 24, 1.0f / 6, 0.5f};
  for (float term : terms) series = series * rest + term;
  V small = series * rest * rest + rest;
  V power = bits<V>((n + 127) << 23);
  V e = power * small + (power - 1.0f);
  V size = e / (e + 2.0f);
  return bits<V>(bits<U>(size) | (bits<U>(z) & 0x80000000u));
}

}  // namespace
