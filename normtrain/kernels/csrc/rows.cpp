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

// A row in units of its scale, less its mean.
template <int F>
INLINE B scaled(B x, const Row& row, float low) {
  return F == PLAIN ? x * row.r : (x - row.mean) * row.r - low;
}
// What `scaled` subtracts last.
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
    row.counts = length >= c.eps;
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

// The statistics of a row; false where they left the range of float32.
template <class T, int F>
OUTLINE bool statistics(const Call& c, const typename T::E* x, Row& row) {
  if constexpr (F == CURVE) return true;
  if constexpr (F == PLAIN) return plain_statistics<T, F>(c, x, row);
  const float d = c.d;
  // in one pass about the mean of the row's first features, unless that is far from its own
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

// What brings the features that a row's statistic sees into range.
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

// Memory for whole blocks of float32.
struct Floats {
  float* at;
  explicit Floats(int64_t count)
      : at(static_cast<float*>(calloc(count + N, sizeof(float)))) {
    if (!at) abort();
  }
  ~Floats() { free(at); }
};

// A row out of range is worked on as float32, in memory of its own, features in their order.
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
    for (int64_t i = 0; i < d; i += N) store<T>(to + i, F32::load(at + i), Part{d - i < N ? d - i : N});
  }
};

// The call for such rows: its parameters in the order of float32.
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

