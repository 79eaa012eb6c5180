// The weighted sum over a token's experts, rounded as the stock ops multiply, sum(-2) and astype do: every product in
// their common type, the sum in the type in which stock keeps it, in the order of k, starting from zero.

#include <algorithm>

#include "cpu/operands.h"
#include "cpu/stock_sum.h"
#include "mlx/types/half_types.h"

namespace zmlx::cpu {

namespace {

using mlx::core::bfloat16_t;
using mlx::core::float16_t;

// A: the type in which stock multiplies, the wider of T and S.
template <typename T, typename S, typename A>
void weighted_sum(const T* rows, const S* scores, int64_t top_k, int64_t n, T* y) {
  if (top_k == 0) {
    std::fill_n(y, n, static_cast<T>(0.0f));
    return;
  }
  constexpr int64_t kWidth = 64;
  for (int64_t first = 0; first < n; first += kWidth) {
    const int64_t width = std::min(kWidth, n - first);
    Sum<A> sums[kWidth];
    auto each = [&](int64_t k, auto&& take) {
      const T* row = rows + k * n + first;
      const A score = static_cast<A>(scores[k]);
      for (int64_t i = 0; i < width; i++) {
        const A product = static_cast<A>(row[i]) * score;
        take(sums[i], static_cast<Sum<A>>(product));
      }
    };
    // A sum over one element is a no-op in MLX; over several it starts from zero (which turns -0 into 0).
    if (top_k > 1) {
      each(0, [](auto& sum, auto product) { sum = static_cast<Sum<A>>(0.0f) + product; });
    } else {
      each(0, [](auto& sum, auto product) { sum = product; });
    }
    for (int64_t k = 1; k < top_k; k++) {
      each(k, [](auto& sum, auto product) { sum = sum + product; });
    }
    for (int64_t i = 0; i < width; i++) {
      y[first + i] = static_cast<T>(static_cast<A>(sums[i]));
    }
  }
}

template <typename T>
void by_score(const void* rows, DType score_dtype, const void* scores, int64_t top_k, int64_t n, void* y) {
  auto r = static_cast<const T*>(rows);
  auto out = static_cast<T*>(y);
  if (score_dtype == DType::F32) {
    weighted_sum<T, float, float>(r, static_cast<const float*>(scores), top_k, n, out);
  } else {
    weighted_sum<T, T, T>(r, static_cast<const T*>(scores), top_k, n, out);
  }
}

} // namespace

void weighted_sum(
    DType dtype,
    const void* rows,
    DType score_dtype,
    const void* scores,
    int64_t top_k,
    int64_t n,
    void* y) {
  switch (dtype) {
    case DType::F32:
      return by_score<float>(rows, score_dtype, scores, top_k, n, y);
    case DType::F16:
      return by_score<float16_t>(rows, score_dtype, scores, top_k, n, y);
    case DType::BF16:
      return by_score<bfloat16_t>(rows, score_dtype, scores, top_k, n, y);
  }
}

} // namespace zmlx::cpu
