// How quantized weights are written down, for kernels that dequantize them two by two: what a lane keeps of a group, and what it
// makes of two codes that lie one behind the other.

#pragma once

#include "cuda/dispatch.h"
#include "cuda/mxfp4.cuh"

namespace zmlx::on_cuda {

template <typename T, int kBits_, int kGroup_>
class AffineWeights {
  using Pair = typename Pairs<T>::Pair;

 public:
  using Type = T;
  static constexpr int kBits = kBits_, kGroup = kGroup_;
  static constexpr int kScaleBytes = sizeof(T); // of a group, and as many of its bias
  static constexpr bool kHasBiases = true;

  AffineWeights() = default;
  __device__ AffineWeights(const char* scale, const char* bias) : scale_(twice<T>(scale)), bias_(twice<T>(bias)) {}

  __device__ uint32_t operator()(const char* codes) const {
    if constexpr (kBits == 4) {
      uint32_t both = *reinterpret_cast<const uint8_t*>(codes);
      return dequantized<T>(both * 0x1001, scale_, bias_);
    } else {
      uint32_t both = *reinterpret_cast<const uint16_t*>(codes);
      auto number = [&](int byte) {
        return __uint_as_float(__byte_perm(both, 0x4b000000, 0x7440 | byte)) - 8388608.0f;
      };
      return as_word(__hfma2(Pairs<T>::round2(number(0), number(1)), scale_, bias_));
    }
  }

 private:
  Pair scale_, bias_;
};

template <typename T>
class Mxfp4Weights {
  using Of = Mxfp4Of<T>;

 public:
  using Type = T;
  static constexpr int kBits = 4, kGroup = kMxfp4Group;
  static constexpr int kScaleBytes = 1;
  static constexpr bool kHasBiases = false;

  Mxfp4Weights() = default;
  __device__ Mxfp4Weights(const char* scale_at, const char*) {
    uint32_t scale = *reinterpret_cast<const uint8_t*>(scale_at);
    above_ = scale > kMxfp4Scale;
    factor_ = Of::factor(above_ ? kMxfp4Scale : scale);
    rest_ = above_ ? Of::rest(scale) : 0;
  }

  __device__ uint32_t operator()(const char* codes) const {
    uint32_t both = *reinterpret_cast<const uint8_t*>(codes) * 0x1001;
    auto weights = __hmul2_rn(as_pair<T>(((both << Of::kShift) & Of::kBits) | ((both << 12) & 0x80008000)), as_pair<T>(factor_));
    return as_word(above_ ? __hmul2_rn(weights, as_pair<T>(rest_)) : weights);
  }

 private:
  uint32_t factor_, rest_;
  bool above_;
};

// f(Type<one of these>) for weights of mode 'affine', in 4 or 8 bits, or 'mxfp4'.
template <typename F>
void dispatch_weights(mlx::core::Dtype dtype, bool affine, int bits, int group_size, F&& f) {
  if (affine) {
    dispatch_quantized(dtype, bits, group_size, [&](auto type, auto bits, auto group) {
      f(Type<AffineWeights<typename decltype(type)::type, bits, group>>());
    });
  } else {
    dispatch_half(dtype, [&](auto type) { f(Type<Mxfp4Weights<typename decltype(type)::type>>()); });
  }
}

} // namespace zmlx::on_cuda
