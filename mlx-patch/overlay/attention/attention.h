// Attention: softmax(q @ k^T * scale) @ v with grouped key and value heads, an optional causal mask and window, sinks and
// a rotated part of queries and keys apart from the rest, one launch, also over keys and values of which every batch row
// has its own.

#pragma once

#include <tuple>

#include "zmlx/fallback.h"
#include "zmlx/primitives.h"

namespace zmlx {

class Attention : public Transformable<Attention> {
 public:
  struct State {
    float scale;
    bool causal;
    Precision precision;
    int window; // 0: all keys
    bool has_rope;
    bool has_sinks;
    bool has_lengths;
  };

  // q, then the keys of every cache, then the values of every cache: one for all batch rows, or one for each. Then, each
  // if given: the rotated keys of every cache and the rotated queries; the sinks; how many keys of each cache count.
  enum Input { kQ, kK };

  // The inputs by their places.
  class Inputs {
   public:
    Inputs(const std::vector<array>& in, const State& state) : in_(in), state_(state) {
      size_t extra = 1 + state.has_rope + state.has_sinks + state.has_lengths;
      caches_ = static_cast<int>(in.size() - extra) / (state.has_rope ? 3 : 2);
    }
    int caches() const {
      return caches_;
    }
    const array& q() const {
      return in_[kQ];
    }
    const array& k(int cache) const {
      return in_[kK + cache];
    }
    const array& v(int cache) const {
      return in_[kK + caches_ + cache];
    }
    // With a rotated part:
    const array& k_rope(int cache) const {
      return in_[kK + 2 * caches_ + cache];
    }
    const array& q_rope() const {
      return in_[kK + 3 * caches_];
    }
    const array* sinks() const {
      return state_.has_sinks ? &in_[in_.size() - 1 - state_.has_lengths] : nullptr;
    }
    const array* lengths() const {
      return state_.has_lengths ? &in_.back() : nullptr;
    }

   private:
    const std::vector<array>& in_;
    const State& state_;
    int caches_;
  };

  Attention(mlx::core::Stream stream, const State& state) : Transformable(stream), state_(state) {}

  void eval_cpu(const std::vector<array>& inputs, array& out) override;

  DEFINE_VMAP()
  DEFINE_NAME(Attention)
  Fallback fallback(const std::vector<int>& argnums);
  std::vector<mlx::core::Shape> output_shapes(const std::vector<array>& inputs) override;

  auto state() const {
    return std::make_tuple(
        state_.scale,
        state_.causal,
        state_.precision,
        state_.window,
        state_.has_rope,
        state_.has_sinks,
        state_.has_lengths);
  }

 private:
  State state_;
};

} // namespace zmlx
