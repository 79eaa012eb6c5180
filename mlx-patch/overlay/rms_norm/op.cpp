#include <sstream>

#include "mlx/fast.h"
#include "mlx/ops.h"
#include "rms_norm/rms_norm.h"
#include "zmlx/fallback.h"

namespace zmlx {

using namespace mlx::core;

array rms_norm(const array& x, const array& weight, float eps, StreamOrDevice s_) {
  auto s = to_stream(s_);
  auto fail = [](auto&&... args) {
    std::ostringstream msg;
    msg << "[rms_norm] ";
    (msg << ... << args);
    throw std::invalid_argument(msg.str());
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
  auto [fused, reason] = supports("rms_norm", s.device, dtype, 0, 0, "", true);
  if (!fused) {
    fail(reason, ".");
  }
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

} // namespace zmlx
