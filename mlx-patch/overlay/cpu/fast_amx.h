// Rows of x times transposed weights by products of tiles (AMX_BF16), f32 accumulation: included by the unit for it, which
// passes the processor's tiles, and by a test, which passes tiles in plain C++.
//
// Idea:   codes are exact in bf16 (cpu/codes_avx512.h), and so is x: a product of tiles adds 32 of K for 16 rows and 16
//         columns without loss. It ends with the group, whose scale multiplies it in f32. The groups' biases times the
//         groups' sums of x are a product of tiles too, the sums in three parts of 8 bits of mantissa.
// Layout: 64 bytes of 16 rows of weights (64 codes of 3, 5 or 6 bits) are transposed as dwords while they are packed;
//         field j of a dword's two words then is a row of a tile: pairs of K side by side, one column to a dword. x is
//         brought into that order once a call, step by step of K. Two tiles of x by two of weights at a time: two columns
//         of tiles are unpacked for all rows.
// Bound:  per 32 weights about 4 operations to unpack and 16 rows' share of a tile product (16 cycles for 16 columns):
//         unpacking, until some 32 rows share it. Groups of 64: a sum is stored, scaled and added every second product.
// Limits: bf16; at most kMaxRows rows; K a multiple of the group; affine groups a multiple of 32. Denormals count as zero.

#pragma once

#include "cpu/codes_avx512.h"
#include "cpu/tiles_amx.h"

namespace zmlx::cpu {

namespace {

constexpr int kTileRows = 16;
constexpr int kPair = 2 * kTileRows; // columns, and rows of x, at a time
static_assert(kMaxRows <= kPair);

template <typename Tiles, Mode M, int B>
class TileProduct {
 public:
  TileProduct(const QuantView& q, int m, const void* const* xs)
      : q_(q), m_(m), steps_(q.K / kStep), groups_(q.K / q.group_size), group_steps_((groups_ + kStep - 1) / kStep) {
    const int64_t x_bytes = steps_ * m * kStepBytes;
    const int64_t sum_bytes = kAffine ? kParts * group_steps_ * m * kStepBytes : 0;
    auto memory = static_cast<uint8_t*>(kernel_scratch(sizeof(Workspace) + x_bytes + sum_bytes + 64));
    ws_ = reinterpret_cast<Workspace*>(memory);
    x_ = memory + sizeof(Workspace);
    sums_ = x_ + round_to_line(x_bytes);
    for (int i = 0; i < m; i++) {
      auto x = static_cast<const uint8_t*>(xs[i]);
      arrange(x, i);
      if constexpr (kAffine) {
        add_up(x, i);
      }
    }
    if constexpr (!kAffine) {
      const auto& tables = float_tables();
      scale_table_ = M == Mode::Nvfp4 ? tables.fp8 : tables.e8m0;
    }
  }

  // Columns n0 .. n1, y from column n0 on.
  void run(int64_t n0, int64_t n1, void* const* ys) {
    TileShapes shapes;
    const int tiles_of_rows = m_ > kTileRows ? 2 : 1;
    for (int r = 0; r < 2; r++) {
      const int rows = r < tiles_of_rows - 1 ? kTileRows : m_ - (tiles_of_rows - 1) * kTileRows;
      shapes.set(2 * r, rows, 64); // sums, of two columns of tiles
      shapes.set(2 * r + 1, rows, 64);
      shapes.set(4 + r, rows, kStepBytes); // x
      shapes.set(6 + r, kStep / 2, 64); // weights
    }
    Tiles::configure(shapes);
    for (int64_t n = n0; n < n1; n += kPair) {
      const int64_t end = n + kPair < n1 ? n + kPair : n1;
      tiles_of_rows == 2 ? pair<true>(n, end) : pair<false>(n, end);
      finish(n - n0, static_cast<int>(end - n), ys);
    }
    Tiles::release();
  }

