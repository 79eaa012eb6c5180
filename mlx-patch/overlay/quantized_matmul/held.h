// Products of one vector by matrices of 4 bits in one launch (held.cuh).

#pragma once

#include <optional>
#include <vector>

#include "cuda/host.h"
#include "quantized_matmul/held.cuh"

namespace zmlx::on_cuda {

// A matrix of 4 bits, in rows, and where its product goes.
struct HeldMatrix {
  array w, scales, biases;
  array y;
};

// The vector is the norm of itself and `r`; the sum and the norm are written down.
struct HeldNorm {
  array r, weight;
  array sum, normed;
  float eps;
};

template <typename T>
Normed<T> normed_of(const array& x, const std::optional<HeldNorm>& norm) {
  if (!norm) {
    return {gpu_ptr<T>(x)};
  }
  auto sum = norm->sum, normed = norm->normed;
  return {
      gpu_ptr<T>(x),
      gpu_ptr<T>(norm->r),
      gpu_ptr<T>(norm->weight),
      gpu_ptr<T>(sum),
      gpu_ptr<T>(normed),
      norm->eps,
      norm_threads<T>(static_cast<int>(x.size()))};
}

// Tells the encoder what a norm reads and writes.
inline void set_arrays(Encoder& encoder, const std::optional<HeldNorm>& norm) {
  if (norm) {
    encoder.set_input_array(norm->r);
    encoder.set_input_array(norm->weight);
    encoder.set_output_array(norm->sum);
    encoder.set_output_array(norm->normed);
  }
}

// Whether so many rows of weights, of K values each, are a launch of these: an even number, and not so many that asking for
// them ahead is no gain.
bool can_be_held(int64_t rows, int K, bool with_norm);

// All arrays in rows, outputs allocated; up to four matrices, of an even number of rows.
void launch_held(
    Encoder& encoder,
    const array& x,
    const std::optional<HeldNorm>& norm,
    const std::vector<HeldMatrix>& matrices,
    int group_size);

} // namespace zmlx::on_cuda
