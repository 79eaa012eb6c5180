#include "metal/host_qmv.h"

#include "mlx/backend/common/quantized.h"

namespace zmlx::on_metal {

using namespace mlx::core;

namespace {

// Of a threadgroup: two simdgroups with four rows each.
constexpr int kRows = 8;
constexpr int kLanes = 32;

} // namespace

bool Qmv::fast() const {
  int step = get_pack_factor(bits, 32) * (bits == 2 ? 1 : 2) * kLanes;
  return N % kRows == 0 && K % step == 0;
}

Kernel Qmv::kernel(const std::string& primitive) const {
  bool affine = mode == QuantizationMode::Affine;
  std::string type = type_name(dtype);
  auto size = std::to_string(group_size);
  auto width = std::to_string(bits);
  Kernel k;
  k.file = primitive + (affine ? "/kernel.metal" : "/kernel_fp.metal");
  k.name = "zmlx_" + primitive + (fast() ? "_fast_" : "_") + type + "_gs_" + size + "_b_" + width;
  if (!affine) {
    k.name += std::string("_") + mode_name(mode);
  }
  k.instance = (affine ? "zmlx_" : "zmlx_fp_") + primitive + "<" + type + ", " + size + ", " + width + ", " + (fast() ? "true" : "false") + ">";
  return k;
}

MTL::Size Qmv::grid(int M, size_t products) const {
  return MTL::Size(M, (N + kRows - 1) / kRows, products);
}

MTL::Size Qmv::group() const {
  return MTL::Size(kLanes, 2, 1);
}

int64_t matrix_size(const array& stack) {
  return int64_t{stack.shape(-2)} * stack.shape(-1);
}

GatherStrides::GatherStrides(const array& lhs, const array& rhs)
    : shape_(lhs.shape()), lhs_(lhs.strides()), rhs_(rhs.strides()) {
  if (shape_.empty()) {
    // Metal takes no empty arguments
    shape_.push_back(1);
    lhs_.push_back(0);
    rhs_.push_back(0);
  }
}

void GatherStrides::encode(metal::CommandEncoder& encoder, int first) const {
  encoder.set_vector_bytes(shape_, first);
  encoder.set_vector_bytes(lhs_, first + 1);
  encoder.set_vector_bytes(rhs_, first + 2);
}

} // namespace zmlx::on_metal