 private:
  static constexpr bool kAffine = M == Mode::Affine;
  static constexpr bool kBytes = B != 2 && B != 4; // codes that are spread to bytes
  static constexpr int kPerDword = kBytes ? 4 : 32 / B;
  static constexpr int kBlockWeights = 16 * kPerDword; // of a row, that are transposed at once
  static constexpr int kBlockBytes = kBlockWeights * B / 8;
  static constexpr int kStep = M == Mode::Nvfp4 ? 16 : 32; // K of one product: no more than a group
  static constexpr int kStepBytes = kStep * 2;
  static constexpr int kTileBytes = kStep / 2 * 64; // of weights
  static constexpr int kParts = 3; // bf16 numbers that make up an f32
  static constexpr float kInfinity = __builtin_inff();

  struct alignas(64) Workspace {
    uint8_t weights[2][2][kBlockWeights * kTileRows * 2]; // of two blocks: [column of tiles][step][pair of K][column]
    float scales[kGroups * kBlock]; // [group][column]
    float products[2][kPair * kPair]; // of the last segments: [row][column]
    float sums[kPair * kPair];
  };

  using Codes = std::conditional_t<kBytes, ByteCodes<M, B>, WordCodes<M, kBytes ? 4 : B>>;

  static int64_t round_to_line(int64_t bytes) {
    return (bytes + 63) / 64 * 64;
  }

  // x in the order of the weights' fields: [step][row][32]; dword d, field j, word h of a step is weight
  // d * kPerDword + h * kPerDword / 2 + j.
  void arrange(const uint8_t* x, int row) {
    alignas(64) uint16_t order[32];
    for (int i = 0; i < 32; i++) {
      const int in = i % kPerDword;
      order[i] = static_cast<uint16_t>(i - in + in % 2 * (kPerDword / 2) + in / 2);
    }
    const __m512i index = _mm512_load_si512(order);
    for (int64_t k = 0; k < q_.K; k += 32) {
      const __mmask32 mask = q_.K - k >= 32 ? 0xffffffff : 0xffff;
      const __m512i v = _mm512_permutexvar_epi16(index, _mm512_maskz_loadu_epi16(mask, x + k * 2));
      uint8_t* out = x_ + (k / kStep * m_ + row) * kStepBytes;
      if constexpr (kStep == 32) {
        _mm512_store_si512(out, v);
      } else {
        _mm256_store_si256(reinterpret_cast<__m256i*>(out), _mm512_castsi512_si256(v));
        if (q_.K - k >= 32) {
          _mm256_store_si256(reinterpret_cast<__m256i*>(out + m_ * kStepBytes), _mm512_extracti64x4_epi64(v, 1));
        }
      }
    }
  }

  // The sum of x over each group, cut into bf16 parts: [part][32 groups][row][32].
  void add_up(const uint8_t* x, int row) {
    const int64_t part_bytes = group_steps_ * m_ * kStepBytes;
    for (int64_t g = 0; g < group_steps_ * kStep; g += 16) {
      __m512 sums = _mm512_setzero_ps();
      repeat<4>([&](auto i) ZMLX_LAMBDA {
        sums = _mm512_insertf32x4(sums, four_sums(x, g + 4 * i), i);
      });
      uint8_t* to = sums_ + (g / kStep * m_ + row) * kStepBytes + g % kStep * 2;
      for (int p = 0; p < kParts; p++) {
        const __m512i top = _mm512_and_si512(as_int(sums), _mm512_set1_epi32(0xffff0000));
        _mm256_store_si256(
            reinterpret_cast<__m256i*>(to + p * part_bytes), _mm512_cvtepi32_epi16(_mm512_srli_epi32(top, 16)));
        // of what is not finite nothing is left
        const __mmask16 finite = _mm512_cmp_ps_mask(_mm512_abs_ps(sums), _mm512_set1_ps(kInfinity), _CMP_LT_OQ);
        sums = _mm512_maskz_sub_ps(finite, sums, as_float(top));
      }
    }
  }

  // Of groups g .. g + 3; zero behind the last.
  __m128 four_sums(const uint8_t* x, int64_t g) const {
    __m512 s[4];
    repeat<4>([&](auto i) ZMLX_LAMBDA {
      s[i] = _mm512_setzero_ps();
      const uint8_t* from = x + (g + i) * q_.group_size * 2;
      for (int k = 0; g + i < groups_ && k < q_.group_size; k += 16) {
        s[i] = _mm512_add_ps(s[i], load_values<DType::BF16>(from + k * 2, 0xffff));
      }
    });
    return reduce4(s[0], s[1], s[2], s[3]);
  }

