// What a decode step needs beside quantized products, by raw pointers: this header knows no framework.
//
// Every function reproduces the rounding of MLX's stock ops (portable CPU backend): types are rounded at every op
// boundary, sums run in their sequential order, and only independent elements share a vector.

#pragma once

#include <cstdint>

#include "cpu/qmm.h"

namespace zmlx::cpu {

// cos and sin of position * inv_freqs[i], rounded to the activation type; padded by kPad floats.
struct RopeTable {
  float* cos;
  float* sin;
  int64_t half;
  bool traditional;
};

// Queries that share one key and value head. Row i sees keys first[i] .. visible[i] - 1; neither falls, except that the
// first `blind` rows see no key at all: MLX then weighs all keys alike, and their `visible` is the number of keys.
struct AttentionTask {
  DType dtype;
  int num_rows; // at most kMaxQueries
  int blind;
  const uint8_t* const* q; // rows of head_dim values
  uint8_t* const* out; // rows of value_dim values
  const int64_t* first;
  const int64_t* visible;
  const float* sinks; // a logit of each row beside its scores; null without
  const uint8_t* k; // key 0
  const uint8_t* v;
  int64_t k_row_bytes; // from one key to the next
  int64_t v_row_bytes;
  const uint8_t* const* q_rope; // rows of rope_dim values, of queries and keys, if rope_dim > 0
  const uint8_t* k_rope;
  int64_t k_rope_row_bytes;
  int64_t rope_dim;
  int64_t span; // from the block of the first key that any row sees to the last key, at most
  int64_t head_dim;
  int64_t value_dim;
  float scale;
  float* scratch; // attention_scratch() floats, 64-byte aligned
  float* parts; // fast only: attention_part() floats a row in place of `out`; null otherwise
};

constexpr int kMaxQueries = 64;
constexpr int kMaxLanes = 16;
constexpr int64_t kPad = 2 * kMaxLanes;

constexpr int kMaxTaps = 16;

// A causal convolution of each channel along the tokens, float32 sums rounded once, between two gates (LFM2) or under
// silu. Rows of values by pointers to the first token's; strides in bytes.
struct ShortConvTask {
  DType dtype;
  bool fused; // one rounding for a product and its sum
  int64_t length;
  int64_t taps; // at most kMaxTaps
  int64_t channels;
  const uint8_t* x;
  const uint8_t* gate_in; // multiplies x; null without gates
  const uint8_t* gate_out; // multiplies what comes out; null: silu
  int64_t x_stride; // also of the gates
  const uint8_t* weights; // rows of one tap each
  int64_t weight_stride;
  const uint8_t* bias; // null where there is none
  const uint8_t* state; // the taps - 1 inputs before x
  int64_t state_stride;
  uint8_t* new_state; // those before the next token
  int64_t new_state_stride;
  uint8_t* y;
  int64_t y_stride;
};

// One head's memory goes through `length` tokens:
//   s = memory * decay;  memory' = s + k * ((v - s . k) * beta);  y = memory' . q
struct DeltaTask {
  DType dtype; // of v and y
  int64_t length;
  int64_t key_dim;
  int64_t value_dim;
  const float* q; // [length, key_dim]
  const float* k;
  const float* decay; // [length]
  const float* beta;
  const uint8_t* v; // rows of value_dim, by bytes
  int64_t v_stride;
  const float* memory; // [key_dim, value_dim]
  float* new_memory; // may be `memory`
  uint8_t* y;
  int64_t y_stride;
  float* scratch; // key_dim * kMaxValueBlock floats
};

// Values that a pass over the keys takes at most.
constexpr int64_t kMaxValueBlock = 64;

struct StepKernels {
  const char* isa;
  // Rows that one call of rms_scale takes at most.
  int lanes;
  // scale[i] = 1 / sqrt(mean(rows[i]^2) + eps)
  void (*rms_scale)(DType t, const uint8_t* const* rows, int m, int64_t n, float eps, float* scale);
  // y = x * scale * weight
  void (*norm_row)(DType t, const uint8_t* x, const uint8_t* weight, float scale, uint8_t* y, int64_t n);
  // y = a + b
  void (*add_row)(DType t, const uint8_t* a, const uint8_t* b, uint8_t* y, int64_t n);
  // freqs[i] = exp(-i * step)
  void (*inverse_frequencies)(float step, int64_t half, float* freqs);
  void (*rope_table)(DType t, float position, const float* inv_freqs, const RopeTable& table);
  // y = rope(x * scale * weight * factor), without the norm where weight is null; `factor` is for what is turned alone and
  // left out where it is 1; `buffer` takes 3 * (dim + kPad) floats
  void (*norm_rope_row)(
      DType t,
      const uint8_t* x,
      const uint8_t* weight,
      float scale,
      float factor,
      const RopeTable& table,
      uint8_t* y,
      int64_t dim,
      float* buffer);
  void (*attention_exact)(const AttentionTask& task);
  void (*attention_fast)(const AttentionTask& task);
  // NaN when there is one.
  float (*maximum)(DType t, const uint8_t* x, int64_t n);
  // sum of exp(x - max): in order, or in any order
  float (*exp_sum_in_order)(DType t, const uint8_t* x, int64_t n, float max);
  float (*exp_sum)(DType t, const uint8_t* x, int64_t n, float max);
  // The first i with x[i] - c, rounded to the type, >= target; n when there is none.
  int64_t (*first_reaching)(DType t, const uint8_t* x, int64_t n, float c, float target);
  void (*short_conv)(const ShortConvTask& task);
  void (*delta_rule)(const DeltaTask& task);
  // y = x * scale * factor, rounded after each product
  void (*scaled_row)(DType t, const uint8_t* x, float scale, float factor, float* y, int64_t n);
  // y = silu(gate) * x in float32, rounded once; y may be x
  void (*gate_row)(DType t, const uint8_t* gate, const uint8_t* x, uint8_t* y, int64_t n);
};

// Follows kernels() of cpu/qmm.h: what runtime dispatch picked, or what set_isa forced.
const StepKernels& step_kernels();

// Per instruction set; null where the build has none. Defined in step_<isa>.cpp.
const StepKernels* scalar_step_kernels();
const StepKernels* avx2_step_kernels();
const StepKernels* avx512_step_kernels();

// Keys that attention packs at once.
constexpr int64_t kKeyBlock = 64;

static inline int64_t round_up(int64_t n, int64_t to) {
  return (n + to - 1) / to * to;
}

// A row's share of the softmax over some of its keys: their maximum, the sum of the exponentials, and from kPad on the
// values so weighted.
static inline int64_t attention_part(int64_t value_dim) {
  return kPad + round_up(value_dim, kPad);
}

// Floats that a task needs. The exact softmax keeps whole rows of scores, the fast one only a block.
static inline int64_t attention_scratch(
    int64_t num_rows,
    int64_t span,
    int64_t head_dim,
    int64_t value_dim,
    int64_t rope_dim,
    bool exact) {
  int64_t scores = exact ? round_up(span, kKeyBlock) + kKeyBlock : kKeyBlock;
  int64_t values = round_up(value_dim, kPad);
  int64_t keys = head_dim > rope_dim ? head_dim : rope_dim;
  int64_t queries = round_up(head_dim, kMaxLanes) + round_up(rope_dim, kMaxLanes);
  return num_rows * (queries + scores + values) + kKeyBlock * (keys + values + num_rows) + 8 * kMaxQueries + kPad;
}

} // namespace zmlx::cpu
