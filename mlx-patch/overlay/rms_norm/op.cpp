#include "mlx/fast.h"
#include "mlx/ops.h"
#include "rms_norm/rms_norm.h"
#include "zmlx/fallback.h"
#include "zmlx/invalid.h"

namespace zmlx {

using namespace mlx::core;

array rms_norm(const array& x, const array& weight, float eps, StreamOrDevice s_) {
  auto s = to_stream(s_);
  auto fail = [](auto&&... args) {
    throw_invalid("rms_norm", args...);
  };
  if (x.ndim() == 0) {
    fail("x should have at least 1 dimension but received shape ", x.shape(), ".");
  }
  if (weight.ndim() != 1 || weight.shape(0) != x.shape(-1)) {
    fail("weight should have shape (", x.shape(-1), ") but received ", weight.shape(), ".");
  }
  if (!issubdtype(x.dtype(), floating)) {
    fail("x should be of a floating type but received ", x.dtype(), ".");
  }
  auto dtype = result_type(x, weight);
  const Parameter asked[] = {{"dims", x.shape(-1)}, {"weight", true}};
  require_support("rms_norm", {s.device, dtype, Precision::Exact, asked});
  return array(
      x.shape(),
      dtype,
      std::make_shared<FusedRMSNorm>(s, eps),
      {astype(x, dtype, s), astype(weight, dtype, s)});
}

namespace {

Fallback stock(float eps, Stream s) {
  return [=](const std::vector<array>& in) {
    return std::vector<array>{fast::rms_norm(in[FusedRMSNorm::kX], in[FusedRMSNorm::kWeight], eps, s)};
  };
}

} // namespace

Fallback FusedRMSNorm::fallback(const std::vector<int>&) {
  return stock(eps_, stream());
}

std::pair<std::vector<array>, std::vector<int>> FusedRMSNorm::vmap(
    const std::vector<array>& inputs,
    const std::vector<int>& axes) {
  if (axes[kWeight] >= 0) {
    throw std::invalid_argument("[rms_norm] vmap over the weight is not supported.");
  }
  return Transformable::vmap(inputs, axes);
}

std::vector<Shape> FusedRMSNorm::output_shapes(const std::vector<array>& inputs) {
  return {inputs[kX].shape()};
}

Definition define_rms_norm() {
  return {
      "rms_norm",
      {"dims", "weight"},
      [](const Request& r) -> std::string { return r.flag("weight") ? "" : "a norm without a weight is not fused"; },
      refuse_on_cpu,
      export_row<FusedRMSNorm>("FusedRMSNorm")};
}

} // namespace zmlx
