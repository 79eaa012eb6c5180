// Memory on the device for arrays: MLX's own where it can be called, else a pool beside it.

#pragma once

#include "mlx/array.h"
#include "mlx/backend/cuda/device.h"

namespace zmlx::on_cuda {

struct Memory {
  mlx::core::allocator::Buffer buffer;
  mlx::core::Deleter release;
};

// In the order of the encoder's stream.
Memory device_memory(size_t bytes, mlx::core::cu::CommandEncoder& encoder);

// Throws std::runtime_error with CUDA's own words.
void check(cudaError_t error);

} // namespace zmlx::on_cuda
