// zmlx: the primitives this fork adds to MLX, and what a caller may ask about them.
//
// Every op below is a plain function that validates, promotes dtypes, infers the output shape and returns a lazy
// array, exactly like MLX's own ops. Exact (the default) gives the bits that the stock op sequence gives on the same
// device; Fast accumulates in f32 in any order.

#pragma once

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

// silu(x @ gate[rhs]) * (x @ up[rhs]), one launch. Same conventions and defaults as mlx::core::gather_qmm:
//   x [.., M, K]; lhs_indices, rhs_indices broadcast against each other -> [.., M, N]
array gather_qmm_swiglu(
    const array& x,
    const QuantizedWeight& gate,
    const QuantizedWeight& up,
    std::optional<array> lhs_indices,
    std::optional<array> rhs_indices,
    bool transpose,
    std::optional<int> group_size,
    std::optional<int> bits,
    const std::string& mode,
    bool sorted_indices,
    Precision precision,
    StreamOrDevice s = {});

// y[.., N] = sum_k scores[.., k] * (x[.., k, 1, K] @ down[rhs_indices[.., k]]^T), in the dtype of the product.
// Rounds as stock: gather_qmm, squeeze, multiply by scores[.., None], sum(-2), astype.
array gather_qmm_combine(
    const array& x,
    const QuantizedWeight& down,
    const array& rhs_indices,
    const array& scores,
    std::optional<int> group_size,
    std::optional<int> bits,
    const std::string& mode,
    Precision precision,
    StreamOrDevice s = {});

// Routing on gate logits [.., E] -> {indices [.., top_k] u32, scores [.., top_k]}.
// scoring "softmax" (precise) or "sigmoid"; the selection, its order and the bits are those of
// argpartition(scores, -top_k)[-top_k:], take_along_axis, and scores / sum(scores) if `normalize`.
std::pair<array, array> moe_router(
    const array& logits,
    int top_k,
    bool normalize,
    const std::string& scoring,
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

// ---- the rest of a decode step

// mlx::core::fast::rms_norm. x [.., D], weight [D].
array rms_norm(const array& x, const array& weight, float eps, StreamOrDevice s = {});

// {x + r, rms_norm(x + r)}. x, r [.., D], weight [D], all of one type.
std::pair<array, array>
add_rms_norm(const array& x, const array& r, const array& weight, float eps, StreamOrDevice s = {});

// Parameters of mlx::core::fast::rope; `base` is not used where there are frequencies [dims / 2].
struct RopeParams {
  int dims;
  bool traditional;
  float base;
  float scale;
  std::optional<array> freqs;
};

// split heads, fast::rms_norm over a head (none without weight), transpose, fast::rope.
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

// mlx::core::fast::scaled_dot_product_attention without a mask or with a causal one.
//   q [B, H, Lq, D]; k [B, Hkv, Lk, D]; v [B, Hkv, Lk, Dv] -> [B, H, Lq, Dv], whose memory is [B, Lq, H, Dv]
// One k and v for all batch rows; or for each row its own, [1, Hkv, Lk, D] and [1, Hkv, Lk, Dv], of any length. With
// lengths, integers from 1 to Lk for each k, only so many of its first keys count.
// Exact for float16 and bfloat16 only.
array attention(
    const array& q,
    const std::vector<array>& keys,
    const std::vector<array>& values,
    const std::optional<array>& lengths,
    float scale,
    bool causal,
    Precision precision,
    StreamOrDevice s = {});

// Row `row` of a batch's new tokens [B, H, L, D] into that row's cache. buffer [1, H, T, D], T at least L; lengths [B],
// integers, how many tokens each row has with the new ones (one outside L to T is taken for the nearest of them)
//   -> the buffer
array cache_append(const array& buffer, const array& tokens, int row, const array& lengths, StreamOrDevice s = {});

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

// The instruction set that runtime dispatch picked: "avx512bf16", "avx512", "avx2", "neon" or "scalar".
std::string cpu_isa();
// Forces one (tests, benchmarks). False, and no change, where the machine or the build lacks it.
bool set_cpu_isa(const std::string& isa);

} // namespace zmlx
