// A head normed and turned by one warp, with the bits of stock's `rms_norm_small` and rope.cu: the lanes add squares as the
// first warp of `rms_norm_small` does, which has all of a head of up to 256 values of 16 bits.

#pragma once

#include "cuda/rows.cuh"

namespace zmlx::on_cuda {

// Most values of a head.
inline constexpr int kWidestHead = 256;

// By how much the pairs of a lane turn at one position.
struct Turn {
  static constexpr int kPairs = kWidestHead / 2 / 32;
  float cos[kPairs], sin[kPairs];
};

template <typename T>
struct NormRope {
  const T* weight; // [D], or null: no norm
  const float* freqs; // [dims / 2], or null
  int D, dims;
  int freqs_stride;
  bool traditional;
  float eps;
  float log2_base, scale;
  float input_scale = 1; // of what is turned, before

  // For a token at `at`; needs nothing of the head.
  __device__ Turn turn(uint32_t at, int lane) const {
    Turn turn;
    float position = scale * static_cast<float>(at);
#pragma unroll
    for (int n = 0; n < Turn::kPairs; n++) {
      int i = lane + 32 * n;
      if (i < dims / 2) {
        float inv_freq;
        if (freqs) {
          inv_freq = 1.0 / freqs[int64_t{i} * freqs_stride];
        } else {
          float d = static_cast<float>(i) / static_cast<float>(dims / 2);
          inv_freq = exp2(-d * log2_base);
        }
        float theta = position * inv_freq;
        turn.cos[n] = ::cos(theta);
        turn.sin[n] = ::sin(theta);
      }
    }
    return turn;
  }

  // x [D] -> y [D]; `normed` is memory for D values that the lanes share.
  __device__ void operator()(const T* x, T* normed, T* y, const Turn& turn, int lane) const {
    int first = lane * kReads<T>;
    T values[kReads<T>];
#pragma unroll
    for (int i = 0; i < kReads<T>; i++) {
      values[i] = first + i < D ? x[first + i] : to<T>(0.0f);
    }
    if (weight) {
      float squares = 0;
#pragma unroll
      for (int i = 0; i < kReads<T>; i++) {
        squares = __fmaf_rn(static_cast<float>(values[i]), static_cast<float>(values[i]), squares);
      }
      float factor = normalizer(sum_over_warp(squares), D, eps);
#pragma unroll
      for (int i = 0; i < kReads<T>; i++) {
        if (first + i < D) {
          normed[first + i] = scaled(normalized(values[i], factor, weight[first + i]), first + i);
        }
      }
    } else {
#pragma unroll
      for (int i = 0; i < kReads<T>; i++) {
        if (first + i < D) {
          normed[first + i] = scaled(values[i], first + i);
        }
      }
    }
    __syncwarp();
#pragma unroll
    for (int n = 0; n < Turn::kPairs; n++) {
      int i = lane + 32 * n;
      if (i < dims / 2) {
        int one = traditional ? 2 * i : i;
        int other = traditional ? one + 1 : one + dims / 2;
        float x1 = static_cast<float>(normed[one]);
        float x2 = static_cast<float>(normed[other]);
        // contracted as the compiler contracts stock's
        float rx1 = x1 * turn.cos[n] - x2 * turn.sin[n];
        float rx2 = x1 * turn.sin[n] + x2 * turn.cos[n];
        y[one] = to<T>(rx1);
        y[other] = to<T>(rx2);
      }
    }
    for (int i = dims + lane; i < D; i += 32) {
      y[i] = normed[i];
    }
  }

 private:
  __device__ T scaled(T x, int i) const {
    return input_scale != 1 && i < dims ? times(x, to<T>(input_scale)) : x;
  }
};

} // namespace zmlx::on_cuda
