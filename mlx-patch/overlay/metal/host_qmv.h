// Products of quantized rows with vectors, as MLX's Metal backend launches them: `gather_qmv` and `qmv` of
// mlx/backend/metal/quantized.cpp.

#pragma once

#include "mlx/backend/metal/device.h"
#include "metal/host.h"
#include "zmlx/quant_params.h"

namespace zmlx::on_metal {

// One product: K numbers of x with N rows.
struct Qmv {
  mlx::core::Dtype dtype;
  int group_size;
  int bits;
  mlx::core::QuantizationMode mode;
  int K;
  int N;

  // Whether stock runs its fast kernel, which adds in another order than its general one.
  bool fast() const;

  // The kernel that does as stock, of a primitive or a variant of it: zmlx_<primitive>[_fast]_<type>_gs_<group_size>_b_<bits>
  // in kernel.metal, for weights that are not affine in kernel_fp.metal and with the mode behind it.
  Kernel kernel(const std::string& primitive) const;

  // Threadgroups for M rows of each of so many products, of which each computes 8 rows, and their threads.
  MTL::Size grid(int M, size_t products) const;
  MTL::Size group() const;
};

// Elements of one matrix of a stack.
int64_t matrix_size(const mlx::core::array& stack);

// Indices of both operands, which have one shape.
class GatherStrides {
 public:
  GatherStrides(const mlx::core::array& lhs, const mlx::core::array& rhs);

  int ndim() const {
    return shape_.size();
  }
  // The shape and both strides, from buffer `first` on.
  void encode(mlx::core::metal::CommandEncoder& encoder, int first) const;

 private:
  mlx::core::Shape shape_;
  mlx::core::Strides lhs_;
  mlx::core::Strides rhs_;
};

} // namespace zmlx::on_metal
