#include <sstream>

#include "mlx/ops.h"
#include "scale_add/scale_add.h"

namespace zmlx {

using namespace mlx::core;

array scale_add(const array& x, const array& y, float scale, StreamOrDevice s_) {
  auto s = to_stream(s_);
  if (x.shape() != y.shape() || x.dtype() != y.dtype()) {
    std::ostringstream msg;
    msg << "[scale_add] x and y should be alike but received " << x.dtype() << x.shape() << " and " << y.dtype()
        << y.shape() << ".";
    throw std::invalid_argument(msg.str());
  }
  const Parameter asked[] = {{"scale", static_cast<double>(scale)}};
  require_support("scale_add", {s.device, x.dtype(), Precision::Exact, asked});
  return array(x.shape(), x.dtype(), std::make_shared<ScaleAdd>(s, scale), {x, y});
}

// The definition, in stock ops.
Fallback ScaleAdd::fallback(const std::vector<int>&) {
  return [scale = scale_, s = stream()](const std::vector<array>& in) {
    auto& x = in[kX];
    return std::vector<array>{add(multiply(x, array(scale, x.dtype()), s), in[kY], s)};
  };
}

std::vector<Shape> ScaleAdd::output_shapes(const std::vector<array>& inputs) {
  return {inputs[kX].shape()};
}

Definition define_scale_add() {
  return {
      "scale_add",
      {"scale"},
      [](const Request&) { return std::string(); },
      refuse_on_cpu,
      export_row<ScaleAdd>("ScaleAdd")};
}

} // namespace zmlx
