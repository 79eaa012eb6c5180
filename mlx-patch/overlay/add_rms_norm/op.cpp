#include "add_rms_norm/add_rms_norm.h"
#include "mlx/fast.h"
#include "mlx/ops.h"
#include "zmlx/fallback.h"
#include "zmlx/invalid.h"
#include "zmlx/quant_params.h"

namespace zmlx {

using namespace mlx::core;

std::pair<array, array>
add_rms_norm(const array& x, const array& r, const array& weight, float eps, StreamOrDevice s_) {
  auto s = to_stream(s_);
  auto fail = [](auto&&... args) {
    throw_invalid("add_rms_norm", args...);
  };
  if (x.ndim() == 0 || x.shape() != r.shape()) {
    fail("x and r should have one shape with at least 1 dimension but received ", x.shape(), " and ", r.shape(), ".");
  }
  if (weight.ndim() != 1 || weight.shape(0) != x.shape(-1)) {
    fail("weight should have shape (", x.shape(-1), ") but received ", weight.shape(), ".");
  }
  auto dtype = x.dtype();
  if (!issubdtype(dtype, floating) || r.dtype() != dtype || weight.dtype() != dtype) {
    fail("x, r and weight should be of one floating type but received ", dtype, ", ", r.dtype(), " and ", weight.dtype(), ".");
  }
  auto type = name_of(dtype);
  const Parameter asked[] = {{"dims", x.shape(-1)}, {"weight", std::string_view(type)}};
  require_support("add_rms_norm", {s.device, dtype, Precision::Exact, asked});
  auto outputs = array::make_arrays(
      {x.shape(), x.shape()},
      {dtype, dtype},
      std::make_shared<AddRMSNorm>(s, eps),
      {in_rows_on_metal(x, s), in_rows_on_metal(r, s), in_rows_on_metal(weight, s)});
  return {outputs[AddRMSNorm::kSum], outputs[AddRMSNorm::kNormed]};
}

namespace {

Fallback stock(float eps, Stream s) {
  return [=](const std::vector<array>& in) {
    using P = AddRMSNorm;
    auto sum = add(in[P::kX], in[P::kR], s);
    return std::vector<array>{sum, fast::rms_norm(sum, in[P::kWeight], eps, s)};
  };
}

} // namespace

Fallback AddRMSNorm::fallback(const std::vector<int>&) {
  return stock(eps_, stream());
}

std::pair<std::vector<array>, std::vector<int>> AddRMSNorm::vmap(
    const std::vector<array>& inputs,
    const std::vector<int>& axes) {
  if (axes[kWeight] >= 0) {
    throw std::invalid_argument("[add_rms_norm] vmap over the weight is not supported.");
  }
  return Transformable::vmap(inputs, axes);
}

std::vector<Shape> AddRMSNorm::output_shapes(const std::vector<array>& inputs) {
  return {inputs[kX].shape(), inputs[kX].shape()};
}

namespace {

std::string refuse(const Request& r) {
  r.integer("dims");
  auto stream = name_of(r.dtype);
  auto weight = r.text("weight");
  return weight == stream
      ? ""
      : "the weight is " + std::string(weight) + " and the residual stream " + stream + ": not fused";
}

// Longer rows stock shares among as many threads as the GPU has for its kernel, which is not known here.
std::string refuse_norm_on_metal(const Request& r) {
  constexpr int64_t longest = 4096;
  if (r.integer("dims") > longest) {
    return "the Metal kernel is for rows of at most " + std::to_string(longest) + " numbers, not " +
        std::to_string(r.integer("dims"));
  }
  return refuse_on_metal(r);
}

} // namespace

Definition define_add_rms_norm() {
  return {
      "add_rms_norm",
      {"dims", "weight"},
      refuse,
      refuse_on_cpu,
      export_row<AddRMSNorm>("AddRMSNorm"),
      {},
      refuse_norm_on_metal};
}

} // namespace zmlx
