// The forward of rows.
#pragma once

#include "statistics.h"

namespace {

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

// The statistics of the next row are started before a row is written, so they overlap.
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

}  // namespace
