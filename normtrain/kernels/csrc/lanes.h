// Vectors of LANES floats, by the vector types of GCC and Clang: loads, stores, loops, sums.
// All is in an unnamed namespace, since the file is compiled once per instruction set.
#pragma once

#include <stdint.h>
#include <string.h>
#if defined(__SSE2__)
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
template <class To>
INLINE To read(const void* p) {
  To to;
  memcpy(&to, p, sizeof to);
  return to;
}

INLINE V splat(float value) { return V{} + value; }
INLINE V absolute(V v) { return bits<V>(bits<U>(v) & 0x7fffffffu); }
INLINE V sign(V v) { return v > 0.0f ? splat(1.0f) : (v < 0.0f ? splat(-1.0f) : V{}); }

// Sum the lanes in log2(L) steps in registers.
#if defined(__clang__)
#define SHUFFLED(v, ...) __builtin_shufflevector(v, v, __VA_ARGS__)
#else
#define SHUFFLED(v, ...) __builtin_shuffle(v, I{__VA_ARGS__})
#endif
INLINE float total(V v) {
#if LANES == 16
  v += SHUFFLED(v, 8, 9, 10, 11, 12, 13, 14, 15, 0, 1, 2, 3, 4, 5, 6, 7);
  v += SHUFFLED(v, 4, 5, 6, 7, 0, 1, 2, 3, 12, 13, 14, 15, 8, 9, 10, 11);
  v += SHUFFLED(v, 2, 3, 0, 1, 6, 7, 4, 5, 10, 11, 8, 9, 14, 15, 12, 13);
  v += SHUFFLED(v, 1, 0, 3, 2, 5, 4, 7, 6, 9, 8, 11, 10, 13, 12, 15, 14);
#elif LANES == 8
  v += SHUFFLED(v, 4, 5, 6, 7, 0, 1, 2, 3);
  v += SHUFFLED(v, 2, 3, 0, 1, 6, 7, 4, 5);
  v += SHUFFLED(v, 1, 0, 3, 2, 5, 4, 7, 6);
#else
  v += SHUFFLED(v, 2, 3, 0, 1);
  v += SHUFFLED(v, 1, 0, 3, 2);
#endif
  return v[0];
}

// Store bypassing the caches; the address is aligned to the vector's size.
INLINE void stream(void* p, U v) {
#if defined(__AVX512F__) && LANES == 16
  _mm512_stream_si512(static_cast<__m512i*>(p), bits<__m512i>(v));
#elif defined(__AVX__) && LANES == 8
  _mm256_stream_si256(static_cast<__m256i*>(p), bits<__m256i>(v));
#elif defined(__SSE2__) && LANES == 4
  _mm_stream_si128(static_cast<__m128i*>(p), bits<__m128i>(v));
#else
  memcpy(p, &v, sizeof v);
#endif
}
INLINE void streamed() {
#if defined(__SSE2__)
  _mm_sfence();
#endif
}

// A block of N features in two vectors. The dtype decides which features each holds: the first and
// the second half, or the even and the odd ones.
struct B {
  V a, b;
};
constexpr int N = 2 * L;

#define HALVES(op)                                                             \
  INLINE B operator op(B x, B y) { return {x.a op y.a, x.b op y.b}; }          \
  INLINE B operator op(B x, float y) { return {x.a op y, x.b op y}; }          \
  INLINE B operator op(float x, B y) { return {x op y.a, x op y.b}; }
HALVES(+)
HALVES(-)
HALVES(*)
INLINE B absolute(B v) { return {absolute(v.a), absolute(v.b)}; }
INLINE B sign(B v) { return {sign(v.a), sign(v.b)}; }

struct F32 {
  typedef float E;
  static constexpr bool PAIRS = false;  // whether a block holds even and odd features
  static INLINE B load(const E* p) { return {read<V>(p), read<V>(p + L)}; }
  static INLINE void store(E* p, B v) {
    memcpy(p, &v.a, sizeof v.a), memcpy(p + L, &v.b, sizeof v.b);
  }
  static INLINE void past(E* p, B v) { stream(p, bits<U>(v.a)), stream(p + L, bits<U>(v.b)); }
};

// Two numbers per 32-bit word: shifting gives the even one as float, masking the odd one. A NaN
// from an instruction or from bfloat16 has low bits of zero, so rounding does not carry into its
// exponent; other NaNs in parameters are replaced when they are reordered.
struct BF16 {
  typedef uint16_t E;
  static constexpr bool PAIRS = true;
  static INLINE B load(const E* p) {
    U u = read<U>(p);
    return {bits<V>(u << 16), bits<V>(u & 0xffff0000u)};
  }
  static INLINE U rounded(V v) {
    U u = bits<U>(v);
    return u + 0x7fffu + ((u >> 16) & 1u);
  }
  static INLINE U word(B v) {
#if defined(__AVX2__) && LANES == 8
    const __m256i low = bits<__m256i>(rounded(v.a) >> 16), high = bits<__m256i>(rounded(v.b));
    return bits<U>(_mm256_blend_epi16(low, high, 0xaa));
#else
    return (rounded(v.a) >> 16) | (rounded(v.b) & 0xffff0000u);
#endif
  }
  static INLINE void store(E* p, B v) {
    U u = word(v);
    memcpy(p, &u, sizeof u);
  }
  static INLINE void past(E* p, B v) { stream(p, word(v)); }
};

