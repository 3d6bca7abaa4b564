// Norms of rows, forward and backward, for one instruction set: compiled once for each, with
// LANES (floats in a vector) and ISA (the name) defined. The formulas are in rows.py.
//
// A row is read from memory once: the statistics take it into the cache, the rest reads it there.

#include "call.h"
#include "lanes.h"

#include <math.h>
#include <stdlib.h>

#define JOIN_(a, b) a##b
#define JOIN(a, b) JOIN_(a, b)

namespace {

// What a kind's loops have in common.
enum Form { CENTRED, PLAIN, ADAPTIVE, ABSOLUTE, CURVE };

constexpr float BIG = 0x1p30f, BIG_SQUARE = 0x1p60f;

struct Row {
  float mean = 0, rest = 0;  // the mean in two parts, where the form subtracts it
  float r = 0, factor = 1;
  float sum = 0;     // of a row of crms
  float counts = 1;  // 0 where l2's length is below eps
};

INLINE void pack(int kind, const Row& row, float* to) {
  if (kind == RMS) {
    to[0] = row.r, to[1] = row.factor;
  } else if (kind == CRMS || kind == L2) {
    to[0] = kind == CRMS ? row.sum : row.counts, to[1] = row.r, to[2] = row.factor;
  } else if (kind != TANH) {
    to[0] = row.mean, to[1] = row.rest, to[2] = row.r, to[3] = row.factor;
  }
}

INLINE Row unpack(int kind, const float* from) {
  Row row;
  if (kind == RMS) {
    row.r = from[0], row.factor = from[1];
  } else if (kind == CRMS || kind == L2) {
    (kind == CRMS ? row.sum : row.counts) = from[0], row.r = from[1], row.factor = from[2];
  } else if (kind != TANH) {
    row.mean = from[0], row.rest = from[1], row.r = from[2], row.factor = from[3];
  }
  return row;
}

// x less its row's mean.
template <int F>
INLINE V centre(V x, const Row& row) {
  return F == PLAIN ? x : (x - row.mean) - row.rest;
}

template <class T>
INLINE void mean_of(const typename T::E* x, int64_t d, Row& row) {
  Sum sum;
  over(0, d, [&](int64_t i, auto n, auto k) INLINE_LAMBDA { sum.add(k, load<T>(x + i, n)); });
  row.mean = sum.lanes() / d;
}

// The statistics of a row; false where they left the range of float32.
template <class T, int F>
OUTLINE bool statistics(const Call& c, const typename T::E* x, Row& row) {
  const int64_t d = c.d;
  if (F == CURVE) return true;
  if (F == PLAIN) {
    Sum square, sum;
    over(0, c.kind == RMS ? c.count : d, [&](int64_t i, auto n, auto k) INLINE_LAMBDA {
      V v = load<T>(x + i, n);
      square.add(k, v * v);
      sum.add(k, v);
    });
    float q = square.lanes(), mean = q / c.count;
    if (c.kind == CRMS) {
      row.sum = sum.lanes();
      mean = (q + row.sum * row.sum) / (d + 1);
    }
    if (c.kind == L2) {
      float length = sqrtf(q);
      row.counts = length >= c.eps;
      row.r = 1.0f / (length > c.eps ? length : c.eps);
      return q < BIG_SQUARE;
    }
    row.r = 1.0f / sqrtf(mean + c.eps);
    return mean < BIG_SQUARE;
  }
  mean_of<T>(x, d, row);
  Sum sum, size;
  over(0, d, [&](int64_t i, auto n, auto k) INLINE_LAMBDA {
    V v = keep(load<T>(x + i, n) - row.mean, n);
    sum.add(k, v);
    if (F != ABSOLUTE) size.add(k, v * v);
  });
  row.rest = sum.lanes() / d;
  float spread = size.lanes() / d - row.rest * row.rest;
  if (F == ABSOLUTE || !(4 * row.rest * row.rest <= spread)) {
    // a row so near to constant that the mean's rounding shows, and always where |.| is meant
    Sum exact;
    over(0, d, [&](int64_t i, auto n, auto k) INLINE_LAMBDA {
      V v = keep((load<T>(x + i, n) - row.mean) - row.rest, n);
      exact.add(k, F == ABSOLUTE ? absolute(v) : v * v);
    });
    spread = exact.lanes() / d;
  }
  row.r = F == ABSOLUTE ? 1.0f / (c.a * spread + c.eps) : 1.0f / sqrtf(spread + c.eps);
  return spread < BIG_SQUARE;
}

// What brings the features that a row's statistic sees into range.
template <class T>
float factor_of(const Call& c, const typename T::E* x) {
  V most = {};
  each(0, c.kind == RMS ? c.count : c.d, [&](int64_t i, auto n) {
    V size = absolute(load<T>(x + i, n));
    most = size > most ? size : most;
  });
  float largest = 0;
  for (int i = 0; i < L; i++) largest = most[i] > largest ? most[i] : largest;
  return largest > BIG && largest <= __FLT_MAX__ ? BIG / largest : 1.0f;
}

// A row out of range is worked on as float32, in memory of its own.
struct Wide {
  float* at;
  explicit Wide(int64_t d) : at(static_cast<float*>(malloc(d * sizeof(float)))) {
    if (!at) abort();
  }
  ~Wide() { free(at); }
  template <class T>
  void read(const typename T::E* from, int64_t d, float factor) {
    each(0, d, [&](int64_t i, auto n) { store<F32>(at + i, load<T>(from + i, n) * factor, n); });
  }
  template <class T>
  void write(typename T::E* to, int64_t d) {
    each(0, d, [&](int64_t i, auto n) { store<T>(to + i, load<F32>(at + i, n), n); });
  }
};

template <class T, int F, int MODE>
INLINE void write(const Call& c, const typename T::E* x, const Row& row, typename T::E* y) {
  const float *w = c.weight, *b = c.bias;
  const float alpha = c.alpha, a = c.a, slope = c.a * c.b;
  each(0, c.d, [=](int64_t i, auto n) INLINE_LAMBDA {
    V v = load<T>(x + i, n);
    V h = F == CURVE ? hyperbolic(v * alpha) : centre<F>(v, row) * row.r;
    if (F == ADAPTIVE) h = (a - slope * h) * h;
    if (MODE > 0) h = h * load<F32>(w + i, n);
    if (MODE > 1) h = h + load<F32>(b + i, n);
    store<T>(y + i, h, n);
  });
}

// One 32-bit number an element, from its row's seed and the column.
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
INLINE V dropped(const Call& c, uint64_t key, int64_t i, V v) {
  U column;
  for (int lane = 0; lane < L; lane++) column[lane] = lane;
  column += (uint32_t)i;
  U h = mixed(mixed(column ^ (uint32_t)key) + (uint32_t)(key >> 32));
  return h >= c.threshold ? v * c.keep_scale : V{};
}

template <class T>
OUTLINE void add_branch(const Call& c, int64_t row, typename T::E* sum) {
  typedef typename T::E E;
  const E* branch = static_cast<const E*>(c.branch) + row * c.d;
  const E* residual = static_cast<const E*>(c.residual) + row * c.d;
  const uint64_t key = row_key(c, row);
  each(0, c.d, [&](int64_t i, auto n) INLINE_LAMBDA {
    V v = load<T>(branch + i, n);
    if (c.seeds) v = dropped(c, key, i, v);
    store<T>(sum + i, load<T>(residual + i, n) + v, n);
  });
}

template <class T, int F, int MODE>
void forward(const Call& c, int64_t begin, int64_t end) {
  typedef typename T::E E;
  const int width = columns(c.kind);
  for (int64_t row = begin; row < end; row++) {
    const E* x = static_cast<const E*>(c.x) + row * c.d;
    E* y = static_cast<E*>(c.y) + row * c.d;
    if (c.branch) add_branch<T>(c, row, const_cast<E*>(x));
    Row s;
    if (statistics<T, F>(c, x, s)) {
      write<T, F, MODE>(c, x, s, y);
    } else {
      s = Row();
      s.factor = factor_of<T>(c, x);
      Wide wide(c.d);
      wide.read<T>(x, c.d, s.factor);
      statistics<F32, F>(c, wide.at, s);
      write<F32, F, MODE>(c, wide.at, s, wide.at);
      wide.write<T>(y, c.d);
    }
    pack(c.kind, s, c.stats + row * width);
  }
}

// A row in the backward: where it is, and dx = scale * (u - k1 - k2 * (h or its sign)).
template <class E>
struct Pull {
  const E *x, *grad, *more;
  E *dx, *dbranch;
  uint64_t key;
  Row s;
  float k1, k2, scale;
};

// The gradient of h, from that of the output.
template <int F, int MODE>
INLINE V upstream(const Call& c, V grad, V h, V w) {
  if (F == ADAPTIVE) return grad * (c.a - c.a * c.b * h);
  return MODE > 0 ? grad * w : grad;
}

template <class T, int F, int MODE>
OUTLINE void sums(const Call& c, Pull<typename T::E>& p) {
  Sum ones, inner, signs;
  over(0, c.d, [&](int64_t i, auto n, auto k) INLINE_LAMBDA {
    V cen = centre<F>(load<T>(p.x + i, n), p.s), h = cen * p.s.r;
    V w = MODE > 0 ? load<F32>(c.weight + i, n) : V{};
    V u = upstream<F, MODE>(c, load<T>(p.grad + i, n), h, w);
    if (F != PLAIN) ones.add(k, u);
    inner.add(k, u * h);
    if (F == ABSOLUTE) signs.add(k, keep(sign(cen), n));
  });
  const float s2 = inner.lanes(), d = c.d;
  p.scale = p.s.r * p.s.factor;
  if (F == PLAIN) {
    p.k2 = c.kind == RMS ? s2 / c.count : c.kind == CRMS ? s2 / (d + 1) : s2 * p.s.counts;
    p.k1 = c.kind == CRMS ? p.k2 * (p.s.sum * p.s.r) : 0;
    return;
  }
  p.k1 = ones.lanes() / d;
  p.k2 = s2 / d;
  if (F == ABSOLUTE) {
    p.k2 *= c.a;
    p.k1 -= p.k2 * (signs.lanes() / d);
  } else if (c.kind == DETACH) {
    if (c.count != 2) p.k1 = 0;
    if (c.count != 1) p.k2 = 0;
  }
}

// With a residual: add the gradient that reaches the sum by another way, give the branch its own.
template <class T, class N>
OUTLINE V finished(const Call& c, const Pull<typename T::E>& p, int64_t i, N n, V dx) {
  if (p.more) dx += load<T>(p.more + i, n);
  if (p.dbranch) store<T>(p.dbranch + i, dropped(c, p.key, i, dx), n);
  return dx;
}

// dx of a row, and what it adds to the parameters' gradients; the sums of a chunk stay in the cache.
template <class T, int F, int MODE, bool PULLED>
INLINE void spread(
    const Call& c, const Pull<typename T::E>& p, const Partial& to, int64_t begin, int64_t end) {
  typedef typename T::E E;
  const bool residual = p.more || p.dbranch;
  const E *const __restrict x = p.x, *const __restrict grads = p.grad;
  E* const __restrict dx_at = p.dx;
  const float* const __restrict weight = c.weight;
  float *const __restrict dw = to.weight, *const __restrict db = to.bias;
  const Row s = p.s;
  const float k1 = p.k1, k2 = p.k2, scale = p.scale;
  each(begin, end, [=, &c, &p](int64_t i, auto n) INLINE_LAMBDA {
    V w = MODE > 0 ? load<F32>(weight + i, n) : V{}, grad = load<T>(grads + i, n);
    V cen = centre<F>(load<T>(x + i, n), s), h = cen * s.r;
    V inner = upstream<F, MODE>(c, grad, h, w) - k1;
    if (PULLED) inner = inner - k2 * (F == ABSOLUTE ? sign(cen) : h);
    V dx = inner * scale;
    if (__builtin_expect(residual, 0)) dx = finished<T>(c, p, i, n, dx);
    store<T>(dx_at + i, dx, n);
    if (MODE > 0) store<F32>(dw + i, load<F32>(dw + i, n) + grad * h, n);
    if (MODE > 1) store<F32>(db + i, load<F32>(db + i, n) + grad, n);
  });
}

template <class T, int MODE>
INLINE void spread_curve(const Call& c, const Pull<typename T::E>& p, const Partial& to) {
  const bool residual = p.more || p.dbranch;
  V slope = {};
  each(0, c.d, [&](int64_t i, auto n) INLINE_LAMBDA {
    V w = MODE > 0 ? load<F32>(c.weight + i, n) : V{};
    V grad = load<T>(p.grad + i, n), x = load<T>(p.x + i, n);
    V t = hyperbolic(x * c.alpha);
    V inner = (MODE > 0 ? grad * w : grad) * ((1.0f - t) * (1.0f + t));
    V dx = inner * c.alpha;
    if (__builtin_expect(residual, 0)) dx = finished<T>(c, p, i, n, dx);
    store<T>(p.dx + i, dx, n);
    slope += inner * x;
    if (MODE > 0) store<F32>(to.weight + i, load<F32>(to.weight + i, n) + grad * t, n);
    if (MODE > 1) store<F32>(to.bias + i, load<F32>(to.bias + i, n) + grad, n);
  });
  *to.alpha += total(slope);
}

template <class T, int F, int MODE>
OUTLINE void backward_row(const Call& c, Pull<typename T::E>& p, const Partial& to) {
  if constexpr (F == CURVE) {
    spread_curve<T, MODE>(c, p, to);
  } else {
    sums<T, F, MODE>(c, p);
    const int64_t seen = F == PLAIN && c.kind == RMS ? c.count : c.d;
    spread<T, F, MODE, true>(c, p, to, 0, seen);
    if (F == PLAIN && seen < c.d) spread<T, F, MODE, false>(c, p, to, seen, c.d);
  }
}

template <class T>
INLINE Pull<typename T::E> pull_at(const Call& c, int64_t row) {
  typedef typename T::E E;
  const int64_t at = row * c.d;
  Pull<E> p = {};
  p.x = static_cast<const E*>(c.x) + at;
  p.grad = static_cast<const E*>(c.grad) + at;
  p.dx = static_cast<E*>(c.dx) + at;
  if (c.more) p.more = static_cast<const E*>(c.more) + at;
  if (c.dbranch) p.dbranch = static_cast<E*>(c.dbranch) + at, p.key = row_key(c, row);
  p.s = unpack(c.kind, c.stats + row * columns(c.kind));
  return p;
}

template <class T, int F, int MODE>
void backward_wide(const Call& c, const Pull<typename T::E>& p, const Partial& to) {
  const int64_t d = c.d;
  Wide x(d), grad(d), more(d), dx(d), dbranch(d);
  Pull<float> wide = {};
  wide.s = p.s, wide.key = p.key;
  x.read<T>(p.x, d, p.s.factor), grad.read<T>(p.grad, d, 1.0f);
  wide.x = x.at, wide.grad = grad.at, wide.dx = dx.at;
  if (p.more) more.read<T>(p.more, d, 1.0f), wide.more = more.at;
  if (p.dbranch) wide.dbranch = dbranch.at;
  backward_row<F32, F, MODE>(c, wide, to);
  dx.write<T>(p.dx, d);
  if (p.dbranch) dbranch.write<T>(p.dbranch, d);
}

template <class T, int F, int MODE>
void backward(const Call& c, const Partial& to, int64_t begin, int64_t end) {
  for (int64_t row = begin; row < end; row++) {
    Pull<typename T::E> p = pull_at<T>(c, row);
    if (p.s.factor == 1) backward_row<T, F, MODE>(c, p, to);
    else backward_wide<T, F, MODE>(c, p, to);
  }
}

template <class T, int F>
INLINE void forward_mode(const Call& c, int64_t begin, int64_t end) {
  if (F == ADAPTIVE || !c.weight) return forward<T, F, 0>(c, begin, end);
  if constexpr (F != ADAPTIVE)
    return c.bias ? forward<T, F, 2>(c, begin, end) : forward<T, F, 1>(c, begin, end);
}
template <class T, int F>
INLINE void backward_mode(const Call& c, const Partial& to, int64_t begin, int64_t end) {
  if (F == ADAPTIVE || !c.weight) return backward<T, F, 0>(c, to, begin, end);
  if constexpr (F != ADAPTIVE)
    return c.bias ? backward<T, F, 2>(c, to, begin, end) : backward<T, F, 1>(c, to, begin, end);
}

#define BY_KIND(call, ...)                                  \
  switch (c.kind) {                                         \
    case LAYER: case DETACH: return call<T, CENTRED>(__VA_ARGS__); \
    case ADA: return call<T, ADAPTIVE>(__VA_ARGS__);        \
    case L1: return call<T, ABSOLUTE>(__VA_ARGS__);         \
    case TANH: return call<T, CURVE>(__VA_ARGS__);          \
    default: return call<T, PLAIN>(__VA_ARGS__);            \
  }

template <class T>
void forward_kind(const Call& c, int64_t begin, int64_t end) {
  BY_KIND(forward_mode, c, begin, end)
}
template <class T>
void backward_kind(const Call& c, const Partial& to, int64_t begin, int64_t end) {
  BY_KIND(backward_mode, c, to, begin, end)
}

void forward_any(const Call& c, int64_t begin, int64_t end) {
  if (c.dtype == FLOAT32) return forward_kind<F32>(c, begin, end);
  if (c.dtype == BFLOAT16) return forward_kind<BF16>(c, begin, end);
  return forward_kind<FP16>(c, begin, end);
}
void backward_any(const Call& c, const Partial& to, int64_t begin, int64_t end) {
  if (c.dtype == FLOAT32) return backward_kind<F32>(c, to, begin, end);
  if (c.dtype == BFLOAT16) return backward_kind<BF16>(c, to, begin, end);
  return backward_kind<FP16>(c, to, begin, end);
}

}  // namespace

#define TEXT_(a) #a
#define TEXT(a) TEXT_(a)
extern "C" const Isa JOIN(normtrain_rows_, ISA);
extern "C" const Isa JOIN(normtrain_rows_, ISA) = {TEXT(ISA), forward_any, backward_any};
