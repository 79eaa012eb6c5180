// CPU backend of MoERouter.
//
// Idea:    one pass per row over E logits in L1, in place of five to twenty ops with an array each: score, select, weigh.
// Layout:  logits [rows, E]; indices and weights [rows, top_k].
// Tasks:   one per row.
// Exact:   MLX's own exp and sigmoid functors, its order of summation, and std::nth_element with its comparator: the
//          order in which argpartition leaves the top k is part of the result. Scores that choose are compared as
//          floats, which order and equal as the 16-bit types do.
// Bound:   2 * E exponentials a row (about 2 us at E = 128).
// Limits:  none.

#include <algorithm>
#include <cmath>
#include <limits>
#include <numeric>

#include "cpu/operands.h"
#include "cpu/stock_sum.h"
#include "cpu/task.h"
#include "cpu/thread_pool.h"
#include "mlx/allocator.h"
#include "mlx/backend/cpu/binary_ops.h"
#include "mlx/backend/cpu/unary_ops.h"
#include "moe_router/moe_router.h"

namespace zmlx {

using mlx::core::array;
using mlx::core::bfloat16_t;
using mlx::core::float16_t;
using cpu::Sum;

namespace {

// backend/cpu/softmax.cpp: maximum, exponentials and their sum in A, one at a time. `in` may be `out`.
template <typename T, typename A>
void softmax_row(const T* in, T* out, int64_t n) {
  using Lane = mlx::core::simd::Simd<A, 1>;
  constexpr bool keeps_exponentials = std::is_same_v<T, A>;
  Lane maximum(static_cast<A>(-std::numeric_limits<float>::infinity()));
  for (int64_t i = 0; i < n; i++) {
    maximum = mlx::core::simd::maximum(Lane(static_cast<A>(in[i])), maximum);
  }
  Lane normalizer(static_cast<A>(0.0f));
  auto exp_at = [&](int64_t i) -> Lane {
    return mlx::core::simd::exp(Lane(Lane(static_cast<A>(in[i])) - maximum));
  };
  for (int64_t i = 0; i < n; i++) {
    auto e = exp_at(i);
    normalizer = normalizer + e;
    if constexpr (keeps_exponentials) {
      out[i] = e.value;
    }
  }
  A scale = 1 / normalizer.value;
  for (int64_t i = 0; i < n; i++) {
    if constexpr (keeps_exponentials) {
      out[i] = static_cast<T>((Lane(out[i]) * Lane(scale)).value);
    } else {
      out[i] = static_cast<T>((exp_at(i) * Lane(scale)).value);
    }
  }
}

template <typename T>
void softmax_row(const T* in, T* out, int64_t n, bool precise) {
  precise ? softmax_row<T, float>(in, out, n) : softmax_row<T, T>(in, out, n);
}

// Stock's sum over more than one element, rounded as there.
template <typename T>
T sum_of(const T* x, int64_t n) {
  auto sum = static_cast<Sum<T>>(0.0f);
  for (int64_t i = 0; i < n; i++) {
    sum = static_cast<Sum<T>>(sum + static_cast<Sum<T>>(x[i]));
  }
  return static_cast<T>(sum);
}

// As argpartition leaves 0 .. n - 1: NaN last, equal keys by their indices.
void partition(const float* keys, uint32_t* order, int64_t n, int64_t kth) {
  std::iota(order, order + n, 0u);
  std::nth_element(order, order + kth, order + n, [keys](uint32_t a, uint32_t b) {
    auto v1 = keys[a];
    auto v2 = keys[b];
    if (std::isnan(v1)) {
      return false;
    }
    if (std::isnan(v2)) {
      return true;
    }
    return v1 < v2 || (v1 == v2 && a < b);
  });
}

// The sum of the two largest of n keys, which are of type K; NaN is the largest of all.
template <typename K>
float sum_of_best_two(const float* keys, int64_t n) {
  auto above = [](float a, float b) { return !std::isnan(b) && (std::isnan(a) || a > b); };
  float first = keys[0];
  float second = keys[1];
  if (above(second, first)) {
    std::swap(first, second);
  }
  for (int64_t i = 2; i < n; i++) {
    if (above(keys[i], first)) {
      second = first;
      first = keys[i];
    } else if (above(keys[i], second)) {
      second = keys[i];
    }
  }
  const K best[] = {static_cast<K>(first), static_cast<K>(second)};
  return static_cast<float>(sum_of(best, 2));
}

// Routes rows of E logits of type L through scores of type T.
template <typename L, typename T>
class Rows {
 public:
  Rows(const std::vector<array>& in, const MoERouter::State& state)
      : p_(state), experts_(in[MoERouter::kLogits].shape(-1)) {
    int next = MoERouter::kOptional;
    if (p_.has_selection_bias) {
      bias_ = cpu::read_floats(in[next++]);
    }
    if (p_.has_expert_scale) {
      expert_scale_ = cpu::read_floats(in[next]);
      auto scores = p_.in_f32 ? mlx::core::float32 : in[MoERouter::kLogits].dtype();
      scaled_in_f32_ = promote_types(scores, in[next].dtype()) == mlx::core::float32;
    }
  }