template <class T, int F, int MODE>
INLINE void write(const Call& c, const typename T::E* x, const Row& row, typename T::E* y) {
  const float *w = c.weight, *b = c.bias;
  const float alpha = c.alpha, a = c.a, slope = c.a * c.b, low = low_part(row);
  const bool past = c.past;
  each(0, c.d, [=](int64_t i, auto n) INLINE_LAMBDA {
    B v = load<T>(x + i, n);
    B h = F == CURVE ? hyperbolic(v * alpha) : scaled<F>(v, row, low);
    if (F == ADAPTIVE) h = (a - slope * h) * h;
    if (MODE > 0) h = h * F32::load(w + i);
    if (MODE > 1) h = h + F32::load(b + i);
    put<T>(y + i, h, n, past);
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

template <class T>
OUTLINE void add_branch(const Call& c, int64_t row, typename T::E* sum) {
  typedef typename T::E E;
  const E* branch = static_cast<const E*>(c.branch) + row * c.d;
  const E* residual = static_cast<const E*>(c.residual) + row * c.d;
  const uint64_t key = row_key(c, row);
  each(0, c.d, [&](int64_t i, auto n) INLINE_LAMBDA {
    B v = load<T>(branch + i, n);
    if (c.seeds) v = dropped<T>(c, key, i, v);
    store<T>(sum + i, load<T>(residual + i, n) + v, n);
  });
}

template <class T, int F, int MODE>
OUTLINE void forward_wide(const Call& call, const typename T::E* x, Row& s, typename T::E* y) {
  s = Row();
  s.factor = factor_of<T>(call, x);
  const WideCall<T> wide_call(call);
  const Call& c = wide_call.c;
  Wide wide(c.d);
  wide.read<T>(x, c.d, s.factor);
  statistics<F32, F>(c, wide.at, s);
  write<F32, F, MODE>(c, wide.at, s, wide.at);
  wide.write<T>(y, c.d);
}

// The next row's statistics are begun before a row is written: neither waits for the other.
template <class T, int F, int MODE>
void forward(const Call& c, int64_t begin, int64_t end) {
  typedef typename T::E E;
  const int width = columns(c.kind);
  const E* const x = static_cast<const E*>(c.x);
  E* const y = static_cast<E*>(c.y);
  auto begun = [&](int64_t row, Row& s) INLINE_LAMBDA {
    if (c.branch) add_branch<T>(c, row, const_cast<E*>(x + row * c.d));
    s = Row();
    return statistics<T, F>(c, x + row * c.d, s);
  };
  Row next;
  bool next_fits = begin < end && begun(begin, next);
  for (int64_t row = begin; row < end; row++) {
    Row s = next;
    const bool fits = next_fits;
    if (row + 1 < end) next_fits = begun(row + 1, next);
    const int64_t at = row * c.d;
    if (fits) write<T, F, MODE>(c, x + at, s, y + at);
    else forward_wide<T, F, MODE>(c, x + at, s, y + at);
    if (c.stats) pack(c.kind, s, c.stats + row * width);
  }
  if (c.past) streamed();
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
INLINE B upstream(const Call& c, B grad, B h, B w) {
  if (F == ADAPTIVE) return grad * (c.a - (c.a * c.b) * h);
  return MODE > 0 ? grad * w : grad;
}

template <class T, int F, int MODE>
OUTLINE void sums(const Call& c, Pull<typename T::E>& p) {
  typedef typename T::E E;
  Sum ones, inner, signs;
  const E *const x = p.x, *const grads = p.grad;
  const float* const weight = c.weight;
  const Row s = p.s;
  const float low = low_part(s);
  over(0, c.d, [&](int64_t i, auto n, auto k) INLINE_LAMBDA {
    B h = keep<T>(scaled<F>(load<T>(x + i, n), s, low), n);
    B w = MODE > 0 ? F32::load(weight + i) : B{};
    B u = upstream<F, MODE>(c, load<T>(grads + i, n), h, w);
    if (F != PLAIN) ones.add(k, u);
    inner.add(k, u * h);
    if (F == ABSOLUTE) signs.add(k, sign(h));
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
template <class T, class K>
OUTLINE void finish(const Call& c, const Pull<typename T::E>& p, int64_t i, K n, B dx) {
  if (p.more) dx = dx + load<T>(p.more + i, n);
  if (p.dbranch) store<T>(p.dbranch + i, dropped<T>(c, p.key, i, dx), n);
  store<T>(p.dx + i, dx, n);
}

// Which features of a stretch the statistic saw: all, none, those before `Pull::seen`.
enum Seen { ALL, NONE, SOME };

// dx of a row, and what it adds to the parameters' gradients; the sums of a chunk stay in the cache.
template <class T, int F, int MODE, int SEEN>
INLINE void spread(
    const Call& c, const Pull<typename T::E>& p, const Partial& to, int64_t begin, int64_t end) {
  typedef typename T::E E;
  const bool residual = p.more || p.dbranch, past = c.past;
  const E *const __restrict x = p.x, *const __restrict grads = p.grad;
  E* const __restrict dx_at = p.dx;
  const float* const __restrict weight = c.weight;
  float *const __restrict dw = to.weight, *const __restrict db = to.bias;
  const Row s = p.s;
  const float k1 = p.k1, k2 = p.k2, scale = p.scale, low = low_part(s);
  each(begin, end, [=, &c, &p](int64_t i, auto n) INLINE_LAMBDA {
    B w = MODE > 0 ? F32::load(weight + i) : B{}, grad = load<T>(grads + i, n);
    B h = keep<T>(scaled<F>(load<T>(x + i, n), s, low), n);
    B inner = upstream<F, MODE>(c, grad, h, w) - k1;
    if (SEEN != NONE) {
      B pulled = k2 * (F == ABSOLUTE ? sign(h) : h);
      if (SEEN == SOME) pulled = keep<T>(pulled, Part{c.count - i});
      inner = inner - pulled;
    }
    B dx = inner * scale;
    if (__builtin_expect(residual, 0)) finish<T>(c, p, i, n, dx);
    else put<T>(dx_at + i, dx, n, past);
    if (MODE > 0) F32::store(dw + i, F32::load(dw + i) + grad * h);
    if (MODE > 1) F32::store(db + i, F32::load(db + i) + grad);
  });
}

template <class T, int MODE>
INLINE void spread_curve(const Call& c, const Pull<typename T::E>& p, const Partial& to) {
  const bool residual = p.more || p.dbranch;
  B slope = {};
  each(0, c.d, [&](int64_t i, auto n) INLINE_LAMBDA {
    B w = MODE > 0 ? F32::load(c.weight + i) : B{};
    B grad = load<T>(p.grad + i, n), x = load<T>(p.x + i, n);
    B t = hyperbolic(x * c.alpha);
    B inner = (MODE > 0 ? grad * w : grad) * ((1.0f - t) * (1.0f + t));
    B dx = inner * c.alpha;
    if (__builtin_expect(residual, 0)) finish<T>(c, p, i, n, dx);
    else put<T>(p.dx + i, dx, n, c.past);
    slope = slope + inner * x;
    if (MODE > 0) F32::store(to.weight + i, F32::load(to.weight + i) + grad * t);
    if (MODE > 1) F32::store(to.bias + i, F32::load(to.bias + i) + grad);
  });
  *to.alpha += total(slope.a + slope.b);
}

template <class T, int F, int MODE>
OUTLINE void spread_row(const Call& c, const Pull<typename T::E>& p, const Partial& to) {
  if constexpr (F == CURVE) {
    spread_curve<T, MODE>(c, p, to);
  } else {
    const int64_t seen = F == PLAIN && c.kind == RMS ? c.count : c.d;
    if (F != PLAIN || seen == c.d) return spread<T, F, MODE, ALL>(c, p, to, 0, c.d);
    const int64_t whole = seen / N * N, after = whole + N < c.d ? whole + N : c.d;
    spread<T, F, MODE, ALL>(c, p, to, 0, whole);
    spread<T, F, MODE, SOME>(c, p, to, whole, after);
    spread<T, F, MODE, NONE>(c, p, to, after, c.d);
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
OUTLINE void backward_wide(const Call& call, const Pull<typename T::E>& p, const Partial& to) {
  const int64_t d = call.d, width = padded(d);
  const WideCall<T> wide_call(call);
  Wide x(d), grad(d), more(d), dx(d), dbranch(d);
  Pull<float> wide = {};
  wide.s = p.s, wide.key = p.key;
  x.read<T>(p.x, d, p.s.factor), grad.read<T>(p.grad, d, 1.0f);
  wide.x = x.at, wide.grad = grad.at, wide.dx = dx.at;
  if (p.more) more.read<T>(p.more, d, 1.0f), wide.more = more.at;
  if (p.dbranch) wide.dbranch = dbranch.at;
  Floats own(2 * width);
  if (F != CURVE) sums<F32, F, MODE>(wide_call.c, wide);
  spread_row<F32, F, MODE>(wide_call.c, wide, Partial{own.at, own.at + width, to.alpha});
  arrange<T>(own.at, 2 * width, false);
  for (int64_t i = 0; i < width; i++) {
    if (MODE > 0) to.weight[i] += own.at[i];
    if (MODE > 1) to.bias[i] += own.at[width + i];
  }
  dx.write<T>(p.dx, d);
  if (p.dbranch) dbranch.write<T>(p.dbranch, d);
}

template <class T, int F, int MODE>
void backward(const Call& c, const Partial& to, int64_t begin, int64_t end) {
  typedef Pull<typename T::E> P;
  auto begun = [&](int64_t row) INLINE_LAMBDA {
    P p = pull_at<T>(c, row);
    if (F != CURVE && p.s.factor == 1) sums<T, F, MODE>(c, p);
    return p;
  };
  P next = {};
  if (begin < end) next = begun(begin);
  for (int64_t row = begin; row < end; row++) {
    const P p = next;
    if (row + 1 < end) next = begun(row + 1);
    if (p.s.factor == 1) spread_row<T, F, MODE>(c, p, to);
    else backward_wide<T, F, MODE>(c, p, to);
  }
  if (c.past) streamed();
}

// The parameters that a form's loops know: none, a weight, a weight and a bias.
template <class T, int F>
INLINE void forward_mode(const Call& c, int64_t begin, int64_t end) {
  if constexpr (F <= PLAIN || F == ADAPTIVE)
    if (!c.weight) return forward<T, F, 0>(c, begin, end);
  if constexpr (F == PLAIN)
    if (!c.has_bias) return forward<T, F, 1>(c, begin, end);
  if constexpr (F != ADAPTIVE) forward<T, F, 2>(c, begin, end);
}
template <class T, int F>
INLINE void backward_mode(const Call& c, const Partial& to, int64_t begin, int64_t end) {
  if constexpr (F <= PLAIN || F == ADAPTIVE)
    if (!c.weight) return backward<T, F, 0>(c, to, begin, end);
  if constexpr (F == PLAIN)
    if (!c.has_bias) return backward<T, F, 1>(c, to, begin, end);
  if constexpr (F != ADAPTIVE) backward<T, F, 2>(c, to, begin, end);
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

void arrange_any(int dtype, float* at, int64_t count, bool back) {
  if (dtype == BFLOAT16) arrange<BF16>(at, count, back);
}

}  // namespace

#define TEXT_(a) #a
#define TEXT(a) TEXT_(a)
extern "C" const Isa JOIN(normtrain_rows_, ISA);
extern "C" const Isa JOIN(normtrain_rows_, ISA) = {TEXT(ISA), forward_any, backward_any, arrange_any};
