// Bulk copies from device memory into shared memory, which no thread has to carry (compute capability 9.0).

#pragma once

#include <cuda.h>

#include <cstdint>

namespace zmlx::on_cuda {

__device__ inline uint32_t shared_address(const void* shared) {
  return static_cast<uint32_t>(__cvta_generic_to_shared(shared));
}

// A barrier in shared memory that counts the bytes of copies.
class CopyBarrier {
 public:
  __device__ explicit CopyBarrier(uint64_t* barrier) : at_(shared_address(barrier)) {}

  __device__ void init() const {
    asm volatile("mbarrier.init.shared::cta.b64 [%0], 1;" ::"r"(at_) : "memory");
  }

  // Behind the last init(), by the thread that called it.
  static __device__ void all_are_initialized() {
    asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory");
  }

  __device__ void expect(uint32_t bytes) const {
    asm volatile("mbarrier.arrive.expect_tx.shared::cta.b64 _, [%0], %1;" ::"r"(at_), "r"(bytes) : "memory");
  }

  __device__ void copy(char* shared, const void* global, uint32_t bytes) const {
    asm volatile("cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes [%0], [%1], %2, [%3];" ::"r"(
                     shared_address(shared)),
                 "l"(global), "r"(bytes), "r"(at_)
                 : "memory");
  }

  // A box of a matrix, whose first row and first element of it are these.
  __device__ void copy_box(char* shared, const CUtensorMap& matrix, int row, int element) const {
    asm volatile(
        "cp.async.bulk.tensor.2d.shared::cluster.global.tile.mbarrier::complete_tx::bytes [%0], [%1, {%2, %3}], [%4];" ::"r"(
            shared_address(shared)),
        "l"(&matrix), "r"(element), "r"(row), "r"(at_)
        : "memory");
  }

  // Until the copies of phase `phase`, counted from 0, are there.
  __device__ void wait(int phase) const {
    uint32_t done = 0;
    while (!done) {
      asm volatile(
          "{\n.reg .pred p;\nmbarrier.try_wait.parity.shared::cta.b64 p, [%1], %2;\nselp.u32 %0, 1, 0, p;\n}"
          : "=r"(done)
          : "r"(at_), "r"(phase & 1)
          : "memory");
    }
  }

 private:
  uint32_t at_;
};

// Has a matrix's description at hand before the first copy from it.
__device__ inline void ask_for_description(const CUtensorMap& matrix) {
  asm volatile("prefetch.tensormap [%0];" ::"l"(&matrix) : "memory");
}

} // namespace zmlx::on_cuda
