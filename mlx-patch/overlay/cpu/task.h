// Handing the work of a node to MLX's CPU stream.

#pragma once

#include <algorithm>
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
  mlx::core::scheduler::enqueue(stream, [name, queued = profile_clock(), run = std::move(run)]() mutable {
    ProfileSpan span(Span::Op, queued, name);
    DefaultFloatEnvironment environment;
    run();
  });
}

// Whether the values of every row lie together, so that kernels can read the arrays where they are.
inline bool all_in_place(const std::vector<mlx::core::array>& arrays) {
  return std::all_of(arrays.begin(), arrays.end(), [](const auto& a) {
    return a.size() == 0 || a.ndim() == 0 || a.shape().back() == 1 || a.strides().back() == 1;
  });
}

// Allocates `out`; false where it is empty and needs no work.
inline bool allocate(
    mlx::core::Stream stream,
    const std::vector<mlx::core::array>& inputs,
    mlx::core::array& out) {
  out.set_data(mlx::core::allocator::malloc(out.nbytes()));
  if (out.size() == 0) {
    return false;
  }
  auto& encoder = mlx::core::cpu::get_command_encoder(stream);
  for (auto& a : inputs) {
    encoder.set_input_array(a);
  }
  encoder.set_output_array(out);
  return true;
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
  if (!allocate(stream, inputs, out)) {
    return;
  }
  std::vector<array> in;
  for (auto& a : inputs) {
    in.push_back(array::unsafe_weak_copy(a));
  }
  dispatch(stream, name, [in = std::move(in), out = array::unsafe_weak_copy(out), run = std::move(run)]() mutable {
    run(in, out);
  });
}

// Allocates `out` and enqueues what `prepare(inputs, out)` returns, to be run. Whoever builds the graph prepares it, where
// arrays have their memory but not their values: an array is dear for the stream's thread to free. Where values of a row
// lie apart and have to be copied, it is prepared when it runs.
template <typename Prepare>
void dispatch_prepared(
    mlx::core::Stream stream,
    const char* name,
    const std::vector<mlx::core::array>& inputs,
    mlx::core::array& out,
    Prepare prepare) {
  if (!all_in_place(inputs)) {
    dispatch_task(stream, name, inputs, out, [prepare = std::move(prepare)](auto& in, auto& out) { prepare(in, out)(); });
  } else if (allocate(stream, inputs, out)) {
    dispatch(stream, name, prepare(inputs, out));
  }
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
