// What joins the gate and up projections of a gated feed-forward (arXiv:2002.05202).

#pragma once

#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

#include "zmlx/primitives.h"
#include "zmlx/quant_params.h"

namespace zmlx {

enum class Activation : uint8_t { Silu, GeluTanh, ClippedSwiglu };

// GluParams, checked: its numbers are zero where the activation has none.
struct Glu {
  Activation activation;
  float alpha;
  float limit;

  bool operator==(const Glu&) const = default;
};

Glu glu_of(std::string_view tag, const GluParams& params);

// The definition, in stock ops.
array gated(const array& gate, const array& up, const Glu& glu, mlx::core::Stream s);

// A bias [.., N] for each matrix of `weight`, as the op takes it; nothing where there is none.
//   outer   N
//   dtype   the type of the product, to which the bias has to promote
std::optional<array> check_bias(
    std::string_view tag,
    std::string_view what,
    const std::optional<array>& bias,
    const QuantizedWeight& weight,
    int outer,
    mlx::core::Dtype dtype,
    StreamOrDevice s);

// What ops on two projections check; they have a bias both or neither.
struct ProjectionDims {
  int inner;
  int outer;
  mlx::core::Dtype dtype; // stock would compute in it
};
ProjectionDims check_projections(
    std::string_view tag,
    const array& x,
    const GluProjections& projections,
    const QuantParams& params);

// Appends gate w and scales, up w and scales, their biases of affine mode, and their biases if any, all in `dtype`.
void add_projections(
    std::vector<array>& inputs,
    std::string_view tag,
    const GluProjections& projections,
    const QuantParams& params,
    int outer,
    mlx::core::Dtype dtype,
    StreamOrDevice s);

// y [.., M, N] with the bias of the matrix that each index chose, in stock ops.
array add_bias(const array& y, const array& bias, const array& indices, mlx::core::Stream s);

// As `supports` spells a bias: the name of its type, or "none".
std::string_view bias_name(const std::optional<array>& bias);

// The parameters "bias" and "activation" of a request: why no kernel has them, or empty.
std::string refuse_bias(const Request& request);
std::string refuse_activation(const Request& request);

} // namespace zmlx
