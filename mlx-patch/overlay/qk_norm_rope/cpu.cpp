// CPU backend of QKNormRope.
//
// Idea:    one pass in place of the thirty ops of rms_norm, transpose and rope: a head's row is read once, normed and
//          rotated in L1 and written where the transposed result wants it. cos and sin are computed once per position
//          for all heads.
// Layout:  x [B, L, H, D] by rows; out [B, H, L, D].
// Tasks:   some positions each, so that at least 64 rows share the vector lanes of the norm.
// Bound:   about 30 ns a row of 128.
// Limits:  none.

#include <cmath>

#include "cpu/operands.h"
#include "cpu/step.h"
#include "cpu/task.h"
#include "cpu/thread_pool.h"
#include "qk_norm_rope/qk_norm_rope.h"

namespace zmlx {

using mlx::core::array;

namespace {

constexpr int64_t kRowsPerTask = 64;

float position_of(const array& offset, int64_t batch, int64_t index, float scale) {
  auto at = offset.size() > 1 ? batch * offset.strides(0) : 0;
  float first = offset.dtype() == mlx::core::uint32 ? static_cast<float>(offset.data<uint32_t>()[at])
                                                    : static_cast<float>(offset.data<int32_t>()[at]);
  return (static_cast<float>(index) + first) * scale;
}

void run(const std::vector<array>& in, array& out, const QKNormRope::State& state) {
  using P = QKNormRope;
  namespace c = zmlx::cpu;
  auto& kernels = c::step_kernels();
  auto dtype = c::dtype_of(out.dtype());
  auto rows = c::rows_of(in[P::kX]);
  int next = P::kOptional;
  auto weights = c::rows_of(state.has_weight ? in[next++] : in[P::kX]);
  const uint8_t* weight = state.has_weight ? weights.at(0) : nullptr;

  int64_t half = state.dims / 2;
  std::vector<float> inv_freqs(half);
  if (state.has_freqs) {
    auto& freqs = in[next];
    for (int64_t i = 0; i < half; i++) {
      inv_freqs[i] = 1.0f / freqs.data<float>()[i * freqs.strides(0)];
    }
  } else {
    kernels.inverse_frequencies(std::log(state.base) / static_cast<int>(half), half, inv_freqs.data());
  }

  int64_t H = out.shape(1);
  int64_t L = out.shape(2);
  int64_t D = out.shape(3);
  int64_t row_bytes = D * c::size_of(dtype);
  bool split = in[P::kX].ndim() == 4;
  auto y = out.data<uint8_t>();
  auto source = [&](int64_t position, int64_t h) {
    return split ? rows.at(position * H + h) : rows.at(position) + h * row_bytes;
  };

  int64_t positions = out.shape(0) * L;
  int64_t per_task = std::max<int64_t>(1, kRowsPerTask / H);
  int64_t tasks = (positions + per_task - 1) / per_task;
  c::parallel_for(tasks, 4 * static_cast<int64_t>(out.size()), [&](int64_t task) {
    int64_t first = task * per_task;
    int64_t num_rows = (std::min(first + per_task, positions) - first) * H;
    auto floats = static_cast<float*>(
        c::thread_scratch(c::Scratch::Kernel, (2 * (half + c::kPad) + 3 * (D + c::kPad)) * sizeof(float)));
    c::RopeTable table = {floats, floats + half + c::kPad, half, state.traditional};
    float* buffer = floats + 2 * (half + c::kPad);
    int64_t position = -1;
    for (int64_t r0 = 0; r0 < num_rows; r0 += kernels.lanes) {
      int m = std::min<int64_t>(kernels.lanes, num_rows - r0);
      const uint8_t* x[c::kMaxLanes] = {};
      float scale[c::kMaxLanes] = {};
      for (int i = 0; i < m; i++) {
        x[i] = source(first + (r0 + i) / H, (r0 + i) % H);
      }
      if (weight) {
        kernels.rms_scale(dtype, x, m, D, state.eps, scale);
      }
      for (int i = 0; i < m; i++) {
        int64_t p = first + (r0 + i) / H;
        int64_t h = (r0 + i) % H;
        int64_t b = p / L;
        int64_t l = p % L;
        if (p != position) {
          kernels.rope_table(dtype, position_of(in[P::kOffset], b, l, state.scale), inv_freqs.data(), table);
          position = p;
        }
        auto to = y + ((b * H + h) * L + l) * row_bytes;
        kernels.norm_rope_row(
            dtype, x[i], weight, weight ? scale[i] : 1.0f, state.input_scale, table, to, D, buffer);
      }
    }
  });
}

} // namespace

void QKNormRope::eval_cpu(const std::vector<array>& inputs, array& out) {
  cpu::dispatch_task(stream(), name(), inputs, out, [state = state_](auto& in, auto& out) {
    run(in, out, state);
  });
}

} // namespace zmlx
