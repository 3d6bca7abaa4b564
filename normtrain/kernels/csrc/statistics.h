// The statistics of a row, buffers for rows out of range, and the mask of dropout.
#pragma once

#include "call.h"
#include "lanes.h"

#include <math.h>
#include <stdlib.h>

namespace {

// The kinds by the loops they use.
enum Form { CENTRED, PLAIN, ADAPTIVE, ABSOLUTE, CURVE };

constexpr float BIG = 0x1p30f, BIG_SQUARE = 0x1p60f;

struct Row {
  float mean = 0, rest = 0;  // the mean in two parts, for centred kinds
  float r = 0, factor = 1;
  float sum = 0;        // of a row, for crms
  float above_eps = 1;  // 0 if the length of a row of l2 is below eps
};

// Write the statistics of a row in the order of SAVED.
INLINE void pack(int kind, const Row& row, float* to) {
  const int count = columns(kind);
  if (count > 0) to[0] = row.r, to[1] = row.factor;
  if (count == 3) to[2] = kind == CRMS ? row.sum : row.above_eps;
  if (count == 4) to[2] = row.mean, to[3] = row.rest;
}

INLINE Row unpack(int kind, const float* from) {
  const int count = columns(kind);
  Row row;
  if (count > 0) row.r = from[0], row.factor = from[1];
  if (count == 3) (kind == CRMS ? row.sum : row.above_eps) = from[2];
  if (count == 4) row.mean = from[2], row.rest = from[3];
  return row;
}

// The row minus its mean, times its scale.
template <int F>
INLINE B scaled(B x, const Row& row, float low) {
  return F == PLAIN ? x * row.r : (x - row.mean) * row.r - low;
}
// The last term that `scaled` subtracts.
INLINE float low_part(const Row& row) { return row.rest * row.r; }

template <class T, int F>
INLINE bool plain_statistics(const Call& c, const typename T::E* x, Row& row) {
  const int64_t d = c.d;
  Sum square, sum;
  if (c.kind == CRMS) {
    over(0, d, [&](int64_t i, auto n, auto k) INLINE_LAMBDA {
      B v = load<T>(x + i, n);
      square.add(k, v * v);
      sum.add(k, v);
    });
  } else {
    over(0, c.kind == RMS ? c.count : d, [&](int64_t i, auto n, auto k) INLINE_LAMBDA {
      B v = load<T>(x + i, n);
      square.add(k, v * v);
    });
  }
  float q = square.lanes(), mean = q / c.count;
  if (c.kind == CRMS) {
    row.sum = sum.lanes();
    mean = (q + row.sum * row.sum) / (d + 1);
  }
  if (c.kind == L2) {
    float length = sqrtf(q);
    row.above_eps = length >= c.eps;
    row.r = 1.0f / (length > c.eps ? length : c.eps);
    return q < BIG_SQUARE;
  }
  row.r = 1.0f / sqrtf(mean + c.eps);
  return mean < BIG_SQUARE;
}

// The mean of f(x - mean - rest) over a row.
template <class T, class F>
INLINE float mean_about(const Call& c, const typename T::E* x, const Row& row, F f) {
  Sum sum;
  over(0, c.d, [&](int64_t i, auto n, auto k) INLINE_LAMBDA {
    sum.add(k, keep<T>(f((load<T>(x + i, n) - row.mean) - row.rest), n));
  });
  return sum.lanes() / c.d;
}

// a + b as a row's mean in two parts, without rounding.
INLINE void add_exactly(float a, float b, Row& row) {
  const float sum = a + b, second = sum - a;
  row.mean = sum;
  row.rest = (a - (sum - second)) + (b - second);
}

// Compute the statistics of a row; return false if they overflowed float32.
template <class T, int F>
OUTLINE bool statistics(const Call& c, const typename T::E* x, Row& row) {
  if constexpr (F == CURVE) return true;
  if constexpr (F == PLAIN) return plain_statistics<T, F>(c, x, row);
  const float d = c.d;
  // in one pass about the mean of the first features, unless that is far from the row's mean
  const int64_t some = c.d < N ? c.d : N;
  const B first = some < N ? load<T>(x, Part{some}) : load<T>(x, Full{});
  row.mean = total(first.a + first.b) / some;
  Sum sum, size;
  over(0, c.d, [&](int64_t i, auto n, auto k) INLINE_LAMBDA {
    B v = keep<T>(load<T>(x + i, n) - row.mean, n);
    sum.add(k, v);
    if (F != ABSOLUTE) size.add(k, v * v);
  });
  const float off = sum.lanes() / d;
  float spread = size.lanes() / d - off * off;
  add_exactly(row.mean, off, row);
  if (F == ABSOLUTE || !(off * off <= spread)) {
    row.rest = 0;
    row.rest = mean_about<T>(c, x, row, [](B v) INLINE_LAMBDA { return v; });
    spread = mean_about<T>(
        c, x, row, [](B v) INLINE_LAMBDA { return F == ABSOLUTE ? absolute(v) : v * v; });
  }
  row.r = F == ABSOLUTE ? 1.0f / (c.a * spread + c.eps) : 1.0f / sqrtf(spread + c.eps);
  return spread < BIG_SQUARE;
}

INLINE V largest(V x, V y) { return x > y ? x : y; }

// The factor that scales the features in the statistic into range.
template <class T>
float factor_of(const Call& c, const typename T::E* x) {
  V most = {};
  each(0, c.kind == RMS ? c.count : c.d, [&](int64_t i, auto n) {
    B size = absolute(load<T>(x + i, n));
    most = largest(size.a, largest(size.b, most));
  });
  float found = 0;
  for (int i = 0; i < L; i++) found = most[i] > found ? most[i] : found;
  return found > BIG && found <= __FLT_MAX__ ? BIG / found : 1.0f;
}

// A buffer of whole blocks of float32.
struct Floats {
  float* at;
  explicit Floats(int64_t count)
      : at(static_cast<float*>(calloc(count + N, sizeof(float)))) {
    if (!at) abort();
  }
  ~Floats() { free(at); }
};

// A float32 copy of a row out of range, with the features in their order.
struct Wide : Floats {
  explicit Wide(int64_t d) : Floats(d) {}
  template <class T>
  void read(const typename T::E* from, int64_t d, float factor) {
    for (int64_t i = 0; i < d; i += N) {
      F32::store(at + i, load<T>(from + i, Part{d - i < N ? d - i : N}) * factor);
    }
    arrange<T>(at, d, true);
  }
  template <class T>
  void write(typename T::E* to, int64_t d) {
    arrange<T>(at, d, false);
    for (int64_t i = 0; i < d; i += N)
      store<T>(to + i, F32::load(at + i), Part{d - i < N ? d - i : N});
  }
};

// The call for such rows, with the parameters in the order of float32.
template <class T>
struct WideCall : Floats {
  Call c;
  explicit WideCall(const Call& call) : Floats(2 * padded(call.d)), c(call) {
    c.past = false;
    const int64_t width = padded(c.d);
    if (!c.weight) return;
    memcpy(at, c.weight, width * sizeof(float)), memcpy(at + width, c.bias, width * sizeof(float));
    arrange<T>(at, 2 * width, true);
    c.weight = at, c.bias = at + width;
  }
};

// A 32-bit hash per element, of its row's seed and its column.
INLINE U mixed(U h) {
  h = (h ^ (h >> 16)) * 0x85ebca6bu;
  h = (h ^ (h >> 13)) * 0xc2b2ae35u;
  return h ^ (h >> 16);
}
INLINE uint64_t row_key(const Call& c, int64_t row) {
  if (!c.seeds) return 0;
  uint64_t z = (uint64_t)c.seeds[row] + 0x9e3779b97f4a7c15u;
  z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9u;
  z = (z ^ (z >> 27)) * 0x94d049bb133111ebu;
  return z ^ (z >> 31);
}
// `v` with dropped elements 0 and the others scaled.
template <class T>
INLINE B dropped(const Call& c, uint64_t key, int64_t i, B v) {
  I a, b;
  numbers<T>(a, b);
  auto half = [&](I column, V v) INLINE_LAMBDA {
    U h = bits<U>(column) + (uint32_t)i;
    h = mixed(mixed(h ^ (uint32_t)key) + (uint32_t)(key >> 32));
    return h >= c.threshold ? v * c.keep_scale : V{};
  };
  return {half(a, v.a), half(b, v.b)};
}

}  // namespace