  // The sums of columns n .. end in ws.sums.
  template <bool two>
  void pair(int64_t n, int64_t end) {
    Workspace& ws = *ws_;
    // Columns past the end repeat the last one; their results are not stored.
    const uint8_t* weights[kPair];
    const uint8_t* scales[kPair];
    const uint8_t* biases[kPair];
    for (int r = 0; r < kPair; r++) {
      const int64_t column = n + r < end ? n + r : end - 1;
      weights[r] = q_.w + column * q_.w_stride;
      scales[r] = q_.scales + column * q_.scale_stride;
      biases[r] = kAffine ? q_.biases + column * q_.bias_stride : nullptr;
    }
    prefetch(q_.scales, q_.scale_stride, end);
    if constexpr (kAffine) {
      prefetch(q_.biases, q_.bias_stride, end);
    }
    if constexpr (kAffine) {
      add_biases<two>(biases);
    } else {
      for (int i = 0; i < m_ * kPair; i += 16) {
        _mm512_store_ps(ws.sums + i, _mm512_setzero_ps());
      }
    }
    const int segment = q_.group_size < kBlockWeights ? q_.group_size : kBlockWeights; // weights under one scale
    const int64_t ahead = kPair * q_.w_stride;
    const float* pending = nullptr; // the scales of products that are still to be added
    int buffer = 0;
    int block = 0;
    unpack_pair(weights, 0, ahead, ws.weights[0]);
    for (int64_t k0 = 0; k0 < q_.K; k0 += kBlockWeights, block ^= 1) {
      const int64_t g0 = k0 / q_.group_size;
      if (g0 % kGroups == 0 && k0 % q_.group_size == 0) {
        if (pending) {
          add_products(pending, buffer ^ 1);
          pending = nullptr;
        }
        const int groups = groups_ - g0 < kGroups ? static_cast<int>(groups_ - g0) : kGroups;
        if constexpr (kAffine) {
          load_affine<DType::BF16>(scales, kPair, g0, groups, ws.scales);
        } else {
          load_bytes(scales, kPair, g0, groups, scale_table_, ws.scales);
        }
      }
      if (k0 + kBlockWeights < q_.K) {
        unpack_pair(weights, k0 + kBlockWeights, ahead, ws.weights[block ^ 1]);
      }
      const int count = q_.K - k0 < kBlockWeights ? static_cast<int>(q_.K - k0) : kBlockWeights;
      for (int k = 0; k < count; k += segment) {
        multiply<two>(k0 + k, ws.weights[block], k, segment, buffer);
        if (pending) {
          add_products(pending, buffer ^ 1);
        }
        pending = ws.scales + (k0 + k) / q_.group_size % kGroups * kBlock;
        buffer ^= 1;
      }
    }
    add_products(pending, buffer ^ 1);
  }

  // The scales (or biases) of the columns from `column` on.
  static void prefetch(const uint8_t* rows, int64_t stride, int64_t column) {
    const uint8_t* from = rows + column * stride;
    for (int64_t i = 0; i < kPair * stride && i < 1 << 14; i += 64) {
      _mm_prefetch(reinterpret_cast<const char*>(from + i), _MM_HINT_T1);
    }
  }

  // The block of codes from k on, of both columns of tiles. It is unpacked before the block in front of it is multiplied:
  // a tile load waits for the stores that it reads.
  void unpack_pair(
      const uint8_t* const* rows,
      int64_t k,
      int64_t ahead,
      uint8_t (&out)[2][kBlockWeights * kTileRows * 2]) const {
    const int64_t offset = k * B / 8;
    const int64_t left = q_.K * B / 8 - offset;
    for (int c = 0; c < 2; c++) {
      if (left >= kBlockBytes) {
        unpack<true>(rows + c * kTileRows, offset, left, ahead, out[c]);
      } else {
        unpack<false>(rows + c * kTileRows, offset, left, ahead, out[c]);
      }
    }
  }

