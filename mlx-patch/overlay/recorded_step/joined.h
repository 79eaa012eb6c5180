// Primitives that stand for several launches of a recorded step. join_launches puts them there; they have no other users.

#pragma once

#include <optional>
#include <vector>

#include "add_rms_norm/add_rms_norm.h"
#include "moe_router/moe_router.h"
#include "quantized_matmul/quantized_matmul.h"

namespace zmlx {

// Puts joined launches in place of those that compute the same in what `done` is computed from.
void join_launches(array& done);

// What both have. A primitive of a recorded step is neither compared, saved nor transformed.
class JoinedLaunch : public mlx::core::Primitive {
 public:
  using Primitive::Primitive;
  void eval_cpu(const std::vector<array>&, std::vector<array>&) override {
    throw std::runtime_error("joined launches have no CPU kernel");
  }
  bool is_equivalent(const Primitive&) const override {
    return false;
  }
};

// x or, with `eps`, the norm of x + r, by several matrices of 4 bits.
//   x, r and the norm's weight with `eps`; of each matrix w, scales, biases  ->  x + r and its norm with `eps`; products
class JoinedProducts : public JoinedLaunch {
 public:
  JoinedProducts(mlx::core::Stream stream, int group_size, std::optional<float> eps)
      : JoinedLaunch(stream), group_size_(group_size), eps_(eps) {}
  void eval_gpu(const std::vector<array>& inputs, std::vector<array>& outputs) override;
  const char* name() const override {
    return "JoinedProducts";
  }

 private:
  int group_size_;
  std::optional<float> eps_;
};

// The norm of x + r, the logits of all experts, and those that are chosen.
//   x, r, the norm's weight, w, scales, biases  ->  x + r, its norm, indices, scores
class NormedRouting : public JoinedLaunch {
 public:
  NormedRouting(mlx::core::Stream stream, int bits, int group_size, float eps, int top_k, bool normalize)
      : JoinedLaunch(stream), bits_(bits), group_size_(group_size), eps_(eps), top_k_(top_k), normalize_(normalize) {}
  void eval_gpu(const std::vector<array>& inputs, std::vector<array>& outputs) override;
  const char* name() const override {
    return "NormedRouting";
  }

 private:
  int bits_;
  int group_size_;
  float eps_;
  int top_k_;
  bool normalize_;
};

} // namespace zmlx
