#include "cuda/memory.h"

#include <map>
#include <mutex>
#include <vector>

#include "mlx/backend/cuda/allocator.h"

namespace zmlx::on_cuda {

using namespace mlx::core;

#ifdef ZMLX_MLX_PATCHED

Memory device_memory(size_t bytes, cu::CommandEncoder& encoder) {
  return {cu::malloc_async(bytes, encoder), allocator::free};
}

#else

// A shared libmlx exports no allocation on the device, only unified memory, which would move to and fro. What is here is
// taken from the pool that MLX takes from, so that MLX may move it into unified memory when the CPU reads an array.

namespace {

// Buffers that nobody uses, by size. Arrays are let go of when the stream is past them, as MLX's are.
class Pool {
 public:
  allocator::Buffer take(size_t bytes, cu::CommandEncoder& encoder) {
    size_t size = rounded(bytes);
    {
      std::lock_guard lock(mutex_);
      auto& free = free_[size];
      if (!free.empty()) {
        auto* buffer = free.back();
        free.pop_back();
        return allocator::Buffer(buffer);
      }
    }
    void* data = nullptr;
    check(cudaSetDevice(encoder.device().cuda_device()));
    check(cudaMallocAsync(&data, size, encoder.stream()));
    return allocator::Buffer(new cu::CudaBuffer{data, size, encoder.device().cuda_device()});
  }

  void give_back(allocator::Buffer buffer) {
    auto* memory = static_cast<cu::CudaBuffer*>(buffer.ptr());
    if (memory->device < 0) {
      // MLX has moved it
      cudaPointerAttributes attributes = {};
      bool known = cudaPointerGetAttributes(&attributes, memory->data) == cudaSuccess;
      bool pinned = known && attributes.type == cudaMemoryTypeHost;
      pinned ? cudaFreeHost(memory->data) : cudaFree(memory->data);
      delete memory;
      return;
    }
    std::lock_guard lock(mutex_);
    free_[memory->size].push_back(memory);
  }

 private:
  static size_t rounded(size_t bytes) {
    size_t size = 256;
    while (size < bytes) {
      size += size < (1 << 20) ? size : (1 << 20);
    }
    return size;
  }

  std::mutex mutex_;
  std::map<size_t, std::vector<cu::CudaBuffer*>> free_;
};

Pool& pool() {
  // never destroyed: arrays may outlive what is
  static auto* pool = new Pool;
  return *pool;
}

} // namespace

Memory device_memory(size_t bytes, cu::CommandEncoder& encoder) {
  return {pool().take(bytes, encoder), [](allocator::Buffer buffer) { pool().give_back(buffer); }};
}

#endif

} // namespace zmlx::on_cuda
