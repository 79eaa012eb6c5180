#include "greedy_token/greedy_token.h"
#include "mlx/ops.h"
#include "zmlx/invalid.h"

namespace zmlx {

using namespace mlx::core;

array greedy_token(const array& logits, StreamOrDevice s_) {
  auto s = to_stream(s_);
  auto fail = [](auto&&... args) {
    throw_invalid("greedy_token", args...);
  };
  if (logits.ndim() < 1 || logits.shape(-1) == 0) {
    fail("logits should have at least one value in the last dimension but received shape ", logits.shape(), ".");
  }
  const Parameter asked[] = {{"vocab_size", logits.shape(-1)}};
  require_support("greedy_token", {s.device, logits.dtype(), Precision::Exact, asked});
  auto shape = logits.shape();
  shape.pop_back();
  return array(std::move(shape), uint32, std::make_shared<GreedyToken>(s), {logits});
}

std::pair<std::vector<array>, std::vector<int>> GreedyToken::vmap(
    const std::vector<array>& inputs,
    const std::vector<int>& axes) {
  return {{greedy_token(moveaxis(inputs[kLogits], axes[kLogits], 0, stream()), stream())}, {0}};
}

std::vector<array>
GreedyToken::jvp(const std::vector<array>& primals, const std::vector<array>&, const std::vector<int>&) {
  return {zeros(output_shapes(primals)[0], uint32, stream())};
}

std::vector<array> GreedyToken::vjp(
    const std::vector<array>& primals,
    const std::vector<array>&,
    const std::vector<int>&,
    const std::vector<array>&) {
  return {zeros_like(primals[kLogits], stream())};
}

std::vector<Shape> GreedyToken::output_shapes(const std::vector<array>& inputs) {
  auto shape = inputs[kLogits].shape();
  shape.pop_back();
  return {shape};
}

Definition define_greedy_token() {
  return {
      "greedy_token",
      {"vocab_size"},
      [](const Request&) { return std::string(); },
      refuse_on_cpu,
      export_row<GreedyToken>("GreedyToken")};
}

} // namespace zmlx
