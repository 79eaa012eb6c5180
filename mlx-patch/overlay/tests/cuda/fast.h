// `fast` precision against float64: no further from it than stock's own result is, the same bits every time, and what is no
// finite number stays none.

#pragma once

#include "tests/cuda/compare.h"

namespace zmlx::tests {

using Doubles = std::vector<double>;

inline Doubles doubles(const array& a) {
  auto wide = mx::contiguous(mx::astype(a, mx::float32));
  mx::eval(wide);
  return Doubles(wide.data<float>(), wide.data<float>() + wide.size());
}

// Weights [E, N, K] as numbers.
class Dequantized {
 public:
  Dequantized(const zmlx::QuantizedWeight& w, Quantized q, int N, int K) : q_(q), N_(N), K_(K) {
    auto codes = mx::contiguous(w.w);
    mx::eval(codes);
    codes_.assign(codes.data<uint32_t>(), codes.data<uint32_t>() + codes.size());
    scales_ = doubles(w.scales);
    biases_ = doubles(*w.biases);
  }

  // Row `row` of all by x.
  double product(int64_t row, const double* x) const {
    double sum = 0;
    for (int k = 0; k < K_; k++) {
      int in_word = 32 / q_.bits;
      uint32_t code = codes_[(row * K_ + k) / in_word] >> (k % in_word * q_.bits) & ((1u << q_.bits) - 1);
      int64_t group = row * (K_ / q_.group) + k / q_.group;
      sum += x[k] * (code * scales_[group] + biases_[group]);
    }
    return sum;
  }

  int rows() const {
    return N_;
  }

