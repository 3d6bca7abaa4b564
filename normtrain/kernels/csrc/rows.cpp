// Norms of rows, forward and backward, compiled once per instruction set with LANES (floats per
// vector) and ISA (its name) defined. The formulas are in normtrain/kernels/table.py.
//
// A row is read from memory once: the statistics load it into the cache, where the rest reads it.

#include "backward.h"
#include "call.h"
#include "forward.h"
#include "lanes.h"

#define JOIN_(a, b) a##b
#define JOIN(a, b) JOIN_(a, b)

namespace {

// Choose the loop by the parameters: none, a weight, or a weight and a bias.
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
    case LAYER:                                             \
    case DETACH: return call<T, CENTRED>(__VA_ARGS__);      \
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
extern "C" const Isa JOIN(normtrain_rows_, ISA) = {
    TEXT(ISA), forward_any, backward_any, arrange_any};
