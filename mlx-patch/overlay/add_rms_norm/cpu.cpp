// CPU backend of AddRMSNorm.
//
// Idea:    the rows that share a vector in the norm (rms_norm/cpu.cpp) are added by the task that then normalises them,
//          while they are in L1; each sum is rounded to T, as stock's add does.
// Layout:  x, r [rows, D], any strides over the rows.
// Tasks:   one per 16 rows.
// Bound:   as rms_norm, and a read of r and a write of the sum.
// Limits:  none.

#include "add_rms_norm/add_rms_norm.h"
#include "cpu/operands.h"
#include "cpu/step.h"
#include "cpu/task.h"
#include "cpu/thread_pool.h"
#include "mlx/allocator.h"

namespace zmlx {

using mlx::core::array;

namespace {

void run(const array& x, const array& r, const array& weight, array& sum, array& normed, float eps) {
  namespace c = zmlx::cpu;
  auto& kernels = c::step_kernels();
  auto dtype = c::dtype_of(sum.dtype());
  auto left = c::rows_of(x);
  auto right = c::rows_of(r);
  auto weights = c::rows_of(weight);
  int64_t n = sum.shape(-1);
  int64_t bytes = n * c::size_of(dtype);
  auto sums = sum.data<uint8_t>();
  auto y = normed.data<uint8_t>();
  int64_t blocks = (left.size() + kernels.lanes - 1) / kernels.lanes;
  c::parallel_for(blocks, 4 * static_cast<int64_t>(sum.size()), [&](int64_t block) {
    int64_t first = block * kernels.lanes;
    int m = std::min<int64_t>(kernels.lanes, left.size() - first);
    const uint8_t* p[c::kMaxLanes] = {};
    float scale[c::kMaxLanes];
    for (int i = 0; i < m; i++) {
      auto to = sums + (first + i) * bytes;
      kernels.add_row(dtype, left.at(first + i), right.at(first + i), to, n);
      p[i] = to;
    }
    kernels.rms_scale(dtype, p, m, n, eps, scale);
    for (int i = 0; i < m; i++) {
      kernels.norm_row(dtype, p[i], weights.at(0), scale[i], y + (first + i) * bytes, n);
    }
  });
}

} // namespace

void AddRMSNorm::eval_cpu(const std::vector<array>& inputs, std::vector<array>& outputs) {
  for (auto& out : outputs) {
    out.set_data(mlx::core::allocator::malloc(out.nbytes()));
  }
  if (outputs[kSum].size() == 0) {
    return;
  }
  auto& encoder = mlx::core::cpu::get_command_encoder(stream());
  for (auto& in : inputs) {
    encoder.set_input_array(in);
  }
  for (auto& out : outputs) {
    encoder.set_output_array(out);
  }
  cpu::dispatch(
      stream(),
      name(),
      [x = array::unsafe_weak_copy(inputs[kX]),
       r = array::unsafe_weak_copy(inputs[kR]),
       weight = array::unsafe_weak_copy(inputs[kWeight]),
       sum = array::unsafe_weak_copy(outputs[kSum]),
       normed = array::unsafe_weak_copy(outputs[kNormed]),
       eps = eps_]() mutable { run(x, r, weight, sum, normed, eps); });
}

} // namespace zmlx
