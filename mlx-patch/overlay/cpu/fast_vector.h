// Fast products of one row of x (decode) in portable vectors, f32 accumulation, order free: transposed weights of 2, 4
// or 8 bits. Included after qmm_vector.h by units that also define
//   widen_f16(const uint16_t*) -> Vec            f16 to f32
//   widen_low(Words), widen_high(Words) -> Vec   the lower and upper halves of a vector of f16 to f32
//   lookup(table, i) -> Bytes                    in every 16 bytes, table[i]; i < 16
//   interleave_low(a, b), interleave_high(a, b)  in every 16 bytes, a and b byte by byte: their lower or upper halves
//   fold(Vec) -> Quad                            lanes i, i + 4, .. added
//   transpose(Quad (&)[4])
//
// Idea:    a lane is a slice of K. Integer fields are masked where they lie and converted: field f of 16 bits comes out
//          2^(bits * f) times too large, which x makes up for. Floats of 4 bits are exact in bf16, whose two bytes are
//          lookups in tables of 16 bytes; interleaved, 32 bits hold two of them, a shift and a mask away from f32. Those
//          of 8 bits become f16, 2^8 times too small. The group's scale multiplies its partial sum, its bias the sum
//          of its x.
// Layout:  weights are read one row after the other, in order of addresses, and prefetched. x is reordered once to the
//          order in which fields come out: neighbours are 4 lanes of some vectors.
// Bound:   memory: bits / 8 + 2 * sizeof(T) / group_size bytes a weight; in cache about 3 operations per vector of
//          integers, 3.5 of floats.
// Limits:  one row of x, transposed weights, bits 2, 4 and 8; vector_fast sends all else to qmm_vector.h. |x| below
//          2^-112 may lose bits, above 2^119 overflows with mxfp8.

#pragma once

#include <cstring>
#include <type_traits>

#include "cpu/qmm_vector.h"

namespace zmlx::cpu {

namespace {

typedef uint8_t Bytes __attribute__((vector_size(4 * ZMLX_LANES)));
typedef uint16_t Halves __attribute__((vector_size(2 * ZMLX_LANES)));
typedef uint16_t Words __attribute__((vector_size(4 * ZMLX_LANES)));
typedef int16_t WordsI __attribute__((vector_size(4 * ZMLX_LANES)));
typedef float Quad __attribute__((vector_size(16)));

Vec widen_f16(const uint16_t* p);
Vec widen_low(Words v);
Vec widen_high(Words v);
Bytes lookup(Bytes table, Bytes i);
Bytes interleave_low(Bytes a, Bytes b);
Bytes interleave_high(Bytes a, Bytes b);
Quad fold(Vec v);
void transpose(Quad (&r)[4]);

constexpr int kQuads = ZMLX_LANES / 4; // 16 bytes each
constexpr int kAhead = 4096; // bytes from a weight that is read to the one prefetched
constexpr int kTogether = 4; // rows reduced together

// ZMLX_LANES values to f32; `p` is readable for all of them.
template <DType D>
ZMLX_INLINE_V Vec widen(const void* p, int64_t i) {
  if constexpr (D == DType::F32) {
    Vec v;
    std::memcpy(&v, static_cast<const float*>(p) + i, sizeof(v));
    return v;
  } else if constexpr (D == DType::F16) {
    return widen_f16(static_cast<const uint16_t*>(p) + i);
  } else {
    Halves h;
    std::memcpy(&h, static_cast<const uint16_t*>(p) + i, sizeof(h));
    return (Vec)(__builtin_convertvector(h, VecU) << 16);
  }
}

// `count` values to f32.
template <DType D>
ZMLX_INLINE_V void widen_all(const void* from, int64_t first, int64_t count, float* to) {
  if (count < ZMLX_LANES) {
    for (int64_t i = 0; i < count; i++) {
      to[i] = value_at<D>(from, first + i);
    }
    return;
  }
  for (int64_t i = 0;; i += ZMLX_LANES) {
    i = i + ZMLX_LANES < count ? i : count - ZMLX_LANES;
    Vec v = widen<D>(from, first + i);
    std::memcpy(to + i, &v, sizeof(v));
    if (i + ZMLX_LANES == count) {
      break;
    }
  }
}

// 4 * fields neighbours to `fields` quads, ZMLX_LANES apart.
template <int fields>
ZMLX_INLINE_V void reorder_run(const float* x, float* to) {
#pragma GCC unroll 4
  for (int f = 0; f < fields; f += 4) {
    Quad r[4];
    for (int d = 0; d < 4; d++) {
      r[d] = *reinterpret_cast<const Quad*>(x + d * fields + f);
    }
    transpose(r);
    for (int i = 0; i < 4; i++) {
      *reinterpret_cast<Quad*>(to + (f + i) * ZMLX_LANES) = r[i];
    }
  }
}

// How a vector of packed dwords, a block, meets x.
//   weights        of a block
//   halves         2: part[0] gets the products of the first 8 of every 16 bytes, part[1] the others'; 1: no such order
//   reorder        brings a block's x to the order in which multiply_add reads it

template <int bits>
struct Integers {
  static constexpr int weights = 32 * ZMLX_LANES / bits;
  static constexpr int halves = 1;
  static constexpr int fields = 32 / bits;

