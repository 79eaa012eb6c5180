// CPU backend of ScaleAdd.
//
// Idea:    one pass in place of stock's two.
// Layout:  any; strided operands are read into dense copies first.
// Tasks:   one.
// Bound:   2 reads and a write of x.
// Limits:  none.

#include "cpu/operands.h"
#include "cpu/task.h"
#include "scale_add/scale_add.h"

namespace zmlx {

namespace {

template <typename T>
void run(const std::vector<array>& in, array& out, T scale) {
  auto x = cpu::read_dense(in[ScaleAdd::kX]);
  auto y = cpu::read_dense(in[ScaleAdd::kY]);
  auto xs = reinterpret_cast<const T*>(x.data());
  auto ys = reinterpret_cast<const T*>(y.data());
  auto to = out.data<T>();
  for (size_t i = 0; i < out.size(); i++) {
    to[i] = static_cast<T>(static_cast<T>(xs[i] * scale) + ys[i]);
  }
}

} // namespace

void ScaleAdd::eval_cpu(const std::vector<array>& inputs, array& out) {
  namespace mx = mlx::core;
  cpu::dispatch_task(stream(), inputs, out, [scale = scale_](auto& in, auto& out) {
    if (out.dtype() == mx::float32) {
      run<float>(in, out, scale);
    } else if (out.dtype() == mx::float16) {
      run(in, out, static_cast<mx::float16_t>(scale));
    } else {
      run(in, out, static_cast<mx::bfloat16_t>(scale));
    }
  });
}

} // namespace zmlx