struct FP16 {
  typedef uint16_t E;
  static constexpr bool PAIRS = false;
  static INLINE B load(const E* p) { return {half(p), half(p + L)}; }
  static INLINE void store(E* p, B v) { half(p, v.a), half(p + L, v.b); }
  static INLINE void past(E* p, B v) { store(p, v); }
#if defined(__F16C__) && LANES == 8
  static INLINE V half(const E* p) {
    return bits<V>(_mm256_cvtph_ps(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p))));
  }
  static INLINE void half(E* p, V v) {
    _mm_storeu_si128(reinterpret_cast<__m128i*>(p), _mm256_cvtps_ph(bits<__m256>(v), 0));
  }
#elif defined(__F16C__) && LANES == 16
  static INLINE V half(const E* p) {
    return bits<V>(_mm512_cvtph_ps(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(p))));
  }
  static INLINE void half(E* p, V v) {
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(p), _mm512_cvtps_ph(bits<__m512>(v), 0));
  }
#else
  static INLINE V half(const E* p) {
    U u = __builtin_convertvector(read<H>(p), U), magnitude = u & 0x7fffu;
    // the exponent is 112 too small, also for subnormal numbers
    V v = bits<V>(magnitude << 13) * 0x1p112f;
    v = magnitude >= 0x7c00u ? bits<V>((magnitude << 13) | 0x7f800000u) : v;
    return bits<V>(bits<U>(v) | ((u & 0x8000u) << 16));
  }
  static INLINE void half(E* p, V v) {
    U u = bits<U>(v), magnitude = u & 0x7fffffffu, sign = (u >> 16) & 0x8000u;
    U normal = (magnitude - (112u << 23) + 0xfffu + ((magnitude >> 13) & 1u)) >> 13;
    // at 0.5 the last bit of a float equals the smallest float16
    U small = bits<U>(bits<V>(magnitude) + 0.5f) - 0x3f000000u;
    U half = magnitude < (113u << 23) ? small : normal;
    half = magnitude >= 0x477ff000u ? U{} + 0x7c00u : half;
    half = magnitude > 0x7f800000u ? U{} + 0x7e00u : half;
    H h = __builtin_convertvector(half | sign, H);
    memcpy(p, &h, sizeof h);
  }
#endif
};

// A whole block, or the first n features of the last one; the others are loaded as 0.
struct Full {};
struct Part {
  int64_t n;
};
template <int K>
struct At {
  static constexpr int n = K;
};

template <class T>
INLINE B load(const typename T::E* p, Full) {
  return T::load(p);
}
template <class T>
OUTLINE B load(const typename T::E* p, Part part) {
  typename T::E lane[N] = {};
  for (int64_t i = 0; i < part.n; i++) lane[i] = p[i];
  return T::load(lane);
}
template <class T>
INLINE void store(typename T::E* p, B v, Full) {
  T::store(p, v);
}
template <class T>
OUTLINE void store(typename T::E* p, B v, Part part) {
  typename T::E lane[N];
  T::store(lane, v);
  for (int64_t i = 0; i < part.n; i++) p[i] = lane[i];
}

// Store a result, bypassing the caches if it is too large for them.
template <class T>
INLINE void put(typename T::E* p, B v, Full n, bool past) {
  if (past) T::past(p, v);
  else store<T>(p, v, n);
}
template <class T>
INLINE void put(typename T::E* p, B v, Part n, bool) {
  store<T>(p, v, n);
}

// The indices within a block of the features in its two vectors.
template <class T>
INLINE void numbers(I& a, I& b) {
  for (int i = 0; i < L; i++) a[i] = T::PAIRS ? 2 * i : i;
  b = a + (T::PAIRS ? 1 : L);
}
template <class T>
INLINE B keep(B v, Full) {
  return v;
}
template <class T>
INLINE B keep(B v, Part part) {
  I a, b;
  numbers<T>(a, b);
  const int32_t n = (int32_t)part.n;
  return {a < n ? v.a : V{}, b < n ? v.b : V{}};
}

// Reorder float32 numbers of whole blocks between feature order and the order of T's blocks.
template <class T>
void arrange(float* at, int64_t count, bool back) {
  for (int64_t i = 0; T::PAIRS && i < count; i += N) {
    float lane[N];
    memcpy(lane, at + i, sizeof lane);
    for (int k = 0; k < L; k++) {
      if (back) at[i + 2 * k] = lane[k], at[i + 2 * k + 1] = lane[k + L];
      else at[i + k] = lane[2 * k], at[i + k + L] = lane[2 * k + 1];
    }
  }
}

// Call f(i, Full or Part, At<k>) for each block of [begin, end); k is 0 or 1, for two independent
// running sums.
template <class F>
INLINE void over(int64_t begin, int64_t end, F f) {
  int64_t i = begin;
  for (; i + 2 * N <= end; i += 2 * N) {
    f(i, Full{}, At<0>{});
    f(i + N, Full{}, At<1>{});
  }
  for (; i + N <= end; i += N) f(i, Full{}, At<0>{});
  if (i < end) f(i, Part{end - i}, At<1>{});
}

// The same without running sums: f(i, Full or Part).
template <class F>
INLINE void each(int64_t begin, int64_t end, F f) {
  int64_t i = begin;
  for (; i + N <= end; i += N) f(i, Full{});
  if (i < end) f(i, Part{end - i});
}

// Four running sums; `lanes` adds them in a fixed order.
struct Sum {
  B part[2] = {};
  template <class K>
  INLINE void add(K, B v) {
    part[K::n] = part[K::n] + v;
  }
  INLINE float lanes() const { return total((part[0].a + part[0].b) + (part[1].a + part[1].b)); }
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
INLINE B hyperbolic(B z) { return {hyperbolic(z.a), hyperbolic(z.b)}; }

}  // namespace