  static void reorder(const float* x, float* to) {
    for (int q = 0; q < kQuads; q++) {
      reorder_run<fields>(x + q * 4 * fields, to + 4 * q);
    }
    for (int f = 0; f < fields; f++) {
      store(to + f * ZMLX_LANES, load(to + f * ZMLX_LANES) * (1.0f / (1 << bits * f % 16)));
    }
  }

  ZMLX_INLINE_V void multiply_add(VecU v, const float* x, Vec (&part)[2]) const {
    const VecU upper = v >> 16;
#pragma GCC unroll 8
    for (int f = 0; f < fields / 2; f++) {
      const uint32_t mask = ((1u << bits) - 1) << bits * f;
      const float* xf = x + f * ZMLX_LANES;
      part[0] = fused(load(xf), __builtin_convertvector((VecI)(v & mask), Vec), part[0]);
      part[1] = fused(
          load(xf + fields / 2 * ZMLX_LANES), __builtin_convertvector((VecI)(upper & mask), Vec), part[1]);
    }
  }
};

struct Floats4 {
  static constexpr int weights = 8 * ZMLX_LANES;
  static constexpr int halves = 2;
  Bytes high, low; // of the bf16

  struct Tables {
    alignas(64) uint8_t high[4 * ZMLX_LANES], low[4 * ZMLX_LANES];
  };

  static constexpr Tables tables() {
    constexpr uint16_t bf16[8] = {0, 0x3f00, 0x3f80, 0x3fc0, 0x4000, 0x4040, 0x4080, 0x40c0};
    Tables t{};
    for (int i = 0; i < 4 * ZMLX_LANES; i++) {
      t.high[i] = bf16[i % 8] >> 8 | (i & 8) << 4;
      t.low[i] = bf16[i % 8] & 0xff;
    }
    return t;
  }

  ZMLX_INLINE_V Floats4() {
    static constexpr Tables t = tables();
    std::memcpy(&high, t.high, sizeof(high));
    std::memcpy(&low, t.low, sizeof(low));
  }

  static void reorder(const float* x, float* to) {
    for (int q = 0; q < kQuads; q++) {
      for (int h = 0; h < 2; h++) {
        reorder_run<4>(x + (2 * q + h) * 16, to + h * 4 * ZMLX_LANES + 4 * q);
      }
    }
  }

  ZMLX_INLINE_V void multiply_add(VecU v, const float* x, Vec (&part)[2]) const {
    const Bytes nibbles[2] = {(Bytes)(v & 0x0f0f0f0f), (Bytes)((v >> 4) & 0x0f0f0f0f)};
#pragma GCC unroll 2
    for (int f = 0; f < 2; f++) {
      const Bytes l = lookup(low, nibbles[f]);
      const Bytes h = lookup(high, nibbles[f]);
      const VecU pairs[2] = {(VecU)interleave_low(l, h), (VecU)interleave_high(l, h)};
#pragma GCC unroll 2
      for (int i = 0; i < 2; i++) { // bytes 0, 2, .. of a half, then 1, 3, ..
        const float* xi = x + (4 * i + f) * ZMLX_LANES;
        part[i] = fused(load(xi), (Vec)(pairs[i] << 16), part[i]);
        part[i] = fused(load(xi + 2 * ZMLX_LANES), (Vec)(pairs[i] & 0xffff0000), part[i]);
      }
    }
  }
};

struct Floats8 {
  static constexpr int weights = 4 * ZMLX_LANES;
  static constexpr int halves = 1;

