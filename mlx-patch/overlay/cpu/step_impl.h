// The step kernels over a vector type V, included once by each step_<isa>.cpp after it has defined V. Everything is in
// an unnamed namespace and no header of MLX or of the standard library's templates is used: code compiled for a newer
// instruction set must not become the program's copy of a shared inline function.

#include "cpu/step_attention.h"
#include "cpu/step_lanes.h"
#include "cpu/step_recurrent.h"
#include "cpu/step_rows.h"

namespace zmlx::cpu {
namespace {

template <class Fn>
auto by_type(DType t, Fn fn) {
  switch (t) {
    case DType::F16:
      return fn(TypeF16());
    case DType::BF16:
      return fn(TypeBF16());
    default:
      return fn(TypeF32());
  }
}

void rms_scale(DType t, const uint8_t* const* rows, int m, int64_t n, float eps, float* scale) {
  by_type(t, [&](auto type) { rms_scale_t<decltype(type)>(rows, m, n, eps, scale); });
}

void norm_row(DType t, const uint8_t* x, const uint8_t* weight, float scale, uint8_t* y, int64_t n) {
  by_type(t, [&](auto type) { norm_row_t<decltype(type)>(x, weight, scale, y, n); });
}

void add_row(DType t, const uint8_t* a, const uint8_t* b, uint8_t* y, int64_t n) {
  by_type(t, [&](auto type) { add_row_t<decltype(type)>(a, b, y, n); });
}

void rope_table(DType t, float position, const float* inv_freqs, const RopeTable& table) {
  by_type(t, [&](auto type) { rope_table_t<decltype(type)>(position, inv_freqs, table); });
}

void norm_rope_row(
    DType t,
    const uint8_t* x,
    const uint8_t* weight,
    float scale,
    float factor,
    const RopeTable& table,
    uint8_t* y,
    int64_t dim,
    float* buffer) {
  by_type(t, [&](auto type) { norm_rope_row_t<decltype(type)>(x, weight, scale, factor, table, y, dim, buffer); });
}

void attention_exact(const AttentionTask& task) {
  by_type(task.dtype, [&](auto type) { attention_exact_t<decltype(type)>(task); });
}

void attention_fast(const AttentionTask& task) {
  by_type(task.dtype, [&](auto type) { attention_fast_t<decltype(type)>(task); });
}

float maximum(DType t, const uint8_t* x, int64_t n) {
  return by_type(t, [&](auto type) { return maximum_t<decltype(type)>(x, n); });
}

float exp_sum_in_order(DType t, const uint8_t* x, int64_t n, float max) {
  return by_type(t, [&](auto type) { return exp_sum_in_order_t<decltype(type)>(x, n, max); });
}

float exp_sum(DType t, const uint8_t* x, int64_t n, float max) {
  return by_type(t, [&](auto type) { return exp_sum_t<decltype(type)>(x, n, max); });
}

int64_t first_reaching(DType t, const uint8_t* x, int64_t n, float c, float target) {
  return by_type(t, [&](auto type) { return first_reaching_t<decltype(type)>(x, n, c, target); });
}

void short_conv(const ShortConvTask& task) {
  by_type(task.dtype, [&](auto type) {
    // Products of short types are exact, but for those too large for float32.
    if (task.fused) {
      short_conv_t<decltype(type), true>(task);
    } else {
      short_conv_t<decltype(type), false>(task);
    }
  });
}

void delta_rule(const DeltaTask& task) {
  by_type(task.dtype, [&](auto type) { delta_rule_t<decltype(type)>(task); });
}

void scaled_row(DType t, const uint8_t* x, float scale, float factor, float* y, int64_t n) {
  by_type(t, [&](auto type) { scaled_row_t<decltype(type)>(x, scale, factor, y, n); });
}

void gate_row(DType t, const uint8_t* gate, const uint8_t* x, uint8_t* y, int64_t n) {
  by_type(t, [&](auto type) { gate_row_t<decltype(type)>(gate, x, y, n); });
}

constexpr StepKernels make_kernels(const char* isa) {
  return {
      isa,
      W,
      rms_scale,
      norm_row,
      add_row,
      inverse_frequencies,
      rope_table,
      norm_rope_row,
      attention_exact,
      attention_fast,
      maximum,
      exp_sum_in_order,
      exp_sum,
      first_reaching,
      short_conv,
      delta_rule,
      scaled_row,
      gate_row};
}

} // namespace
} // namespace zmlx::cpu
