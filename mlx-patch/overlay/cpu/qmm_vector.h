// Quantized products in portable vectors: the AVX2 and NEON kernels, and the AVX-512 ones for weights that are not
// transposed. Included by one translation unit per instruction set, which first defines
//   ZMLX_LANES                       floats in a vector
//   round_f16(Vec) -> Vec            to f16 and back
//   fused(a, b, c) -> Vec            a * b + c with one rounding
//   ZMLX_ONLY_PLAIN                  to leave out transposed weights
//
// Idea:    a lane is an output, as in exact_avx512.h; 32 outputs side by side, weights unpacked once into scratch for
//          all rows of x. bf16 rounds by integer arithmetic; fast is one fused multiply-add.
// Layout:  transposed weights: dwords are transposed by scalar copies ([dword][row]), then a field is a shift and a
//          mask away. Others: a row of w holds the outputs side by side already; fields are read one by one.
// Bound:   exact bf16: about 26 vector operations per weight vector, 12 for every further row of x.
// Limits:  none: every mode, bits, group size, both layouts, exact and fast. One row of x, fast: see fast_vector.h.

#pragma once

#include <cstdint>

#include "cpu/qmm.h"
#include "zmlx/mlx_version.h"

namespace zmlx::cpu {

namespace {

#define ZMLX_INLINE_V __attribute__((always_inline)) inline

typedef float Vec __attribute__((vector_size(4 * ZMLX_LANES)));
typedef int32_t VecI __attribute__((vector_size(4 * ZMLX_LANES)));

Vec round_f16(Vec v);
Vec fused(Vec a, Vec b, Vec c);
float f16_to_float(uint16_t bits);
uint16_t float_to_f16(float v);

constexpr int kWide = 32; // outputs side by side
constexpr int kVecs = kWide / ZMLX_LANES;
constexpr int kRowDwords = 8 + ZMLX_LANES; // 32 fields of up to 8 bits, and room to read a whole vector
constexpr int kDeep = 128; // weights of each output unpacked at once

ZMLX_INLINE_V Vec splat(float v) {
  return v - Vec{};
}

ZMLX_INLINE_V Vec load(const float* p) {
  return *reinterpret_cast<const Vec*>(p);
}
ZMLX_INLINE_V void store(float* p, Vec v) {
  *reinterpret_cast<Vec*>(p) = v;
}

// Rounds f32 lanes to D, or not at all.
template <DType D>
ZMLX_INLINE_V Vec round_to(Vec v) {
  if constexpr (D == DType::BF16) {
    VecI u = (VecI)v;
    u += 0x7fff + ((u >> 16) & 1);
    return (Vec)(u & (int32_t)0xffff0000);
  } else if constexpr (D == DType::F16) {
    return round_f16(v);
  } else {
    return v;
  }
}

template <DType D>
ZMLX_INLINE_V float value_at(const void* p, int64_t i) {
  if constexpr (D == DType::F32) {
    return static_cast<const float*>(p)[i];
  } else if constexpr (D == DType::F16) {
    return f16_to_float(static_cast<const uint16_t*>(p)[i]);
  } else {
    uint32_t bits = uint32_t(static_cast<const uint16_t*>(p)[i]) << 16;
    float f;
    __builtin_memcpy(&f, &bits, 4);
    return f;
  }
}

// Stores f32 as D, rounding, with stock's NaN.
template <DType D>
ZMLX_INLINE_V void put(void* p, int64_t i, float v) {
  if constexpr (D == DType::F32) {
    static_cast<float*>(p)[i] = v;
  } else if constexpr (D == DType::F16) {
    uint32_t u;
    __builtin_memcpy(&u, &v, 4);
    static_cast<uint16_t*>(p)[i] = v != v ? ((u >> 16) & 0x8000) | 0x7d00 : float_to_f16(v);
  } else {
    uint32_t u;
    __builtin_memcpy(&u, &v, 4);
    u += 0x7fff + ((u >> 16) & 1);
    static_cast<uint16_t*>(p)[i] = v != v ? 0x7fc0 : u >> 16;
  }
}

// The arithmetic of one dtype: `exact` rounds every operation to D, otherwise everything is f32.
template <DType D_, bool exact_>
struct Arithmetic {
  static constexpr DType D = D_;
  static constexpr bool exact = exact_;
  static constexpr DType R = exact_ ? D_ : DType::F32;
  using Math = Arithmetic<R, exact_>; // what is the same for several dtypes is compiled for one
};

struct alignas(64) VectorWorkspace {
  uint32_t packed[32 * kWide]; // [dword][row]
  float scales[kWide];
  float biases[kWide];
  float weights[kDeep * kWide]; // [k][row]
  uint32_t rows[kDeep * kRowDwords]; // [k][dword], for weights that are not transposed
  float column_scales[kDeep * kVecs]; // their scales in the float modes, [k][vector]
  float sums[kMaxRows * kWide];
};

typedef uint32_t VecU __attribute__((vector_size(4 * ZMLX_LANES)));

// The lanes of `v` that `index` names.
ZMLX_INLINE_V VecU lanes_at(VecU v, VecU index) {
#if defined(__clang__) // has no shuffle by a vector
  VecU r;
  for (int i = 0; i < ZMLX_LANES; i++) {
    r[i] = v[index[i] % ZMLX_LANES];
  }
  return r;
#else
  return __builtin_shuffle(v, index);
#endif
}

// Packed fields to f32.
template <Mode mode, int bits>
struct Fields {
  static ZMLX_INLINE_V Vec decode(VecU v) { // the field in the low bits, anything above
    v &= (1u << bits) - 1;
    if constexpr (mode == Mode::Affine) {
      return __builtin_convertvector((VecI)v, Vec);
    } else if constexpr (bits == 8) {
      Vec f = (Vec)((VecI)((v & 0x7f) << 20)) * 0x1p120f;
      if constexpr (linked::e4m3_has_nan) {
        f = (Vec)((VecU)f | ((VecU)((v & 0x7f) == 0x7f) & 0x7fc00000));
      }
      return (Vec)((VecU)f | ((v & 0x80) << 24));
    } else {
      // e2m1: 1, 1.5, 2, .. 6 are 1.m * 2^(e - 1); 0.5 is the one denormal.
      Vec f = (Vec)((VecI)((v & 7) << 22)) * 0x1p126f;
      return (Vec)((VecU)f | ((v & 8) << 28));
    }
  }

