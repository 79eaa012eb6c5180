// Joined launches of recorded steps, the rows of tokens, and the choice of one, against stock.

#pragma once

#include "recorded_step/joined.h"
#include "tests/cuda/compare.h"

namespace zmlx::tests {

// Products of one vector, which is the norm of a sum or not, as a recorded step joins them; of one that is a router's logits
// the choice of experts too.
inline void check_joined(
    mx::Dtype dtype, int group, int K, std::vector<int> sizes, bool normed, int top_k, Values v, int bits = 4) {
  Quantized q = {bits, group};
  auto x = random_array({1, 1, K}, dtype, v), r = random_array({1, 1, K}, dtype, v), norm = random_array({K}, dtype);
  std::vector<zmlx::QuantizedWeight> weights;
  for (int N : sizes) {
    auto w = random_weight(dtype, q, 1, N, K, v);
    for (auto* part : {&w.w, &w.scales, &*w.biases}) {
      *part = mx::squeeze(*part, 0);
    }
    weights.push_back(w);
  }
  auto all = [](std::vector<array> parts) {
    for (auto& part : parts) {
      part = mx::astype(mx::flatten(part), mx::float32);
    }
    return mx::concatenate(parts);
  };
  auto stock = [&] {
    auto sum = x + r;
    auto in = normed ? mx::fast::rms_norm(sum, norm, 1e-6f) : x;
    std::vector<array> parts = normed ? std::vector<array>{sum, in} : std::vector<array>{};
    for (auto& w : weights) {
      auto y = mx::quantized_matmul(in, w.w, w.scales, w.biases, true, group, bits);
      if (top_k) {
        auto gates = mx::softmax(y, -1, true);
        auto indices = mx::slice(mx::argpartition(gates, -top_k, -1), {0, 0, sizes[0] - top_k}, {1, 1, sizes[0]});
        auto scores = mx::take_along_axis(gates, indices, -1);
        parts.push_back(indices);
        parts.push_back(scores / mx::sum(scores, -1, true));
      } else {
        parts.push_back(y);
      }
    }
    return all(parts);
  };
  auto [sum, of_sum] = zmlx::add_rms_norm(x, r, norm, 1e-6f);
  auto in = normed ? of_sum : x;
  std::vector<array> parts = normed ? std::vector<array>{sum, in} : std::vector<array>{};
  for (auto& w : weights) {
    auto y = zmlx::quantized_matmul(in, w, true, group, bits, "affine", zmlx::Precision::Exact);
    if (top_k) {
      zmlx::RouterParams params = {top_k, "softmax"};
      params.normalize = true;
      auto [indices, scores] = zmlx::moe_router(y, params, std::nullopt, std::nullopt);
      parts.push_back(indices);
      parts.push_back(scores);
    } else {
      parts.push_back(y);
    }
  }
  auto joined = all(parts);
  zmlx::join_launches(joined);
  check(text("joined ", dtype, " b", bits, " g", group, " K", K, " of ", sizes.size(), normed ? " normed" : "", " N", sizes[0], " top ",
             top_k, " v", int(v)),
        joined, stock);
}

// `scale` small: many logprobs that round to one.
inline void check_greedy(mx::Dtype dtype, int vocab, int rows, Values v, double scale) {
  auto logits = random_array({rows, vocab}, dtype, v, scale);
  auto stock = [&] { return mx::argmax(logits - mx::logsumexp(logits, -1, true), -1); };
  check(text("greedy_token ", dtype, " [", rows, ", ", vocab, "] v", int(v), " scale ", scale),
        zmlx::greedy_token(logits), stock);
}

inline void check_embedding(mx::Dtype dtype, Quantized q, int vocab, int dims, int tokens, Values v) {
  auto table = random_weight(dtype, q, 1, vocab, dims, v);
  for (auto* part : {&table.w, &table.scales, &*table.biases}) {
    *part = mx::squeeze(*part, 0);
  }
  auto ids = random_u32({1, tokens}, vocab);
  auto rows = [&](const array& part) { return mx::take(part, ids, 0); };
  auto stock = [&] {
    return mx::dequantize(rows(table.w), rows(table.scales), rows(*table.biases), q.group, q.bits);
  };
  check(text("quantized_embedding ", dtype, " b", q.bits, " g", q.group, " [", vocab, ", ", dims, "] of ", tokens, " v", int(v)),
        zmlx::quantized_embedding(ids, table, q.group, q.bits, "affine"), stock);
}

inline void tokens() {
  for (auto dtype : {mx::bfloat16, mx::float16}) {
    for (int bits : {2, 3, 4, 5, 6, 8}) {
      for (int group : {32, 64, 128}) {
        for (auto v : {Values::Normal, Values::Large, Values::Sprinkled}) {
          check_embedding(dtype, {bits, group}, 1000, 2048, 1, v);
          check_embedding(dtype, {bits, group}, 77, 384, 300, v);
        }
      }
    }
  }
  for (auto dtype : {mx::bfloat16, mx::float16, mx::float32}) {
    for (int vocab : {1, 7, 100, 300, 600, 1500, 3000, 5000, 8192, 32003, 65536, 151936}) {
      for (auto v : {Values::Normal, Values::Large, Values::Sprinkled}) {
        for (double scale : {0.01, 1.0, 3.0}) {
          check_greedy(dtype, vocab, 1, v, scale);
          check_greedy(dtype, vocab, 3, v, scale);
        }
      }
      check_greedy(dtype, vocab, 2, Values::Extreme, 1);
      check_greedy(dtype, vocab, 2, Values::Tiny, 1);
      check_greedy(dtype, vocab, 1, Values::Normal, 0);
    }
  }
}

inline void joined() {
  for (auto dtype : {mx::bfloat16, mx::float16}) {
    for (int group : {32, 64, 128}) {
      for (auto v : {Values::Normal, Values::Large, Values::Sprinkled}) {
        check_joined(dtype, group, 2048, {4096, 512, 512}, true, 0, v);
        check_joined(dtype, group, 2048, {2048, 512, 512}, false, 0, v);
        check_joined(dtype, group, 1536, {256, 128, 384, 128}, true, 0, v);
        check_joined(dtype, group, 512, {128, 128}, true, 0, v);
        check_joined(dtype, group, 1024, {6144}, true, 0, v);
        check_joined(dtype, group, 1408, {128, 256, 128}, true, 0, v);
        check_joined(dtype, group, 2048, {4096, 512}, true, 0, v, 8);
        for (int bits : {4, 8}) {
          check_joined(dtype, group, 2048, {128}, true, 8, v, bits);
          check_joined(dtype, group, 1024, {256}, true, 6, v, bits);
          check_joined(dtype, group, 1408, {128}, true, 8, v, bits);
          check_joined(dtype, group, 512, {64}, true, 4, v, bits);
        }
      }
    }
  }
}

} // namespace zmlx::tests
