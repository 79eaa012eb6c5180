// Bit for bit against stock MLX, in one process: moe_router over the whole product of types, scorings, orders, biases,
// groups, norms, scales and types of the weights, with sizes and values that go round; then the routers of published
// families over many sizes, ties and extreme logits.
//
//   router_equivalence [--seed S] [--threads N] [--quick]

#include <optional>
#include <sstream>

#include "tests/arrays.h"

using namespace zmlx::tests;

namespace {

enum class Logits { Normal, Ties, Extreme };

struct Case {
  mx::Dtype dtype;
  zmlx::RouterParams p;
  std::optional<mx::Dtype> bias;
  std::optional<mx::Dtype> expert_scale;
};

struct Size {
  mx::Shape rows;
  int experts;
};

std::string describe(const Case& c, const Size& size, Logits kind) {
  std::ostringstream s;
  auto& p = c.p;
  auto type = [&](const char* name, const std::optional<mx::Dtype>& t) {
    if (t) {
      s << " " << name << " " << *t;
    }
  };
  s << "router " << c.dtype << " " << size.rows << " of " << size.experts << " kind " << int(kind) << " top " << p.top_k
    << " " << p.scoring << (p.precise ? " precise" : "") << (p.descending ? " descending" : "")
    << (p.in_f32 ? " in f32" : "") << " groups " << p.top_k_groups << "/" << p.num_groups;
  if (p.normalize) {
    s << " normalized + " << p.epsilon;
  }
  s << " scale " << p.scale;
  type("bias", c.bias);
  type("expert scale", c.expert_scale);
  type("weights", p.weights);
  return s.str();
}

array in_type_of(float value, const array& a) {
  return array(value, a.dtype());
}

array part(const array& a, int axis, int from, int to) {
  auto start = mx::Shape(a.ndim(), 0);
  auto stop = a.shape();
  axis += a.ndim();
  start[axis] = from < 0 ? from + stop[axis] : from;
  stop[axis] = to;
  return mx::slice(a, start, stop);
}

// What mlx-lm's blocks write, one op after another.
std::pair<array, array> stock(
    array x,
    const zmlx::RouterParams& p,
    const std::optional<array>& bias,
    const std::optional<array>& expert_scale) {
  if (p.in_f32) {
    x = mx::astype(x, mx::float32);
  }
  int k = p.top_k;
  int experts = x.shape(-1);
  bool of_top_k = p.scoring == "softmax_of_top_k";
  auto gates = of_top_k ? x : p.scoring == "softmax" ? mx::softmax(x, -1, p.precise) : mx::sigmoid(x);
  auto scores = gates;
  if (bias) {
    scores = mx::astype(scores, mx::float32) + *bias;
  }
  if (p.num_groups > 1) {
    scores = mx::unflatten(scores, -1, {p.num_groups, -1});
    auto group_scores = mx::sum(mx::topk(scores, 2, -1), -1, true);
    int n = p.num_groups - p.top_k_groups;
    auto group_idx = part(mx::argpartition(group_scores, n - 1, -2), -2, 0, n);
    scores = mx::put_along_axis(scores, group_idx, in_type_of(0.0f, scores), -2);
    scores = mx::flatten(scores, -2, -1);
  }
  auto inds = p.descending ? part(mx::argpartition(mx::negative(scores), k - 1, -1), -1, 0, k)
                           : part(mx::argpartition(scores, -k, -1), -1, -k, experts);
  inds = mx::stop_gradient(inds);
  auto weights = mx::take_along_axis(gates, inds, -1);
  if (of_top_k) {
    weights = mx::softmax(weights, -1, p.precise);
  }
  if (p.normalize) {
    auto total = mx::sum(weights, -1, true);
    weights = weights / (p.epsilon == 0 ? total : total + in_type_of(p.epsilon, total));
  }
  if (expert_scale) {
    weights = weights * mx::take(*expert_scale, inds, 0);
  }
  if (p.scale != 1) {
    weights = weights * in_type_of(p.scale, weights);
  }
  return {inds, p.weights ? mx::astype(weights, *p.weights) : weights};
}

array random_logits(mx::Shape shape, mx::Dtype dtype, Logits kind) {
  auto x = random_array(shape, dtype, kind == Logits::Extreme ? Values::Extreme : Values::Normal, 2);
  return kind == Logits::Ties ? mx::astype(mx::round(x), dtype) : x;
}

void check(const Case& c, const Size& size, Logits kind) {
  auto shape = size.rows;
  shape.push_back(size.experts);
  auto logits = random_logits(shape, c.dtype, kind);
  auto per_expert = [&](const std::optional<mx::Dtype>& type, double scale) {
    return type ? std::optional<array>(random_array({size.experts}, *type, Values::Normal, scale)) : std::nullopt;
  };
  auto bias = per_expert(c.bias, 0.3);
  auto expert_scale = per_expert(c.expert_scale, 1);
  auto [inds, weights] = stock(logits, c.p, bias, expert_scale);
  auto [i, w] = zmlx::moe_router(logits, c.p, bias, expert_scale);
  same(describe(c, size, kind) + " indices", i, inds);
  same(describe(c, size, kind) + " weights", w, weights);
}

using Type = std::optional<mx::Dtype>;

void check_product(mx::Dtype dtype) {
  const Size sizes[] = {{{}, 12}, {{3}, 24}, {{2, 1}, 48}, {{1, 5}, 36}, {{1, 1}, 132}};
  const int chosen[] = {1, 4, 2, 8, 12};
  const Type types[] = {std::nullopt, mx::float32, mx::float16, mx::bfloat16};
  int turn = 0;
  auto run = [&](Case c) {
    int at = turn++ % 5;
    c.p.top_k = chosen[(at + turn / 5) % 5];
    check(c, sizes[at], static_cast<Logits>(turn / 7 % 3));
  };
  for (auto [scoring, precise] :
       {std::pair{"softmax", true}, {"softmax", false}, {"sigmoid", true}, {"softmax_of_top_k", true}, {"softmax_of_top_k", false}}) {
    for (bool descending : {false, true}) {
      for (bool in_f32 : {false, true}) {
        for (auto& bias : types) {
          for (auto [groups, kept] : {std::pair{1, 1}, {2, 1}, {3, 2}, {4, 4}, {6, 1}}) {
            for (auto [normalize, epsilon] : {std::pair{false, 0.0f}, {true, 0.0f}, {true, 1e-20f}, {true, 1e-6f}}) {
              for (auto& expert_scale : types) {
                for (float scale : {1.0f, 2.446f}) {
                  for (auto& weights : types) {
                    run({dtype, {1, scoring, precise, descending, in_f32, groups, kept, normalize, epsilon, scale, weights}, bias, expert_scale});
                  }
                }
              }
            }
          }
        }
      }
    }
  }
}

// Of the families that mlx-lm has.
std::vector<Case> families(mx::Dtype dtype) {
  zmlx::RouterParams plain{1, "softmax"};
  auto with = [&](auto change) {
    auto p = plain;
    change(p);
    return p;
  };
  auto glm = with([](auto& p) {
    p.scoring = "sigmoid";
    p.descending = p.in_f32 = p.normalize = true;
    p.scale = 1.8f;
  });
  auto deepseek = glm;
  deepseek.epsilon = 1e-20f;
  auto lfm2 = with([](auto& p) {
    p.scoring = "sigmoid";
    p.normalize = true;
    p.epsilon = 1e-6f;
  });
  lfm2.weights = dtype;
  auto minimax = deepseek;
  minimax.scale = 1;
  minimax.weights = dtype;
  auto gpt_oss = with([](auto& p) { p.scoring = "softmax_of_top_k"; });
  auto mixtral = gpt_oss;
  mixtral.descending = true;
  auto gemma = gpt_oss;
  gemma.precise = false;
  auto olmoe = with([](auto& p) { p.descending = true; });
  auto qwen3 = with([](auto& p) { p.normalize = true; });
  return {
      {dtype, plain, {}, {}},
      {dtype, qwen3, {}, {}},
      {dtype, olmoe, {}, {}},
      {dtype, glm, mx::float32, {}},
      {dtype, deepseek, mx::float32, {}},
      {dtype, lfm2, mx::float32, {}},
      {dtype, minimax, mx::float32, {}},
      {dtype, gpt_oss, {}, {}},
      {dtype, mixtral, {}, {}},
      {dtype, gemma, {}, dtype}};
}

void check_families(mx::Dtype dtype) {
  for (auto c : families(dtype)) {
    for (int experts : {1, 2, 7, 8, 31, 32, 60, 64, 128, 160, 256, 512}) {
      for (int top_k : {1, 2, 3, 4, 6, 8, 10, 128}) {
        if (top_k > experts) {
          continue;
        }
        c.p.top_k = top_k;
        for (auto kind : {Logits::Normal, Logits::Ties, Logits::Extreme}) {
          for (int groups : {1, 4, 8}) {
            if (groups > 1 && (!c.p.in_f32 || experts < 2 * groups || experts % groups)) {
              continue;
            }
            c.p.num_groups = groups;
            c.p.top_k_groups = (groups + 1) / 2;
            check(c, {{9}, experts}, kind);
          }
          c.p.num_groups = c.p.top_k_groups = 1;
        }
      }
    }
  }
}

array strided(const array& a) {
  auto twice = mx::repeat(a, 2, -1);
  mx::eval(twice);
  auto stop = twice.shape();
  auto steps = mx::Shape(a.ndim(), 1);
  steps.back() = 2;
  return mx::slice(twice, mx::Shape(a.ndim(), 0), stop, steps);
}

void check_layouts(mx::Dtype dtype) {
  auto logits = random_array({4, 6, 24}, dtype, Values::Normal, 2);
  auto bias = random_array({24}, mx::float32, Values::Normal, 0.2);
  auto scale = random_array({24}, dtype);
  zmlx::RouterParams p{3, "sigmoid"};
  p.num_groups = 4;
  p.top_k_groups = 2;
  auto run = [&](const char* what, const array& x, const array& b, const array& s) {
    auto [inds, weights] = stock(x, p, b, s);
    auto [i, w] = zmlx::moe_router(x, p, b, s);
    same(std::string("router layout ") + what + " indices", i, inds);
    same(std::string("router layout ") + what + " weights", w, weights);
  };
  run("plain", logits, bias, scale);
  run("strided logits", strided(logits), bias, scale);
  run("transposed logits", mx::transpose(logits, {1, 0, 2}), bias, scale);
  run("last axis first", mx::transpose(random_array({24, 5}, dtype, Values::Normal, 2)), bias, scale);
  run("broadcast logits", mx::broadcast_to(random_array({1, 24}, dtype), {5, 24}), bias, scale);
  run("strided bias", logits, strided(bias), scale);
  run("strided expert scale", logits, bias, strided(scale));
  run("no rows", mx::zeros({0, 24}, dtype), bias, scale);
}

// Gradients and vmap go through the definition in op.cpp.
void check_definition(mx::Dtype dtype) {
  int turn = 0;
  for (auto& c : families(dtype)) {
    auto p = c.p;
    p.top_k = 3;
    if (p.in_f32) {
      p.num_groups = 4;
      p.top_k_groups = 2;
    }
    auto bias = c.bias ? std::optional<array>(random_array({16}, *c.bias)) : std::nullopt;
    auto scale = c.expert_scale ? std::optional<array>(random_array({16}, *c.expert_scale)) : std::nullopt;
    auto ours = [&](const std::vector<array>& in) {
      auto [i, w] = zmlx::moe_router(in[0], p, bias, scale);
      return std::vector<array>{w};
    };
    auto theirs = [&](const std::vector<array>& in) {
      auto [i, w] = stock(in[0], p, bias, scale);
      return std::vector<array>{w};
    };
    auto logits = random_array({5, 16}, dtype);
    auto y = theirs({logits})[0];
    auto cotangent = random_array(y.shape(), y.dtype());
    auto what = "family " + std::to_string(turn++);
    same(what + " vjp", mx::vjp(ours, {logits}, {cotangent}).second[0], mx::vjp(theirs, {logits}, {cotangent}).second[0]);
  }
}

} // namespace

int main(int argc, char** argv) {
  if (!read_options(argc, argv, [](auto&, auto&) { return 0; })) {
    return 2;
  }
  for (auto dtype : {mx::bfloat16, mx::float16, mx::float32}) {
    check_product(dtype);
    if (quick) {
      continue;
    }
    check_families(dtype);
    check_layouts(dtype);
    check_definition(dtype);
  }
  if (quick) {
    check_layouts(mx::bfloat16);
    check_definition(mx::float32);
  }
  return finish();
}
