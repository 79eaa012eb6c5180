#include "zmlx/registry.h"

#include <algorithm>
#include <sstream>
#include <stdexcept>

#include "cpu/qmm.h"
#include "cpu/thread_pool.h"
#include "zmlx/primitives.h"

namespace zmlx {

using namespace mlx::core;

namespace {

// When the program starts, so that a saved graph can be loaded before any op has run.
[[maybe_unused]] const bool exports_added = [] {
  for (auto& row : table()) {
    add_to_exports(row.definition.row);
  }
  return true;
}();

template <typename Names>
std::string join(const Names& names) {
  std::string all;
  for (auto& name : names) {
    all += all.empty() ? "" : ", ";
    all += name;
  }
  return all;
}

template <typename T>
T value_of(const Request& request, std::string_view name, const char* kind) {
  auto& all = request.parameters;
  auto p = std::find_if(all.begin(), all.end(), [&](auto& p) { return p.name == name; });
  if (p == all.end()) {
    throw std::invalid_argument("the parameter '" + std::string(name) + "' is missing");
  }
  if (auto* value = std::get_if<T>(&p->value)) {
    return *value;
  }
  throw std::invalid_argument("the parameter '" + std::string(name) + "' should be " + kind);
}

const Row* find(std::string_view primitive) {
  auto& rows = table();
  auto row = std::find_if(rows.begin(), rows.end(), [&](auto& r) { return primitive == r.definition.name; });
  return row == rows.end() ? nullptr : &*row;
}

// Empty when the names are those of the definition.
std::string refuse_names(const Definition& definition, const Request& request) {
  auto& known = definition.parameters;
  for (auto& p : request.parameters) {
    if (std::find(known.begin(), known.end(), p.name) == known.end()) {
      return std::string(definition.name) + " has no parameter '" + std::string(p.name) + "', only " + join(known);
    }
  }
  for (auto& name : known) {
    auto& asked = request.parameters;
    if (std::none_of(asked.begin(), asked.end(), [&](auto& p) { return p.name == name; })) {
      return std::string(definition.name) + " is asked without '" + std::string(name) + "'";
    }
  }
  return "";
}

std::string no_gpu_kernel(const char* primitive) {
  return std::string("no gpu kernel for ") + primitive + " is compiled into this build";
}

// The variant that kernels with these ones do not have, or empty.
std::string refuse_variant(
    const Definition& definition,
    const std::vector<std::string_view>& known,
    const Request& request) {
  for (auto& plain : definition.variants) {
    auto& asked = request.parameters;
    auto p = std::find_if(asked.begin(), asked.end(), [&](auto& p) { return p.name == plain.name; });
    bool is_plain = p != asked.end() && p->value == plain.value;
    if (!is_plain && std::find(known.begin(), known.end(), plain.name) == known.end()) {
      std::ostringstream reason;
      reason << std::boolalpha << "the gpu kernel for " << definition.name << " has '" << plain.name << "' ";
      std::visit([&](auto value) { reason << value << " alone"; }, plain.value);
      return reason.str();
    }
  }
  return "";
}

std::string refusal_here(const Row& row, const Request& request) {
  if (request.device == Device::cpu) {
    return row.definition.refuse_cpu(request);
  }
  if (!row.gpu) {
    return no_gpu_kernel(row.definition.name);
  }
  auto reason = refuse_variant(row.definition, row.gpu->variants, request);
  return reason.empty() ? row.gpu->refuse(request) : reason;
}

std::string refusal_on_metal(const Row& row, const Request& request) {
  auto& definition = row.definition;
  if (!definition.refuse_metal) {
    return std::string("there is no Metal kernel for ") + definition.name;
  }
  auto reason = refuse_variant(definition, definition.metal_variants, request);
  return reason.empty() ? definition.refuse_metal(request) : reason;
}

using Backend = std::string (*)(const Row&, const Request&);

std::string refusal(const Row& row, const Request& request, Backend backend = refusal_here) {
  auto& definition = row.definition;
  try {
    auto reason = definition.refuse(request);
    return reason.empty() ? backend(row, request) : reason;
  } catch (const std::invalid_argument& e) {
    return std::string(definition.name) + ": " + e.what();
  }
}

} // namespace

int64_t Request::integer(std::string_view name) const {
  return value_of<int64_t>(*this, name, "an integer");
}

double Request::number(std::string_view name) const {
  return value_of<double>(*this, name, "a number");
}

bool Request::flag(std::string_view name) const {
  return value_of<bool>(*this, name, "true or false");
}

std::string_view Request::text(std::string_view name) const {
  return value_of<std::string_view>(*this, name, "text");
}

std::vector<std::string> primitives() {
  std::vector<std::string> names;
  for (auto& row : table()) {
    names.emplace_back(row.definition.name);
  }
  return names;
}

std::string name_of(Dtype dtype) {
  std::ostringstream name;
  name << dtype;
  return name.str();
}

bool is_primitive(std::string_view node) {
  auto& rows = table();
  return std::any_of(rows.begin(), rows.end(), [&](auto& row) { return node == row.definition.row.name; });
}

namespace {

Support supports(std::string_view primitive, const Request& request, Backend backend) {
  auto* row = find(primitive);
  if (!row) {
    return {false, "there is no primitive '" + std::string(primitive) + "', only " + join(primitives())};
  }
  auto reason = refuse_names(row->definition, request);
  if (reason.empty()) {
    reason = refusal(*row, request, backend);
  }
  return {reason.empty(), reason};
}

} // namespace

Support supports(std::string_view primitive, const Request& request) {
  return supports(primitive, request, refusal_here);
}

Support supports_on_metal(std::string_view primitive, const Request& request) {
  return supports(primitive, request, refusal_on_metal);
}

std::string refuse_on_cpu([[maybe_unused]] const Request& request) {
#if defined(MLX_USE_ACCELERATE) || defined(__APPLE__)
  return "the cpu kernels reproduce MLX's portable cpu backend, not the one with Accelerate";
#else
  auto dtype = request.dtype;
  if (dtype != float32 && dtype != float16 && dtype != bfloat16) {
    std::ostringstream reason;
    reason << "the cpu kernels compute in float32, float16 or bfloat16, not in " << dtype;
    return reason.str();
  }
  return "";
#endif
}

void require_support(const char* primitive, const Request& request) {
  auto* row = find(primitive);
  auto reason = row ? refusal(*row, request) : "it is not in the table of primitives";
  if (!reason.empty()) {
    throw std::invalid_argument(std::string("[") + primitive + "] " + reason + ".");
  }
}

void eval_on_gpu(const Primitive& primitive, const std::vector<array>& inputs, std::span<array> outputs) {
  std::string_view name = primitive.name();
  auto& rows = table();
  auto row = std::find_if(rows.begin(), rows.end(), [&](auto& r) { return name == r.definition.row.name; });
  if (row == rows.end() || !row->gpu) {
    auto* op = row == rows.end() ? primitive.name() : row->definition.name;
    throw std::runtime_error(std::string("[") + op + "] " + no_gpu_kernel(op) + ".");
  }
  row->gpu->eval(primitive, inputs, outputs);
}

void set_num_threads(int n) {
  cpu::pool_resize(n);
}

void set_available_threads(int (*count)()) {
  cpu::set_available_threads(count);
}

int num_threads() {
  return cpu::pool_size();
}

std::string cpu_isa() {
  return cpu::isa();
}

bool set_cpu_isa(const std::string& isa) {
  return cpu::set_isa(isa.c_str());
}

ExportRow unsaved_row(const char* name) {
  auto refuse = [name] { throw std::runtime_error(std::string(name) + " is part of a recorded step, which cannot be saved"); };
  return {
      name,
      [refuse](const Primitive&) -> std::string {
        refuse();
        return {};
      },
      [refuse](const std::string&, Stream) -> std::shared_ptr<Primitive> {
        refuse();
        return nullptr;
      },
      [](const Primitive&) { return std::vector<StateT>(); }};
}

} // namespace zmlx
