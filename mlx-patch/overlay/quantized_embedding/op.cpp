#include "quantized_embedding/quantized_embedding.h"

#include <sstream>

#include "mlx/ops.h"

namespace zmlx {

using namespace mlx::core;

namespace {

constexpr const char* kName = "quantized_embedding";

} // namespace

array quantized_embedding(
    const array& tokens,
    const QuantizedWeight& table,
    std::optional<int> group_size,
    std::optional<int> bits,
    const std::string& mode,
    StreamOrDevice s_) {
  auto s = to_stream(s_);
  auto params = quant_params(kName, group_size, bits, mode, true);
  auto fail = [](auto&&... args) {
    std::ostringstream msg;
    msg << "[" << kName << "] ";
    (msg << ... << args);
    throw std::invalid_argument(msg.str());
  };
  if (tokens.dtype() != uint32) {
    fail("tokens should be uint32 but received ", tokens.dtype(), ".");
  }
  auto dtype = table.scales.dtype();
  const Parameter asked[] = {
      {"group_size", params.group_size}, {"bits", params.bits}, {"mode", mode_name(params.mode)}};
  require_support(kName, {s.device, dtype, Precision::Exact, asked});
  auto& [w, scales, biases] = table;
  if (w.ndim() != 2 || scales.ndim() != 2 || w.dtype() != uint32 || w.shape(0) != scales.shape(0) ||
      w.shape(1) * 32 != scales.shape(1) * params.group_size * params.bits) {
    fail(
        "w of shape ", w.shape(), " and type ", w.dtype(), " with scales of shape ", scales.shape(), " is no table of ",
        params.bits, " bits in groups of ", params.group_size, ".");
  }
  if (!biases || biases->shape() != scales.shape() || biases->dtype() != dtype) {
    fail("biases should be of the shape ", scales.shape(), " and the type ", dtype, " of the scales.");
  }
  auto shape = tokens.shape();
  shape.push_back(scales.shape(1) * params.group_size);
  return array(
      std::move(shape),
      dtype,
      std::make_shared<QuantizedEmbedding>(s, params.group_size, params.bits),
      {tokens, w, scales, *biases});
}

Fallback QuantizedEmbedding::fallback(const std::vector<int>&) {
  return [group_size = group_size_, bits = bits_, s = stream()](const std::vector<array>& in) {
    auto rows = [&](int i) { return take(in[i], in[kTokens], 0, s); };
    return std::vector<array>{
        dequantize(rows(kW), rows(kScales), rows(kBiases), group_size, bits, "affine", std::nullopt, std::nullopt, s)};
  };
}

std::vector<Shape> QuantizedEmbedding::output_shapes(const std::vector<array>& inputs) {
  auto shape = inputs[kTokens].shape();
  shape.push_back(inputs[kScales].shape(1) * group_size_);
  return {shape};
}

namespace {

std::string refuse_mode(const Request& r) {
  auto reason = refuse_quantization(r);
  auto mode = r.text("mode");
  return !reason.empty() || mode == "affine" ? reason : "tables of mode " + std::string(mode) + " are not fused";
}

} // namespace

Definition define_quantized_embedding() {
  return {
      kName,
      {"group_size", "bits", "mode"},
      refuse_mode,
      refuse_on_cpu,
      export_row<QuantizedEmbedding>("QuantizedEmbedding")};
}

} // namespace zmlx
