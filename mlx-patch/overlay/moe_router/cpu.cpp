// CPU backend of MoERouter.
//
// Idea:    one pass per row over E logits in L1, in place of five ops with an array each: score, select, weigh.
// Layout:  logits [rows, E]; indices and scores [rows, top_k].
// Tasks:   one per row.
// Exact:   MLX's own exp and sigmoid functors, its order of summation, and std::nth_element with its comparator: the
//          order in which argpartition leaves the top k is part of the result.
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

namespace {

// backend/cpu/softmax.cpp, precise: maximum, exponentials and their sum in f32, one at a time.
template <typename T>
void softmax_row(const T* in, T* out, int64_t n) {
  using Lane = mlx::core::simd::Simd<float, 1>;
  Lane maximum(-std::numeric_limits<float>::infinity());
  for (int64_t i = 0; i < n; i++) {
    maximum = mlx::core::simd::maximum(Lane(static_cast<float>(in[i])), maximum);
  }
  Lane normalizer(0.0f);
  auto exp_at = [&](int64_t i) {
    return mlx::core::simd::exp(Lane(static_cast<float>(in[i])) - maximum);
  };
  for (int64_t i = 0; i < n; i++) {
    normalizer = normalizer + exp_at(i);
  }
  float scale = 1 / normalizer.value;
  for (int64_t i = 0; i < n; i++) {
    out[i] = static_cast<T>((exp_at(i) * Lane(scale)).value);
  }
}

template <typename T>
void route_row(
    const T* logits,
    int64_t experts,
    int top_k,
    bool normalize,
    RouterScoring scoring,
    T* gates,
    uint32_t* order,
    uint32_t* indices,
    T* scores) {
  if (scoring == RouterScoring::Softmax) {
    softmax_row(logits, gates, experts);
  } else {
    for (int64_t i = 0; i < experts; i++) {
      gates[i] = mlx::core::detail::Sigmoid{}(logits[i]);
    }
  }
  std::iota(order, order + experts, 0u);
  std::nth_element(order, order + (experts - top_k), order + experts, [gates](uint32_t a, uint32_t b) {
    auto v1 = gates[a];
    auto v2 = gates[b];
    if (std::isnan(static_cast<float>(v1))) {
      return false;
    }
    if (std::isnan(static_cast<float>(v2))) {
      return true;
    }
    return v1 < v2 || (v1 == v2 && a < b);
  });
  using cpu::Sum;
  auto sum = static_cast<Sum<T>>(0.0f);
  for (int i = 0; i < top_k; i++) {
    indices[i] = order[experts - top_k + i];
    scores[i] = gates[indices[i]];
    auto score = static_cast<Sum<T>>(scores[i]);
    sum = top_k == 1 ? score : static_cast<Sum<T>>(sum + score);
  }
  if (normalize) {
    for (int i = 0; i < top_k; i++) {
      scores[i] = mlx::core::detail::Divide{}(scores[i], static_cast<T>(sum));
    }
  }
}

template <typename T>
void run(const array& logits, array& indices, array& scores, int top_k, bool normalize, RouterScoring scoring) {
  namespace c = zmlx::cpu;
  auto rows = c::rows_of(logits);
  int64_t experts = logits.shape(-1);
  auto out_indices = indices.data<uint32_t>();
  auto out_scores = scores.data<T>();
  // An exponential is worth some 20 multiply-adds.
  c::parallel_for(rows.size(), rows.size() * experts * 40, [&](int64_t row) {
    auto order = static_cast<uint32_t*>(
        c::thread_scratch(c::Scratch::Driver, experts * (sizeof(uint32_t) + sizeof(T))));
    auto gates = reinterpret_cast<T*>(order + experts);
    route_row(
        reinterpret_cast<const T*>(rows.at(row)),
        experts,
        top_k,
        normalize,
        scoring,
        gates,
        order,
        out_indices + row * top_k,
        out_scores + row * top_k);
  });
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
  encoder.set_input_array(inputs[kLogits]);
  encoder.set_output_array(outputs[kIndices]);
  encoder.set_output_array(outputs[kScores]);
  auto task = [logits = array::unsafe_weak_copy(inputs[kLogits]),
               indices = array::unsafe_weak_copy(outputs[kIndices]),
               scores = array::unsafe_weak_copy(outputs[kScores]),
               top_k = top_k_,
               normalize = normalize_,
               scoring = scoring_]() mutable {
    switch (cpu::dtype_of(logits.dtype())) {
      case cpu::DType::F32:
        return run<float>(logits, indices, scores, top_k, normalize, scoring);
      case cpu::DType::F16:
        return run<float16_t>(logits, indices, scores, top_k, normalize, scoring);
      case cpu::DType::BF16:
        return run<bfloat16_t>(logits, indices, scores, top_k, normalize, scoring);
    }
  };
  cpu::dispatch(encoder, std::move(task));
}

} // namespace zmlx