  // Field `i` of a unit of 32 weights for one vector of rows, [dword][row].
  template <int i>
  static ZMLX_INLINE_V Vec get(const uint32_t* t) {
    constexpr int d = i * bits / 32;
    constexpr int shift = i * bits % 32;
    VecU v = *reinterpret_cast<const VecU*>(t + d * kWide) >> shift;
    if constexpr (shift + bits > 32) {
      v |= *reinterpret_cast<const VecU*>(t + (d + 1) * kWide) << (32 - shift);
    }
    return decode(v);
  }

  // The vector of fields that starts at field `first` of a row; `row` is readable for a whole vector from there.
  template <int first>
  static ZMLX_INLINE_V Vec neighbours(const uint32_t* row) {
    constexpr int start = first * bits / 32;
    VecU lane;
    for (int i = 0; i < ZMLX_LANES; i++) {
      lane[i] = i;
    }
    VecU bit = lane * bits + (first * bits - start * 32);
    VecU words;
    __builtin_memcpy(&words, row + start, sizeof(words));
    VecU v = lanes_at(words, bit / 32) >> (bit % 32);
    if constexpr (32 % bits != 0) {
      v |= (lanes_at(words, bit / 32 + 1) << 1) << (31 - bit % 32);
    }
    return decode(v);
  }
};

template <DType R, Mode mode, int bits, int i>
ZMLX_INLINE_V void unpack_unit(const uint32_t* t, Vec scale, Vec bias, float* w) {
  if constexpr (i < 32) {
    Vec q = Fields<mode, bits>::template get<i>(t);
    if constexpr (mode == Mode::Affine) {
      q = round_to<R>(round_to<R>(scale * q) + bias);
    }
    store(w + i * kWide, q);
    unpack_unit<R, mode, bits, i + 1>(t, scale, bias, w);
  }
}

// Up to kDeep weights of kWide rows, from [dword][row] to [k][row].
using UnpackGroup = void (*)(const uint32_t* packed, int count, const float* scales, const float* biases, float* w);

template <DType R, Mode mode, int bits>
void unpack_group(const uint32_t* packed, int count, const float* scales, const float* biases, float* w) {
  for (int v = 0; v < kVecs; v++) {
    Vec scale = mode == Mode::Affine ? load(scales + v * ZMLX_LANES) : Vec{};
    Vec bias = mode == Mode::Affine ? load(biases + v * ZMLX_LANES) : Vec{};
    for (int k = 0; k < count; k += 32) {
      // A group of 16 unpacks 16 weights too many, into scratch that nothing reads.
      unpack_unit<R, mode, bits, 0>(
          packed + k * bits / 32 * kWide + v * ZMLX_LANES, scale, bias, w + k * kWide + v * ZMLX_LANES);
    }
  }
}

template <DType R>
UnpackGroup pick_unpack_group(const QuantView& q) {
  if (q.mode != Mode::Affine) {
    return q.bits == 4 ? unpack_group<DType::F32, Mode::Mxfp4, 4> : unpack_group<DType::F32, Mode::Mxfp8, 8>;
  }
  return q.bits == 2 ? unpack_group<R, Mode::Affine, 2>
      : q.bits == 3  ? unpack_group<R, Mode::Affine, 3>
      : q.bits == 4  ? unpack_group<R, Mode::Affine, 4>
      : q.bits == 5  ? unpack_group<R, Mode::Affine, 5>
      : q.bits == 6  ? unpack_group<R, Mode::Affine, 6>
                     : unpack_group<R, Mode::Affine, 8>;
}

// sums[i][lanes] += x[i][k] * w[k][lanes]
template <typename A, int rows, int vecs>
ZMLX_INLINE_V void multiply_add(const float* w, const float* x, int64_t x_stride, int count, float* sums) {
  constexpr DType R = A::R;
  // 8 sums at once hide an addition's latency; where the order is free, odd k may have their own.
  constexpr int chains = !A::exact && rows * vecs < 8 ? 2 : 1;
  Vec sum[chains][rows][vecs] = {};
#pragma GCC unroll 4
  for (int i = 0; i < rows; i++) {
#pragma GCC unroll 8
    for (int v = 0; v < vecs; v++) {
      sum[0][i][v] = load(sums + i * kWide + v * ZMLX_LANES);
    }
  }
  auto add = [&](int k, Vec (&to)[rows][vecs]) __attribute__((always_inline)) {
    Vec xk[rows];
#pragma GCC unroll 4
    for (int i = 0; i < rows; i++) {
      xk[i] = splat(x[i * x_stride + k]);
    }
#pragma GCC unroll 8
    for (int v = 0; v < vecs; v++) {
      Vec weight = load(w + k * kWide + v * ZMLX_LANES);
#pragma GCC unroll 4
      for (int i = 0; i < rows; i++) {
        if constexpr (A::exact) {
          to[i][v] = round_to<R>(to[i][v] + round_to<R>(xk[i] * weight));
        } else {
          to[i][v] = fused(xk[i], weight, to[i][v]);
        }
      }
    }
  };
  int k = 0;
  for (; k + chains <= count; k += chains) {
    add(k, sum[0]);
    if constexpr (chains == 2) {
      add(k + 1, sum[1]);
    }
  }
  for (; k < count; k++) {
    add(k, sum[0]);
  }
#pragma GCC unroll 4
  for (int i = 0; i < rows; i++) {
#pragma GCC unroll 8
    for (int v = 0; v < vecs; v++) {
      Vec total = sum[0][i][v];
      if constexpr (chains == 2) {
        total += sum[1][i][v];
      }
      store(sums + i * kWide + v * ZMLX_LANES, total);
    }
  }
}

template <typename A>
void multiply_add_rows(const float* w, const float* x, int64_t x_stride, int m, int count, float* sums) {
  int i = 0;
  if constexpr (!A::exact) {
    constexpr int two = kVecs > 2 ? 2 : kVecs; // 8 sums: few enough for 16 registers
    for (; i + 4 <= m; i += 4) {
      for (int v = 0; v < kVecs; v += two) {
        multiply_add<A, 4, two>(
            w + v * ZMLX_LANES, x + i * x_stride, x_stride, count, sums + i * kWide + v * ZMLX_LANES);
      }
    }
  }
  for (; i + 2 <= m; i += 2) {
    constexpr int four = kVecs > 4 ? 4 : kVecs;
    for (int v = 0; v < kVecs; v += four) {
      multiply_add<A, 2, four>(
          w + v * ZMLX_LANES, x + i * x_stride, x_stride, count, sums + i * kWide + v * ZMLX_LANES);
    }
  }
  for (; i < m; i++) {
    multiply_add<A, 1, kVecs>(w, x + i * x_stride, x_stride, count, sums + i * kWide);
  }
}

template <typename A, bool affine>
void transposed_block(
    const QuantView& q,
    int64_t n0,
    int64_t n1,
    int m,
    const float* x,
    int64_t x_stride,
    VectorWorkspace& ws) {
  constexpr DType R = A::R;
  const UnpackGroup unpack = pick_unpack_group<R>(q);
  const int64_t groups = q.K / q.group_size;
  const float* table = nullptr;
  if constexpr (!affine) {
    const auto& tables = float_tables();
    table = q.mode == Mode::Nvfp4 ? tables.fp8 : A::D == DType::F16 ? tables.e8m0_f16 : tables.e8m0;
  }
  const uint8_t* w_rows[kWide];
  for (int r = 0; r < kWide; r++) {
    w_rows[r] = q.w + (n0 + r < n1 ? n0 + r : n1 - 1) * q.w_stride;
  }
  alignas(64) float group_sums[affine ? 1 : kMaxRows * kWide];
  for (int64_t g = 0; g < groups; g++) {
    for (int r = 0; r < kWide; r++) {
      const int64_t n = n0 + r < n1 ? n0 + r : n1 - 1;
      if constexpr (affine) {
        ws.scales[r] = value_at<A::D>(q.scales + n * q.scale_stride, g);
        ws.biases[r] = value_at<A::D>(q.biases + n * q.bias_stride, g);
      } else {
        ws.scales[r] = table[q.scales[n * q.scale_stride + g]];
      }
    }
    // One group at a time: 16 to 128 weights, at most 32 dwords a row.
    const int dwords = q.group_size * q.bits / 32;
    const int64_t offset = g * dwords * 4;
    for (int r = 0; r < kWide; r++) {
      const uint8_t* from = w_rows[r] + offset;
      for (int d = 0; d < dwords; d++) {
        __builtin_memcpy(&ws.packed[d * kWide + r], from + 4 * d, 4);
      }
    }
    unpack(ws.packed, q.group_size, ws.scales, ws.biases, ws.weights);
    const float* xg = x + g * q.group_size;
    if constexpr (affine) {
      multiply_add_rows<typename A::Math>(ws.weights, xg, x_stride, m, q.group_size, ws.sums);
    } else {
      for (int i = 0; i < m * kWide; i++) {
        group_sums[i] = 0;
      }
      multiply_add_rows<typename A::Math>(ws.weights, xg, x_stride, m, q.group_size, group_sums);
      for (int i = 0; i < m; i++) {
        for (int v = 0; v < kVecs; v++) {
          float* s = ws.sums + i * kWide + v * ZMLX_LANES;
          Vec product = round_to<R>(
              load(ws.scales + v * ZMLX_LANES) * load(group_sums + i * kWide + v * ZMLX_LANES));
          store(s, round_to<R>(load(s) + product));
        }
      }
    }
  }
}

template <Mode mode, int bits, int v>
ZMLX_INLINE_V void unpack_neighbours(const uint32_t* row, float* w) {
  if constexpr (v < kVecs) {
    store(w + v * ZMLX_LANES, Fields<mode, bits>::template neighbours<v * ZMLX_LANES>(row));
    unpack_neighbours<mode, bits, v + 1>(row, w);
  }
}

// `wide` columns, from n0 on, of `count` rows, from k0 on, to ws.weights. Affine weights are scaled; the others' scales,
// which meet x first, go to ws.column_scales.
using UnpackRows = void (*)(
    const QuantView& q,
    const float* table,
    int64_t n0,
    int wide,
    int64_t k0,
    int count,
    VectorWorkspace& ws);

template <typename A, Mode mode, int bits>
void unpack_rows(
    const QuantView& q,
    const float* table,
    int64_t n0,
    int wide,
    int64_t k0,
    int count,
    VectorWorkspace& ws) {
  constexpr DType R = A::R;
  // 32 columns are `bits` dwords of a row; fewer (16, at the end of nvfp4 rows) are padded.
  for (int k = 0; k < count; k++) {
    const uint8_t* row = q.w + (k0 + k) * q.w_stride + n0 * bits / 8;
    if (wide == kWide) {
      __builtin_memcpy(ws.rows + k * kRowDwords, row, bits * 4);
    } else {
      __builtin_memcpy(ws.rows + k * kRowDwords, row, wide * bits / 8);
    }
  }
  for (int k = 0; k < count; k++) {
    const uint8_t* scales = q.scales + (k0 + k) * q.scale_stride;
    float* w = ws.weights + k * kWide;
    unpack_neighbours<mode, bits, 0>(ws.rows + k * kRowDwords, w);
    if constexpr (mode == Mode::Affine) { // groups are at least 32: one for all columns
      Vec scale = splat(value_at<A::D>(scales, n0 / q.group_size));
      Vec bias = splat(value_at<A::D>(q.biases + (k0 + k) * q.bias_stride, n0 / q.group_size));
      for (int v = 0; v < kWide; v += ZMLX_LANES) {
        store(w + v, round_to<R>(round_to<R>(scale * load(w + v)) + bias));
      }
    } else {
      for (int v = 0; v < kVecs; v++) {
        int column = v * ZMLX_LANES < wide ? v * ZMLX_LANES : 0;
        ws.column_scales[k * kVecs + v] = table[scales[(n0 + column) / q.group_size]];
      }
    }
  }
}

template <typename A>
UnpackRows pick_unpack_rows(const QuantView& q) {
  if (q.mode != Mode::Affine) {
    using Any = Arithmetic<DType::F32, true>; // nothing in them is of the dtype
    return q.bits == 4 ? unpack_rows<Any, Mode::Mxfp4, 4> : unpack_rows<Any, Mode::Mxfp8, 8>;
  }
  return q.bits == 2 ? unpack_rows<A, Mode::Affine, 2>
      : q.bits == 3  ? unpack_rows<A, Mode::Affine, 3>
      : q.bits == 4  ? unpack_rows<A, Mode::Affine, 4>
      : q.bits == 5  ? unpack_rows<A, Mode::Affine, 5>
      : q.bits == 6  ? unpack_rows<A, Mode::Affine, 6>
                     : unpack_rows<A, Mode::Affine, 8>;
}

// Weights [K, N]: scales belong to columns. Stock rounds x * scale before it meets a weight in the float modes.
template <typename A, bool affine>
void plain_block(
    const QuantView& q,
    int64_t n0,
    int64_t n1,
    int m,
    const float* x,
    int64_t x_stride,
    VectorWorkspace& ws) {
  constexpr DType R = A::R;
  const UnpackRows unpack = pick_unpack_rows<A>(q);
  const int wide = n1 - n0 < kWide ? n1 - n0 : kWide;
  const float* table = nullptr;
  if constexpr (!affine) {
    const auto& tables = float_tables();
    table = q.mode == Mode::Nvfp4 ? tables.fp8 : A::D == DType::F16 ? tables.e8m0_f16 : tables.e8m0;
  }
  for (int64_t k0 = 0; k0 < q.K; k0 += kDeep) {
    const int deep = q.K - k0 < kDeep ? q.K - k0 : kDeep;
    unpack(q, table, n0, wide, k0, deep, ws);
    if constexpr (affine) {
      multiply_add_rows<typename A::Math>(ws.weights, x + k0, x_stride, m, deep, ws.sums);
    } else {
      for (int i = 0; i < m; i++) {
        Vec sum[kVecs];
        for (int v = 0; v < kVecs; v++) {
          sum[v] = load(ws.sums + i * kWide + v * ZMLX_LANES);
        }
        for (int k = 0; k < deep; k++) {
          Vec xk = splat(x[i * x_stride + k0 + k]);
          for (int v = 0; v < kVecs; v++) {
            Vec scaled = round_to<R>(xk * splat(ws.column_scales[k * kVecs + v]));
            Vec weight = load(ws.weights + k * kWide + v * ZMLX_LANES);
            sum[v] = round_to<R>(sum[v] + round_to<R>(scaled * weight));
          }
        }
        for (int v = 0; v < kVecs; v++) {
          store(ws.sums + i * kWide + v * ZMLX_LANES, sum[v]);
        }
      }
    }
  }
}

template <typename A>
void vector_product(const QuantView& q, int64_t n0, int64_t n1, int m, const void* const* xs, void* const* ys) {
  const int64_t x_stride = (q.K + 15) / 16 * 16;
  auto memory = static_cast<uint8_t*>(kernel_scratch(sizeof(VectorWorkspace) + m * x_stride * 4));
  auto& ws = *reinterpret_cast<VectorWorkspace*>(memory);
  auto x = reinterpret_cast<float*>(memory + sizeof(VectorWorkspace));
  for (int i = 0; i < m; i++) {
    for (int64_t k = 0; k < q.K; k++) {
      x[i * x_stride + k] = value_at<A::D>(xs[i], k);
    }
  }
  using Block = void (*)(const QuantView&, int64_t, int64_t, int, const float*, int64_t, VectorWorkspace&);
  Block block = nullptr;
  const bool affine = q.mode == Mode::Affine;
#ifndef ZMLX_ONLY_PLAIN
  if (q.transpose) {
    block = affine ? transposed_block<A, true> : transposed_block<A, false>;
  }
#endif
  if (!block) {
    block = affine ? plain_block<A, true> : plain_block<A, false>;
  }
  for (int64_t n = n0; n < n1; n += kWide) {
    const int64_t end = n + kWide < n1 ? n + kWide : n1;
    for (int i = 0; i < m * kWide; i++) {
      ws.sums[i] = 0;
    }
    block(q, n, end, m, x, x_stride, ws);
    for (int i = 0; i < m; i++) {
      for (int64_t j = n; j < end; j++) {
        put<A::D>(ys[i], j - n0, ws.sums[i * kWide + (j - n)]);
      }
    }
  }
}

// An f16 NaN carries a sign, and which operand's sign survives an operation on two NaNs depends on the order in which
// the compiler put them. The scalar loop has stock's order: outputs that are NaN are computed again by it.
inline void repeat_nans(const QuantView& q, int64_t n0, int64_t n1, int m, const void* const* xs, void* const* ys) {
  for (int i = 0; i < m; i++) {
    auto y = static_cast<uint16_t*>(ys[i]);
    for (int64_t n = n0; n < n1; n++) {
      if ((y[n - n0] & 0x7fff) <= 0x7c00) {
        continue;
      }
      // Weights that are not transposed are read by whole groups.
      int64_t first = q.transpose ? n : n / q.group_size * q.group_size;
      int64_t last = q.transpose ? n + 1 : first + q.group_size;
      uint16_t again[128];
      void* place = again;
      scalar_kernels()->exact(q, first, last, 1, xs + i, &place);
      y[n - n0] = again[n - first];
    }
  }
}

template <bool exact>
void vector_kernel(const QuantView& q, int64_t n0, int64_t n1, int m, const void* const* xs, void* const* ys) {
  switch (q.dtype) {
    case DType::F32:
      return vector_product<Arithmetic<DType::F32, exact>>(q, n0, n1, m, xs, ys);
    case DType::F16:
      vector_product<Arithmetic<DType::F16, exact>>(q, n0, n1, m, xs, ys);
      if (exact) {
        repeat_nans(q, n0, n1, m, xs, ys);
      }
      return;
    case DType::BF16:
      return vector_product<Arithmetic<DType::BF16, exact>>(q, n0, n1, m, xs, ys);
  }
}

} // namespace

} // namespace zmlx::cpu
