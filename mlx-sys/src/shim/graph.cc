// Graphs as data, and graphs as they are on a GPU where there is none: for counting launches.

#include "zmlx-sys/src/bridge.rs.h"

#include <unordered_map>
#include <unordered_set>

#include "mlx/primitives.h"
#if ZMLX_CUSTOM_PRIMITIVE
#include "zmlx/primitives.h"
#endif

namespace zmlx_sys {

namespace {

thread_local bool planning = false;

// An op of mlx::core::fast as a GPU has it: one node. MLX itself makes ordinary ops of it on a CPU.
class Planned : public mx::Primitive {
 public:
  Planned(mx::Stream s, const char* name, std::vector<int64_t> parameters)
      : Primitive(s), parameters(std::move(parameters)), name_(name) {}

  void eval_cpu(const std::vector<mx::array>&, std::vector<mx::array>&) override {
    refuse();
  }
  void eval_gpu(const std::vector<mx::array>&, std::vector<mx::array>&) override {
    refuse();
  }
  const char* name() const override {
    return name_;
  }

  const std::vector<int64_t> parameters;

 private:
  [[noreturn]] void refuse() {
    throw std::runtime_error(
        std::string("[") + name_ + "] a graph that was made for counting its launches cannot be evaluated");
  }

  const char* name_;
};

// What decides the layout of an op's output or the number of its launches, beside the inputs. MLX has one class of
// primitive for each name.
template <typename List>
void append(std::vector<int64_t>& to, const List& from) {
  to.insert(to.end(), from.begin(), from.end());
}

std::vector<int64_t> parameters(const mx::Primitive& p) {
  std::vector<int64_t> all;
  std::string_view name = p.name();
  if (auto* planned = dynamic_cast<const Planned*>(&p)) {
    return planned->parameters;
  } else if (name == "Transpose") {
    append(all, static_cast<const mx::Transpose&>(p).state());
  } else if (name == "ExpandDims") {
    append(all, static_cast<const mx::ExpandDims&>(p).state());
  } else if (name == "Squeeze") {
    append(all, static_cast<const mx::Squeeze&>(p).state());
  } else if (name == "Slice") {
    append(all, std::get<2>(static_cast<const mx::Slice&>(p).state()));
  } else if (name == "Reduce" || name == "Sum" || name == "Max" || name == "Min" || name == "Prod" || name == "All" ||
             name == "Any" || name == "And" || name == "Or") {
    append(all, static_cast<const mx::Reduce&>(p).state().second);
  } else if (name == "Sort") {
    all.push_back(static_cast<const mx::Sort&>(p).state());
  } else if (name == "ArgSort") {
    all.push_back(static_cast<const mx::ArgSort&>(p).state());
  } else if (name == "ArgPartition") {
    all.push_back(static_cast<const mx::ArgPartition&>(p).state().second);
  } else if (name == "Partition") {
    all.push_back(static_cast<const mx::Partition&>(p).state().second);
  } else if (name == "QuantizedMatmul") {
    all.push_back(std::get<3>(static_cast<const mx::QuantizedMatmul&>(p).state()));
  }
  return all;
}

bool is_ours([[maybe_unused]] const char* name) {
#if ZMLX_CUSTOM_PRIMITIVE
  return zmlx::is_primitive(name);
#else
  return false;
#endif
}

mx::array planned(
    const char* name,
    const mx::array& like,
    std::vector<mx::array> inputs,
    std::vector<int64_t> parameters = {}) {
  return mx::array(
      like.shape(), like.dtype(), std::make_shared<Planned>(current(), name, std::move(parameters)), std::move(inputs));
}

} // namespace

bool set_planning(bool on) noexcept {
  return std::exchange(planning, on);
}

bool is_planning() noexcept {
  return planning;
}

mx::array plan_norm(const char* name, const mx::array& real, const mx::array& x, std::vector<mx::array> parts) {
  std::vector<mx::array> inputs = {mx::astype(x, real.dtype(), current())};
  for (auto& part : parts) {
    inputs.push_back(mx::astype(part, real.dtype(), current()));
  }
  return planned(name, real, std::move(inputs));
}

mx::array plan_rope(
    const mx::array& real,
    const mx::array& x,
    int dims,
    const mx::array& offset,
    const std::optional<mx::array>& freqs) {
  std::vector<mx::array> inputs = {x, offset};
  if (freqs) {
    inputs.push_back(mx::astype(*freqs, mx::float32, current()));
  }
  return planned("RoPE", real, std::move(inputs), {dims});
}

std::vector<mx::array> plan_quantize(const std::vector<mx::array>& real, std::vector<mx::array> inputs) {
  std::vector<mx::Shape> shapes;
  std::vector<mx::Dtype> dtypes;
  for (auto& part : real) {
    shapes.push_back(part.shape());
    dtypes.push_back(part.dtype());
  }
  auto primitive = std::make_shared<Planned>(current(), "Quantize", std::vector<int64_t>());
  return mx::array::make_arrays(std::move(shapes), dtypes, primitive, inputs);
}

// `ScaledDotProductAttention::use_fallback` of mlx/backend/metal/scaled_dot_product_attention.cpp, without NAX.
std::optional<mx::array> plan_attention(
    const mx::array& real,
    const mx::array& q,
    const mx::array& k,
    const mx::array& v,
    bool causal,
    const std::optional<mx::array>& mask,
    const std::optional<mx::array>& sinks) {
  auto dim = q.shape(-1);
  auto value_dim = v.shape(-1);
  auto length = q.shape(2);
  auto is_one_of = [&](std::initializer_list<int> dims) {
    return dim == value_dim && std::find(dims.begin(), dims.end(), dim) != dims.end();
  };
  bool fused;
  if (length > 8) {
    fused = is_one_of({64, 72, 80, 96, 128}) && !(causal && length > k.shape(2));
  } else {
    fused = (is_one_of({64, 96, 128, 256}) || (dim == 192 && value_dim == 128)) && length <= k.shape(2) &&
        length * (q.shape(1) / k.shape(1)) <= 32;
  }
  if (!fused) {
    return std::nullopt;
  }
  auto as = [&](const mx::array& a) { return mx::astype(a, real.dtype(), current()); };
  std::vector<mx::array> inputs = {as(q), as(k), as(v)};
  if (mask) {
    auto shape = q.shape();
    shape.back() = k.shape(2);
    inputs.push_back(
        mx::broadcast_to(mask->dtype() == mx::bool_ ? *mask : as(*mask), shape, current()));
  }
  if (sinks) {
    inputs.push_back(as(*sinks));
  }
  return planned("ScaledDotProductAttention", real, std::move(inputs));
}

size_t array_id(const Array& a) noexcept {
  return a.a.id();
}

rust::Vec<GraphNode> graph_nodes(const ArrayVec& outputs, const ArrayVec& given) {
  // whoever has these has what they are made of
  std::unordered_set<uintptr_t> leaves;
  auto todo = given.v;
  while (!todo.empty()) {
    auto a = std::move(todo.back());
    todo.pop_back();
    if (leaves.insert(a.id()).second) {
      todo.insert(todo.end(), a.inputs().begin(), a.inputs().end());
    }
  }
  rust::Vec<GraphNode> nodes;
  std::unordered_map<uintptr_t, uint32_t> index;
  std::unordered_map<uintptr_t, uint32_t> calls;
  auto is_leaf = [&](const mx::array& a) {
    return !a.has_primitive() || a.status() != mx::array::Status::unscheduled || leaves.count(a.id());
  };
  auto finish = [&](const mx::array& a) {
    GraphNode node{};
    node.id = a.id();
    node.shape.reserve(a.ndim());
    for (auto n : a.shape()) {
      node.shape.push_back(n);
    }
    node.item_size = a.itemsize();
    auto at = static_cast<uint32_t>(nodes.size());
    node.call = at;
    if (!is_leaf(a)) {
      auto& p = a.primitive();
      node.primitive = rust::String::lossy(p.name());
      node.fused = is_ours(p.name());
      node.call = calls.try_emplace(a.primitive_id(), at).first->second;
      for (auto& in : a.inputs()) {
        node.inputs.push_back(index.at(in.id()));
      }
      for (auto n : parameters(p)) {
        node.parameters.push_back(n);
      }
    }
    index.emplace(a.id(), at);
    nodes.push_back(std::move(node));
  };
  // inputs before what they are inputs of, without recursion
  std::vector<std::pair<mx::array, size_t>> open;
  for (auto& output : outputs.v) {
    open.emplace_back(output, 0);
    while (!open.empty()) {
      auto a = open.back().first;
      if (index.count(a.id())) {
        open.pop_back();
      } else if (is_leaf(a) || open.back().second == a.inputs().size()) {
        finish(a);
        open.pop_back();
      } else {
        open.emplace_back(a.inputs()[open.back().second++], 0);
      }
    }
  }
  return nodes;
}

} // namespace zmlx_sys
