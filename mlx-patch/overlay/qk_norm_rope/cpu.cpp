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

struct NormRope {
  NormRope(const std::vector<array>& in, array& out, const QKNormRope::State& state);
  void run() const;
  // Of the token at `index` of a row of the batch.
  float position(int64_t batch, int64_t index) const;

  QKNormRope::State state;
  cpu::DType dtype;
  cpu::StridedBlocks rows;
  std::optional<cpu::StridedBlocks> weights;
  bool split; // x [B, L, H, D]; [B, L, H * D] otherwise
  const uint8_t* offsets; // i32 or u32, one or one for each batch
  bool is_unsigned;
  int64_t offset_stride;
  std::optional<array> freqs; // whose values are needed
  std::vector<float> inv_freqs;
  int64_t B;
  int64_t H;
  int64_t L;
  int64_t D;
  uint8_t* y;
};

NormRope::NormRope(const std::vector<array>& in, array& out, const QKNormRope::State& state)
    : state(state),
      dtype(cpu::dtype_of(out.dtype())),
      rows(cpu::rows_of(in[QKNormRope::kX])),
      split(in[QKNormRope::kX].ndim() == 4),
      inv_freqs(state.dims / 2),
      B(out.shape(0)),
      H(out.shape(1)),
      L(out.shape(2)),
      D(out.shape(3)),
      y(out.data<uint8_t>()) {
  auto& offset = in[QKNormRope::kOffset];
  offsets = offset.data<uint8_t>();
  is_unsigned = offset.dtype() == mlx::core::uint32;
  offset_stride = offset.size() > 1 ? offset.strides(0) : 0;
  int next = QKNormRope::kOptional;
  if (state.has_weight) {
    weights.emplace(cpu::rows_of(in[next++]));
  }
  if (state.has_freqs) {
    freqs = array::unsafe_weak_copy(in[next]);
  } else {
    int64_t half = inv_freqs.size();
    cpu::step_kernels().inverse_frequencies(std::log(state.base) / static_cast<int>(half), half, inv_freqs.data());
  }
}

float NormRope::position(int64_t batch, int64_t index) const {
  auto at = offsets + batch * offset_stride * 4;
  float first = is_unsigned ? static_cast<float>(*reinterpret_cast<const uint32_t*>(at))
                            : static_cast<float>(*reinterpret_cast<const int32_t*>(at));
  return (static_cast<float>(index) + first) * state.scale;
}

void NormRope::run() const {
  namespace c = zmlx::cpu;
  auto& kernels = c::step_kernels();
  const uint8_t* weight = weights ? weights->at(0) : nullptr;
  int64_t half = inv_freqs.size();
  const float* inverse = inv_freqs.data();
  std::vector<float> given;
  if (freqs) {
    given.resize(half);
    for (int64_t i = 0; i < half; i++) {
      given[i] = 1.0f / freqs->data<float>()[i * freqs->strides(0)];
    }
    inverse = given.data();
  }
  int64_t row_bytes = D * c::size_of(dtype);
  auto source = [&](int64_t position, int64_t h) {
    return split ? rows.at(position * H + h) : rows.at(position) + h * row_bytes;
  };

  int64_t positions = B * L;
  int64_t per_task = std::max<int64_t>(1, kRowsPerTask / H);
  int64_t tasks = (positions + per_task - 1) / per_task;
  c::parallel_for(tasks, 4 * positions * H * D, [&](int64_t task) {
    int64_t first = task * per_task;
    int64_t num_rows = (std::min(first + per_task, positions) - first) * H;
    auto floats = static_cast<float*>(
        c::thread_scratch(c::Scratch::Kernel, (2 * (half + c::kPad) + 3 * (D + c::kPad)) * sizeof(float)));
    c::RopeTable table = {floats, floats + half + c::kPad, half, state.traditional};
    float* buffer = floats + 2 * (half + c::kPad);
    int64_t last = -1; // position that the table is for
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
        if (p != last) {
          kernels.rope_table(dtype, position(b, l), inverse, table);
          last = p;
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
  cpu::dispatch_prepared(stream(), name(), inputs, out, [state = state_](auto& in, auto& out) {
    return [rotated = std::make_shared<NormRope>(in, out, state)] { rotated->run(); };
  });
}

} // namespace zmlx
