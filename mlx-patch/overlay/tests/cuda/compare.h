// What the programs here that compare kernels with stock share.

#pragma once

#include <sstream>

#include "tests/arrays.h"

namespace zmlx::tests {

inline int unstable = 0;

template <typename... Args>
std::string text(const Args&... args) {
  std::ostringstream s;
  (s << ... << args);
  return s.str();
}

// `stock` makes the graph anew on every call.
template <typename Stock>
void check(const std::string& what, const array& fused, Stock stock) {
  auto expected = stock();
  if (!same(what + " (stock against itself)", stock(), expected)) {
    unstable++;
  }
  same(what, fused, expected);
}

// The same values with gaps between the rows.
inline array with_gaps(const array& a) {
  auto twice = mx::concatenate({a, a}, -1);
  mx::eval(twice);
  auto out = mx::slice(twice, mx::Shape(a.ndim(), 0), a.shape());
  mx::eval(out);
  return out;
}

struct Quantized {
  int bits;
  int group;
};

inline zmlx::QuantizedWeight random_weight(mx::Dtype dtype, Quantized q, int E, int N, int K, Values v) {
  double scale = v == Values::Normal ? 0.02 : 1;
  auto w = random_u32({E, N, K * q.bits / 32});
  return {w, random_array({E, N, K / q.group}, dtype, v, scale), random_array({E, N, K / q.group}, dtype, v, scale * 4)};
}

inline array gather_qmm(const array& x, const zmlx::QuantizedWeight& w, const array& experts, Quantized q) {
  return mx::gather_qmm(x, w.w, w.scales, w.biases, std::nullopt, experts, true, q.group, q.bits);
}

} // namespace zmlx::tests
