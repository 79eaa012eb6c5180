#include "recorded_step/recorded_step.h"

#include "mlx/ops.h"
#include "zmlx/invalid.h"

namespace zmlx {

using namespace mlx::core;

namespace {

template <typename... Args>
[[noreturn]] void fail(const Args&... args) {
  throw_invalid("record_step", args...);
}

void check_own(const array& a, Dtype dtype, const char* name) {
  if (a.ndim() != 1 || a.size() < 4 || a.dtype() != dtype) {
    fail(name, " should be ", dtype, " [4] at least but received ", a.dtype(), " ", a.shape(), ".");
  }
  if (!a.is_available()) {
    fail(name, " should be computed before the step is.");
  }
}

} // namespace

std::shared_ptr<Recording> record_step(const StepState& state, StreamOrDevice s_) {
  auto s = to_stream(s_);
  require_support("recorded_step", {s.device, uint32, Precision::Exact, {}});
  check_own(state.token, uint32, "token");
  check_own(state.position, int32, "position");
  if (state.chosen.shape() != Shape{1} || state.chosen.dtype() != uint32) {
    fail("the token that was chosen should be uint32 [1] but is ", state.chosen.dtype(), " ", state.chosen.shape(), ".");
  }
  if (state.before.size() != state.after.size()) {
    fail("received ", state.before.size(), " states before the step and ", state.after.size(), " after it.");
  }
  std::vector<array> inputs = {state.token, state.position, state.chosen};
  for (size_t i = 0; i < state.before.size(); i++) {
    auto& before = state.before[i];
    auto& after = state.after[i];
    if (before.shape() != after.shape() || before.dtype() != after.dtype()) {
      fail("state ", i, " is ", before.dtype(), " ", before.shape(), " before the step and ", after.dtype(), " ",
           after.shape(), " after it.");
    }
    if (!before.is_available()) {
      fail("state ", i, " should be computed before the step is.");
    }
  }
  inputs.insert(inputs.end(), state.before.begin(), state.before.end());
  for (auto& after : state.after) {
    inputs.push_back(contiguous(after, false, s));
  }
  auto result = std::make_shared<RecordedStep::Result>(
      RecordedStep::Result{state.before.size(), nullptr});
  array done({1}, uint32, std::make_shared<RecordedStep>(s, result), std::move(inputs));
  evaluate_recorded(done, s);
  if (!result->recording) {
    throw std::runtime_error("[record_step] the step was not recorded.");
  }
  return result->recording;
}

void RecordedStep::eval_cpu(const std::vector<array>&, array&) {
  throw std::runtime_error("recorded_step has no CPU kernel");
}

#if !ZMLX_BACKEND_CUDA
void evaluate_recorded(array&, Stream) {
  throw std::runtime_error("recorded_step has a kernel on CUDA devices alone");
}
#endif

Definition define_recorded_step() {
  return {
      "recorded_step",
      {},
      [](const Request&) { return std::string(); },
      refuse_recorded_on_cpu,
      unsaved_row("RecordedStep")};
}

} // namespace zmlx
