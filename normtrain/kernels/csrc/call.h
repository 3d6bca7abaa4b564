// The arguments of the row kernels. Includes neither Python nor torch.
#pragma once

#include <stdint.h>

// The codes of normtrain/kernels/table.py and of backend.DTYPES.
enum Kind { LAYER, DETACH, RMS, ADA, CRMS, L2, L1, TANH };
enum Dtype { FLOAT32, BFLOAT16, FLOAT16 };

// By code: a kind's name, and the statistics of a row saved for the backward, in this order.
// tests/kernels/test_table.py compares this list with table.py.
struct Saved {
  const char* kind;
  int count;
  const char* names[4];
};
constexpr Saved SAVED[] = {
    {"layer", 4, {"scale", "factor", "mean", "rest"}},
    {"detach", 4, {"scale", "factor", "mean", "rest"}},
    {"rms", 2, {"scale", "factor"}},
    {"ada", 4, {"scale", "factor", "mean", "rest"}},
    {"crms", 3, {"scale", "factor", "sum"}},
    {"l2", 3, {"scale", "factor", "above_eps"}},
    {"l1", 4, {"scale", "factor", "mean", "rest"}},
    {"tanh", 0, {}},
};
inline int columns(int kind) { return SAVED[kind].count; }

// Parameters and sums over rows are padded to whole blocks of the longest vectors.
inline int64_t padded(int64_t d) { return (d + 31) / 32 * 32; }

struct Call {
  int kind, dtype;
  int64_t rows, d;
  const void* x;        // (rows, d); the forward of a sum writes the sum there first
  void* y;              // (rows, d), forward
  const void* grad;     // (rows, d), backward
  void* dx;             // (rows, d), backward
  float* stats;         // (rows, columns); null in a forward without a backward
  // (padded(d),) each, in the order of `Isa::arrange`, or both null; never null for l1 and tanh
  const float* weight;
  const float* bias;
  bool has_bias;  // whether the norm has a bias; otherwise `bias` is zeros
  float alpha, eps, a, b;
  int64_t count;
  bool past;  // y or dx is written bypassing the caches; its rows are aligned to 64 bytes then
  // residual + dropout(branch): the forward reads both; the backward adds `more`, the gradient of
  // the sum, to dx and writes the gradient of the branch
  const void* branch;
  const void* residual;
  const void* more;
  void* dbranch;
  const int64_t* seeds;  // (rows,), or null: no dropout
  uint32_t threshold;    // an element is dropped if its hash is below this
  float keep_scale;      // 1 / (1 - p)
};

// Sums over the rows of a chunk: (padded(d),) in the order of `Isa::arrange`; alpha is one number.
struct Partial {
  float* weight;
  float* bias;
  float* alpha;
};

typedef void (*ForwardRows)(const Call&, int64_t begin, int64_t end);
typedef void (*BackwardRows)(const Call&, const Partial&, int64_t begin, int64_t end);

// Reorder between the order of features and the order in which loops over a dtype read parameters.
typedef void (*Arrange)(int dtype, float* at, int64_t count, bool back);

struct Isa {
  const char* name;
  ForwardRows forward;
  BackwardRows backward;
  Arrange arrange;
};
