// Products with affine weights against stock.

#pragma once

#include "tests/cuda/compare.h"

namespace zmlx::tests {

inline void check_swiglu(mx::Dtype dtype, Quantized q, int N, int K, int tokens, int top_k, int rows, Values v, bool gaps) {
  constexpr int E = 5;
  auto gate = random_weight(dtype, q, E, N, K, v);
  auto up = random_weight(dtype, q, E, N, K, v);
  auto x = random_array({tokens, 1, rows, K}, dtype, v);
  x = gaps ? with_gaps(x) : x;
  auto experts = random_u32({tokens, top_k}, E);
  auto lhs = mx::astype(mx::broadcast_to(mx::reshape(mx::arange(tokens), {tokens, 1}), {tokens, top_k}), mx::uint32);
  auto stock = [&] {
    auto project = [&](const zmlx::QuantizedWeight& w) {
      return mx::gather_qmm(x, w.w, w.scales, w.biases, lhs, experts, true, q.group, q.bits);
    };
    auto g = project(gate);
    return g * mx::sigmoid(g) * project(up);
  };
  auto fused = zmlx::gather_qmm_swiglu(
      x, {gate, up}, {}, lhs, experts, true, q.group, q.bits, "affine", false, zmlx::Precision::Exact);
  check(
      text("gather_qmm_swiglu ", dtype, " b", q.bits, " g", q.group, " N", N, " K", K, " tokens ", tokens, " top ", top_k,
           " rows ", rows, " v", int(v), gaps ? " gaps" : ""),
      fused,
      stock);
}

// Experts of all lines, by how many each has: in an order of chance, or sorted.
inline array routes(std::vector<int> lines_of, bool sorted) {
  std::vector<uint32_t> experts;
  for (size_t e = 0; e < lines_of.size(); e++) {
    experts.insert(experts.end(), lines_of[e], e);
  }
  auto all = array(experts.data(), {static_cast<int>(experts.size())}, mx::uint32);
  return sorted ? all : mx::take(all, mx::random::permutation(static_cast<int>(experts.size())), 0);
}

// Uneven experts, with none, one, and numbers around the sizes of tiles.
inline void check_routed(mx::Dtype dtype, Quantized q, int N, int K, std::vector<int> lines_of, int top_k, Values v, bool sorted) {
  int E = lines_of.size();
  auto experts = routes(lines_of, sorted);
  int lines = experts.size(), tokens = lines / top_k;
  auto gate = random_weight(dtype, q, E, N, K, v), up = random_weight(dtype, q, E, N, K, v);
  auto x = sorted ? random_array({lines, 1, K}, dtype, v) : random_array({1, tokens, 1, 1, K}, dtype, v);
  experts = sorted ? experts : mx::reshape(experts, {1, tokens, top_k});
  auto stock = [&] {
    auto project = [&](const zmlx::QuantizedWeight& w) {
      return mx::gather_qmm(x, w.w, w.scales, w.biases, std::nullopt, experts, true, q.group, q.bits, "affine", sorted);
    };
    auto g = project(gate);
    return g * mx::sigmoid(g) * project(up);
  };
  auto fused = zmlx::gather_qmm_swiglu(
      x, {gate, up}, {}, std::nullopt, experts, true, q.group, q.bits, "affine", sorted, zmlx::Precision::Exact);
  check(text("gather_qmm_swiglu ", dtype, " b", q.bits, " g", q.group, " N", N, " K", K, " ", lines, " lines of ", E,
             " uneven experts v", int(v), sorted ? " sorted" : ""),
        fused, stock);
}

inline void check_combine(mx::Dtype dtype, mx::Dtype score, Quantized q, int N, int K, int tokens, int top_k, Values v, bool gaps) {
  constexpr int E = 5;
  auto down = random_weight(dtype, q, E, N, K, v);
  auto x = random_array({1, tokens, top_k, 1, K}, dtype, v);
  x = gaps ? with_gaps(x) : x;
  auto experts = random_u32({1, tokens, top_k}, E);
  auto scores = random_array({1, tokens, top_k}, score, v, 0.3);
  auto stock = [&] {
    auto y = mx::squeeze(gather_qmm(x, down, experts, q), -2);
    return mx::astype(mx::sum(y * mx::expand_dims(scores, -1), -2), dtype);
  };
  auto fused = zmlx::gather_qmm_combine(
      x, down, std::nullopt, experts, scores, q.group, q.bits, "affine", zmlx::Precision::Exact);
  check(
      text("gather_qmm_combine ", dtype, " scores ", score, " b", q.bits, " g", q.group, " N", N, " K", K, " tokens ",
           tokens, " top ", top_k, " v", int(v), gaps ? " gaps" : ""),
      fused,
      stock);
}

inline void check_matmul(mx::Dtype dtype, Quantized q, int N, int K, int rows, Values v, bool gaps, int batch = 1) {
  auto w = random_weight(dtype, q, 1, N, K, v);
  for (auto* part : {&w.w, &w.scales, &*w.biases}) {
    *part = mx::squeeze(*part, 0);
  }
  auto x = random_array({batch, rows, K}, dtype, v);
  x = gaps ? with_gaps(x) : x;
  auto stock = [&] { return mx::quantized_matmul(x, w.w, w.scales, w.biases, true, q.group, q.bits); };
  auto fused = zmlx::quantized_matmul(x, w, true, q.group, q.bits, "affine", zmlx::Precision::Exact);
  check(
      text("quantized_matmul ", dtype, " b", q.bits, " g", q.group, " N", N, " K", K, " rows ", batch, " x ", rows, " v", int(v),
           gaps ? " gaps" : ""),
      fused,
      stock);
}

// Lines enough for kernels that read weights once for many.
inline void grouped(const std::string& part, int only, int only_bits) {
  const std::vector<int> uneven = {0, 1, 7, 8, 9, 15, 16, 17, 0, 31, 33, 48, 49, 63, 64, 65, 129, 200, 0, 13};
  for (auto dtype : {mx::bfloat16, mx::float16}) {
    if (!part.empty() && part != (dtype == mx::bfloat16 ? "grouped-bf16" : "grouped-f16")) {
      continue;
    }
    for (int bits : {4, 8}) {
      for (int group : {32, 64, 128}) {
        if ((only && group != only) || (only_bits && bits != only_bits) || (quick && group != 64)) {
          continue;
        }
        Quantized q = {bits, group};
        for (auto v : {Values::Normal, Values::Large, Values::Sprinkled}) {
          for (bool sorted : {false, true}) {
            check_routed(dtype, q, 256, 768, uneven, 4, v, sorted);
          }
          check_swiglu(dtype, q, 128, 256, 100, 8, 1, v, true);
          check_combine(dtype, dtype, q, 256, 768, 70, 3, v, true);
          check_matmul(dtype, q, 256, 768, 200, v, true);
        }
        for (int lines : {63, 64, 65, 1000}) {
          check_routed(dtype, q, 128, 128, {lines}, 1, Values::Normal, false);
        }
        // 192 and 2,880 are an odd number of steps
        for (int K : {128, 192, 256, 384, 1408, 2880, 4096}) {
          if (K % group != 0) {
            continue;
          }
          if (K > group) {
            check_matmul(dtype, q, 136, K, 70, Values::Normal, false);
          }
          check_routed(dtype, q, 128, K, uneven, 2, Values::Normal, true);
          check_combine(dtype, mx::float32, q, 384, K, 90, 8, Values::Normal, false);
        }
        check_swiglu(dtype, q, 384, 896, 40, 2, 5, Values::Normal, true);
        check_swiglu(dtype, q, 768, 2048, 512, 8, 1, Values::Normal, false);
        check_combine(dtype, dtype, q, 2048, 768, 512, 8, Values::Normal, false);
        check_combine(dtype, dtype, q, 128, 1408, 2000, 1, Values::Normal, false);
        check_combine(dtype, dtype, q, 128, 384, 300, 20, Values::Normal, false);
        for (int rows : {8, 9, 16, 17, 33, 64, 65, 513, 2048}) {
          check_matmul(dtype, q, 128, 256, rows, Values::Normal, false);
          check_matmul(dtype, q, 1024, 1408, rows, Values::Normal, false);
        }
        // which stock multiplies by another kernel
        for (int N : {8, 16, 72, 136, 200}) {
          for (int rows : {8, 33, 200}) {
            check_matmul(dtype, q, N, 256, rows, Values::Normal, false);
          }
          check_matmul(dtype, q, N, 2048, 40, Values::Sprinkled, false);
        }
        check_matmul(dtype, q, 4096, 2048, 512, Values::Normal, false);
        check_matmul(dtype, q, 256, 11008, 100, Values::Normal, true);
        check_matmul(dtype, q, 512, 2048, 5, Values::Normal, false, 3);
        check_matmul(dtype, q, 512, 2048, 100, Values::Normal, true, 2);
      }
    }
  }
}

} // namespace zmlx::tests
