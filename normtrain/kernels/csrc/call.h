// What the Python module hands to the row kernels. No Python and no torch in here.
#pragma once

#include <stdint.h>

// In the order of normtrain.kernels.rows.KINDS and of native.DTYPES.
enum Kind { LAYER, DETACH, RMS, ADA, CRMS, L2, L1, TANH };
enum Dtype { FLOAT32, BFLOAT16, FLOAT16 };

// A row's statistics as kept between forward and backward: the first `columns(kind)` of these.
//   layer, detach, ada, l1: mean, its correction, r, factor
//   crms: sum, r, factor      l2: whether the length counts, r, factor      rms: r, factor
inline int columns(int kind) {
  switch (kind) {
    case TANH: return 0;
    case RMS: return 2;
    case CRMS: case L2: return 3;
    default: return 4;
  }
}

struct Call {
  int kind, dtype;
  int64_t rows, d;
  const void* x;        // (rows, d); the forward of a sum writes the sum there first
  void* y;              // (rows, d), forward
  const void* grad;     // (rows, d), backward
  void* dx;             // (rows, d), backward
  float* stats;         // (rows, columns)
  const float* weight;  // (d,) or null
  const float* bias;    // (d,) or null; never without a weight
  float alpha, eps, a, b;
  int64_t count;
  // of residual + dropout(branch): the forward reads both, the backward adds `more` to dx and
  // writes the branch's gradient
  const void* branch;
  const void* residual;
  const void* more;
  void* dbranch;
  const int64_t* seeds;  // (rows,), or null: nothing is dropped
  uint32_t threshold;    // an element is dropped where its hash is below
  float keep_scale;    // 1 / (1 - p)
};

// Sums over the rows of one chunk; each is (d,) but `alpha`.
struct Partial {
  float* weight;
  float* bias;
  float* alpha;
};

typedef void (*ForwardRows)(const Call&, int64_t begin, int64_t end);
typedef void (*BackwardRows)(const Call&, const Partial&, int64_t begin, int64_t end);

struct Isa {
  const char* name;
  ForwardRows forward;
  BackwardRows backward;
};
