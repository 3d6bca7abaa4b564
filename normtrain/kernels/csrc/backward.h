// The backward of rows.
#pragma once

#include "statistics.h"

namespace {

// A row in the backward: its addresses, and dx = scale * (u - k1 - k2 * (h or its sign)).
template <class E>
struct Pull {
  const E *x, *grad, *more;
  E *dx, *dbranch;
  uint64_t key;
  Row s;
  float k1, k2, scale;
};

// The gradient of h from the gradient of the output.
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
    p.k2 = c.kind == RMS ? s2 / c.count : c.kind == CRMS ? s2 / (d + 1) : s2 * p.s.above_eps;
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

// With a residual: add the gradient of the sum, and write the gradient of the branch.
template <class T, class K>
OUTLINE void finish(const Call& c, const Pull<typename T::E>& p, int64_t i, K n, B dx) {
  if (p.more) dx = dx + load<T>(p.more + i, n);
  if (p.dbranch) store<T>(p.dbranch + i, dropped<T>(c, p.key, i, dx), n);
  store<T>(p.dx + i, dx, n);
}

// Which features of a range are in the statistic: all, none, or those before `count`.
enum Seen { ALL, NONE, SOME };

// Compute dx of a row and add to the parameters' gradients, whose sums stay in the cache.
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

}  // namespace
