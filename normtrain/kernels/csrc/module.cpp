// The extension module normtrain.kernels._native, which takes addresses and numbers.
// It is built without torch and links no OpenMP: the functions of the OpenMP runtime that the
// process has loaded (torch loads one) are looked up at first use, so there is never a second
// thread pool. Without a runtime, a call runs on the caller's thread.

#define PY_SSIZE_T_CLEAN
#include <Python.h>

#include "call.h"

#include <atomic>
#include <dlfcn.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#if defined(__x86_64__)
extern "C" const Isa normtrain_rows_avx512, normtrain_rows_avx2;
#endif
extern "C" const Isa normtrain_rows_base;

namespace {

// ---- instruction sets

const Isa* all_isas[4];  // those this processor supports, best first
const Isa* isa;

void find_isas() {
  int n = 0;
#if defined(__x86_64__)
  __builtin_cpu_init();
  const bool avx2 = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") &&
                    __builtin_cpu_supports("f16c");
  if (avx2 && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
      __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512dq"))
    all_isas[n++] = &normtrain_rows_avx512;
  if (avx2) all_isas[n++] = &normtrain_rows_avx2;
#endif
  all_isas[n++] = &normtrain_rows_base;
  isa = all_isas[0];
}

// ---- threads

typedef void (*Parallel)(void (*)(void*), void*, unsigned, unsigned);
typedef int (*InParallel)();
Parallel gomp_parallel;
InParallel omp_in_parallel;

bool find_openmp() {
  if (!gomp_parallel) {
    omp_in_parallel = reinterpret_cast<InParallel>(dlsym(RTLD_DEFAULT, "omp_in_parallel"));
    if (omp_in_parallel)
      gomp_parallel = reinterpret_cast<Parallel>(dlsym(RTLD_DEFAULT, "GOMP_parallel"));
  }
  return gomp_parallel != nullptr;
}

// Pieces of work that threads take in turn; which thread runs a piece does not affect the result.
template <class Do>
struct Pieces {
  const Do& work;
  int64_t count;
  std::atomic<int64_t> next{0};
  static void run(void* data) {
    auto& self = *static_cast<Pieces*>(data);
    for (int64_t i; (i = self.next.fetch_add(1, std::memory_order_relaxed)) < self.count;)
      self.work(i);
  }
};

template <class Do>
void in_pieces(int64_t count, int threads, const Do& work) {
  if (threads > count) threads = (int)count;
  if (threads < 2 || !find_openmp() || omp_in_parallel()) {
    for (int64_t i = 0; i < count; i++) work(i);
    return;
  }
  Pieces<Do> pieces{work, count};
  gomp_parallel(Pieces<Do>::run, &pieces, (unsigned)threads, 0);
}

// ---- buffers of each calling thread, reused between calls

struct Scratch {
  char* at = nullptr;
  size_t size = 0;
  ~Scratch() { free(at); }
  float* floats(size_t count) {
    const size_t wanted = count * sizeof(float);
    if (wanted > size) {
      free(at);
      at = static_cast<char*>(aligned_alloc(64, (wanted + 63) / 64 * 64));
      if (!at) abort();
      size = wanted;
    }
    return reinterpret_cast<float*>(at);
  }
};
thread_local Scratch scratch, sums_scratch;

// ---- scalar conversions, for parameters

float half_to_float(uint16_t h) {
  uint32_t magnitude = h & 0x7fffu, u = magnitude << 13;
  float f;
  if (magnitude >= 0x7c00u) u |= 0x7f800000u;
  memcpy(&f, &u, 4);
  if (magnitude < 0x7c00u) f *= 0x1p112f;
  return h & 0x8000u ? -f : f;
}

uint16_t float_to_half(float f) {
  uint32_t u, magnitude, half;
  memcpy(&u, &f, 4);
  magnitude = u & 0x7fffffffu;
  if (magnitude > 0x7f800000u) {
    half = 0x7e00u;
  } else if (magnitude >= 0x477ff000u) {
    half = 0x7c00u;
  } else if (magnitude < (113u << 23)) {
    float small;
    memcpy(&small, &magnitude, 4);
    small += 0.5f;
    memcpy(&half, &small, 4);
    half -= 0x3f000000u;
  } else {
    half = (magnitude - (112u << 23) + 0xfffu + ((magnitude >> 13) & 1u)) >> 13;
  }
  return (uint16_t)(half | ((u >> 16) & 0x8000u));
}

void widen(const void* from, int dtype, float* to, int64_t n) {
  if (dtype == FLOAT32) {
    memcpy(to, from, n * sizeof(float));
    return;
  }
  const uint16_t* p = static_cast<const uint16_t*>(from);
  for (int64_t i = 0; i < n; i++) {
    const uint32_t u = (uint32_t)p[i] << 16;
    if (dtype == BFLOAT16) memcpy(to + i, &u, 4);
    else to[i] = half_to_float(p[i]);
  }
}

void narrow(const float* from, void* to, int dtype, int64_t n) {
  if (dtype == FLOAT32) {
    memcpy(to, from, n * sizeof(float));
    return;
  }
  uint16_t* p = static_cast<uint16_t*>(to);
  for (int64_t i = 0; i < n; i++) {
    uint32_t u;
    memcpy(&u, from + i, 4);
    if (dtype == FLOAT16) p[i] = float_to_half(from[i]);
    else p[i] = from[i] != from[i] ? 0x7fc0u : (uint16_t)((u + 0x7fffu + ((u >> 16) & 1u)) >> 16);
  }
}

// ---- a call

// A parameter: the addresses of it and its gradient, its dtype, its size.
struct Parameter {
  const void* at;
  void* grad;
  int dtype;
  int64_t n;
};

struct Job {
  Call c;
  Parameter weight, bias, alpha;
  int threads;
};

constexpr int64_t SMALL = 1 << 15;  // with fewer elements, threads cost more than they save

// Replace NaNs by the canonical one, which lanes.h relies on.
void clean(float* at, int64_t n) {
  for (int64_t i = 0; i < n; i++)
    if (at[i] != at[i]) at[i] = __builtin_nanf("");
}

// Convert the parameters for the loops; `to` has space for two arrays of padded(d).
void wide_parameters(Job& job, float* to) {
  Call& c = job.c;
  const int64_t d = c.d, width = padded(d);
  if (job.alpha.at) widen(job.alpha.at, job.alpha.dtype, &c.alpha, 1), clean(&c.alpha, 1);
  c.weight = c.bias = nullptr;
  c.has_bias = job.bias.at;
  if (!job.weight.at && !job.bias.at && c.kind != L1 && c.kind != TANH) return;
  memset(to, 0, 2 * width * sizeof(float));
  if (job.weight.at && job.weight.n == d) {
    widen(job.weight.at, job.weight.dtype, to, d);
  } else {
    float one = 1;
    if (job.weight.at) widen(job.weight.at, job.weight.dtype, &one, 1);
    for (int64_t i = 0; i < d; i++) to[i] = one;
  }
  if (job.bias.at) widen(job.bias.at, job.bias.dtype, to + width, d);
  clean(to, 2 * width);
  isa->arrange(c.dtype, to, 2 * width, false);
  c.weight = to, c.bias = to + width;
}

// The size of the last-level cache of a core. (On some systems sysconf returns a socket's.)
int64_t last_cache() {
  int64_t kilobytes = 0;
  if (FILE* file = fopen("/sys/devices/system/cpu/cpu0/cache/index3/size", "r")) {
    long found = 0;
    if (fscanf(file, "%ldK", &found) == 1) kilobytes = found;
    fclose(file);
  }
  return kilobytes > 0 ? kilobytes * 1024 : (int64_t)32 << 20;
}

// Whether a result should bypass the caches: from a quarter of the last-level cache on, where even
// the next reader does not profit from cached lines.
bool past_caches(const Call& c, const void* result) {
  static const int64_t least = last_cache() / 4;
  const int64_t row = c.d * (c.dtype == FLOAT32 ? 4 : 2);
  return c.rows * row >= least && row % 64 == 0 && reinterpret_cast<uintptr_t>(result) % 64 == 0;
}

void run_forward(Job& job) {
  Call& c = job.c;
  c.past = past_caches(c, c.y);
  wide_parameters(job, scratch.floats(2 * padded(c.d)));
  const int64_t step = c.d >= 16384 ? 1 : 16384 / c.d;
  const int threads = c.rows * c.d < SMALL ? 1 : job.threads;
  in_pieces((c.rows + step - 1) / step, threads, [&](int64_t i) {
    isa->forward(c, i * step, i * step + step < c.rows ? i * step + step : c.rows);
  });
}

// The number of chunks depends on the shape only; their sums are added in order.
void run_backward(Job& job) {
  Call& c = job.c;
  c.past = past_caches(c, c.dx);
  const int64_t d = c.d, elements = c.rows * d;
  int64_t chunks = elements / SMALL;
  chunks = chunks < 1 ? 1 : chunks > 64 ? 64 : chunks;
  int64_t step = (c.rows + chunks - 1) / chunks;
  chunks = step ? (c.rows + step - 1) / step : 0;
  const int64_t pad = padded(d);
  float* room = scratch.floats(2 * pad);
  wide_parameters(job, room);
  const bool sums = c.weight;
  const int64_t width = (sums ? 2 * pad : 0) + 16;  // weight, bias, then alpha
  float *partial = sums_scratch.floats((chunks + 1) * width), *result = partial + chunks * width;
  auto at = [&](float* p) {
    return Partial{p, p + pad, p + width - 16};
  };
  const int threads = elements < SMALL ? 1 : job.threads;
  in_pieces(chunks, threads, [&](int64_t i) {
    float* own = partial + i * width;
    memset(own, 0, width * sizeof(float));
    isa->backward(c, at(own), i * step, i * step + step < c.rows ? i * step + step : c.rows);
  });
  if (!job.weight.grad && !job.bias.grad && !job.alpha.grad) return;
  const int64_t block = 1024, blocks = (width + block - 1) / block;
  in_pieces(blocks, chunks * width < 16 * SMALL ? 1 : job.threads, [&](int64_t k) {
    const int64_t begin = k * block, end = begin + block < width ? begin + block : width;
    for (int64_t i = begin; i < end; i++) result[i] = 0;
    for (int64_t j = 0; j < chunks; j++)
      for (int64_t i = begin; i < end; i++) result[i] += partial[j * width + i];
  });
  const Partial found = at(result);
  if (sums) isa->arrange(c.dtype, result, 2 * pad, true);
  if (job.weight.grad) {
    if (job.weight.n != d) {
      double sum = 0;
      for (int64_t i = 0; i < d; i++) sum += found.weight[i];
      found.weight[0] = (float)sum;
    }
    narrow(found.weight, job.weight.grad, job.weight.dtype, job.weight.n);
  }
  if (job.bias.grad) narrow(found.bias, job.bias.grad, job.bias.dtype, d);
  if (job.alpha.grad) narrow(found.alpha, job.alpha.grad, job.alpha.dtype, 1);
}

// ---- Python

// Reads arguments in order; errors are checked at the end with PyErr_Occurred.
struct Arguments {
  PyObject* const* next;
  int64_t whole() { return PyLong_AsLongLong(*next++); }
  void* address() { return PyLong_AsVoidPtr(*next++); }
  float number() { return (float)PyFloat_AsDouble(*next++); }
};

constexpr Py_ssize_t ARGUMENTS = 24, WITH_RESIDUAL = 7;

bool read(PyObject* const* args, Py_ssize_t count, Job& job) {
  if (count != ARGUMENTS && count != ARGUMENTS + WITH_RESIDUAL) {
    PyErr_Format(PyExc_TypeError, "expected %zd arguments, and %zd more for a residual; got %zd",
                 ARGUMENTS, WITH_RESIDUAL, count);
    return false;
  }
  Arguments a{args};
  Call& c = job.c;
  c = Call();
  c.kind = (int)a.whole(), c.dtype = (int)a.whole();
  c.rows = a.whole(), c.d = a.whole();
  c.x = a.address(), c.y = a.address(), c.grad = a.address(), c.dx = a.address();
  c.stats = static_cast<float*>(a.address());
  Parameter* const parameters[] = {&job.weight, &job.bias, &job.alpha};
  for (Parameter* p : parameters) {
    p->at = a.address(), p->grad = a.address();
    p->dtype = (int)a.whole();
    p->n = p == &job.weight ? a.whole() : c.d;
  }
  c.eps = a.number(), c.count = a.whole(), c.a = a.number(), c.b = a.number();
  job.threads = (int)a.whole();
  if (count == ARGUMENTS) return !PyErr_Occurred();
  c.branch = a.address(), c.residual = a.address(), c.more = a.address(), c.dbranch = a.address();
  c.seeds = static_cast<const int64_t*>(a.address());
  c.threshold = (uint32_t)a.whole(), c.keep_scale = a.number();
  return !PyErr_Occurred();
}

template <void (*RUN)(Job&)>
PyObject* call(PyObject*, PyObject* const* args, Py_ssize_t count) {
  Job job;
  if (!read(args, count, job)) return nullptr;
  if (job.c.rows * job.c.d < SMALL) {
    RUN(job);
  } else {
    Py_BEGIN_ALLOW_THREADS
    RUN(job);
    Py_END_ALLOW_THREADS
  }
  Py_RETURN_NONE;
}

// [(kind, (statistic, ...)), ...] by code.
PyObject* kinds(PyObject*, PyObject*) {
  PyObject* list = PyList_New(0);
  for (const Saved& saved : SAVED) {
    PyObject* names = PyTuple_New(saved.count);
    for (int i = 0; names && i < saved.count; i++)
      PyTuple_SetItem(names, i, PyUnicode_FromString(saved.names[i]));
    PyObject* item = names ? Py_BuildValue("(sN)", saved.kind, names) : nullptr;
    if (!list || !item || PyList_Append(list, item) < 0) Py_CLEAR(list);
    Py_XDECREF(item);
    if (!list) return nullptr;
  }
  return list;
}

PyObject* isas(PyObject*, PyObject*) {
  PyObject* names = PyList_New(0);
  for (const Isa* const* p = all_isas; names && *p; p++) {
    PyObject* name = PyUnicode_FromString((*p)->name);
    if (name) PyList_Append(names, name);
    Py_XDECREF(name);
  }
  return names;
}

PyObject* use_isa(PyObject*, PyObject* wanted) {
  for (const Isa* const* p = all_isas; *p; p++) {
    PyObject* name = PyUnicode_FromString((*p)->name);
    if (!name) return nullptr;
    const int same = PyObject_RichCompareBool(name, wanted, Py_EQ);
    Py_DECREF(name);
    if (same < 0) return nullptr;
    if (!same) continue;
    const char* before = isa->name;
    isa = *p;
    return PyUnicode_FromString(before);
  }
  PyErr_SetString(PyExc_ValueError, "unsupported instruction set");
  return nullptr;
}

PyObject* openmp(PyObject*, PyObject*) { return PyBool_FromLong(find_openmp()); }

#define FAST(f) reinterpret_cast<PyCFunction>(reinterpret_cast<void (*)()>(f))
PyMethodDef methods[] = {
    {"forward", FAST(call<run_forward>), METH_FASTCALL, "Norm of rows; see native.py."},
    {"backward", FAST(call<run_backward>), METH_FASTCALL, "Its gradients; see native.py."},
    {"kinds", kinds, METH_NOARGS, "Supported kinds by code, each with the saved statistics."},
    {"isas", isas, METH_NOARGS, "Instruction sets this processor supports, best first."},
    {"use_isa", use_isa, METH_O, "Switch to another one; returns the previous name."},
    {"openmp", openmp, METH_NOARGS, "Whether the process has loaded an OpenMP runtime."},
    {nullptr, nullptr, 0, nullptr},
};

PyModuleDef module = {PyModuleDef_HEAD_INIT, "_native", nullptr, -1, methods,
                      nullptr, nullptr, nullptr, nullptr};

}  // namespace

PyMODINIT_FUNC PyInit__native() {
  find_isas();
  return PyModule_Create(&module);
}
