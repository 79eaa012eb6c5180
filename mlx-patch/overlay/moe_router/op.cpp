#include <sstream>

#include "mlx/ops.h"
#include "moe_router/moe_router.h"
#include "zmlx/fallback.h"
#include "zmlx/invalid.h"
#include "zmlx/quant_params.h"

namespace zmlx {

using namespace mlx::core;

namespace {

template <typename... Args>
[[noreturn]] void fail(const Args&... args) {
  throw_invalid("moe_router", args...);
}

bool is_activation(Dtype t) {
  return t == float32 || t == float16 || t == bfloat16;
}

// As `supports` spells the type of the weights.
const char* weights_name(const std::optional<Dtype>& t) {
  return !t ? "as_scored" : *t == float32 ? "float32" : *t == float16 ? "float16" : "bfloat16";
}

void check_per_expert(const char* what, const array& a, const array& logits) {
  if (a.ndim() != 1 || a.shape(0) != logits.shape(-1)) {
    fail(what, " should have shape (", logits.shape(-1), ") but received ", a.shape(), ".");
  }
  if (!is_activation(a.dtype())) {
    fail(what, " should be float32, float16 or bfloat16 but received ", a.dtype(), ".");
  }
}

} // namespace

std::pair<array, array> moe_router(
    const array& logits,
    const RouterParams& p,
    const std::optional<array>& selection_bias,
    const std::optional<array>& expert_scale,
    StreamOrDevice s_) {
  auto s = to_stream(s_);
  if (!is_activation(logits.dtype())) {
    fail("logits should be float32, float16 or bfloat16 but received ", logits.dtype(), ".");
  }
  if (logits.ndim() < 1) {
    fail("logits should have at least one dimension but received shape ", logits.shape(), ".");
  }
  if (p.weights && !is_activation(*p.weights)) {
    fail("weights should be float32, float16 or bfloat16 but should become ", *p.weights, ".");
  }
  const Parameter asked[] = {
      {"num_experts", logits.shape(-1)},
      {"top_k", p.top_k},
      {"scoring", std::string_view(p.scoring)},
      {"precise", p.precise},
      {"order", std::string_view(p.descending ? "descending" : "ascending")},
      {"in_f32", p.in_f32},
      {"selection_bias", selection_bias.has_value()},
      {"num_groups", p.num_groups},
      {"top_k_groups", p.top_k_groups},
      {"normalize", p.normalize},
      {"epsilon", static_cast<double>(p.epsilon)},
      {"expert_scale", expert_scale.has_value()},
      {"scale", static_cast<double>(p.scale)},
      {"weights", std::string_view(weights_name(p.weights))}};
  require_support("moe_router", {s.device, logits.dtype(), Precision::Exact, asked});
  require_rows_on_metal("moe_router", s.device, logits);
  std::vector<array> inputs = {in_rows_on_metal(logits, s)};
  auto weights = p.in_f32 ? float32 : logits.dtype();
  if (selection_bias) {
    check_per_expert("selection_bias", *selection_bias, logits);
    inputs.push_back(in_rows_on_metal(*selection_bias, s));
  }
  if (expert_scale) {
    check_per_expert("expert_scale", *expert_scale, logits);
    inputs.push_back(*expert_scale);
    weights = promote_types(weights, expert_scale->dtype());
  }
  weights = p.weights.value_or(weights);
  auto scoring = p.scoring == "softmax" ? RouterScoring::Softmax
      : p.scoring == "sigmoid"          ? RouterScoring::Sigmoid
                                        : RouterScoring::SoftmaxOfTopK;
  MoERouter::State state = {
      p.top_k,
      scoring,
      p.precise,
      p.descending,
      p.in_f32,
      selection_bias.has_value(),
      p.num_groups,
      p.top_k_groups,
      p.normalize,
      p.epsilon,
      expert_scale.has_value(),
      p.scale,
      weights.val()};
  auto shape = logits.shape();
  shape.back() = p.top_k;
  auto outputs = array::make_arrays(
      {shape, shape}, {uint32, weights}, std::make_shared<MoERouter>(s, state), std::move(inputs));
  return {outputs[MoERouter::kIndices], outputs[MoERouter::kScores]};
}

namespace {

Dtype dtype_of(Dtype::Val weights) {
  return weights == float32 ? float32 : weights == float16 ? float16 : bfloat16;
}

// The first or the last n of an axis.
array first_of(const array& a, int n, int axis, Stream s) {
  auto stop = a.shape();
  stop[axis] = n;
  return slice(a, Shape(a.ndim(), 0), stop, s);
}

array last_of(const array& a, int n, int axis, Stream s) {
  auto start = Shape(a.ndim(), 0);
  start[axis] = a.shape(axis) - n;
  return slice(a, start, a.shape(), s);
}

// Scores with those of all but the best groups set to zero.
array keep_best_groups(const array& scores, const MoERouter::State& p, Stream s) {
  auto grouped = unflatten(scores, -1, {p.num_groups, -1}, s); // [.., G, E / G]
  int axis = static_cast<int>(grouped.ndim()) - 2;
  auto best = sum(topk(grouped, 2, -1, s), -1, true, s); // [.., G, 1]
  int dropped = p.num_groups - p.top_k_groups;
  auto worst = first_of(argpartition(best, dropped - 1, axis, s), dropped, axis, s);
  auto kept = put_along_axis(grouped, stop_gradient(worst, s), array(0.0f, grouped.dtype()), axis, s);
  return flatten(kept, -2, -1, s);
}

// The definition, in stock ops, as mlx-lm's MoE blocks have it.
Fallback stock(const MoERouter::State& p, Stream s) {
  return [=](const std::vector<array>& inputs) {
    int next = MoERouter::kOptional;
    auto logits = p.in_f32 ? astype(inputs[MoERouter::kLogits], float32, s) : inputs[MoERouter::kLogits];
    auto gates = p.scoring == RouterScoring::Softmax ? softmax(logits, -1, p.precise, s)
        : p.scoring == RouterScoring::Sigmoid        ? sigmoid(logits, s)
                                                     : logits;
    auto keys = p.has_selection_bias ? add(astype(gates, float32, s), inputs[next++], s) : gates;
    if (p.num_groups > 1) {
      keys = keep_best_groups(keys, p, s);
    }
    int last = static_cast<int>(keys.ndim()) - 1;
    auto indices = p.descending ? first_of(argpartition(negative(keys, s), p.top_k - 1, -1, s), p.top_k, last, s)
                                : last_of(argpartition(keys, -p.top_k, -1, s), p.top_k, last, s);
    indices = stop_gradient(indices, s);
    auto scores = take_along_axis(gates, indices, -1, s);
    if (p.scoring == RouterScoring::SoftmaxOfTopK) {
      scores = softmax(scores, -1, p.precise, s);
    }
    if (p.normalize) {
      auto total = sum(scores, -1, true, s);
      scores = divide(scores, p.epsilon == 0 ? total : add(total, array(p.epsilon, total.dtype()), s), s);
    }
    if (p.has_expert_scale) {
      scores = multiply(scores, take(inputs[next], indices, 0, s), s);
    }
    if (p.scale != 1) {
      scores = multiply(scores, array(p.scale, scores.dtype()), s);
    }
    return std::vector<array>{indices, astype(scores, dtype_of(p.weights), s)};
  };
}

} // namespace

Fallback MoERouter::fallback(const std::vector<int>&) {
  return stock(state_, stream());
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
  shape.back() = state_.top_k;
  return {shape, shape};
}

namespace {

std::string refuse(const Request& r) {
  auto experts = r.integer("num_experts");
  auto top_k = r.integer("top_k");
  auto scoring = r.text("scoring");
  auto order = r.text("order");
  auto groups = r.integer("num_groups");
  auto kept = r.integer("top_k_groups");
  auto weights = r.text("weights");
  for (auto name : {"precise", "in_f32", "selection_bias", "normalize", "expert_scale"}) {
    r.flag(name);
  }
  for (auto name : {"epsilon", "scale"}) {
    r.number(name);
  }
  std::ostringstream reason;
  if (top_k < 1 || top_k > experts) {
    reason << "top_k should be between 1 and the number of experts, " << experts << ", but received " << top_k;
  } else if (scoring != "softmax" && scoring != "sigmoid" && scoring != "softmax_of_top_k") {
    reason << "scoring should be 'softmax', 'sigmoid' or 'softmax_of_top_k' but received '" << scoring << "'";
  } else if (order != "ascending" && order != "descending") {
    reason << "order should be 'ascending' or 'descending' but received '" << order << "'";
  } else if (weights != "as_scored" && weights != "float32" && weights != "float16" && weights != "bfloat16") {
    reason << "weights should be 'as_scored', 'float32', 'float16' or 'bfloat16' but received '" << weights << "'";
  } else if (groups < 1 || experts % groups != 0 || (groups > 1 && experts / groups < 2)) {
    reason << "groups should be of two experts or more each but received " << groups << " groups of " << experts
           << " experts";
  } else if (kept < 1 || kept > groups) {
    reason << "top_k_groups should be between 1 and the number of groups, " << groups << ", but received " << kept;
  }
  return reason.str();
}

// What one threadgroup does, and what stock adds one after the other.
std::string refuse_router_on_metal(const Request& r) {
  constexpr int64_t most_experts = 1024, most_chosen = 64;
  if (r.integer("num_experts") > most_experts || r.integer("top_k") > most_chosen) {
    std::ostringstream reason;
    reason << "the Metal kernel chooses at most " << most_chosen << " of at most " << most_experts << " experts, not "
           << r.integer("top_k") << " of " << r.integer("num_experts");
    return reason.str();
  }
  return refuse_on_metal(r);
}

} // namespace

Definition define_moe_router() {
  return {
      "moe_router",
      {"num_experts",
       "top_k",
       "scoring",
       "precise",
       "order",
       "in_f32",
       "selection_bias",
       "num_groups",
       "top_k_groups",
       "normalize",
       "epsilon",
       "expert_scale",
       "scale",
       "weights"},
      refuse,
      refuse_on_cpu,
      export_row<MoERouter>("MoERouter"),
      {{"scoring", "softmax"},
       {"precise", true},
       {"order", "ascending"},
       {"in_f32", false},
       {"selection_bias", false},
       {"num_groups", 1},
       {"epsilon", 0.0},
       {"expert_scale", false},
       {"scale", 1.0},
       {"weights", "as_scored"}},
      refuse_router_on_metal,
      {"scoring",
       "precise",
       "order",
       "in_f32",
       "selection_bias",
       "num_groups",
       "epsilon",
       "scale",
       "weights"}};
}

} // namespace zmlx
