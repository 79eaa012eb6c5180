// What GLM-4.7-Flash and DeepSeek-V3 add to the comparisons: attention over latents, products for each head, gate and up of shared
// experts, routers of sigmoids.

#pragma once

#include <cmath>
#include <optional>

#include "tests/cuda/compare.h"

namespace zmlx::tests {

// A copy of its own memory.
inline array own_copy(const array& a) {
  auto copy = mx::contiguous(mx::concatenate({a, a}, 0));
  copy = mx::contiguous(mx::slice(copy, mx::Shape(a.ndim(), 0), a.shape()) * array(1.0f, a.dtype()));
  mx::eval(copy);
  return copy;
}

// Over the first `length` latents of buffers; with rotations in stock's ops, or taken in.
inline void check_latents(mx::Dtype dtype, int heads, int room, int length, bool rope, Values v) {
  constexpr int kLatent = 512, kRope = 64, kNope = 192;
  float scale = 1 / std::sqrt(256.0f);
  auto q = random_array({1, heads, 1, kLatent}, dtype, v, 0.3);
  auto wide = random_array({1, 1, heads, kNope + kRope}, dtype, v), kv = random_array({1, 1, kLatent + kRope}, dtype, v);
  auto raw_q = mx::slice(wide, {0, 0, 0, kNope}, {1, 1, heads, kNope + kRope});
  auto raw_k = mx::slice(kv, {0, 0, kLatent}, {1, 1, kLatent + kRope});
  auto latent = mx::reshape(mx::slice(kv, {0, 0, 0}, {1, 1, kLatent}), {1, 1, 1, kLatent});
  auto latents = random_array({1, 1, room, kLatent}, dtype, v), keys = random_array({1, 1, room, kRope}, dtype, v);
  auto at = array(length - 1);
  auto turned = [&](const array& x) { return mx::fast::rope(x, kRope, true, 1e6f, 1.0f, at); };
  auto q_rope = turned(mx::transpose(raw_q, {0, 2, 1, 3})), k_rope = turned(mx::expand_dims(raw_k, 1));
  auto appended = [&](const array& buffer, const array& token) {
    return mx::slice_update(buffer, token, mx::Shape{0, 0, length - 1, 0}, mx::Shape{1, 1, length, buffer.shape(3)});
  };
  auto all_latents = appended(latents, latent), all_keys = appended(keys, k_rope);
  mx::eval(std::vector<array>{q, q_rope, k_rope, all_latents, all_keys});
  auto stock = [&] {
    auto product = [&](const array& matrix, const array& vectors) {
      return mx::reshape(mx::matmul(matrix, mx::reshape(vectors, {1, heads, -1, 1})), {1, heads, 1, -1});
    };
    auto first = [&](const array& buffer) { return mx::slice(buffer, {0, 0, 0, 0}, {1, 1, length, buffer.shape(3)}); };
    auto factor = array(scale, dtype);
    auto scores = product(first(all_latents), q * factor) + product(first(all_keys), q_rope * factor);
    auto rows = mx::contiguous(mx::swapaxes(first(all_latents), -1, -2));
    return product(rows, mx::softmax(scores, -1, true));
  };
  auto held_latents = own_copy(latents), held_keys = own_copy(keys);
  zmlx::RopeParams params = {kRope, true, 1e6f, 1.0f, std::nullopt};
  auto ours = [&](const array& x, int n) { return zmlx::qk_norm_rope(x, n, std::nullopt, 0, params, at); };
  auto fused = zmlx::recorded_latent_attention(
      {q, rope ? ours(raw_q, heads) : q_rope}, {latent, rope ? ours(raw_k, 1) : k_rope}, {held_latents, held_keys},
      array({length}), scale);
  auto what = text("recorded_latent_attention ", dtype, " heads ", heads, " latents ", length, rope ? " rope" : "", " v", int(v));
  check(what, fused, stock);
  check(what + " latents", held_latents, [&] { return own_copy(all_latents); });
  check(what + " keys", held_keys, [&] { return own_copy(all_keys); });
}

// A vector by a matrix for each head; with gaps, the vectors are a part of wider ones.
inline void check_heads(mx::Dtype dtype, Quantized q, int heads, int N, int K, Values v, bool gaps) {
  auto w = random_weight(dtype, q, heads, N, K, v);
  auto wide = random_array({1, 1, heads, gaps ? K + 64 : K}, dtype, v);
  auto x = mx::transpose(mx::slice(wide, {0, 0, 0, 0}, {1, 1, heads, K}), {0, 2, 1, 3});
  auto stock = [&] { return mx::quantized_matmul(x, w.w, w.scales, w.biases, true, q.group, q.bits); };
  auto fused = zmlx::quantized_matmul(x, w, true, q.group, q.bits, "affine", zmlx::Precision::Exact);
  check(
      text("quantized_matmul ", dtype, " b", q.bits, " g", q.group, " of ", heads, " heads N", N, " K", K, " v", int(v),
           gaps ? " gaps" : ""),
      fused,
      stock);
}

inline void check_swiglu_mlp(mx::Dtype dtype, Quantized q, int N, int K, int rows, Values v, bool gaps) {
  auto gate = random_weight(dtype, q, 1, N, K, v), up = random_weight(dtype, q, 1, N, K, v);
  for (auto* part : {&gate.w, &gate.scales, &*gate.biases, &up.w, &up.scales, &*up.biases}) {
    *part = mx::squeeze(*part, 0);
  }
  auto x = random_array({1, rows, K}, dtype, v);
  x = gaps ? with_gaps(x) : x;
  auto stock = [&] {
    auto project = [&](const zmlx::QuantizedWeight& w) {
      return mx::quantized_matmul(x, w.w, w.scales, w.biases, true, q.group, q.bits);
    };
    auto g = project(gate);
    return g * mx::sigmoid(g) * project(up);
  };
  auto fused = zmlx::swiglu_mlp(x, {gate, up}, {}, q.group, q.bits, "affine", zmlx::Precision::Exact);
  check(
      text("swiglu_mlp ", dtype, " b", q.bits, " g", q.group, " N", N, " K", K, " rows ", rows, " v", int(v),
           gaps ? " gaps" : ""),
      fused,
      stock);
}

struct Sigmoids {
  bool in_f32, bias, descending, normalize;
  float epsilon, scale;
};

inline void check_sigmoid_router(mx::Dtype dtype, Sigmoids p, int experts, int top_k, int tokens, Values v, double scale) {
  auto logits = random_array({1, tokens, experts}, dtype, v, scale);
  auto bias = p.bias ? std::optional<array>(random_array({experts}, mx::float32, Values::Normal, 0.1)) : std::nullopt;
  zmlx::RouterParams params = {top_k, "sigmoid"};
  params.descending = p.descending;
  params.in_f32 = p.in_f32;
  params.normalize = p.normalize;
  params.epsilon = p.epsilon;
  params.scale = p.scale;
  auto fused = zmlx::moe_router(logits, params, bias, std::nullopt);
  auto stock = [&](bool weights) {
    auto gates = mx::sigmoid(p.in_f32 ? mx::astype(logits, mx::float32) : logits);
    auto keys = bias ? mx::astype(gates, mx::float32) + *bias : gates;
    auto order = p.descending ? mx::argpartition(mx::negative(keys), top_k - 1, -1) : mx::argpartition(keys, -top_k, -1);
    int from = p.descending ? 0 : experts - top_k;
    auto indices = mx::slice(order, {0, 0, from}, {1, tokens, from + top_k});
    auto scores = mx::take_along_axis(gates, indices, -1);
    if (p.normalize) {
      auto total = mx::sum(scores, -1, true);
      scores = scores / (p.epsilon != 0 ? total + array(p.epsilon, total.dtype()) : total);
    }
    scores = p.scale != 1 ? scores * array(p.scale, scores.dtype()) : scores;
    return weights ? scores : indices;
  };
  auto what = text("moe_router sigmoid ", dtype, p.in_f32 ? " in f32" : "", p.bias ? " bias" : "",
                   p.descending ? " descending" : "", p.normalize ? " normalized" : "", " of ", experts, " top ", top_k,
                   " tokens ", tokens, " v", int(v), " scale ", scale);
  check(what + " indices", fused.first, [&] { return stock(false); });
  check(what + " weights", fused.second, [&] { return stock(true); });
}

inline void mlps(int only) {
  for (auto dtype : {mx::bfloat16, mx::float16}) {
    for (int bits : {4, 8}) {
      for (int group : {32, 64, 128}) {
        if ((only && group != only) || (quick && group != 64)) {
          continue;
        }
        Quantized q = {bits, group};
        for (auto v : {Values::Normal, Values::Large, Values::Sprinkled}) {
          check_swiglu_mlp(dtype, q, 128, 256, 1, v, false);
          check_swiglu_mlp(dtype, q, 384, 768, 3, v, true);
        }
        for (auto v : {Values::Normal, Values::Large, Values::Sprinkled}) {
          check_heads(dtype, q, 20, 512, group > 64 ? 256 : 192, v, true);
          check_heads(dtype, q, 20, 256, 512, v, false);
          // rows of one group are refused
          check_heads(dtype, q, 8, 128, group > 64 ? 256 : 128, v, false);
          check_heads(dtype, q, 7, 128, 256, v, false);
          check_heads(dtype, q, 8, 192, 256, v, false);
        }
        check_swiglu_mlp(dtype, q, 1536, 2048, 1, Values::Normal, false);
        check_swiglu_mlp(dtype, q, 10240, 2048, 1, Values::Normal, false);
        check_swiglu_mlp(dtype, q, 256, 1408, 7, Values::Normal, false);
        check_swiglu_mlp(dtype, q, 128, 256, 8, Values::Normal, false);
      }
    }
  }
}

inline void sigmoid_routers() {
  for (auto dtype : {mx::bfloat16, mx::float16, mx::float32}) {
    for (int experts : {8, 32, 64, 256}) {
      for (int top_k : {1, 4, 6, 8}) {
        for (int tokens : {1, 5}) {
          for (bool bias : {false, true}) {
            // as GLM and DeepSeek have them, and as LFM2
            check_sigmoid_router(dtype, {true, bias, true, true, 1e-20f, 1.8f}, experts, top_k, tokens, Values::Normal, 2);
            check_sigmoid_router(dtype, {false, bias, false, true, 1e-6f, 1}, experts, top_k, tokens, Values::Normal, 2);
            check_sigmoid_router(dtype, {true, bias, true, false, 0, 1}, experts, top_k, tokens, Values::Normal, 1e-3);
            check_sigmoid_router(dtype, {false, bias, false, false, 0, 2.5f}, experts, top_k, tokens, Values::Large, 1);
          }
        }
        check_sigmoid_router(dtype, {true, true, true, true, 1e-20f, 1.8f}, experts, top_k, 33, Values::Sprinkled, 1);
      }
    }
  }
}

inline void latents() {
  for (auto dtype : {mx::bfloat16, mx::float16, mx::float32}) {
    for (int length : {1, 2, 31, 32, 33, 63, 64, 65, 127, 128, 129, 192, 255, 256, 300, 511, 512, 640, 1000, 1024, 1025, 1499}) {
      check_latents(dtype, length % 2 ? 20 : 6, 1500, length, length % 3, Values::Normal);
    }
    check_latents(dtype, 20, 1500, 264, true, Values::Large);
    check_latents(dtype, 7, 1500, 130, false, Values::Sprinkled);
    for (int length : {2049, 4096, 4097, 8191, 8192, 8193, 9000}) {
      check_latents(dtype, 5, 9001, length, true, Values::Normal);
    }
  }
}

} // namespace zmlx::tests
