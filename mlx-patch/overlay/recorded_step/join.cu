// Which launches of a recorded step become one.
//
// Products of one vector are one launch, and take in the norm of a residual stream that the vector is. Where the only product
// of a norm is the logits of a router, the choice of experts is part of it. What was replaced is still what it was to those
// who hold it.

#include <map>
#include <unordered_map>
#include <unordered_set>

#include "cuda/tile.h"
#include "quantized_matmul/held.h"
#include "recorded_step/joined.h"
#include "recorded_step/routed.cuh"

namespace zmlx {

using namespace mlx::core;
using namespace on_cuda;

namespace {

template <typename P>
const P* primitive_of(const array& a) {
  return a.has_primitive() ? dynamic_cast<const P*>(&a.primitive()) : nullptr;
}

// What `root` is computed from and was not computed yet, inputs first.
std::vector<array> in_order(const array& root) {
  std::vector<array> order;
  std::unordered_set<std::uintptr_t> seen = {root.id()};
  std::vector<std::pair<array, size_t>> open = {{root, 0}};
  while (!open.empty()) {
    auto& [a, next] = open.back();
    if (next == a.inputs().size()) {
      order.push_back(a);
      open.pop_back();
      continue;
    }
    auto input = a.inputs()[next++];
    if (input.status() == array::Status::unscheduled && input.has_primitive() && seen.insert(input.id()).second) {
      open.push_back({input, 0});
    }
  }
  return order;
}

// Group size and bits.
std::pair<int, int> quantization_of(const array& product) {
  auto state = primitive_of<QuantizedMatmulRows>(product)->state();
  return {std::get<0>(state), std::get<1>(state)};
}

// A product of one vector that a joined launch can have: one of 8 bits where it routes.
bool can_be_joined(const array& a) {
  using P = QuantizedMatmulRows;
  auto* product = primitive_of<P>(a);
  if (!product) {
    return false;
  }
  auto [group, bits, mode, transpose, precision, has_bias] = product->state();
  auto& x = a.inputs()[P::kX];
  int K = x.shape(-1);
  bool plain = mode == QuantizationMode::Affine && transpose && !has_bias && a.inputs()[P::kW].ndim() == 2;
  return plain && x.size() == static_cast<size_t>(K) && is_common_width(bits) && can_be_held(a.size(), K, true);
}

// Whether the launch of NormedRouting does the same.
bool is_plain(const MoERouter& router, const array& logits, const array& scores) {
  auto& p = router.params();
  int experts = logits.shape(-1);
  return p.scoring == RouterScoring::Softmax && p.precise && !p.descending && !p.in_f32 && !p.has_selection_bias &&
      p.num_groups == 1 && p.epsilon == 0 && !p.has_expert_scale && p.scale == 1 && scores.dtype() == logits.dtype() &&
      experts % (2 * 32) == 0 && experts <= kMostRouted && p.top_k <= kMostChosen;
}

class Join {
 public:
  explicit Join(array& done) : order_(in_order(done)) {
    for (auto& a : order_) {
      if (can_be_joined(a)) {
        products_[{a.inputs()[QuantizedMatmulRows::kX].id(), quantization_of(a)}].push_back(a);
      }
      if (auto* router = primitive_of<MoERouter>(a)) {
        auto outputs = a.outputs();
        if (is_plain(*router, a.inputs()[MoERouter::kLogits], outputs[MoERouter::kScores])) {
          routers_.insert({a.inputs()[MoERouter::kLogits].id(), a});
        }
      }
    }
    for (auto& [of, products] : products_) {
      join(products);
    }
    replace();
  }

 private:
  void join(std::vector<array>& products) {
    using P = QuantizedMatmulRows;
    auto& x = products[0].inputs()[P::kX];
    auto* norm = replaced_.count(x.id()) ? nullptr : primitive_of<AddRMSNorm>(x);
    if (norm && (x.status() != array::Status::unscheduled || x.sibling_position() != AddRMSNorm::kNormed)) {
      norm = nullptr;
    }
    if (norm && products.size() == 1) {
      if (auto router = routers_.find(products[0].id()); router != routers_.end()) {
        return route(x, products[0], router->second);
      }
    }
    auto [group_size, bits] = quantization_of(products[0]);
    if (bits != 4) {
      return;
    }
    while (products.size() > kMostJoined || !can_be_held(rows_of(products), x.shape(-1), norm)) {
      products.pop_back();
    }
    if (products.size() < (norm ? 1 : 2)) {
      return;
    }
    auto inputs = norm ? x.inputs() : std::vector<array>{x};
    auto old = norm ? x.outputs() : std::vector<array>{};
    for (auto& product : products) {
      auto& in = product.inputs();
      inputs.insert(inputs.end(), in.begin() + P::kW, in.end());
      old.push_back(product);
    }
    auto eps = norm ? std::optional<float>(std::get<0>(norm->state())) : std::nullopt;
    auto& stream = products[0].primitive().stream();
    put(old, std::make_shared<JoinedProducts>(stream, group_size, eps), std::move(inputs));
  }

  void route(const array& x, const array& product, const array& routed) {
    using P = QuantizedMatmulRows;
    auto inputs = x.inputs();
    auto& in = product.inputs();
    inputs.insert(inputs.end(), in.begin() + P::kW, in.end());
    auto old = x.outputs(), chosen = routed.outputs();
    old.insert(old.end(), chosen.begin(), chosen.end());
    auto& router = primitive_of<MoERouter>(routed)->params();
    float eps = std::get<0>(primitive_of<AddRMSNorm>(x)->state());
    auto [group_size, bits] = quantization_of(product);
    put(old,
        std::make_shared<NormedRouting>(
            product.primitive().stream(), bits, group_size, eps, router.top_k, router.normalize),
        std::move(inputs));
  }

  static int64_t rows_of(const std::vector<array>& products) {
    int64_t rows = 0;
    for (auto& product : products) {
      rows += product.size();
    }
    return rows;
  }

  // One node with the outputs of `old`.
  void put(const std::vector<array>& old, std::shared_ptr<Primitive> primitive, std::vector<array> inputs) {
    std::vector<Shape> shapes;
    std::vector<Dtype> dtypes;
    for (auto& a : old) {
      shapes.push_back(a.shape());
      dtypes.push_back(a.dtype());
    }
    auto outputs = array::make_arrays(std::move(shapes), dtypes, primitive, std::move(inputs));
    for (size_t i = 0; i < old.size(); i++) {
      replaced_.insert({old[i].id(), outputs[i]});
      order_.push_back(outputs[i]);
    }
  }

  // Everything reads what was put in place.
  void replace() {
    for (auto& a : order_) {
      for (auto& output : a.outputs()) {
        auto of = output;
        for (auto& input : of.inputs()) {
          if (auto by = replaced_.find(input.id()); by != replaced_.end()) {
            input = by->second;
          }
        }
      }
    }
  }

  std::vector<array> order_;
  // by x and quantization
  std::map<std::pair<std::uintptr_t, std::pair<int, int>>, std::vector<array>> products_;
  // by their logits
  std::unordered_map<std::uintptr_t, array> routers_;
  std::unordered_map<std::uintptr_t, array> replaced_;
};

} // namespace

void join_launches(array& done) {
  Join join(done);
}

} // namespace zmlx
