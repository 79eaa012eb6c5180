// Bit for bit against stock MLX on the GPU, in one process: what the CUDA kernels compute, over types, quantizations,
// shapes on both sides of stock's choice of a kernel, layouts and extreme values. Stock itself is asked twice each time: a
// reference that disagrees with itself proves nothing.
//
//   product [--seed S] [--quick] [--part bf16|f16|grouped-bf16|grouped-f16|routers|rows|recorded] [--group 32|64|128] [--bits 4|8]
//
// MLX compiles its kernels when they are first used, for minutes in all; parts can run beside one another.
//
// Where there is no GPU that the kernels are for it says so, and compares nothing.

#include <sstream>

#include "mlx/backend/gpu/device_info.h"
#include "tests/arrays.h"

using namespace zmlx::tests;

namespace {

int unstable = 0;

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
array with_gaps(const array& a) {
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

zmlx::QuantizedWeight random_weight(mx::Dtype dtype, Quantized q, int E, int N, int K, Values v) {
  double scale = v == Values::Normal ? 0.02 : 1;
  auto w = random_u32({E, N, K * q.bits / 32});
  return {w, random_array({E, N, K / q.group}, dtype, v, scale), random_array({E, N, K / q.group}, dtype, v, scale * 4)};
}

array gather_qmm(const array& x, const zmlx::QuantizedWeight& w, const array& experts, Quantized q) {
  return mx::gather_qmm(x, w.w, w.scales, w.biases, std::nullopt, experts, true, q.group, q.bits);
}

void check_swiglu(mx::Dtype dtype, Quantized q, int N, int K, int tokens, int top_k, int rows, Values v, bool gaps) {
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
array routes(std::vector<int> lines_of, bool sorted) {
  std::vector<uint32_t> experts;
  for (size_t e = 0; e < lines_of.size(); e++) {
    experts.insert(experts.end(), lines_of[e], e);
  }
  auto all = array(experts.data(), {static_cast<int>(experts.size())}, mx::uint32);
  return sorted ? all : mx::take(all, mx::random::permutation(static_cast<int>(experts.size())), 0);
}

// Uneven experts, with none, one, and numbers around the sizes of tiles.
void check_routed(mx::Dtype dtype, Quantized q, int N, int K, std::vector<int> lines_of, int top_k, Values v, bool sorted) {
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

void check_combine(mx::Dtype dtype, mx::Dtype score, Quantized q, int N, int K, int tokens, int top_k, Values v, bool gaps) {
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

void check_matmul(mx::Dtype dtype, Quantized q, int N, int K, int rows, Values v, bool gaps, int batch = 1) {
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

// Over the first `length` keys of buffers whose room is no multiple of 256, for which stock asks cuDNN; with norm and rotation
// of q and k in stock's ops, or taken in.
void check_recorded(mx::Dtype dtype, int dim, int heads, int kv_heads, int length, bool with_sinks, int rope, Values v) {
  constexpr int room = 1500;
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
    y = mx::transpose(y, {0, 2, 1, 3});
    return rope ? mx::fast::rope(y, dim, false, 1e6f, 1.0f, at) : y;
  };
  auto our_heads = [&](const array& x, int n, const array& weight) {
    auto w = rope == 2 ? std::optional<array>(weight) : std::nullopt;
    return rope ? zmlx::qk_norm_rope(x, n, w, 1e-6f, {dim, false, 1e6f, 1.0f, std::nullopt}, at) : stock_heads(x, n, weight);
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
  zmlx::RopeParams rope = {p.dims, p.traditional, 1e6f, 1.0f, freqs};
  auto fused = zmlx::qk_norm_rope(x, heads, w, 1e-6f, rope, at);
  auto stock = [&] {
    auto y = mx::reshape(x, {batch, tokens, heads, p.head_dim});
    y = w ? mx::fast::rms_norm(y, *w, 1e-6f) : y;
    return mx::fast::rope(mx::transpose(y, {0, 2, 1, 3}), p.dims, p.traditional, base, 1.0f, at, freqs);
  };
  check(
      text("qk_norm_rope ", dtype, " [", batch, ", ", tokens, ", ", heads, " x ", p.head_dim, "] dims ", p.dims,
           p.traditional ? " traditional" : "", p.freqs ? " freqs" : "", p.norm ? "" : " no norm", " at ", offset, " v",
           int(v)),
      fused,
      stock);
}

void products(const std::string& part, int only) {
  for (auto dtype : {mx::bfloat16, mx::float16}) {
    if (!part.empty() && part != (dtype == mx::bfloat16 ? "bf16" : "f16")) {
      continue;
    }
    for (int bits : {4, 8}) {
      for (int group : {32, 64, 128}) {
        if ((only && group != only) || (quick && group != 64)) {
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
          check_matmul(dtype, q, 256, 768, 3, v, true);
          check_matmul(dtype, q, 512, 2048, 7, v, false);
        }
        check_matmul(dtype, q, 4096, 2048, 1, Values::Normal, false);
        check_matmul(dtype, q, 2048, 4096, 1, Values::Normal, false);
        check_matmul(dtype, q, 16384, 1408, 1, Values::Normal, false);
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
      }
    }
  }
}

// Lines enough for kernels that read weights once for many.
void grouped(const std::string& part, int only, int only_bits) {
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
        for (int K : {128, 256, 384, 1408, 4096}) {
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
        check_matmul(dtype, q, 4096, 2048, 512, Values::Normal, false);
        check_matmul(dtype, q, 256, 11008, 100, Values::Normal, true);
        check_matmul(dtype, q, 512, 2048, 5, Values::Normal, false, 3);
        check_matmul(dtype, q, 512, 2048, 100, Values::Normal, true, 2);
      }
    }
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
        check_recorded(dtype, dim, 8, 2, length, length % 2, length % 3, Values::Normal);
      }
      check_recorded(dtype, dim, 32, 4, 77, false, 2, Values::Large);
      check_recorded(dtype, dim, 6, 6, 130, true, 1, Values::Sprinkled);
      check_recorded(dtype, dim, 32, 4, 1300, true, 2, Values::Large);
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
  products(part, group);
  if (part.empty() || part.rfind("grouped", 0) == 0) {
    grouped(part, group, bits);
  }
  if (part.empty() || part == "routers") {
    routers();
  }
  if (part.empty() || part == "rows") {
    rows();
  }
  if (part.empty() || part == "recorded") {
    recorded();
  }
  if (unstable) {
    std::printf("stock disagrees with itself in %d cases\n", unstable);
  }
  // MLX lets go of its graphs when the driver is gone already, and aborts
  int outcome = finish();
  std::fflush(nullptr);
  std::_Exit(outcome);
}