  // 16 columns' next block of codes as tiles of pairs.
  template <bool whole>
  ZMLX_INLINE void unpack(const uint8_t* const* rows, int64_t offset, int64_t left, int64_t ahead, uint8_t* out) const {
    const __mmask64 mask = whole ? ~0ull >> (64 - kBlockBytes) : (1ull << left) - 1;
    __m512i v[16];
#pragma GCC unroll 16
    for (int i = 0; i < 16; i++) {
      if constexpr (whole && kBlockBytes == 64) {
        v[i] = _mm512_loadu_si512(rows[i] + offset);
      } else {
        v[i] = _mm512_maskz_loadu_epi8(mask, rows[i] + offset);
      }
      _mm_prefetch(reinterpret_cast<const char*>(rows[i] + offset + ahead), _MM_HINT_T1);
      if constexpr (kBytes) {
        v[i] = codes_.bytes(v[i]);
      }
    }
    transpose16(v);
#pragma GCC unroll 16
    for (int d = 0; d < 16; d++) {
      uint8_t* to = out + d * (kPerDword / 2) * 64;
      if constexpr (kBytes) {
        const auto [low, high] = codes_.halves(v[d]);
        constexpr __mmask64 odd = 0xaaaaaaaaaaaaaaaa;
        _mm512_store_si512(to, _mm512_mask_blend_epi8(odd, low, _mm512_slli_epi16(high, 8)));
        _mm512_store_si512(to + 64, _mm512_mask_blend_epi8(odd, _mm512_srli_epi16(low, 8), high));
      } else {
        repeat<kPerDword / 2>([&](auto j) ZMLX_LAMBDA {
          _mm512_store_si512(to + j * 64, codes_.template field<j>(v[d]));
        });
      }
    }
  }

  // sums (+)= x @ weights over one step, for one or two tiles of rows.
  template <bool two, int sums>
  ZMLX_INLINE void step(const uint8_t* x, const uint8_t* first, const uint8_t* second) const {
    Tiles::template load<4>(x, kStepBytes);
    Tiles::template load<6>(first, 64);
    Tiles::template dot<sums, 4, 6>();
    Tiles::template load<7>(second, 64);
    Tiles::template dot<sums + 1, 4, 7>();
    if constexpr (two) {
      Tiles::template load<5>(x + kTileRows * kStepBytes, kStepBytes);
      Tiles::template dot<2, 5, 6>();
      Tiles::template dot<3, 5, 7>();
    }
  }

  template <bool two, int sums>
  ZMLX_INLINE static void clear() {
    Tiles::template zero<sums>();
    Tiles::template zero<sums + 1>();
    if constexpr (two) {
      Tiles::template zero<2>();
      Tiles::template zero<3>();
    }
  }

  template <bool two, int sums>
  ZMLX_INLINE static void keep(float* to) {
    Tiles::template store<sums>(to, kPair * 4);
    Tiles::template store<sums + 1>(to + kTileRows, kPair * 4);
    if constexpr (two) {
      Tiles::template store<2>(to + kTileRows * kPair, kPair * 4);
      Tiles::template store<3>(to + kTileRows * kPair + kTileRows, kPair * 4);
    }
  }

  // products[buffer] = x @ weights from k on, `at` in the block that is unpacked.
  template <bool two>
  ZMLX_INLINE void multiply(
      int64_t k,
      const uint8_t (&weights)[2][kBlockWeights * kTileRows * 2],
      int at,
      int count,
      int buffer) {
    auto go = [&]<int sums>(std::integral_constant<int, sums>) ZMLX_LAMBDA {
      clear<two, sums>();
      for (int s = 0; s < count / kStep; s++) {
        const int64_t tile = (at / kStep + s) * kTileBytes;
        step<two, sums>(x_ + (k / kStep + s) * m_ * kStepBytes, weights[0] + tile, weights[1] + tile);
      }
      keep<two, sums>(ws_->products[buffer]);
    };
    // One tile of rows leaves two sums free: products in turns need not wait for one another.
    if (two || buffer == 0) {
      go(std::integral_constant<int, 0>{});
    } else {
      go(std::integral_constant<int, 2>{});
    }
  }

