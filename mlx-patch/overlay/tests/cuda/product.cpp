// Bit for bit against stock MLX on the GPU, in one process: what the CUDA kernels compute, over types, quantizations,
// shapes on both sides of stock's choice of a kernel, layouts and extreme values. Stock itself is asked twice each time: a
// reference that disagrees with itself proves nothing.
//
//   product [--seed S] [--quick] [--group 32|64|128] [--bits 2|3|4|5|6|8]
//     [--part bf16|f16|mlps|mxfp4|grouped-bf16|grouped-f16|routers|rows|recorded|latents|tokens|joined|fast]
//
// MLX compiles its kernels when they are first used, for minutes in all; parts can run beside one another.
//
// `fast` precision is compared with float64.
//
// Where there is no GPU that the kernels are for it says so, and compares nothing.

#include "mlx/backend/gpu/device_info.h"
#include "tests/cuda/fast.h"
#include "tests/cuda/joined.h"
#include "tests/cuda/latents.h"
#include "tests/cuda/products.h"

using namespace zmlx::tests;

namespace {

// Scales of powers of two up to 2^3 or, among extreme values, any.
zmlx::QuantizedWeight random_mxfp4(int E, int N, int K, Values v) {
  std::vector<uint8_t> scales(int64_t{E} * N * (K / 32));
  for (auto& scale : scales) {
    scale = v == Values::Sprinkled && rng() % 20 == 0 ? rng() : v == Values::Large ? 124 + rng() % 7 : 116 + rng() % 6;
  }
  return {random_u32({E, N, K / 8}), array(scales.data(), {E, N, K / 32}, mx::uint8), std::nullopt};
}

array gather_mxfp4(const array& x, const zmlx::QuantizedWeight& w, const array& lhs, const array& experts) {
  return mx::gather_qmm(x, w.w, w.scales, std::nullopt, lhs, experts, true, 32, 4, "mxfp4");
}

array numbered(int tokens, int top_k) {
  return mx::astype(mx::broadcast_to(mx::reshape(mx::arange(tokens), {tokens, 1}), {tokens, top_k}), mx::uint32);
}

// The bias of the expert that each index chose, for a product [.., 1, N].
array chosen_bias(const array& bias, const array& experts) {
  return mx::expand_dims(mx::take(bias, experts, 0), -2);
}

void check_swiglu_mxfp4(mx::Dtype dtype, int N, int K, int tokens, int top_k, bool clipped, Values v) {
  constexpr int E = 5;
  auto gate = random_mxfp4(E, N, K, v), up = random_mxfp4(E, N, K, v);
  auto gate_bias = random_array({E, N}, dtype, v), up_bias = random_array({E, N}, dtype, v);
  auto x = random_array({tokens, 1, 1, K}, dtype, v);
  auto experts = random_u32({tokens, top_k}, E);
  auto lhs = numbered(tokens, top_k);
  float alpha = 1.702f, limit = 7;
  auto stock = [&] {
    auto g = gather_mxfp4(x, gate, lhs, experts), u = gather_mxfp4(x, up, lhs, experts);
    if (!clipped) {
      return g * mx::sigmoid(g) * u;
    }
    auto number = [&](float n) { return array(n, dtype); };
    g = mx::minimum(g + chosen_bias(gate_bias, experts), number(limit));
    u = mx::minimum(mx::maximum(u + chosen_bias(up_bias, experts), number(-limit)), number(limit));
    return (u + number(1)) * (g * mx::sigmoid(number(alpha) * g));
  };
  zmlx::GluProjections projections = {gate, up};
  zmlx::GluParams params;
  if (clipped) {
    projections.gate_bias = gate_bias;
    projections.up_bias = up_bias;
    params = {"clipped_swiglu", alpha, limit};
  }
  auto fused = zmlx::gather_qmm_swiglu(
      x, projections, params, lhs, experts, true, 32, 4, "mxfp4", false, zmlx::Precision::Exact);
  check(
      text("gather_qmm_swiglu ", dtype, " mxfp4 N", N, " K", K, " tokens ", tokens, " top ", top_k,
           clipped ? " clipped" : "", " v", int(v)),
      fused,
      stock);
}

void check_combine_mxfp4(mx::Dtype dtype, mx::Dtype score, int N, int K, int tokens, int top_k, bool with_bias, Values v) {
  constexpr int E = 5;
  auto down = random_mxfp4(E, N, K, v);
  auto bias = random_array({E, N}, dtype, v);
  auto x = random_array({1, tokens, top_k, 1, K}, dtype, v);
  auto experts = random_u32({1, tokens, top_k}, E);
  auto scores = random_array({1, tokens, top_k}, score, v, 0.3);
  auto stock = [&] {
    auto y = mx::gather_qmm(x, down.w, down.scales, std::nullopt, std::nullopt, experts, true, 32, 4, "mxfp4");
    y = mx::squeeze(with_bias ? y + chosen_bias(bias, experts) : y, -2);
    return mx::astype(mx::sum(y * mx::expand_dims(scores, -1), -2), dtype);
  };
  auto fused = zmlx::gather_qmm_combine(
      x, down, with_bias ? std::optional<array>(bias) : std::nullopt, experts, scores, 32, 4, "mxfp4",
      zmlx::Precision::Exact);
  check(
      text("gather_qmm_combine ", dtype, " scores ", score, " mxfp4 N", N, " K", K, " tokens ", tokens, " top ", top_k,
           with_bias ? " bias" : "", " v", int(v)),
      fused,
      stock);
}

void check_linear(mx::Dtype dtype, std::optional<Quantized> q, int N, int K, int rows, bool with_bias, Values v) {
  auto w = q ? random_weight(dtype, *q, 1, N, K, v) : random_mxfp4(1, N, K, v);
  int group = q ? q->group : 32, bits = q ? q->bits : 4;
  const char* mode = q ? "affine" : "mxfp4";
  w.w = mx::squeeze(w.w, 0);
  w.scales = mx::squeeze(w.scales, 0);
  if (w.biases) {
    w.biases = mx::squeeze(*w.biases, 0);
  }
  auto x = random_array({1, rows, K}, dtype, v), bias = random_array({N}, dtype, v);
  auto stock = [&] {
    auto y = mx::quantized_matmul(x, w.w, w.scales, w.biases, true, group, bits, mode);
    return with_bias ? y + bias : y;
  };
  auto exact = zmlx::Precision::Exact;
  auto fused = with_bias ? zmlx::quantized_linear(x, w, bias, group, bits, mode, exact)
                         : zmlx::quantized_matmul(x, w, true, group, bits, mode, exact);
  check(
      text("quantized_linear ", dtype, " ", mode, " b", bits, " g", group, " N", N, " K", K, " rows ", rows,
           with_bias ? " bias" : "", " v", int(v)),
      fused,
      stock);
}

// The first `dims` values of heads [.., D], scaled in their type.
array scaled_input(const array& x, int dims, float scale) {
  auto parts = mx::split(x, mx::Shape{dims}, -1);
  return scale == 1 ? x : mx::concatenate({parts[0] * array(scale, x.dtype()), parts[1]}, -1);
}

// Over the first `length` keys of buffers whose room is no multiple of 256, for which stock asks cuDNN; with norm and rotation
// of q and k in stock's ops, or taken in: none, rotation, norm and rotation, or rotation of scaled ones.
void check_recorded(mx::Dtype dtype, int dim, int heads, int kv_heads, int length, bool with_sinks, int rope, Values v) {
  int room = length < 1500 ? 1500 : length / 256 * 256 + 300;
  auto shape = [&](int h, int tokens) { return mx::Shape{1, h, tokens, dim}; };
  auto raw_q = random_array({1, 1, heads * dim}, dtype, v), raw_k = random_array({1, 1, kv_heads * dim}, dtype, v);
  auto value = random_array(shape(kv_heads, 1), dtype, v);
  auto keys = random_array(shape(kv_heads, room), dtype, v), values = random_array(shape(kv_heads, room), dtype, v);
  auto sinks = with_sinks ? std::optional<array>(random_array({heads}, dtype)) : std::nullopt;
  auto weight_q = random_array({dim}, dtype), weight_k = random_array({dim}, dtype);
  auto at = array(length - 1);
  float scale = 1 / std::sqrt(float(dim));
  auto stock_heads = [&](const array& x, int n, const array& weight) {
    auto y = mx::reshape(x, {1, 1, n, dim});
    y = rope == 2 ? mx::fast::rms_norm(y, weight, 1e-6f) : y;
    y = scaled_input(mx::transpose(y, {0, 2, 1, 3}), dim, rope == 3 ? 1.3465736f : 1);
    return rope ? mx::fast::rope(y, dim, false, 1e6f, 1.0f, at) : y;
  };
  auto our_heads = [&](const array& x, int n, const array& weight) {
    auto w = rope == 2 ? std::optional<array>(weight) : std::nullopt;
    return rope ? zmlx::qk_norm_rope(x, n, w, 1e-6f, {dim, false, 1e6f, 1.0f, std::nullopt, rope == 3 ? 1.3465736f : 1}, at) : stock_heads(x, n, weight);
  };
  auto own = [&](const array& buffer) {
    auto copy = mx::contiguous(mx::concatenate({buffer, buffer}, 2));
    copy = mx::concatenate({mx::slice(copy, {0, 0, 0, 0}, shape(kv_heads, room - 1)),
                            mx::slice(buffer, {0, 0, room - 1, 0}, shape(kv_heads, room))}, 2);
    mx::eval(copy);
    return copy;
  };
  auto appended = [&](const array& buffer, const array& token) {
    return mx::slice_update(
        buffer, token, mx::Shape{0, 0, length - 1, 0}, mx::Shape{1, kv_heads, length, dim});
  };
  auto q = stock_heads(raw_q, heads, weight_q), k = stock_heads(raw_k, kv_heads, weight_k);
  auto all_keys = appended(keys, k), all_values = appended(values, value);
  mx::eval(std::vector<array>{q, all_keys, all_values});
  auto stock = [&] {
    auto stop = shape(kv_heads, length);
    return mx::fast::scaled_dot_product_attention(
        q, mx::slice(all_keys, {0, 0, 0, 0}, stop), mx::slice(all_values, {0, 0, 0, 0}, stop), scale, "", {}, sinks);
  };
  auto held_keys = own(keys), held_values = own(values);
  auto fused = zmlx::recorded_attention(
      our_heads(raw_q, heads, weight_q), our_heads(raw_k, kv_heads, weight_k), value, held_keys, held_values,
      array({length}), sinks, scale, length > 1024);
  auto what = text("recorded_attention ", dtype, " ", heads, " of ", kv_heads, " x ", dim, " keys ", length, " rope ", rope,
                   with_sinks ? " sinks" : "", " v", int(v));
  check(what, fused, stock);
  check(what + " keys", held_keys, [&] { return own(all_keys); });
  check(what + " values", held_values, [&] { return own(all_values); });
}

// Over a ring of `size` rows into which token `at` goes `shift` rows further, and over what it kept.
void check_window(mx::Dtype dtype, int dim, int size, int at, int keep, int shift, bool with_sinks, Values v) {
  constexpr int heads = 8, kv_heads = 2;
  auto shape = [&](int h, int tokens) { return mx::Shape{1, h, tokens, dim}; };
  auto q = random_array(shape(heads, 1), dtype, v), k = random_array(shape(kv_heads, 1), dtype, v);
  auto value = random_array(shape(kv_heads, 1), dtype, v);
  auto keys = random_array(shape(kv_heads, size), dtype, v), values = random_array(shape(kv_heads, size), dtype, v);
  auto sinks = with_sinks ? std::optional<array>(random_array({heads}, dtype)) : std::nullopt;
  int row = at + shift;
  row = row < size ? row : keep + (row - size) % (size - keep);
  auto appended = [&](const array& buffer, const array& token) {
    return mx::slice_update(buffer, token, mx::Shape{0, 0, row, 0}, mx::Shape{1, kv_heads, row + 1, dim});
  };
  auto all_keys = appended(keys, k), all_values = appended(values, value);
  mx::eval(all_keys, all_values);
  float scale = 1 / std::sqrt(float(dim));
  auto stock = [&] {
    auto stop = shape(kv_heads, std::min(at + 1, size));
    return mx::fast::scaled_dot_product_attention(
        q, mx::slice(all_keys, {0, 0, 0, 0}, stop), mx::slice(all_values, {0, 0, 0, 0}, stop), scale, "", {}, sinks);
  };
  auto one = array(1, dtype);
  auto held_keys = keys * one, held_values = values * one;
  mx::eval(held_keys, held_values);
  auto fused = zmlx::recorded_attention(
      q, k, value, held_keys, held_values, array({at + 1}), sinks, scale, std::min(at + 1, size) > 1024,
      zmlx::Ring{keep, shift});
  auto what = text("recorded_attention ", dtype, " x ", dim, " window ", size, " at ", at, " keep ", keep, " shift ", shift,
                   with_sinks ? " sinks" : "", " v", int(v));
  check(what, fused, stock);
  check(what + " keys", held_keys, [&] { return mx::contiguous(all_keys); });
  check(what + " values", held_values, [&] { return mx::contiguous(all_values); });
}

void check_router_of_top_k(mx::Dtype dtype, int experts, int top_k, int tokens, Values v, double scale) {
  auto logits = random_array({1, tokens, experts}, dtype, v, scale);
  zmlx::RouterParams params = {top_k, "softmax_of_top_k"};
  auto fused = zmlx::moe_router(logits, params, std::nullopt, std::nullopt);
  auto stock = [&](bool weights) {
    auto order = mx::argpartition(logits, -top_k, -1);
    auto indices = mx::slice(order, {0, 0, experts - top_k}, {1, tokens, experts});
    return weights ? mx::softmax(mx::take_along_axis(logits, indices, -1), -1, true) : indices;
  };
  auto what = text("moe_router of top k ", dtype, " of ", experts, " top ", top_k, " tokens ", tokens, " v", int(v), " scale ",
                   scale);
  check(what + " indices", fused.first, [&] { return stock(false); });
  check(what + " weights", fused.second, [&] { return stock(true); });
}

void check_router(mx::Dtype dtype, int experts, int top_k, int tokens, bool normalize, Values v, double scale) {
  auto logits = random_array({1, tokens, experts}, dtype, v, scale);
  zmlx::RouterParams params = {top_k, "softmax"};
  params.normalize = normalize;
  auto fused = zmlx::moe_router(logits, params, std::nullopt, std::nullopt);
  auto stock = [&](bool weights) {
    auto gates = mx::softmax(logits, -1, true);
    auto order = mx::argpartition(gates, -top_k, -1);
    auto indices = mx::slice(order, {0, 0, experts - top_k}, {1, tokens, experts});
    auto scores = mx::take_along_axis(gates, indices, -1);
    return !weights ? indices : normalize ? scores / mx::sum(scores, -1, true) : scores;
  };
  auto what = text("moe_router ", dtype, " of ", experts, " top ", top_k, " tokens ", tokens, normalize ? " normalized" : "",
                   " v", int(v), " scale ", scale);
  check(what + " indices", fused.first, [&] { return stock(false); });
  check(what + " weights", fused.second, [&] { return stock(true); });
}

void check_add_rms_norm(mx::Dtype dtype, int rows, int size, Values v, bool gaps) {
  auto x = random_array({1, rows, size}, dtype, v);
  x = gaps ? with_gaps(x) : x;
  auto r = random_array({1, rows, size}, dtype, v);
  auto w = random_array({size}, dtype);
  auto fused = zmlx::add_rms_norm(x, r, w, 1e-6f);
  auto what = text("add_rms_norm ", dtype, " [", rows, ", ", size, "] v", int(v), gaps ? " gaps" : "");
  check(what + " sum", fused.first, [&] { return x + r; });
  check(what + " normed", fused.second, [&] { return mx::fast::rms_norm(x + r, w, 1e-6f); });
}

struct Rope {
  int head_dim;
  int dims;
  bool traditional;
  bool freqs;
  bool norm;
  float input_scale = 1;
};

void check_qk_norm_rope(mx::Dtype dtype, Rope p, int batch, int tokens, int heads, int offset, Values v) {
  auto x = random_array({batch, tokens, heads * p.head_dim}, dtype, v);
  auto w = p.norm ? std::optional<array>(random_array({p.head_dim}, dtype)) : std::nullopt;
  auto freqs = p.freqs ? std::optional<array>(mx::exp(random_array({p.dims / 2}, mx::float32))) : std::nullopt;
  auto base = p.freqs ? std::nullopt : std::optional<float>(1e6f);
  auto at = array(offset);
  if (batch > 1) {
    std::vector<int> offsets;
    for (int b = 0; b < batch; b++) {
      offsets.push_back(offset + 3 * b);
    }
    at = array(offsets.data(), {batch}, mx::int32);
  }
  zmlx::RopeParams rope = {p.dims, p.traditional, 1e6f, 1.0f, freqs, p.input_scale};
  auto fused = zmlx::qk_norm_rope(x, heads, w, 1e-6f, rope, at);
  auto stock = [&] {
    auto y = mx::reshape(x, {batch, tokens, heads, p.head_dim});
    y = w ? mx::fast::rms_norm(y, *w, 1e-6f) : y;
    y = scaled_input(mx::transpose(y, {0, 2, 1, 3}), p.dims, p.input_scale);
    return mx::fast::rope(y, p.dims, p.traditional, base, 1.0f, at, freqs);
  };
  check(
      text("qk_norm_rope ", dtype, " [", batch, ", ", tokens, ", ", heads, " x ", p.head_dim, "] dims ", p.dims,
           p.traditional ? " traditional" : "", p.freqs ? " freqs" : "", p.norm ? "" : " no norm", " scale ", p.input_scale, " at ", offset, " v",
           int(v)),
      fused,
      stock);
}

void products(const std::string& part, int only, int only_bits) {
  for (auto dtype : {mx::bfloat16, mx::float16}) {
    if (!part.empty() && part != (dtype == mx::bfloat16 ? "bf16" : "f16")) {
      continue;
    }
    for (int bits : {2, 3, 4, 5, 6, 8}) {
      for (int group : {32, 64, 128}) {
        if ((only && group != only) || (only_bits && bits != only_bits) || (quick && group != 64)) {
          continue;
        }
        Quantized q = {bits, group};
        for (auto v : {Values::Normal, Values::Large, Values::Sprinkled}) {
          // fewer than eight products, and more
          check_swiglu(dtype, q, 128, 256, 1, 4, 1, v, false);
          check_swiglu(dtype, q, 256, 768, 1, 8, 1, v, false);
          check_combine(dtype, dtype, q, 128, 256, 1, 4, v, false);
          check_combine(dtype, dtype, q, 256, 768, 1, 8, v, false);
        }
        for (auto v : {Values::Normal, Values::Large, Values::Sprinkled}) {
          check_matmul(dtype, q, 128, 256, 1, v, false);
          check_matmul(dtype, q, 576, 256, 1, v, false);
          check_matmul(dtype, q, 256, 768, 3, v, true);
          check_matmul(dtype, q, 512, 2048, 7, v, false);
        }
        check_matmul(dtype, q, 4096, 2048, 1, Values::Normal, false);
        check_matmul(dtype, q, 2048, 4096, 1, Values::Normal, false);
        check_matmul(dtype, q, 16384, 1408, 1, Values::Normal, false);
        check_matmul(dtype, q, 65536, 2048, 1, Values::Sprinkled, false);
        check_matmul(dtype, q, 2048, 11008, 2, Values::Normal, false);
        check_matmul(dtype, q, 128, 256, 8, Values::Normal, false);
        check_swiglu(dtype, q, 768, 2048, 1, 8, 1, Values::Normal, false);
        check_swiglu(dtype, q, 128, 1408, 3, 2, 1, Values::Normal, true);
        check_swiglu(dtype, q, 128, 128, 2, 1, 3, Values::Normal, false);
        check_swiglu(dtype, q, 384, 896, 3, 2, 5, Values::Normal, true);
        check_swiglu(dtype, q, 768, 2048, 32, 8, 1, Values::Normal, false);
        check_combine(dtype, mx::float32, q, 256, 896, 2, 3, Values::Normal, true);
        check_combine(dtype, mx::float32, q, 256, 896, 2, 4, Values::Sprinkled, true);
        check_combine(dtype, dtype, q, 2048, 768, 1, 8, Values::Normal, false);
        check_combine(dtype, dtype, q, 2048, 768, 32, 8, Values::Normal, false);
        check_combine(dtype, dtype, q, 128, 1408, 9, 1, Values::Normal, false);
        check_combine(dtype, dtype, q, 128, 384, 2, 20, Values::Normal, false);
        // which stock multiplies by `qmm_naive` for any number of bits
        for (int tokens : {1, 12}) {
          check_swiglu(dtype, q, 48, 256, tokens, 8, 1, Values::Normal, false);
          check_swiglu(dtype, q, 80, 1152, tokens, 8, 1, Values::Sprinkled, false);
          check_combine(dtype, dtype, q, 48, 256, tokens, 8, Values::Normal, false);
          check_combine(dtype, mx::float32, q, 208, 640, tokens, 10, Values::Sprinkled, false);
        }
        check_matmul(dtype, q, 36, 2816, 1, Values::Sprinkled, false);
        check_matmul(dtype, q, 5, 256, 2, Values::Normal, false);
      }
    }
  }
}

void mxfp4() {
  for (auto dtype : {mx::bfloat16, mx::float16}) {
    for (auto v : {Values::Normal, Values::Large, Values::Sprinkled}) {
      for (bool more : {false, true}) {
        check_swiglu_mxfp4(dtype, 128, 256, 1, 4, more, v);
        check_swiglu_mxfp4(dtype, 100, 64, 3, 2, more, v);
        check_swiglu_mxfp4(dtype, 192, 1088, 7, 1, more, v);
        check_combine_mxfp4(dtype, dtype, 128, 256, 1, 4, more, v);
        check_combine_mxfp4(dtype, mx::float32, 100, 64, 3, 2, more, v);
        check_combine_mxfp4(dtype, dtype, 192, 1088, 7, 1, more, v);
        check_linear(dtype, std::nullopt, 128, 256, 1, more, v);
        check_linear(dtype, std::nullopt, 100, 64, 3, more, v);
        check_linear(dtype, std::nullopt, 5000, 576, 7, more, v);
        check_linear(dtype, Quantized{4, 64}, 256, 768, 3, more, v);
        check_linear(dtype, Quantized{8, 64}, 512, 2880, 1, more, v);
        check_linear(dtype, Quantized{4, 64}, 2880, 4096, 1, more, v);
        check_linear(dtype, Quantized{8, 32}, 36, 2880, 1, more, v);
        check_linear(dtype, Quantized{4, 32}, 5, 128, 2, more, v);
      }
    }
    // lines enough to be grouped, by an odd number of steps too
    for (auto v : {Values::Normal, Values::Large, Values::Sprinkled}) {
      for (bool more : {false, true}) {
        check_swiglu_mxfp4(dtype, 128, 320, 16, 4, more, v);
        check_swiglu_mxfp4(dtype, 104, 64, 100, 2, more, v);
        check_swiglu_mxfp4(dtype, 192, 1088, 130, 1, more, v);
        check_combine_mxfp4(dtype, dtype, 128, 320, 16, 4, more, v);
        check_combine_mxfp4(dtype, mx::float32, 104, 64, 100, 2, more, v);
        check_combine_mxfp4(dtype, dtype, 192, 4096, 130, 1, more, v);
        for (int rows : {8, 33, 200}) {
          check_linear(dtype, std::nullopt, 128, 256, rows, more, v);
          check_linear(dtype, std::nullopt, 72, 192, rows, more, v);
        }
      }
    }
    check_swiglu_mxfp4(dtype, 2880, 2880, 128, 4, true, Values::Normal);
    check_combine_mxfp4(dtype, dtype, 2880, 2880, 128, 4, true, Values::Normal);
    check_linear(dtype, std::nullopt, 4096, 2880, 64, true, Values::Normal);
    // which stock computes
    check_swiglu_mxfp4(dtype, 128, 320, 2, 4, true, Values::Normal);
    check_combine_mxfp4(dtype, dtype, 128, 320, 2, 4, true, Values::Normal);
    check_linear(dtype, std::nullopt, 128, 256, 8, true, Values::Normal);
    check_swiglu_mxfp4(dtype, 2880, 2880, 1, 4, true, Values::Normal);
    check_combine_mxfp4(dtype, dtype, 2880, 2880, 1, 4, true, Values::Normal);
    check_linear(dtype, std::nullopt, 4096, 2880, 1, true, Values::Normal);
    check_linear(dtype, std::nullopt, 2880, 4096, 1, true, Values::Normal);
    check_linear(dtype, std::nullopt, 32, 2880, 1, true, Values::Normal);
    check_linear(dtype, std::nullopt, 20000, 2880, 1, false, Values::Normal);
  }
}

void routers() {
  for (auto dtype : {mx::bfloat16, mx::float16, mx::float32}) {
    int reads = 16 / mx::size_of(dtype);
    for (int experts : {8, 60, 64, 128, 256}) {
      for (int top_k : {1, 2, 4, 6, 8, 16}) {
        if (experts > 32 * reads || top_k > std::min(experts, 2 * reads)) {
          continue;
        }
        for (int tokens : {1, 5, 33}) {
          for (bool normalize : {false, true}) {
            check_router(dtype, experts, top_k, tokens, normalize, Values::Normal, 1);
            // many equal scores
            check_router(dtype, experts, top_k, tokens, normalize, Values::Normal, 1e-3);
            check_router(dtype, experts, top_k, tokens, normalize, Values::Large, 1);
          }
        }
        check_router(dtype, experts, top_k, 64, true, Values::Sprinkled, 1);
      }
    }
    check_router(dtype, 128, 8, 1100, true, Values::Normal, 1);
    for (int experts : {8, 32, 60, 128}) {
      for (int top_k : {1, 4, 8}) {
        for (int tokens : {1, 33}) {
          check_router_of_top_k(dtype, experts, top_k, tokens, Values::Normal, 1);
          check_router_of_top_k(dtype, experts, top_k, tokens, Values::Normal, 1e-2);
          check_router_of_top_k(dtype, experts, top_k, tokens, Values::Large, 1);
          check_router_of_top_k(dtype, experts, top_k, tokens, Values::Sprinkled, 1);
        }
      }
    }
  }
}

void rows() {
  for (auto dtype : {mx::bfloat16, mx::float16, mx::float32}) {
    for (int size : {8, 30, 64, 100, 128, 512, 520, 1024, 1536, 2048, 2880, 3072, 4096}) {
      for (auto v : {Values::Normal, Values::Large, Values::Sprinkled}) {
        check_add_rms_norm(dtype, 1, size, v, false);
        check_add_rms_norm(dtype, 37, size, v, size % 64 == 0);
      }
    }
    for (int dim : {64, 80, 96, 128, 256}) {
      if (dim > 32 * 16 / mx::size_of(dtype)) {
        continue;
      }
      for (int tokens : {1, 7}) {
        for (int batch : {1, 2}) {
          for (bool traditional : {false, true}) {
            for (bool freqs : {false, true}) {
              for (int offset : {0, 63, 4095}) {
                check_qk_norm_rope(dtype, {dim, dim, traditional, freqs, true}, batch, tokens, 4, offset, Values::Normal);
              }
              check_qk_norm_rope(dtype, {dim, dim / 2, traditional, freqs, true}, batch, tokens, 3, 100, Values::Large);
              check_qk_norm_rope(dtype, {dim, dim, traditional, freqs, false}, batch, tokens, 5, 9, Values::Sprinkled);
              check_qk_norm_rope(dtype, {dim, dim, traditional, freqs, false, 1.3465736f}, batch, tokens, 5, 9, Values::Normal);
              check_qk_norm_rope(dtype, {dim, dim / 2, traditional, freqs, true, 0.7f}, batch, tokens, 5, 77, Values::Sprinkled);
            }
          }
        }
      }
    }
  }
}

void recorded() {
  for (auto dtype : {mx::bfloat16, mx::float16, mx::float32}) {
    for (int dim : {64, 96, 128}) {
      for (int length : {1, 2, 31, 32, 33, 64, 127, 128, 129, 200, 255, 256, 700, 1024, 1025, 1281, 1499}) {
        check_recorded(dtype, dim, 8, 2, length, length % 2, length % 4, Values::Normal);
      }
      check_recorded(dtype, dim, 32, 4, 77, false, 2, Values::Large);
      check_recorded(dtype, dim, 6, 6, 130, true, 1, Values::Sprinkled);
      check_recorded(dtype, dim, 32, 4, 1300, true, 2, Values::Large);
      // longer than what a warp has on its way, and heads that do not fill a warp
      check_recorded(dtype, dim, 32, 4, 9001, false, 2, Values::Normal);
      check_recorded(dtype, dim, 32, 4, 4700, true, 3, Values::Sprinkled);
      for (int group : {1, 3, 5, 9, 16}) {
        for (int length : {90, 513, 1024, 2100, 4360}) {
          check_recorded(dtype, dim, 2 * group, 2, length, group == 5, group % 4, Values::Normal);
        }
      }
      // a window that is not full, as it fills, and that starts over
      for (int at : {0, 63, 64, 126, 127, 128, 129, 200, 383, 384}) {
        check_window(dtype, dim, 128, at, 0, 0, at % 2, Values::Normal);
      }
      check_window(dtype, dim, 128, 500, 0, -372, true, Values::Normal);
      check_window(dtype, dim, 128, 501, 0, -372, false, Values::Sprinkled);
      check_window(dtype, dim, 100, 777, 4, 9, true, Values::Large);
      check_window(dtype, dim, 1100, 3000, 4, 0, true, Values::Normal);
    }
  }
}

// Empty where a kernel runs as for Qwen3-30B-A3B.
std::string reason_against() {
  if (!mx::gpu::is_available()) {
    return "there is no GPU";
  }
  const zmlx::Parameter asked[] = {{"dims", 2048}, {"weight", std::string_view("bfloat16")}};
  return zmlx::supports("add_rms_norm", {mx::Device::gpu, mx::bfloat16, zmlx::Precision::Exact, asked}).reason;
}

} // namespace

