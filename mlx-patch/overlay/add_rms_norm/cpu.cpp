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
#include "mlx/types/half_types.h"

namespace zmlx {

using mlx::core::array;

namespace {

template <typename T>
void add_row(const uint8_t* x, const uint8_t* r, uint8_t* sum, int64_t n) {
  auto a = reinterpret_cast<const T*>(x);
  auto b = reinterpret_cast<const T*>(r);
  auto y = reinterpret_cast<T*>(sum);
  for (int64_t i = 0; i < n; i++) {
    y[i] = static_cast<T>(static_cast<float>(a[i]) + static_cast<float>(b[i]));
  }
}

auto row_adder(mlx::core::Dtype dtype) {
  if (dtype == mlx::core::float32) {
    return add_row<float>;
  }
  return dtype == mlx::core::float16 ? add_row<mlx::core::float16_t> : add_row<mlx::core::bfloat16_t>;
}

void run(const array& x, const array& r, const array& weight, array& sum, array& normed, float eps) {
  namespace c = zmlx::cpu;
  auto& kernels = c::step_kernels();
  auto dtype = c::dtype_of(sum.dtype());
  auto add = row_adder(sum.dtype());
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
      add(left.at(first + i), right.at(first + i), to, n);
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