  static void reorder(const float* x, float* to) {
    for (int h = 0; h < 2; h++) {
      for (int d = 0; d < ZMLX_LANES; d++) {
        to[h * ZMLX_LANES + d] = x[2 * (h * ZMLX_LANES + d)] * 256;
        to[(2 + h) * ZMLX_LANES + d] = x[2 * (h * ZMLX_LANES + d) + 1] * 256;
      }
    }
  }

  ZMLX_INLINE_V void multiply_add(VecU v, const float* x, Vec (&part)[2]) const {
    const Words bytes[2] = {(Words)v << 8, (Words)v}; // even ones, odd ones
#pragma GCC unroll 2
    for (int i = 0; i < 2; i++) {
      const Words f16 = (Words)((WordsI)bytes[i] >> 1) & 0xbf80;
      part[0] = fused(load(x + 2 * i * ZMLX_LANES), widen_low(f16), part[0]);
      part[1] = fused(load(x + (2 * i + 1) * ZMLX_LANES), widen_high(f16), part[1]);
    }
  }
};

template <Mode mode, int bits>
using Block = std::
    conditional_t<mode == Mode::Affine, Integers<bits>, std::conditional_t<bits == 4, Floats4, Floats8>>;

// A scale for every `lanes` lanes: s[0], s[step], ..
template <int lanes, int step>
ZMLX_INLINE_V Vec lane_scales(const float* s) {
  Vec v = splat(s[0]);
#pragma GCC unroll 4
  for (int i = lanes; i < ZMLX_LANES; i += lanes) {
    VecI before = {};
    for (int d = 0; d < i; d++) {
      before[d] = -1;
    }
    v = before ? v : splat(s[i / lanes * step]);
  }
  return v;
}

// One row of w: lanes that add up to the product, biases left out.
template <typename B, int group>
Vec row_sum(const uint8_t* w, int64_t K, const float* x, const float* scales) {
  const B block;
  constexpr int bytes = sizeof(VecU);
  constexpr int weights = B::weights;
  constexpr int per_quad = weights / kQuads;
  Vec sum = {};
  if constexpr (group >= weights) {
    for (int64_t g = 0; g < K / group; g++) {
      Vec part[2] = {};
#pragma GCC unroll 8
      for (int b = 0; b < group / weights; b++) {
        VecU v;
        std::memcpy(&v, w, bytes);
        __builtin_prefetch(w + kAhead, 0, 0);
        block.multiply_add(v, x, part);
        w += bytes;
        x += weights;
      }
      sum = fused(splat(scales[g]), part[0] + part[1], sum);
    }
  } else {
    for (int64_t k = 0; k < K; k += weights) {
      VecU v = {};
      if (K - k >= weights) {
        std::memcpy(&v, w, bytes);
      } else {
        std::memcpy(&v, w, bytes * (K - k) / weights);
      }
      __builtin_prefetch(w + kAhead, 0, 0);
      Vec part[2] = {};
      block.multiply_add(v, x, part);
      if constexpr (B::halves == 2 && group < per_quad) {
        sum = fused(lane_scales<4, 2>(scales), part[0], sum);
        sum = fused(lane_scales<4, 2>(scales + 1), part[1], sum);
      } else {
        sum = fused(lane_scales<4 * group / per_quad, 1>(scales), part[0] + part[1], sum);
      }
      w += bytes;
      x += weights;
      scales += weights / group;
    }
  }
  return sum;
}

// What depends on bits and group, and not on the dtype.
struct RowProduct {
  int weights; // of a block
  void (*reorder)(const float* x, float* to);
  Vec (*sum)(const uint8_t* w, int64_t K, const float* x, const float* scales);
};

template <Mode mode, int bits, int group>
constexpr RowProduct kRowProduct = {
    Block<mode, bits>::weights, Block<mode, bits>::reorder, row_sum<Block<mode, bits>, group>};

inline int64_t rounded_up(int64_t n, int64_t to) {
  return (n + to - 1) / to * to;
}

template <DType D, bool affine>
void fast_row(
    const RowProduct& product,
    const QuantView& q,
    int64_t n0,
    int64_t n1,
    const void* x_row,
    void* y) {
  const int group = q.group_size;
  const int64_t K = rounded_up(q.K, product.weights);
  const int64_t groups = q.K / group;
  const int64_t padded = rounded_up(groups, 16) + 16; // a vector of scales past the last, and aligned
  auto x = static_cast<float*>(kernel_scratch((2 * K + 3 * padded) * 4));
  float* x_in_order = x + K;
  float* x_sums = x_in_order + K;
  float* scales = x_sums + padded;
  float* biases = scales + padded;
  for (int64_t i = 0; i < 3 * padded; i++) {
    x_sums[i] = 0;
  }
  for (int64_t k = q.K; k < K; k++) {
    x_in_order[k] = 0;
  }
  widen_all<D>(x_row, 0, q.K, x_in_order);
  if constexpr (affine) {
    for (int64_t g = 0; g < groups; g++) {
      Vec sum = {};
      for (int k = 0; k < group; k += ZMLX_LANES) {
        sum += load(x_in_order + g * group + k);
      }
      Quad s = fold(sum);
      x_sums[g] = s[0] + s[1] + s[2] + s[3];
    }
  }
  for (int64_t k = 0; k < K; k += product.weights) {
    product.reorder(x_in_order + k, x + k);
  }

  const float* table = nullptr;
  if constexpr (!affine) {
    const auto& tables = float_tables();
    table = q.mode == Mode::Nvfp4 ? tables.fp8 : D == DType::F16 ? tables.e8m0_f16 : tables.e8m0;
  }
  for (int64_t n = n0; n < n1; n += kTogether) {
    const int rows = n1 - n < kTogether ? n1 - n : kTogether;
    Quad sums[kTogether] = {};
    for (int r = 0; r < rows; r++) {
      Vec bias = {};
      const uint8_t* scale_row = q.scales + (n + r) * q.scale_stride;
      if constexpr (affine) {
        widen_all<D>(scale_row, 0, groups, scales);
        widen_all<D>(q.biases + (n + r) * q.bias_stride, 0, groups, biases);
        for (int64_t g = 0; g < groups; g += ZMLX_LANES) {
          bias = fused(load(biases + g), load(x_sums + g), bias);
        }
      } else {
        for (int64_t g = 0; g < groups; g++) {
          scales[g] = table[scale_row[g]];
        }
      }
      sums[r] = fold(bias + product.sum(q.w + (n + r) * q.w_stride, q.K, x, scales));
    }
    transpose(sums);
    const Quad total = (sums[0] + sums[1]) + (sums[2] + sums[3]);
    for (int r = 0; r < rows; r++) {
      put<D>(y, n - n0 + r, total[r]);
    }
  }
}

template <int bits>
const RowProduct* affine_product(int group) {
  return group == 32 ? &kRowProduct<Mode::Affine, bits, 32>
      : group == 64  ? &kRowProduct<Mode::Affine, bits, 64>
      : group == 128 ? &kRowProduct<Mode::Affine, bits, 128>
                     : nullptr;
}

inline const RowProduct* pick_row_product(const QuantView& q) {
  switch (q.mode) {
    case Mode::Affine:
      return q.bits == 2 ? affine_product<2>(q.group_size)
          : q.bits == 4  ? affine_product<4>(q.group_size)
          : q.bits == 8  ? affine_product<8>(q.group_size)
                         : nullptr;
    case Mode::Mxfp4:
      return &kRowProduct<Mode::Mxfp4, 4, 32>;
    case Mode::Nvfp4:
      return &kRowProduct<Mode::Nvfp4, 4, 16>;
    case Mode::Mxfp8:
      return &kRowProduct<Mode::Mxfp8, 8, 32>;
  }
  return nullptr;
}

template <DType D>
void fast_row_of(const RowProduct& product, const QuantView& q, int64_t n0, int64_t n1, const void* x, void* y) {
  (q.mode == Mode::Affine ? fast_row<D, true> : fast_row<D, false>)(product, q, n0, n1, x, y);
}

void vector_fast(const QuantView& q, int64_t n0, int64_t n1, int m, const void* const* xs, void* const* ys) {
  const RowProduct* product = m == 1 && q.transpose ? pick_row_product(q) : nullptr;
  if (product) {
    auto row = q.dtype == DType::F32   ? fast_row_of<DType::F32>
        : q.dtype == DType::F16 ? fast_row_of<DType::F16>
                                : fast_row_of<DType::BF16>;
    return row(*product, q, n0, n1, xs[0], ys[0]);
  }
  vector_kernel<false>(q, n0, n1, m, xs, ys);
}

} // namespace

} // namespace zmlx::cpu
