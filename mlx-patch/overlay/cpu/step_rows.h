// Norms, rotations and the greedy token over a vector type V: row by row.

#pragma once

#include "cpu/step_lanes.h"

namespace zmlx::cpu {
namespace {

// ---- rms norm

// Sums of squares of up to W rows, each in order: the rows are the lanes.
template <class T>
void sum_squares(const uint8_t* const* rows, int m, int64_t n, float* sums) {
  const typename T::S* r[W];
  for (int i = 0; i < W; i++) {
    r[i] = typed<T>(rows[i < m ? i : m - 1]);
  }
  auto acc = V::set(0.0f);
  for (int64_t j = 0; j < n; j += W) {
    int64_t count = n - j < W ? n - j : W;
    F tile[W];
    for (int i = 0; i < W; i++) {
      auto x = load_some<T>(r[i] + j, count);
      tile[i] = V::mul(x, x);
    }
    V::transpose(tile);
    if (count == W) {
      for (int i = 0; i < W; i++) {
        acc = V::add(acc, tile[i]);
      }
    } else {
      for (int i = 0; i < count; i++) {
        acc = V::add(acc, tile[i]);
      }
    }
  }
  V::store(sums, acc);
}

template <class T>
float sum_squares_row(const uint8_t* row, int64_t n) {
  auto x = typed<T>(row);
  float sum = 0;
  for (int64_t j = 0; j < n; j += W) {
    int64_t count = n - j < W ? n - j : W;
    float squares[W];
    auto v = load_some<T>(x + j, count);
    V::store(squares, V::mul(v, v));
    if (count == W) {
      for (int i = 0; i < W; i++) {
        sum += squares[i];
      }
    } else {
      for (int i = 0; i < count; i++) {
        sum += squares[i];
      }
    }
  }
  return sum;
}

template <class T>
void rms_scale_t(const uint8_t* const* rows, int m, int64_t n, float eps, float* scale) {
  alignas(64) float sums[W];
  if (m == 1) {
    sums[0] = sum_squares_row<T>(rows[0], n);
  } else {
    sum_squares<T>(rows, m, n, sums);
  }
  float inv_n = static_cast<float>(1.0 / static_cast<double>(n));
  for (int i = 0; i < m; i++) {
    scale[i] = 1.0f / __builtin_sqrtf(sums[i] * inv_n + eps);
  }
}

template <class T>
inline F normed(F x, F scale, F weight) {
  return T::round(V::mul(T::round(V::mul(x, scale)), weight));
}

template <class T>
void norm_row_t(const uint8_t* x_, const uint8_t* weight_, float scale, uint8_t* y_, int64_t n) {
  auto x = typed<T>(x_);
  auto weight = typed<T>(weight_);
  auto y = typed<T>(y_);
  auto s = V::set(scale);
  int64_t j = 0;
  for (; j + W <= n; j += W) {
    T::store(y + j, normed<T>(T::load(x + j), s, T::load(weight + j)));
  }
  if (j < n) {
    store_n<T>(y + j, normed<T>(load_n<T>(x + j, n - j), s, load_n<T>(weight + j, n - j)), n - j);
  }
}

template <class T>
void add_row_t(const uint8_t* a_, const uint8_t* b_, uint8_t* y_, int64_t n) {
  auto a = typed<T>(a_);
  auto b = typed<T>(b_);
  auto y = typed<T>(y_);
  int64_t j = 0;
  for (; j + W <= n; j += W) {
    T::store(y + j, V::add(T::load(a + j), T::load(b + j)));
  }
  if (j < n) {
    store_n<T>(y + j, V::add(load_n<T>(a + j, n - j), load_n<T>(b + j, n - j)), n - j);
  }
}

// ---- rope

void inverse_frequencies(float step, int64_t half, float* freqs) {
  for (int64_t i = 0; i < half; i += W) {
    float x[W];
    for (int j = 0; j < W; j++) {
      x[j] = static_cast<float>(-(i + j)) * step;
    }
    store_some<TypeF32>(freqs + i, exp_of(V::load(x)), half - i);
  }
}

template <class T>
void rope_table_t(float position, const float* inv_freqs, const RopeTable& table) {
  auto p = V::set(position);
  for (int64_t i = 0; i < table.half; i += W) {
    auto theta = V::mul(p, load_some<TypeF32>(inv_freqs + i, table.half - i));
    F s, c;
    if (V::any(V::gt(V::abs(theta), V::set(8388608.0f)))) {
      float t[W], ss[W], cc[W];
      V::store(t, theta);
      sincos_of(V::select(V::gt(V::abs(theta), V::set(8388608.0f)), V::set(0.0f), theta), s, c);
      V::store(ss, s);
      V::store(cc, c);
      for (int j = 0; j < W; j++) {
        if (__builtin_fabsf(t[j]) > 8388608.0f) {
          ss[j] = ::sinf(t[j]);
          cc[j] = ::cosf(t[j]);
        }
      }
      s = V::load(ss);
      c = V::load(cc);
    } else {
      sincos_of(theta, s, c);
    }
    V::store(table.sin + i, T::round(s));
    V::store(table.cos + i, T::round(c));
  }
}

template <class T>
void norm_rope_row_t(
    const uint8_t* x_,
    const uint8_t* weight_,
    float scale,
    float factor,
    const RopeTable& table,
    uint8_t* y_,
    int64_t dim,
    float* buffer) {
  auto x = typed<T>(x_);
  auto weight = typed<T>(weight_);
  auto y = typed<T>(y_);
  auto s = V::set(scale);
  int64_t half = table.half;
  for (int64_t j = 0; j < dim; j += W) {
    int64_t count = dim - j;
    auto v = load_some<T>(x + j, count);
    if (weight_) {
      v = normed<T>(v, s, load_some<T>(weight + j, count));
    }
    V::store(buffer + j, v);
  }
  if (factor != 1) {
    auto f = T::round(V::set(factor));
    for (int64_t j = 0; j < 2 * half; j += W) {
      auto v = T::round(V::mul(V::load(buffer + j), f));
      store_some<TypeF32>(buffer + j, v, 2 * half - j);
    }
  }
  const float* x1 = buffer;
  const float* x2 = buffer + half;
  if (table.traditional) {
    float* even = buffer + dim + kPad;
    float* odd = even + half + kMaxLanes;
    for (int64_t i = 0; i < half; i++) {
      even[i] = buffer[2 * i];
      odd[i] = buffer[2 * i + 1];
    }
    x1 = even;
    x2 = odd;
  }
  for (int64_t i = 0; i < half; i += W) {
    int64_t count = half - i;
    auto a = V::load(x1 + i);
    auto b = V::load(x2 + i);
    auto c = V::load(table.cos + i);
    auto d = V::load(table.sin + i);
    auto first = V::sub(T::round(V::mul(a, c)), T::round(V::mul(b, d)));
    auto second = V::add(T::round(V::mul(a, d)), T::round(V::mul(b, c)));
    if (!table.traditional) {
      store_some<T>(y + i, first, count);
      store_some<T>(y + half + i, second, count);
    } else {
      typename T::S lo[W], hi[W];
      T::store(lo, first);
      T::store(hi, second);
      for (int64_t j = 0; j < W && j < count; j++) {
        y[2 * (i + j)] = lo[j];
        y[2 * (i + j) + 1] = hi[j];
      }
    }
  }
  for (int64_t j = 2 * half; j < dim; j += W) {
    store_some<T>(y + j, V::load(buffer + j), dim - j);
  }
}

// ---- greedy token

template <class T>
float maximum_t(const uint8_t* x_, int64_t n) {
  auto x = typed<T>(x_);
  F best[4];
  for (auto& b : best) {
    b = V::set(-kInf);
  }
  auto nan = V::unordered(best[0]);
  int64_t j = 0;
  for (; j + 4 * W <= n; j += 4 * W) {
    for (int i = 0; i < 4; i++) {
      auto v = T::load(x + j + i * W);
      best[i] = V::max(v, best[i]);
      nan = V::either(nan, V::unordered(v));
    }
  }
  alignas(64) float tail[4 * W];
  int64_t rest = n - j;
  for (int64_t i = 0; i < rest; i += W) {
    V::store(tail + i, load_some<T>(x + j + i, rest - i));
  }
  best[0] = V::max(V::max(best[0], best[1]), V::max(best[2], best[3]));
  alignas(64) float lanes[W];
  V::store(lanes, best[0]);
  float m = maximum_of(tail, rest);
  float lane_max = maximum_of(lanes, W);
  return V::any(nan) || m != m ? kNaN : lane_max > m ? lane_max : m;
}

template <class T>
float exp_sum_in_order_t(const uint8_t* x_, int64_t n, float max) {
  auto x = typed<T>(x_);
  auto m = V::set(max);
  float sum = 0;
  int64_t j = 0;
  for (; j + W <= n; j += W) {
    alignas(64) float e[W];
    V::store(e, exp_of(V::sub(T::load(x + j), m)));
    for (int i = 0; i < W; i++) {
      sum += e[i];
    }
  }
  if (j < n) {
    alignas(64) float e[W];
    V::store(e, exp_of(V::sub(load_n<T>(x + j, n - j), m)));
    for (int i = 0; i < n - j; i++) {
      sum += e[i];
    }
  }
  return sum;
}

template <class T>
float exp_sum_t(const uint8_t* x_, int64_t n, float max) {
  auto x = typed<T>(x_);
  auto m = V::set(max);
  F sum[2] = {V::set(0.0f), V::set(0.0f)};
  int64_t j = 0;
  for (; j + 2 * W <= n; j += 2 * W) {
    sum[0] = V::add(sum[0], exp_of(V::sub(T::load(x + j), m)));
    sum[1] = V::add(sum[1], exp_of(V::sub(T::load(x + j + W), m)));
  }
  return sum_of(V::add(sum[0], sum[1])) + exp_sum_in_order_t<T>(x_ + j * sizeof(*x), n - j, max);
}

template <class T>
int64_t first_reaching_t(const uint8_t* x_, int64_t n, float c, float target) {
  auto x = typed<T>(x_);
  auto vc = V::set(c);
  auto vt = V::set(target);
  for (int64_t j = 0; j < n; j += W) {
    int64_t count = n - j;
    auto d = T::round(V::sub(load_some<T>(x + j, count), vc));
    if (V::any(V::ge(d, vt))) {
      alignas(64) float lanes[W];
      V::store(lanes, d);
      for (int i = 0; i < W && i < count; i++) {
        if (lanes[i] >= target) {
          return j + i;
        }
      }
    }
  }
  return n;
}

} // namespace
} // namespace zmlx::cpu