  // sums = the biases times the groups' sums of x.
  template <bool two>
  void add_biases(const uint8_t* const* biases) {
    clear<two, 0>();
    for (int64_t s = 0; s < group_steps_; s++) {
      const int64_t left = groups_ - s * kStep;
      const __mmask32 mask = left >= 32 ? 0xffffffff : (1u << left) - 1;
      for (int c = 0; c < 2; c++) {
        __m512i v[16];
        for (int i = 0; i < 16; i++) {
          v[i] = _mm512_maskz_loadu_epi16(mask, biases[c * kTileRows + i] + s * kStep * 2);
        }
        transpose16(v);
        for (int i = 0; i < 16; i++) {
          _mm512_store_si512(ws_->weights[0][c] + i * 64, v[i]);
        }
      }
      for (int p = 0; p < kParts; p++) {
        step<two, 0>(sums_ + (p * group_steps_ + s) * m_ * kStepBytes, ws_->weights[0][0], ws_->weights[0][1]);
      }
    }
    keep<two, 0>(ws_->sums);
  }

  // sums += scale * product
  void add_products(const float* scales, int buffer) {
    const __m512 first = _mm512_load_ps(scales);
    const __m512 second = _mm512_load_ps(scales + kTileRows);
    const float* product = ws_->products[buffer];
    float* sum = ws_->sums;
    for (int i = 0; i < m_ * kPair; i += kPair) {
      _mm512_store_ps(sum + i, _mm512_fmadd_ps(first, _mm512_load_ps(product + i), _mm512_load_ps(sum + i)));
      _mm512_store_ps(
          sum + i + 16, _mm512_fmadd_ps(second, _mm512_load_ps(product + i + 16), _mm512_load_ps(sum + i + 16)));
    }
  }

  // Rounds the sums of `count` columns and stores them from column `first` of y on.
  void finish(int64_t first, int count, void* const* ys) const {
    for (int i = 0; i < m_; i++) {
      auto y = static_cast<uint8_t*>(ys[i]) + first * 2;
      const float* sum = ws_->sums + i * kPair;
      store_values<DType::BF16>(y, round_bf16(_mm512_load_ps(sum)), first_lanes(count));
      store_values<DType::BF16>(y + 32, round_bf16(_mm512_load_ps(sum + 16)), first_lanes(count - 16));
    }
  }

  const QuantView& q_;
  const int m_;
  const int64_t steps_;
  const int64_t groups_;
  const int64_t group_steps_; // of 32 groups
  Workspace* ws_;
  uint8_t* x_;
  uint8_t* sums_;
  const float* scale_table_{nullptr};
  const Codes codes_;
};

template <typename Tiles, Mode M, int B>
void tile_rows(const QuantView& q, int64_t n0, int64_t n1, int m, const void* const* xs, void* const* ys) {
  TileProduct<Tiles, M, B>(q, m, xs).run(n0, n1, ys);
}

// The kernel for some weights; null where there is none.
template <typename Tiles>
BlockKernel tile_kernel(const QuantView& q) {
  if (!q.transpose || q.dtype != DType::BF16) {
    return nullptr;
  }
  switch (q.mode) {
    case Mode::Affine:
      return q.bits == 2 ? tile_rows<Tiles, Mode::Affine, 2>
          : q.bits == 3  ? tile_rows<Tiles, Mode::Affine, 3>
          : q.bits == 4  ? tile_rows<Tiles, Mode::Affine, 4>
          : q.bits == 5  ? tile_rows<Tiles, Mode::Affine, 5>
          : q.bits == 6  ? tile_rows<Tiles, Mode::Affine, 6>
          : q.bits == 8  ? tile_rows<Tiles, Mode::Affine, 8>
                         : nullptr;
    case Mode::Mxfp4:
      return tile_rows<Tiles, Mode::Mxfp4, 4>;
    case Mode::Nvfp4:
      return tile_rows<Tiles, Mode::Nvfp4, 4>;
    case Mode::Mxfp8:
      return tile_rows<Tiles, Mode::Mxfp8, 8>;
  }
  return nullptr;
}

} // namespace

} // namespace zmlx::cpu