  template <typename W>
  void route(const L* logits, uint32_t* indices, W* weights) const {
    auto order = static_cast<uint32_t*>(cpu::thread_scratch(
        cpu::Scratch::Driver,
        experts_ * (sizeof(uint32_t) + sizeof(float) + sizeof(T)) + p_.top_k * sizeof(T) +
            p_.num_groups * (sizeof(uint32_t) + sizeof(float))));
    auto keys = reinterpret_cast<float*>(order + experts_);
    auto best = keys + experts_;
    auto group_order = reinterpret_cast<uint32_t*>(best + p_.num_groups);
    auto gates = reinterpret_cast<T*>(group_order + p_.num_groups);
    auto chosen = gates + experts_;
    score(logits, gates);
    for (int64_t i = 0; i < experts_; i++) {
      keys[i] = static_cast<float>(gates[i]);
      if (p_.has_selection_bias) {
        keys[i] += bias_[i];
      }
    }
    if (p_.num_groups > 1) {
      drop_groups(keys, best, group_order);
    }
    choose(keys, order, indices);
    for (int i = 0; i < p_.top_k; i++) {
      chosen[i] = gates[indices[i]];
    }
    weigh(chosen);
    if (scaled_in_f32_) {
      finish<float>(chosen, indices, weights);
    } else {
      finish<T>(chosen, indices, weights);
    }
  }

 private:
  void score(const L* logits, T* gates) const {
    if (p_.scoring == RouterScoring::Sigmoid) {
      for (int64_t i = 0; i < experts_; i++) {
        gates[i] = mlx::core::detail::Sigmoid{}(static_cast<T>(logits[i]));
      }
      return;
    }
    std::transform(logits, logits + experts_, gates, [](L v) { return static_cast<T>(v); });
    if (p_.scoring == RouterScoring::Softmax) {
      softmax_row(gates, gates, experts_, p_.precise);
    }
  }

  // Zeros in place of the keys of all but the best groups.
  void drop_groups(float* keys, float* best, uint32_t* order) const {
    int64_t size = experts_ / p_.num_groups;
    int64_t dropped = p_.num_groups - p_.top_k_groups;
    if (dropped == 0) {
      return;
    }
    for (int64_t g = 0; g < p_.num_groups; g++) {
      auto group = keys + g * size;
      best[g] = p_.has_selection_bias ? sum_of_best_two<float>(group, size) : sum_of_best_two<T>(group, size);
    }
    partition(best, order, p_.num_groups, dropped - 1);
    for (int64_t i = 0; i < dropped; i++) {
      std::fill_n(keys + order[i] * size, size, 0.0f);
    }
  }

  void choose(float* keys, uint32_t* order, uint32_t* indices) const {
    if (!p_.descending) {
      partition(keys, order, experts_, experts_ - p_.top_k);
      std::copy_n(order + (experts_ - p_.top_k), p_.top_k, indices);
      return;
    }
    std::transform(keys, keys + experts_, keys, std::negate<float>());
    partition(keys, order, experts_, p_.top_k - 1);
    std::copy_n(order, p_.top_k, indices);
  }

