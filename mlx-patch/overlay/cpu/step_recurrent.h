// Short convolutions and the delta rule over a vector type V: channels, or the values of a head, are the lanes.

#pragma once

#include "cpu/step_lanes.h"

namespace zmlx::cpu {
namespace {

// x * sigmoid(x), as mlx/backend/cpu/unary_ops.h has it: the exponential is rounded to the type, the sigmoid computed in
// float32 and rounded, the product rounded.
template <class T>
inline F silu_of(F x) {
  auto one = V::set(1.0f);
  auto y = V::div(one, V::add(one, T::round(exp_of(V::abs(x)))));
  auto sigmoid = V::select(V::lt(x, V::set(0.0f)), y, V::sub(one, y));
  return T::round(V::mul(x, T::round(sigmoid)));
}

// ---- short convolution

// kTaps: of the convolution; 0 for any number.
template <class T, bool kFused, int kTaps>
void short_conv_taps(const ShortConvTask& t) {
  const int64_t taps = kTaps ? kTaps : t.taps;
  const int64_t kept = taps - 1;
  for (int64_t j = 0; j < t.channels; j += W) {
    int64_t n = t.channels - j;
    auto at = [&](const uint8_t* rows, int64_t stride, int64_t row) {
      return load_some<T>(typed<T>(rows + row * stride) + j, n);
    };
    F weights[kTaps ? kTaps : kMaxTaps];
    F window[kTaps ? kTaps : kMaxTaps];
    for (int64_t k = 0; k < taps; k++) {
      weights[k] = at(t.weights, t.weight_stride, k);
    }
    for (int64_t k = 0; k < kept; k++) {
      window[k] = at(t.state, t.state_stride, k);
    }
    auto bias = t.bias ? load_some<T>(typed<T>(t.bias) + j, n) : V::set(0.0f);
    for (int64_t l = 0; l < t.length; l++) {
      auto x = at(t.x, t.x_stride, l);
      if (t.gate_in) {
        x = T::round(V::mul(at(t.gate_in, t.x_stride, l), x));
      }
      window[kept] = x;
      auto sum = V::set(0.0f);
      for (int64_t k = 0; k < taps; k++) {
        sum = kFused ? V::fma(window[k], weights[k], sum) : V::add(sum, V::mul(window[k], weights[k]));
      }
      for (int64_t k = 0; k < kept; k++) {
        window[k] = window[k + 1];
      }
      // a BLAS that fuses adds its sums to a zero: what vanished below it is not negative
      auto y = T::round(kFused ? V::add(sum, V::set(0.0f)) : sum);
      if (t.bias) {
        y = T::round(V::add(y, bias));
      }
      y = t.gate_out ? T::round(V::mul(at(t.gate_out, t.x_stride, l), y)) : silu_of<T>(y);
      store_some<T>(typed<T>(t.y + l * t.y_stride) + j, y, n);
    }
    for (int64_t k = 0; k < kept; k++) {
      store_some<T>(typed<T>(t.new_state + k * t.new_state_stride) + j, window[k], n);
    }
  }
}

template <class T, bool kFused>
void short_conv_t(const ShortConvTask& t) {
  switch (t.taps) {
    case 3: // LFM2
      return short_conv_taps<T, kFused, 3>(t);
    case 4: // Gated DeltaNet
      return short_conv_taps<T, kFused, 4>(t);
    default:
      return short_conv_taps<T, kFused, 0>(t);
  }
}

// ---- gated delta rule

// Vectors of values that share a pass over the keys: enough sums side by side to hide the latency of one.
constexpr int kValueVectors = W == 16 ? 4 : W == 8 ? 4 : 16;
constexpr int64_t kValueBlock = kValueVectors * W;

// Values first .. first + n of a head, n at most kValueBlock. `from` and `to`, rows of at least kValueBlock values, may be
// the same. A sum over keys runs in their order.
template <class T>
inline void delta_tokens(
    const DeltaTask& t,
    int64_t first,
    int64_t n,
    const float* from,
    int64_t from_stride,
    float* to,
    int64_t to_stride) {
  constexpr int N = kValueVectors;
  for (int64_t l = 0; l < t.length; l++) {
    const float* q = t.q + l * t.key_dim;
    const float* k = t.k + l * t.key_dim;
    auto decay = V::set(t.decay[l]);
    F delta[N];
    for (auto& d : delta) {
      d = V::set(0.0f);
    }
    for (int64_t i = 0; i < t.key_dim; i++) {
      auto key = V::set(k[i]);
      const float* row = from + i * from_stride;
      for (int j = 0; j < N; j++) {
        delta[j] = V::add(delta[j], V::mul(V::mul(V::load(row + j * W), decay), key));
      }
    }
    auto beta = V::set(t.beta[l]);
    auto v = typed<T>(t.v + l * t.v_stride) + first;
    F sums[N];
    for (int j = 0; j < N; j++) {
      int64_t rest = n - j * W;
      auto value = rest > 0 ? load_some<T>(v + j * W, rest) : V::set(0.0f);
      delta[j] = V::mul(V::sub(value, delta[j]), beta);
      sums[j] = V::set(0.0f);
    }
    for (int64_t i = 0; i < t.key_dim; i++) {
      auto key = V::set(k[i]);
      auto query = V::set(q[i]);
      const float* row = from + i * from_stride;
      float* out = to + i * to_stride;
      for (int j = 0; j < N; j++) {
        auto s = V::add(V::mul(V::load(row + j * W), decay), V::mul(key, delta[j]));
        V::store(out + j * W, s);
        sums[j] = V::add(sums[j], V::mul(s, query));
      }
    }
    auto y = typed<T>(t.y + l * t.y_stride) + first;
    for (int j = 0; j < N; j++) {
      if (int64_t rest = n - j * W; rest > 0) {
        store_some<T>(y + j * W, sums[j], rest);
      }
    }
    from = to;
    from_stride = to_stride;
  }
}

template <class T>
void delta_rule_t(const DeltaTask& t) {
  for (int64_t first = 0; first < t.value_dim; first += kValueBlock) {
    int64_t n = t.value_dim - first;
    const float* from = t.memory + first;
    float* to = t.new_memory + first;
    if (t.length == 1 && n >= kValueBlock) {
      delta_tokens<T>(t, first, n, from, t.value_dim, to, t.value_dim);
      continue;
    }
    // Several tokens find the block in the first cache; one that is not full gets room for all of its lanes.
    n = n < kValueBlock ? n : kValueBlock;
    for (int64_t i = 0; i < t.key_dim; i++) {
      float* row = t.scratch + i * kValueBlock;
      __builtin_memset(row + n, 0, (kValueBlock - n) * sizeof(float));
      __builtin_memcpy(row, from + i * t.value_dim, n * sizeof(float));
    }
    delta_tokens<T>(t, first, n, t.scratch, kValueBlock, t.scratch, kValueBlock);
    for (int64_t i = 0; i < t.key_dim; i++) {
      __builtin_memcpy(to + i * t.value_dim, t.scratch + i * kValueBlock, n * sizeof(float));
    }
  }
}

// ---- what is around it

template <class T>
void scaled_row_t(const uint8_t* x_, float scale, float factor, float* y, int64_t n) {
  auto x = typed<T>(x_);
  auto s = V::set(scale);
  auto f = V::set(factor);
  for (int64_t j = 0; j < n; j += W) {
    auto normed = T::round(V::mul(load_some<T>(x + j, n - j), s));
    store_some<TypeF32>(y + j, T::round(V::mul(f, normed)), n - j);
  }
}

template <class T>
void gate_row_t(const uint8_t* gate_, const uint8_t* x_, uint8_t* y_, int64_t n) {
  auto gate = typed<T>(gate_);
  auto x = typed<T>(x_);
  auto y = typed<T>(y_);
  for (int64_t j = 0; j < n; j += W) {
    auto silu = silu_of<TypeF32>(load_some<T>(gate + j, n - j));
    store_some<T>(y + j, V::mul(silu, load_some<T>(x + j, n - j)), n - j);
  }
}

} // namespace
} // namespace zmlx::cpu
