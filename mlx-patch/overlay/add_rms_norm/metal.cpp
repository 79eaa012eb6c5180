// Metal backend of AddRMSNorm: a threadgroup for each row, with as many threads as stock's rms_single_row has
// (mlx/backend/metal/normalization.cpp), which decides the order of additions.

#include "add_rms_norm/add_rms_norm.h"
#include "metal/host.h"

namespace zmlx {

using namespace mlx::core;

namespace {

void eval(const AddRMSNorm& primitive, const std::vector<array>& in, std::span<array> outputs) {
  using P = AddRMSNorm;
  for (auto& out : outputs) {
    on_metal::allocate(out);
  }
  auto& sum = outputs[P::kSum];
  if (sum.size() == 0) {
    return;
  }
  auto [eps] = primitive.state();
  auto size = static_cast<uint32_t>(sum.shape(-1));
  auto s = sum.primitive().stream();
  auto& d = metal::device(s.device);
  auto& encoder = metal::get_command_encoder(s);
  auto type = std::string(on_metal::type_name(sum.dtype()));
  encoder.set_compute_pipeline_state(on_metal::pipeline(
      d, {"add_rms_norm/kernel.metal", "zmlx_add_rms_norm_" + type, "zmlx_add_rms_norm<" + type + ">"}));
  for (int i = P::kX; i <= P::kWeight; i++) {
    encoder.set_input_array(in[i], i);
  }
  encoder.set_output_array(sum, 3);
  encoder.set_output_array(outputs[P::kNormed], 4);
  encoder.set_bytes(eps, 5);
  encoder.set_bytes(size, 6);
  encoder.dispatch_threadgroups(MTL::Size(sum.size() / size, 1, 1), on_metal::row_group(size));
}

} // namespace

Definition define_add_rms_norm();

GpuBackend add_rms_norm_gpu() {
  return on_metal::backend<AddRMSNorm, eval>(define_add_rms_norm());
}

} // namespace zmlx
