// zmlx: the primitives this fork adds to MLX, and what a caller may ask about them.
//
// Every op below is a plain function that validates, promotes dtypes, infers the output shape and returns a lazy
// array, exactly like MLX's own ops. Exact (the default) gives the bits that the stock op sequence gives on the same
// device; Fast accumulates in f32 in any order.

#pragma once

#include <array>
#include <cstdint>
#include <memory>
#include <optional>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "mlx/array.h"
#include "mlx/device.h"
#include "mlx/utils.h"
#include "zmlx/support.h"

namespace zmlx {

using mlx::core::array;
using mlx::core::StreamOrDevice;

// A quantized matrix as `mlx::core::quantize` returns it; `biases` for mode "affine" only.
//   transpose:      w [.., N, K * bits / 32] u32, scales (and biases) [.., N, K / group_size]
//   not transposed: w [.., K, N * bits / 32] u32, scales (and biases) [.., K, N / group_size]
struct QuantizedWeight {
  array w;
  array scales;
  std::optional<array> biases;
};

// What joins the gate and up projections of a gated feed-forward:
//   "silu"            silu(gate) * up
//   "gelu_tanh"       gelu(gate) * up, by the approximation with tanh
//   "clipped_swiglu"  (clip(up) + 1) * g * sigmoid(alpha * g) with g = min(gate, limit); up is kept within +-limit
struct GluParams {
  std::string activation = "silu";
  float alpha = 0;
  float limit = 0;
};

// Two projections of the same input, quantized alike, with a bias [.., N] each or none.
struct GluProjections {
  QuantizedWeight gate;
  QuantizedWeight up;
  std::optional<array> gate_bias = {};
  std::optional<array> up_bias = {};
};

// activation(x @ gate[rhs]) * (x @ up[rhs]), one launch. Same conventions and defaults as mlx::core::gather_qmm:
//   x [.., M, K]; lhs_indices, rhs_indices broadcast against each other -> [.., M, N]
array gather_qmm_swiglu(
    const array& x,
    const GluProjections& projections,
    const GluParams& glu,
    std::optional<array> lhs_indices,
    std::optional<array> rhs_indices,
    bool transpose,
    std::optional<int> group_size,
    std::optional<int> bits,
    const std::string& mode,
    bool sorted_indices,
    Precision precision,
    StreamOrDevice s = {});

// activation(x @ gate^T) * (x @ up^T), one launch: x [.., K], gate and up [N, K] -> [.., N]
array swiglu_mlp(
    const array& x,
    const GluProjections& projections,
    const GluParams& glu,
    std::optional<int> group_size,
    std::optional<int> bits,
    const std::string& mode,
    Precision precision,
    StreamOrDevice s = {});

// y[.., N] = sum_k scores[.., k] * (x[.., k, 1, K] @ down[rhs_indices[.., k]]^T + bias[rhs_indices[.., k]]), in the dtype
// of the product. Rounds as stock: gather_qmm, add, squeeze, multiply by scores[.., None], sum(-2), astype.
array gather_qmm_combine(
    const array& x,
    const QuantizedWeight& down,
    const std::optional<array>& bias,
    const array& rhs_indices,
    const array& scores,
    std::optional<int> group_size,
    std::optional<int> bits,
    const std::string& mode,
    Precision precision,
    StreamOrDevice s = {});

// How a router goes from logits to experts and weights, but for the arrays.
struct RouterParams {
  int top_k;
  // "softmax", "sigmoid", or "softmax_of_top_k": logits choose, softmax over the chosen ones.
  std::string scoring;
  // Whether softmax accumulates in float32.
  bool precise = true;
  // The first of argpartition(-scores, top_k - 1), in place of the last of argpartition(scores, -top_k).
  bool descending = false;
  // Scores in float32 whatever the type of the logits.
  bool in_f32 = false;
  // Of num_groups groups of experts the top_k_groups best are kept, by the sum of their two best scores each; the
  // scores of the others count as zero.
  int num_groups = 1;
  int top_k_groups = 1;
  // Weights divided by their sum, to which epsilon is added.
  bool normalize = false;
  float epsilon = 0;
  // What the weights are multiplied by in the end.
  float scale = 1;
  // What type they then get.
  std::optional<mlx::core::Dtype> weights = {};
};

// Routing on gate logits [.., E] -> {indices [.., top_k] u32, weights [.., top_k]}: the choice, its order and the bits of
// the stock ops in moe_router/op.cpp.
//   selection_bias [E] is added, in float32, to the scores that choose; expert_scale [E] multiplies the weights.
std::pair<array, array> moe_router(
    const array& logits,
    const RouterParams& params,
    const std::optional<array>& selection_bias,
    const std::optional<array>& expert_scale,
    StreamOrDevice s = {});

// x @ w, as mlx::core::quantized_matmul.
array quantized_matmul(
    const array& x,
    const QuantizedWeight& w,
    bool transpose,
    std::optional<int> group_size,
    std::optional<int> bits,
    const std::string& mode,
    Precision precision,
    StreamOrDevice s = {});

// x @ w^T + bias, as mlx::core::quantized_matmul and mlx::core::add. bias [N]
array quantized_linear(
    const array& x,
    const QuantizedWeight& w,
    const array& bias,
    std::optional<int> group_size,
    std::optional<int> bits,
    const std::string& mode,
    Precision precision,
    StreamOrDevice s = {});

// ---- the rest of a decode step

// dequantize(take(table, tokens, 0)), of affine tables. tokens [..] u32, table [V, D] -> [.., D].
array quantized_embedding(
    const array& tokens,
    const QuantizedWeight& table,
    std::optional<int> group_size = std::nullopt,
    std::optional<int> bits = std::nullopt,
    const std::string& mode = "affine",
    StreamOrDevice s = {});

// mlx::core::fast::rms_norm. x [.., D], weight [D].
array rms_norm(const array& x, const array& weight, float eps, StreamOrDevice s = {});

// {x + r, rms_norm(x + r)}. x, r [.., D], weight [D], all of one type.
std::pair<array, array>
add_rms_norm(const array& x, const array& r, const array& weight, float eps, StreamOrDevice s = {});

// Parameters of mlx::core::fast::rope; `base` is not used where there are frequencies [dims / 2]. What is turned is first
// multiplied by `input_scale` (yarn's mscale).
struct RopeParams {
  int dims;
  bool traditional;
  float base;
  float scale;
  std::optional<array> freqs;
  float input_scale = 1;
};

// split heads, fast::rms_norm over a head (none without weight), transpose, multiply, fast::rope.
//   x [B, L, num_heads * D] or [B, L, num_heads, D]; weight [D]; offset, an integer, scalar or [B]
//   -> [B, num_heads, L, D]
array qk_norm_rope(
    const array& x,
    int num_heads,
    const std::optional<array>& weight,
    float eps,
    const RopeParams& rope,
    const array& offset,
    StreamOrDevice s = {});

// The rotated parts of queries and keys that are kept apart from the rest (multi-head latent attention): their scaled
// product, rounded, is added to the scores.
struct AttentionRope {
  array q; // [B, H, Lq, R]
  std::vector<array> keys; // for every cache [.., 1, Lk, R], which all heads share
};

// What attention may have besides queries, keys and values.
struct AttentionOptions {
  // Integers from 1 to Lk, one for each k: only so many of its first keys count.
  std::optional<array> lengths = {};
  // Under a causal mask, how many keys a query sees at most, its own included; 0: all.
  int window = 0;
  // [H]: a logit of each head that takes part in its softmax alone (arXiv:2309.17453).
  std::optional<array> sinks = {};
  std::optional<AttentionRope> rope = {};
};

// mlx::core::fast::scaled_dot_product_attention without a mask or with a causal one.
//   q [B, H, Lq, D]; k [B, Hkv, Lk, D]; v [B, Hkv, Lk, Dv] -> [B, H, Lq, Dv], whose memory is [B, Lq, H, Dv]
// One k and v for all batch rows; or for each row its own, [1, Hkv, Lk, D] and [1, Hkv, Lk, Dv], of any length.
// Exact for float16 and bfloat16 only.
array attention(
    const array& q,
    const std::vector<array>& keys,
    const std::vector<array>& values,
    const AttentionOptions& options,
    float scale,
    bool causal,
    Precision precision,
    StreamOrDevice s = {});

// Row `row` of a batch's new tokens [B, H, L, D] into that row's cache. buffer [1, H, T, D], T at least L; lengths [B],
// integers, how many tokens each row has with the new ones (one outside L to T is taken for the nearest of them)
//   -> the buffer
array cache_append(const array& buffer, const array& tokens, int row, const array& lengths, StreamOrDevice s = {});

// ---- steps that are recorded (recorded_step)

// Where the tokens of a window stand in a buffer of T: the one at position p in row p + shift, and past the end from row
// `keep` on, round and round; the rows before stay.
struct Ring {
  int keep; // from 0 to T - 1
  int shift; // where the token stands now, within the buffer
};

// attention of one token over a buffer of keys and values that it is appended to in place, whoever holds the buffer.
//   q [B, H, 1, D]; k, v [B, Hkv, 1, D]; keys, values [B, Hkv, T, D]; sinks [H]
//   lengths [B] i32: the tokens that count, this one included (one outside 1 to T is taken for the nearest)
//   many_keys: stock's order of additions for more than 1,024 keys
//   ring: the buffer is a window's, in which the last T tokens count; lengths then have no bound
//   -> [B, H, 1, D]
array recorded_attention(
    const array& q,
    const array& k,
    const array& v,
    const array& keys,
    const array& values,
    const array& lengths,
    const std::optional<array>& sinks,
    float scale,
    bool many_keys,
    const std::optional<Ring>& ring = {},
    StreamOrDevice s = {});

// The same of latent attention: latents [B, 1, T, R] are keys and values of all heads, keys [B, 1, T, P] are rotated ones.
//   q: [B, H, 1, R] and, rotated, [B, H, 1, P]; token: [B, 1, 1, R] and [B, 1, 1, P]; held: the buffers
//   lengths as above
//   -> [B, H, 1, R]
array recorded_latent_attention(
    const std::array<array, 2>& q,
    const std::array<array, 2>& token,
    const std::array<array, 2>& held,
    const array& lengths,
    float scale,
    StreamOrDevice s = {});

// What a step of decode is made of besides the model.
struct StepState {
  array token; // [N] u32, N at least 4, of which the first counts: what the step reads and the next one finds replaced
  array position; // [N] i32, likewise: one more after each step
  array chosen; // [1] u32, the token that the step chose, not yet computed
  std::vector<array> before, after; // of equal shapes and types: after[i], not yet computed, replaces before[i]
};

// A step that can be taken again.
class Recording {
 public:
  virtual ~Recording() = default;
  // Starts the next step.
  virtual void launch() = 0;
  // Steps started, the recorded one included.
  virtual uint64_t num_started() const = 0;
  // The token that step `index` chose, 0 being the recorded one; waits for it. The last kMostAhead started can be asked for.
  virtual uint32_t token(uint64_t index) = 0;
  static constexpr uint64_t kMostAhead = 8;
};

// Takes the step and records what is launched.
std::shared_ptr<Recording> record_step(const StepState& state, StreamOrDevice s = {});

// ---- recurrent layers

// A causal convolution along the tokens, each channel by itself, after the taps - 1 inputs in `state`.
//   weight [C, taps, 1]; bias [C]; state [B, taps - 1, C]; all of one floating type
//   gated:  x [B, L, 3 * C], thirds b, c and u -> c * conv(b * u)
//   else:   x [B, L, C] -> silu(conv(x))
// -> {y [B, L, C], the state after the last token}
std::pair<array, array> short_conv(
    const array& x,
    const array& weight,
    const std::optional<array>& bias,
    const array& state,
    bool gated,
    StreamOrDevice s = {});

// The gated delta rule of Gated DeltaNet between its convolution and its output projection: queries and keys normalised,
// sigmoid(b), exp(-exp(a_log) * softplus(a + dt_bias)), the recurrence in float32, a norm gated by silu(z).
//   qkv [B, L, 2 * Hk * Dk + Hv * Dv]; z [B, L, Hv, Dv]; b, a [B, L, Hv]; a_log, dt_bias [Hv]; norm [Dv]
//   state [B, Hv, Dv, Dk] float32
// -> {y [B, L, Hv, Dv], the state after the last token, whose memory is [B, Hv, Dk, Dv]}
std::pair<array, array> gated_delta(
    const array& qkv,
    const array& z,
    const array& b,
    const array& a,
    const array& a_log,
    const array& dt_bias,
    const array& norm,
    const array& state,
    float norm_eps,
    StreamOrDevice s = {});

// argmax(logits - logsumexp(logits, -1, true), -1). logits [.., V] -> [..] u32.
array greedy_token(const array& logits, StreamOrDevice s = {});

// Names of the primitives compiled in.
std::vector<std::string> primitives();
// Whether a graph's node of this name is one of them.
bool is_primitive(std::string_view node);

// The one thread pool behind every CPU kernel here; BLAS gets the same number. 0 means as many as the process may use,
// and for BLAS what it had at first. Results never depend on it.
void set_num_threads(int n);
int num_threads();
// Who counts them. Without it every processor counts.
void set_available_threads(int (*count)());

// The instruction set that runtime dispatch picked: "amx", "avx512bf16", "avx512", "avx2", "neon" or "scalar".
std::string cpu_isa();
// Forces one (tests, benchmarks). False, and no change, where the machine or the build lacks it.
bool set_cpu_isa(const std::string& isa);

} // namespace zmlx
