#include "cuda/boxes.h"

#include "cuda/driver.h"
#include "cuda/row_tiles.cuh"

namespace zmlx::on_cuda {

CUtensorMap boxes_of(const void* matrix, int64_t rows, int64_t row_bytes, int box_rows) {
  static auto encode = driver_function<decltype(&cuTensorMapEncodeTiled)>("cuTensorMapEncodeTiled");
  cuuint64_t sizes[] = {static_cast<cuuint64_t>(row_bytes), static_cast<cuuint64_t>(rows)};
  cuuint64_t strides[] = {static_cast<cuuint64_t>(row_bytes)};
  cuuint32_t box[] = {kPieceBytes, static_cast<cuuint32_t>(box_rows)};
  cuuint32_t every[] = {1, 1};
  CUtensorMap map;
  auto error =
      encode(&map, CU_TENSOR_MAP_DATA_TYPE_UINT8, 2, const_cast<void*>(matrix), sizes, strides, box, every,
             CU_TENSOR_MAP_INTERLEAVE_NONE, CU_TENSOR_MAP_SWIZZLE_128B, CU_TENSOR_MAP_L2_PROMOTION_NONE,
             CU_TENSOR_MAP_FLOAT_OOB_FILL_NONE);
  if (error != CUDA_SUCCESS) {
    throw std::runtime_error("CUDA: no bulk copies from [" + std::to_string(rows) + ", " + std::to_string(row_bytes) +
                             "] bytes, error " + std::to_string(error));
  }
  return map;
}

} // namespace zmlx::on_cuda
