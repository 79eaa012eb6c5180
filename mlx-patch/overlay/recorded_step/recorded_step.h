// RecordedStep: the last node of a step of decode. It hands what the step chose on to the next one, and keeps the launches
// of the whole step so that they can be made again.

#pragma once

#include <memory>

#include "zmlx/primitives.h"
#include "zmlx/registry.h"

namespace zmlx {

class RecordedStep : public FusedUnary {
 public:
  // token, position, chosen, then every `before` and every `after`
  enum Input { kToken, kPosition, kChosen, kOthers };

  // What becomes of it, and how many states there are.
  struct Result {
    size_t num_states;
    std::shared_ptr<Recording> recording;
  };

  RecordedStep(mlx::core::Stream stream, std::shared_ptr<Result> result)
      : FusedUnary(stream), result_(std::move(result)) {}

  void eval_cpu(const std::vector<array>& inputs, array& out) override;

  DEFINE_NAME(RecordedStep)
  std::vector<mlx::core::Shape> output_shapes(const std::vector<array>&) override {
    return {{1}};
  }
  bool is_equivalent(const mlx::core::Primitive&) const override {
    return false; // it writes
  }
  Result& result() const {
    return *result_;
  }

 private:
  std::shared_ptr<Result> result_;
};

// Evaluates `done`, the output of a RecordedStep, as one graph that nothing else is in. Of the backend.
void evaluate_recorded(array& done, mlx::core::Stream stream);

} // namespace zmlx
