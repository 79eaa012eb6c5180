#include <sstream>

#include "mlx/ops.h"
#include "moe_router/moe_router.h"
#include "zmlx/fallback.h"
#include "zmlx/quant_params.h"

namespace zmlx {

using namespace mlx::core;

std::pair<array, array> moe_router(
    const array& logits,
    int top_k,
    bool normalize,
    const std::string& scoring,
    StreamOrDevice s_) {
  auto s = to_stream(s_);
  auto fail = [](auto&&... args) {
    std::ostringstream msg;
    msg << "[moe_router] ";
    (msg << ... << args);
    throw std::invalid_argument(msg.str());
  };
  if (logits.dtype() != float32 && logits.dtype() != float16 && logits.dtype() != bfloat16) {
    fail("logits should be float32, float16 or bfloat16 but received ", logits.dtype(), ".");
  }
  if (logits.ndim() < 1) {
    fail("logits should have at least one dimension but received shape ", logits.shape(), ".");
  }
  const Parameter asked[] = {
      {"num_experts", logits.shape(-1)},
      {"top_k", top_k},
      {"normalize", normalize},
      {"scoring", std::string_view(scoring)},
      {"selection_bias", false},
      {"num_groups", 1},
      {"scale", 1.0}};
  require_support("moe_router", {s.device, logits.dtype(), Precision::Exact, asked});
  auto shape = logits.shape();
  shape.back() = top_k;
  auto kind = scoring == "softmax" ? RouterScoring::Softmax : RouterScoring::Sigmoid;
  auto outputs = array::make_arrays(
      {shape, shape},
      {uint32, logits.dtype()},
      std::make_shared<MoERouter>(s, top_k, normalize, kind),
      {logits});
  return {outputs[MoERouter::kIndices], outputs[MoERouter::kScores]};
}

namespace {

// The definition, in stock ops, as mlx-lm's MoE blocks have it.
Fallback stock(int top_k, bool normalize, RouterScoring scoring, Stream s) {
  return [=](const std::vector<array>& inputs) {
    const auto& logits = inputs[MoERouter::kLogits];
    auto gates = scoring == RouterScoring::Softmax ? softmax(logits, -1, true, s) : sigmoid(logits, s);
    auto order = argpartition(gates, -top_k, -1, s);
    auto start = Shape(order.ndim(), 0);
    auto stop = order.shape();
    start.back() = stop.back() - top_k;
    auto indices = stop_gradient(slice(order, start, stop, s), s);
    auto scores = take_along_axis(gates, indices, -1, s);
    if (normalize) {
      scores = divide(scores, sum(scores, -1, true, s), s);
    }
    return std::vector<array>{indices, scores};
  };
}

} // namespace

Fallback MoERouter::fallback(const std::vector<int>&) {
  return stock(top_k_, normalize_, scoring_, stream());
}

std::vector<array> MoERouter::vjp(
    const std::vector<array>& primals,
    const std::vector<array>& cotangents,
    const std::vector<int>& argnums,
    const std::vector<array>&) {
  // Indices have no gradient: only the cotangent of the scores goes through.
  auto scores_only = [f = fallback(argnums)](const std::vector<array>& in) {
    return std::vector<array>{f(in)[MoERouter::kScores]};
  };
  return fallback_vjp(scores_only, primals, {cotangents[kScores]}, argnums);
}

std::vector<Shape> MoERouter::output_shapes(const std::vector<array>& inputs) {
  auto shape = inputs[kLogits].shape();
  shape.back() = top_k_;
  return {shape, shape};
}

namespace {

std::string refuse(const Request& r) {
  auto experts = r.integer("num_experts");
  auto top_k = r.integer("top_k");
  auto scoring = r.text("scoring");
  r.flag("normalize");
  if (top_k < 1 || top_k > experts) {
    return "top_k should be between 1 and the number of experts, " + std::to_string(experts) + ", but received " +
        std::to_string(top_k);
  }
  if (scoring != "softmax" && scoring != "sigmoid") {
    return "scoring should be 'softmax' or 'sigmoid' but received '" + std::string(scoring) + "'";
  }
  if (r.flag("selection_bias")) {
    return "a bias for choosing experts is not fused";
  }
  if (r.integer("num_groups") != 1) {
    return "groups of experts are not fused";
  }
  if (r.number("scale") != 1) {
    return "a scale of the scores is not fused";
  }
  return "";
}

} // namespace

Definition define_moe_router() {
  return {
      "moe_router",
      {"num_experts", "top_k", "normalize", "scoring", "selection_bias", "num_groups", "scale"},
      refuse,
      refuse_on_cpu,
      export_row<MoERouter>("MoERouter")};
}

} // namespace zmlx
