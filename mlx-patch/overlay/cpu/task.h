// Handing the work of a node to MLX's CPU stream.

#pragma once

#include <utility>
#include <vector>

#include "cpu/float_environment.h"
#include "cpu/profile.h"
#include "mlx/allocator.h"
#include "mlx/backend/cpu/encoder.h"
#include "mlx/scheduler.h"

namespace zmlx::cpu {

// Enqueues `run()` on a stream, to be run in the default floating-point environment. `name`, which is never freed, stands
// for it in a profile.
//
// Not by the stream's encoder: that counts what it enqueues, and whoever builds a graph sleeps once a hundred are under
// way and is woken after every ten, by the thread that computes. MLX enqueues one more for every array and counts that,
// so what is under way stays bounded.
template <typename F>
void dispatch(mlx::core::Stream stream, const char* name, F run) {
  mlx::core::scheduler::enqueue(stream, [name, run = std::move(run)]() mutable {
    ProfileSpan span(Span::Op, 0, name);
    DefaultFloatEnvironment environment;
    run();
  });
}

// Allocates `out` and enqueues `run(inputs, out)`; an empty `out` needs no work.
template <typename F>
void dispatch_task(
    mlx::core::Stream stream,
    const char* name,
    const std::vector<mlx::core::array>& inputs,
    mlx::core::array& out,
    F run) {
  using mlx::core::array;
  out.set_data(mlx::core::allocator::malloc(out.nbytes()));
  if (out.size() == 0) {
    return;
  }
  auto& encoder = mlx::core::cpu::get_command_encoder(stream);
  std::vector<array> in;
  for (auto& a : inputs) {
    encoder.set_input_array(a);
    in.push_back(array::unsafe_weak_copy(a));
  }
  encoder.set_output_array(out);
  dispatch(stream, name, [in = std::move(in), out = array::unsafe_weak_copy(out), run = std::move(run)]() mutable {
    run(in, out);
  });
}

// The same for several outputs, whose memory the caller has allocated.
template <typename F>
void dispatch_task(
    mlx::core::Stream stream,
    const char* name,
    const std::vector<mlx::core::array>& inputs,
    std::vector<mlx::core::array>& outputs,
    F run) {
  using mlx::core::array;
  auto& encoder = mlx::core::cpu::get_command_encoder(stream);
  std::vector<array> in;
  std::vector<array> out;
  for (auto& a : inputs) {
    encoder.set_input_array(a);
    in.push_back(array::unsafe_weak_copy(a));
  }
  for (auto& a : outputs) {
    encoder.set_output_array(a);
    out.push_back(array::unsafe_weak_copy(a));
  }
  if (outputs[0].size() > 0) {
    dispatch(stream, name, [in = std::move(in), out = std::move(out), run = std::move(run)]() mutable { run(in, out); });
  }
}

} // namespace zmlx::cpu