  void weigh(T* chosen) const {
    if (p_.scoring == RouterScoring::SoftmaxOfTopK) {
      softmax_row(chosen, chosen, p_.top_k, p_.precise);
    }
    if (!p_.normalize) {
      return;
    }
    // A sum over one element is a no-op in MLX.
    auto total = p_.top_k == 1 ? chosen[0] : sum_of(chosen, p_.top_k);
    if (p_.epsilon != 0) {
      total = mlx::core::detail::Add{}(total, static_cast<T>(p_.epsilon));
    }
    for (int i = 0; i < p_.top_k; i++) {
      chosen[i] = mlx::core::detail::Divide{}(chosen[i], total);
    }
  }

  // S: the type in which the weights are scaled.
  template <typename S, typename W>
  void finish(const T* chosen, const uint32_t* indices, W* weights) const {
    for (int i = 0; i < p_.top_k; i++) {
      auto w = static_cast<S>(chosen[i]);
      if (p_.has_expert_scale) {
        w = mlx::core::detail::Multiply{}(w, static_cast<S>(expert_scale_[indices[i]]));
      }
      if (p_.scale != 1) {
        w = mlx::core::detail::Multiply{}(w, static_cast<S>(p_.scale));
      }
      weights[i] = static_cast<W>(static_cast<float>(w));
    }
  }

  const MoERouter::State p_;
  int64_t experts_;
  std::vector<float> bias_;
  std::vector<float> expert_scale_;
  bool scaled_in_f32_{false};
};

template <typename L, typename T, typename W>
void run(const std::vector<array>& in, array& indices, array& weights, const MoERouter::State& state) {
  namespace c = zmlx::cpu;
  auto logits = c::rows_of(in[MoERouter::kLogits]);
  Rows<L, T> rows(in, state);
  auto out_indices = indices.data<uint32_t>();
  auto out_weights = weights.data<W>();
  // An exponential is worth some 20 multiply-adds, and so is a place in the order.
  int64_t per_expert = state.scoring == RouterScoring::SoftmaxOfTopK ? 20 : 40;
  int64_t work = logits.size() * in[MoERouter::kLogits].shape(-1) * per_expert;
  c::parallel_for(logits.size(), work, [&](int64_t row) {
    rows.route(
        reinterpret_cast<const L*>(logits.at(row)), out_indices + row * state.top_k, out_weights + row * state.top_k);
  });
}

template <typename Fn>
void by_type(mlx::core::Dtype t, Fn fn) {
  switch (cpu::dtype_of(t)) {
    case cpu::DType::F32:
      return fn(float());
    case cpu::DType::F16:
      return fn(float16_t());
    case cpu::DType::BF16:
      return fn(bfloat16_t());
  }
}

} // namespace

void MoERouter::eval_cpu(const std::vector<array>& inputs, std::vector<array>& outputs) {
  for (auto& out : outputs) {
    out.set_data(mlx::core::allocator::malloc(out.nbytes()));
  }
  if (outputs[kIndices].size() == 0) {
    return;
  }
  auto& encoder = mlx::core::cpu::get_command_encoder(stream());
  std::vector<array> in;
  for (auto& a : inputs) {
    encoder.set_input_array(a);
    in.push_back(array::unsafe_weak_copy(a));
  }
  encoder.set_output_array(outputs[kIndices]);
  encoder.set_output_array(outputs[kScores]);
  auto task = [in = std::move(in),
               indices = array::unsafe_weak_copy(outputs[kIndices]),
               weights = array::unsafe_weak_copy(outputs[kScores]),
               state = state_]() mutable {
    by_type(in[kLogits].dtype(), [&](auto logit) {
      by_type(weights.dtype(), [&](auto weight) {
        using L = decltype(logit);
        using W = decltype(weight);
        state.in_f32 ? run<L, float, W>(in, indices, weights, state) : run<L, L, W>(in, indices, weights, state);
      });
    });
  };
  cpu::dispatch(stream(), name(), std::move(task));
}

} // namespace zmlx
