// A head normed and turned by one warp, with the bits of stock's `rms_norm_small` and rope.cu: the lanes add squares as the
// first warp of `rms_norm_small` does, which has all of a head of up to 256 values of 16 bits.

#pragma once

#include "cuda/rows.cuh"

namespace zmlx::on_cuda {

template <typename T>
struct NormRope {
  const T* weight; // [D], or null: no norm
  const float* freqs; // [dims / 2], or null
  int D, dims;
  int freqs_stride;
  bool traditional;
  float eps;
  float log2_base, scale;

  // x [D] -> y [D]; `normed` is memory for D values that the lanes share. `at` is where the token stands.
  __device__ void operator()(const T* x, T* normed, T* y, uint32_t at, int lane) const {
    int first = lane * kReads<T>;
    if (weight) {
      float squares = 0;
      for (int i = first; i < min(first + kReads<T>, D); i++) {
        squares = __fmaf_rn(static_cast<float>(x[i]), static_cast<float>(x[i]), squares);
      }
      float factor = normalizer(sum_over_warp(squares), D, eps);
      for (int i = first; i < min(first + kReads<T>, D); i++) {
        normed[i] = normalized(x[i], factor, weight[i]);
      }
    } else {
      for (int i = lane; i < D; i += 32) {
        normed[i] = x[i];
      }
    }
    __syncwarp();
    float position = scale * static_cast<float>(at);
    for (int i = lane; i < dims / 2; i += 32) {
      float inv_freq;
      if (freqs) {
        inv_freq = 1.0 / freqs[int64_t{i} * freqs_stride];
      } else {
        float d = static_cast<float>(i) / static_cast<float>(dims / 2);
        inv_freq = exp2(-d * log2_base);
      }
      float theta = position * inv_freq;
      float costheta = cos(theta);
      float sintheta = sin(theta);
      int one = traditional ? 2 * i : i;
      int other = traditional ? one + 1 : one + dims / 2;
      float x1 = static_cast<float>(normed[one]);
      float x2 = static_cast<float>(normed[other]);
      // contracted as the compiler contracts stock's
      float rx1 = x1 * costheta - x2 * sintheta;
      float rx2 = x1 * sintheta + x2 * costheta;
      y[one] = to<T>(rx1);
      y[other] = to<T>(rx2);
    }
    for (int i = dims + lane; i < D; i += 32) {
      y[i] = normed[i];
    }
  }
};

} // namespace zmlx::on_cuda