int main(int argc, char** argv) {
  std::string part;
  int group = 0, bits = 0;
  read_options(argc, argv, [&](auto& option, auto value) {
    if (option == "--part") {
      part = value;
    } else if (option == "--group") {
      group = std::atoi(value);
    } else if (option == "--bits") {
      bits = std::atoi(value);
    }
    return 1;
  });
  if (auto reason = reason_against(); !reason.empty()) {
    std::printf("SKIPPED: %s\n", reason.c_str());
    return 0;
  }
  mx::set_default_device(mx::Device::gpu);
  products(part, group, bits);
  if (part.empty() || part == "mlps") {
    mlps(group);
  }
  if (part.empty() || part.rfind("grouped", 0) == 0) {
    grouped(part, group, bits);
  }
  if (part.empty() || part == "mxfp4") {
    mxfp4();
  }
  if (part.empty() || part == "routers") {
    routers();
    sigmoid_routers();
  }
  if (part.empty() || part == "rows") {
    rows();
  }
  if (part.empty() || part == "recorded") {
    recorded();
  }
  if (part.empty() || part == "latents") {
    latents();
  }
  if (part.empty() || part == "tokens") {
    tokens();
  }
  if (part.empty() || part == "joined") {
    joined();
  }
  if (part.empty() || part == "fast") {
    fast(group);
  }
  if (unstable) {
    std::printf("stock disagrees with itself in %d cases\n", unstable);
  }
  // MLX lets go of its graphs when the driver is gone already, and aborts
  int outcome = finish();
  std::fflush(nullptr);
  std::_Exit(outcome);
}