 private:
  Quantized q_;
  int N_, K_;
  std::vector<uint32_t> codes_;
  Doubles scales_, biases_;
};

// `make` has its graph anew on every call.
template <typename Make>
void check_fast(const std::string& what, Make make, const array& stock, const Doubles& reference, mx::Dtype dtype) {
  auto fast = make();
  mx::eval(fast);
  for (int again = 0; again < 3; again++) {
    same(what + " (again)", make(), fast);
  }
  cases++;
  compared += reference.size();
  auto y = doubles(fast), of_stock = doubles(stock);
  double error = 0, stocks = 0, norm = 0, most = dtype == mx::bfloat16 ? 3.3e38 : 65000;
  int lost = 0;
  for (size_t i = 0; i < reference.size(); i++) {
    if (std::isfinite(reference[i]) && std::abs(reference[i]) > most) {
      continue; // whether it is a number yet is a matter of roundings
    }
    bool is_number = std::isfinite(reference[i]);
    lost += is_number ? !std::isfinite(y[i]) && std::isfinite(of_stock[i]) : std::isfinite(y[i]);
    if (is_number && std::isfinite(y[i]) && std::isfinite(of_stock[i])) {
      error += std::pow(y[i] - reference[i], 2);
      stocks += std::pow(of_stock[i] - reference[i], 2);
      norm += std::pow(reference[i], 2);
    }
  }
  // where weights of stock are hardly rounded, both have the rounding of the result alone, and few of these are a matter of luck
  double one_rounding = (dtype == mx::bfloat16 ? 1.0 / 512 : 1.0 / 4096) * std::sqrt(norm);
  double luck = 1.02 + 1 / std::sqrt(static_cast<double>(reference.size()));
  bool far = std::sqrt(error) > std::max(luck * std::sqrt(stocks), 0.7 * one_rounding);
  if (far || lost) {
    failures++;
    std::printf("FAR %s: from float64 %.3e, stock %.3e, of %.3e; %d not finite where they should be, or finite\n", what.c_str(),
                std::sqrt(error), std::sqrt(stocks), std::sqrt(norm), lost);
  }
}

inline void check_fast_swiglu(mx::Dtype dtype, Quantized q, int N, int K, int tokens, int top_k, Values v) {
  constexpr int E = 5;
  auto gate = random_weight(dtype, q, E, N, K, Values::Normal), up = random_weight(dtype, q, E, N, K, Values::Normal);
  auto x = random_array({tokens, 1, 1, K}, dtype, v);
  auto experts = random_u32({tokens, top_k}, E);
  auto lhs = mx::astype(mx::broadcast_to(mx::reshape(mx::arange(tokens), {tokens, 1}), {tokens, top_k}), mx::uint32);
  auto project = [&](const zmlx::QuantizedWeight& w) {
    return mx::gather_qmm(x, w.w, w.scales, w.biases, lhs, experts, true, q.group, q.bits);
  };
  auto g = project(gate);
  auto stock = g * mx::sigmoid(g) * project(up);
  Dequantized of_gate(gate, q, N, K), of_up(up, q, N, K);
  auto xs = doubles(x);
  Doubles reference;
  for (int line = 0; line < tokens * top_k; line++) {
    int64_t expert = experts.data<uint32_t>()[line];
    for (int n = 0; n < N; n++) {
      auto* of_line = xs.data() + int64_t{line / top_k} * K;
      double a = of_gate.product(expert * N + n, of_line), b = of_up.product(expert * N + n, of_line);
      reference.push_back(a / (1 + std::exp(-a)) * b);
    }
  }
  auto make = [&] {
    return zmlx::gather_qmm_swiglu(
        x, {gate, up}, {}, lhs, experts, true, q.group, q.bits, "affine", false, zmlx::Precision::Fast);
  };
  check_fast(text("fast gather_qmm_swiglu ", dtype, " b", q.bits, " g", q.group, " N", N, " K", K, " tokens ", tokens, " top ",
                  top_k, " v", int(v)),
             make, stock, reference, dtype);
}

inline void check_fast_combine(
    mx::Dtype dtype, mx::Dtype score, Quantized q, int N, int K, int tokens, int top_k, Values v) {
  constexpr int E = 5;
  auto down = random_weight(dtype, q, E, N, K, Values::Normal);
  auto x = random_array({1, tokens, top_k, 1, K}, dtype, v);
  auto experts = random_u32({1, tokens, top_k}, E);
  auto scores = random_array({1, tokens, top_k}, score, Values::Normal, 0.3);
  auto y = mx::squeeze(gather_qmm(x, down, experts, q), -2);
  auto stock = mx::astype(mx::sum(y * mx::expand_dims(scores, -1), -2), dtype);
  Dequantized of_down(down, q, N, K);
  auto xs = doubles(x), of_scores = doubles(scores);
  Doubles reference;
  for (int token = 0; token < tokens; token++) {
    for (int n = 0; n < N; n++) {
      double sum = 0;
      for (int i = token * top_k; i < (token + 1) * top_k; i++) {
        sum += of_scores[i] * of_down.product(int64_t{experts.data<uint32_t>()[i]} * N + n, xs.data() + int64_t{i} * K);
      }
      reference.push_back(sum);
    }
  }
  auto make = [&] {
    return zmlx::gather_qmm_combine(
        x, down, std::nullopt, experts, scores, q.group, q.bits, "affine", zmlx::Precision::Fast);
  };
  check_fast(text("fast gather_qmm_combine ", dtype, " scores ", score, " b", q.bits, " g", q.group, " N", N, " K", K,
                  " tokens ", tokens, " top ", top_k, " v", int(v)),
             make, stock, reference, dtype);
}

inline zmlx::QuantizedWeight random_matrix(mx::Dtype dtype, Quantized q, int N, int K) {
  auto w = random_weight(dtype, q, 1, N, K, Values::Normal);
  for (auto* part : {&w.w, &w.scales, &*w.biases}) {
    *part = mx::squeeze(*part, 0);
  }
  return w;
}

inline void check_fast_matmul(mx::Dtype dtype, Quantized q, int N, int K, int rows, bool with_bias, Values v) {
  auto w = random_matrix(dtype, q, N, K);
  auto x = random_array({1, rows, K}, dtype, v), bias = random_array({N}, dtype);
  auto stock = mx::quantized_matmul(x, w.w, w.scales, w.biases, true, q.group, q.bits);
  stock = with_bias ? stock + bias : stock;
  Dequantized of_w(w, q, N, K);
  auto xs = doubles(x), of_bias = doubles(bias);
  Doubles reference;
  for (int row = 0; row < rows; row++) {
    for (int n = 0; n < N; n++) {
      reference.push_back(of_w.product(n, xs.data() + int64_t{row} * K) + (with_bias ? of_bias[n] : 0));
    }
  }
  auto fast = zmlx::Precision::Fast;
  auto make = [&] {
    return with_bias ? zmlx::quantized_linear(x, w, bias, q.group, q.bits, "affine", fast)
                     : zmlx::quantized_matmul(x, w, true, q.group, q.bits, "affine", fast);
  };
  check_fast(text("fast quantized_matmul ", dtype, " b", q.bits, " g", q.group, " N", N, " K", K, " rows ", rows,
                  with_bias ? " bias" : "", " v", int(v)),
             make, stock, reference, dtype);
}

inline void fast(int only) {
  for (auto dtype : {mx::bfloat16, mx::float16}) {
    for (int bits : {4, 8}) {
      for (int group : {32, 64, 128}) {
        if ((only && group != only) || (quick && group != 64)) {
          continue;
        }
        Quantized q = {bits, group};
        for (auto v : {Values::Normal, Values::Large, Values::Sprinkled}) {
          check_fast_swiglu(dtype, q, 128, 256, 1, 4, v);
          check_fast_swiglu(dtype, q, 384, 768, 1, 8, v);
          check_fast_combine(dtype, dtype, q, 128, 256, 1, 4, v);
          check_fast_combine(dtype, mx::float32, q, 256, 768, 2, 3, v);
          check_fast_matmul(dtype, q, 128, 256, 1, false, v);
          check_fast_matmul(dtype, q, 72, 512, 3, true, v);
        }
        check_fast_swiglu(dtype, q, 768, 2048, 1, 8, Values::Normal);
        check_fast_swiglu(dtype, q, 128, 1536, 3, 2, Values::Normal);
        check_fast_combine(dtype, dtype, q, 2048, 768, 1, 8, Values::Normal);
        check_fast_combine(dtype, dtype, q, 128, 1536, 5, 1, Values::Normal);
        check_fast_combine(dtype, dtype, q, 128, 1792, 1, 20, Values::Normal);
        check_fast_matmul(dtype, q, 4096, 2048, 1, false, Values::Normal);
        check_fast_matmul(dtype, q, 2048, 4096, 1, true, Values::Normal);
        check_fast_matmul(dtype, q, 20000, 512, 1, false, Values::Normal);
        check_fast_matmul(dtype, q, 5, 1024, 7, true, Values::Normal);
        // rows that are no whole pieces have the exact kernels
        check_fast_matmul(dtype, q, 128, 1408, 1, false, Values::Normal);
      }
    }
  }
}

} // namespace zmlx::tests
