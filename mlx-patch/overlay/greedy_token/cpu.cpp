// CPU backend of GreedyToken.
//
// Idea:    the token is the first one whose logprob, rounded to the type, equals the largest: rounding is monotone, so
//          the largest is that of the largest logit. The rounding depends on logsumexp as stock computes it, by a sum
//          in order over the whole vocabulary, whose latency is the cost. That sum is known to lie within n * 2^-24 of
//          the true one. So a vector sum brackets it, and if every logsumexp of the type inside the bracket gives the
//          same token (nearly always), that is the answer; if not, the sum in order decides.
// Layout:  logits [rows, V].
// Tasks:   rows of the batch, otherwise parts of the vocabulary: for the largest, the sum and the first that reaches it.
// Bound:   one exponential a logit, two reads of the logits.
// Limits:  none. float32 always takes the sum in order.

#include <algorithm>
#include <cmath>
#include <limits>
#include <vector>

#include "cpu/operands.h"
#include "cpu/step.h"
#include "cpu/task.h"
#include "cpu/thread_pool.h"
#include "greedy_token/greedy_token.h"
#include "mlx/allocator.h"
#include "mlx/types/half_types.h"
#include "zmlx/mlx_version.h"

namespace zmlx {

using mlx::core::array;

namespace {

namespace c = zmlx::cpu;

constexpr int64_t kPart = 1 << 14; // logits of one task
constexpr int kMostCandidates = 4; // a search costs a tenth of the sum in order

template <typename T>
float rounded(float x) {
  return static_cast<float>(static_cast<T>(x));
}

template <typename T>
constexpr c::DType kType = sizeof(T) == 4               ? c::DType::F32
    : std::is_same_v<T, mlx::core::bfloat16_t> ? c::DType::BF16
                                               : c::DType::F16;

// Calls f(part, first byte, logits) for parts of the logits.
template <typename T, typename F>
void for_each_part(const uint8_t* x, int64_t n, F f) {
  c::parallel_for((n + kPart - 1) / kPart, 4 * n, [&](int64_t part) {
    int64_t begin = part * kPart;
    f(part, x + begin * sizeof(T), std::min(kPart, n - begin));
  });
}

// NaN when there is one.
template <typename T>
float maximum(const uint8_t* x, int64_t n) {
  std::vector<float> maxima((n + kPart - 1) / kPart);
  for_each_part<T>(x, n, [&](int64_t part, const uint8_t* from, int64_t size) {
    maxima[part] = c::step_kernels().maximum(kType<T>, from, size);
  });
  float max = maxima[0];
  for (float m : maxima) {
    max = max > m || std::isnan(max) ? max : m;
  }
  return max;
}

template <typename T>
int64_t token_for(const uint8_t* x, int64_t n, float max, float logsumexp) {
  float best = rounded<T>(max - logsumexp);
  std::vector<int64_t> firsts((n + kPart - 1) / kPart);
  for_each_part<T>(x, n, [&](int64_t part, const uint8_t* from, int64_t size) {
    int64_t first = c::step_kernels().first_reaching(kType<T>, from, size, logsumexp, best);
    firsts[part] = first < size ? part * kPart + first : n;
  });
  return *std::min_element(firsts.begin(), firsts.end());
}

// The next larger value of a 16-bit type.
template <typename T>
float next_above(float x) {
  T y = static_cast<T>(x);
  uint16_t bits;
  __builtin_memcpy(&bits, &y, sizeof(bits));
  if (x == 0) {
    bits = 1;
  } else {
    bits += x > 0 ? 1 : -1;
  }
  __builtin_memcpy(&y, &bits, sizeof(bits));
  return static_cast<float>(y);
}

template <typename T>
int64_t first_infinity(const uint8_t* x, int64_t n) {
  auto logits = reinterpret_cast<const T*>(x);
  return std::find_if(logits, logits + n, [](T v) { return static_cast<float>(v) > std::numeric_limits<float>::max(); }) -
      logits;
}

template <typename T>
int64_t greedy(const uint8_t* x, int64_t n) {
  auto& kernels = c::step_kernels();
  float max = maximum<T>(x, n);
  if (!std::isfinite(max)) {
    // Every difference is NaN or -inf, and with a finite logit before an infinite one, NaN is not the first.
    return linked::argmax_takes_nan && max > 0 ? first_infinity<T>(x, n) : 0;
  }
  if constexpr (sizeof(T) == 2) {
    int64_t parts = (n + kPart - 1) / kPart;
    std::vector<float> sums(parts);
    for_each_part<T>(x, n, [&](int64_t part, const uint8_t* from, int64_t size) {
      sums[part] = kernels.exp_sum(kType<T>, from, size, max);
    });
    double sum = 0;
    for (float s : sums) {
      sum += s;
    }
    double units = (n + kPart) * std::ldexp(1.0, -24); // of both sums
    double error = 1.01 * units / (1 - units);
    auto logsumexp = [&](double s, double slack) {
      double y = std::log(s) + max;
      return rounded<T>(static_cast<float>(y + slack * (std::abs(y) + std::abs(max) + 1) * std::ldexp(1.0, -21)));
    };
    if (units < 0.1 && sum < std::numeric_limits<float>::max()) {
      float candidate = logsumexp(sum * (1 - error), -1);
      float last = logsumexp(sum * (1 + error), 1);
      int64_t token = token_for<T>(x, n, max, candidate);
      bool same = true;
      for (int tried = 1; same && candidate < last && tried < kMostCandidates; tried++) {
        candidate = next_above<T>(candidate);
        same = token_for<T>(x, n, max, candidate) == token;
      }
      if (same && candidate >= last) {
        return token;
      }
    }
  }
  float sum = kernels.exp_sum_in_order(kType<T>, x, n, max);
  return token_for<T>(x, n, max, rounded<T>(std::log(sum) + max));
}

template <typename T>
void run(const array& logits, array& out) {
  auto rows = c::rows_of(logits);
  int64_t n = logits.shape(-1);
  auto y = out.data<uint32_t>();
  c::parallel_for(rows.size(), rows.size() > 1 ? 4 * static_cast<int64_t>(logits.size()) : 0, [&](int64_t i) {
    y[i] = greedy<T>(rows.at(i), n);
  });
}

} // namespace

void GreedyToken::eval_cpu(const std::vector<array>& inputs, array& out) {
  out.set_data(mlx::core::allocator::malloc(out.nbytes()));
  if (out.size() == 0) {
    return;
  }
  auto& encoder = mlx::core::cpu::get_command_encoder(stream());
  encoder.set_input_array(inputs[kLogits]);
  encoder.set_output_array(out);
  auto task = [logits = array::unsafe_weak_copy(inputs[kLogits]), out = array::unsafe_weak_copy(out)]() mutable {
    switch (c::dtype_of(logits.dtype())) {
      case c::DType::F32:
        return run<float>(logits, out);
      case c::DType::F16:
        return run<mlx::core::float16_t>(logits, out);
      case c::DType::BF16:
        return run<mlx::core::bfloat16_t>(logits, out);
    }
  };
  cpu::dispatch(stream(), name(), std::move(task));
}

} // namespace zmlx
