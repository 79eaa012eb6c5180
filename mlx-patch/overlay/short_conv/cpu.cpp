// CPU backend of ShortConv.
//
// Idea:    one pass in place of a product with BLAS for each channel: channels are the lanes, and the last taps - 1 inputs
//          stay in registers while the tokens go by.
// Layout:  x [B, L, C or 3 * C] by rows; weights by taps, which is how models keep them, else they are copied.
// Tasks:   some channels of one batch row each.
// Exact:   sums of products in float32 in the order of the taps, fused where BLAS fuses (cpu/stock.h).
// Bound:   decode: the launch; prefill: the reads and writes of x and y.
// Limits:  16 taps.

#include "cpu/operands.h"
#include "cpu/step.h"
#include "cpu/stock.h"
#include "cpu/task.h"
#include "cpu/thread_pool.h"
#include "mlx/allocator.h"
#include "short_conv/short_conv.h"

namespace zmlx {

using mlx::core::array;

namespace {

constexpr int64_t kChannels = 512;

// Weights [C, taps, 1] by rows of one tap.
class Taps {
 public:
  Taps(const array& w, int64_t item) {
    int64_t channels = w.shape(0);
    int64_t taps = w.shape(1);
    auto data = w.data<uint8_t>();
    int64_t per_channel = w.strides(0) * item;
    int64_t per_tap = w.strides(1) * item;
    if (w.strides(0) == 1) {
      data_ = data;
      stride_ = per_tap;
      return;
    }
    copy_.resize(channels * taps * item);
    for (int64_t k = 0; k < taps; k++) {
      for (int64_t c = 0; c < channels; c++) {
        __builtin_memcpy(&copy_[(k * channels + c) * item], data + c * per_channel + k * per_tap, item);
      }
    }
    data_ = copy_.data();
    stride_ = channels * item;
  }
  Taps(const Taps&) = delete;

  const uint8_t* data() const {
    return data_;
  }
  int64_t stride() const {
    return stride_;
  }

 private:
  std::vector<uint8_t> copy_;
  const uint8_t* data_;
  int64_t stride_;
};

void run(const std::vector<array>& in, array& y, array& new_state, bool gated) {
  using P = ShortConv;
  namespace c = zmlx::cpu;
  auto& kernels = c::step_kernels();
  auto dtype = c::dtype_of(y.dtype());
  int64_t item = c::size_of(dtype);
  int64_t length = y.shape(1);
  int64_t channels = y.shape(2);
  int64_t kept = new_state.shape(1);
  auto x = c::matrices_of(in[P::kX]);
  auto state = c::matrices_of(in[P::kState]);
  Taps weights(in[P::kWeight], item);
  auto bias = c::rows_of(in.size() > P::kBias ? in[P::kBias] : in[P::kX]);
  auto out = y.data<uint8_t>();
  auto out_state = new_state.data<uint8_t>();

  c::ShortConvTask shared = {};
  shared.dtype = dtype;
  shared.fused = c::stock_conv() == c::StockConv::Fuses;
  shared.length = length;
  shared.taps = kept + 1;
  shared.x_stride = x.row_stride();
  shared.weight_stride = weights.stride();
  shared.state_stride = state.row_stride();
  shared.new_state_stride = channels * item;
  shared.y_stride = channels * item;

  int64_t blocks = (channels + kChannels - 1) / kChannels;
  int64_t work = static_cast<int64_t>(y.size()) * (kept + 8);
  c::parallel_for(y.shape(0) * blocks, work, [&](int64_t task) {
    int64_t b = task / blocks;
    int64_t first = task % blocks * kChannels;
    int64_t at = first * item;
    auto t = shared;
    t.channels = std::min(kChannels, channels - first);
    auto row = x.at(b) + at;
    t.x = gated ? row + 2 * channels * item : row;
    t.gate_in = gated ? row : nullptr;
    t.gate_out = gated ? row + channels * item : nullptr;
    t.weights = weights.data() + at;
    t.bias = in.size() > P::kBias ? bias.at(0) + at : nullptr;
    t.state = state.at(b) + at;
    t.new_state = out_state + b * kept * channels * item + at;
    t.y = out + b * length * channels * item + at;
    kernels.short_conv(t);
  });
}

} // namespace

void ShortConv::eval_cpu(const std::vector<array>& inputs, std::vector<array>& outputs) {
  for (auto& out : outputs) {
    out.set_data(mlx::core::allocator::malloc(out.nbytes()));
  }
  cpu::dispatch_task(stream(), name(), inputs, outputs, [gated = gated_](auto& in, auto& out) {
    run(in, out[kY], out[kNewState], gated);
  });
}

} // namespace zmlx
