// What joins the gate and up projections of a gated feed-forward, rounded to T after each of stock's ops.

#pragma once

#include "mlx/backend/metal/kernels/unary_ops.h"
#include "mlx/backend/metal/kernels/binary_ops.h"

namespace zmlx {

template <typename T>
METAL_FUNC T silu(T x) {
  return Multiply()(x, Sigmoid()(x));
}

// Stock rounds the cubic term before it is added: no fused multiplication and addition here.
template <typename T>
METAL_FUNC T gelu_tanh(T x) {
#pragma clang fp contract(off)
  const T cubic = Multiply()(static_cast<T>(0.044715f), Power()(x, static_cast<T>(3.0f)));
  const T inner = Multiply()(static_cast<T>(0.7978845608028654f), Add()(x, cubic));
  return Multiply()(Multiply()(static_cast<T>(0.5f), x), Add()(static_cast<T>(1.0f), Tanh()(inner)));
}

// OpenAI's: the gate is cut off above, up on both sides. The numbers are of T, as scalars are in MLX.
template <typename T>
METAL_FUNC T clipped_swiglu(T gate, T up, float alpha, float limit) {
  gate = Minimum()(gate, static_cast<T>(limit));
  up = Minimum()(Maximum()(up, static_cast<T>(-limit)), static_cast<T>(limit));
  const T scaled = Multiply()(gate, Sigmoid()(Multiply()(static_cast<T>(alpha), gate)));
  return Multiply()(Add()(up, static_cast<T>(1.0f)), scaled);
}

// `activation` as in the params of the kernels: 0 silu, 1 gelu_tanh, 2 clipped_swiglu.
template <typename T>
METAL_FUNC T gated(T gate, T up, int activation, float alpha, float limit) {
  if (activation == 2) {
    return clipped_swiglu(gate, up, alpha, limit);
  }
  return Multiply()(activation == 1 ? gelu_tanh(gate) : silu(gate), up);
}

} // namespace zmlx
