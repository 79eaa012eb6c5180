// From MLX arrays to the raw pointers that the kernels take. Used inside a dispatched CPU task only, where the data of
// every input exists.

#pragma once

#include <cstdint>
#include <optional>
#include <vector>

#include "cpu/qmm.h"
#include "mlx/array.h"
#include "zmlx/primitives.h"
#include "zmlx/quant_params.h"

namespace zmlx::cpu {

DType dtype_of(mlx::core::Dtype t);

// The inner blocks (rows or matrices) of an array, read in place: any strides over the outer axes and from row to row.
// Where the values of a row do not lie together, the array is copied. `at` numbers the blocks in row-major order over
// the outer axes.
class StridedBlocks {
 public:
  StridedBlocks(const mlx::core::array& a, int inner_axes);
  StridedBlocks(StridedBlocks&&) = default;

  const uint8_t* at(int64_t i) const;
  int64_t size() const {
    return size_;
  }
  // Bytes from one row of a block to the next.
  int64_t row_stride() const {
    return row_stride_;
  }

 private:
  std::vector<uint8_t> copy_;
  const uint8_t* data_{nullptr};
  mlx::core::Shape shape_; // outer axes
  mlx::core::Strides strides_; // in bytes
  bool dense_{true};
  int64_t size_;
  int64_t row_stride_;
  int64_t block_bytes_;
};

inline StridedBlocks rows_of(const mlx::core::array& a) {
  return StridedBlocks(a, 1);
}
inline StridedBlocks matrices_of(const mlx::core::array& a) {
  return StridedBlocks(a, 2);
}

// Any array as dense bytes in row-major order.
std::vector<uint8_t> read_dense(const mlx::core::array& a);
// Float32, float16 or bfloat16 as floats.
std::vector<float> read_floats(const mlx::core::array& a);

// An array of indices that may not have its values yet.
class Indices {
 public:
  explicit Indices(const mlx::core::array& a);
  std::vector<uint32_t> read() const;

 private:
  const uint32_t* data_;
  int64_t size_;
  mlx::core::Shape shape_;
  mlx::core::Strides strides_;
};

// The quantized matrices of one projection.
class QuantStack {
 public:
  QuantStack(
      const mlx::core::array& w,
      const mlx::core::array& scales,
      const mlx::core::array* biases,
      const QuantParams& params,
      DType dtype);

  QuantView at(int64_t i) const;
  // What multiplies rows of x by these matrices.
  BlockKernel kernel(Precision precision) const;
  int64_t size() const {
    return w_.size();
  }

 private:
  StridedBlocks w_;
  StridedBlocks scales_;
  std::optional<StridedBlocks> biases_;
  QuantView view_;
};

// One row of x, the matrix it goes through, and where its result goes.
struct Route {
  const uint8_t* x;
  int64_t matrix;
  int64_t out; // row of the output
};

// Routes in the order of their matrices, cut into runs of at most kMaxRows that share one: a weight block is then
// unpacked once for all rows of a run. Reordering changes no result, every row has its own place.
struct Run {
  int64_t matrix;
  int64_t begin;
  int64_t end;
};
std::vector<Run> group_routes(std::vector<Route>& routes);

// Throws std::out_of_range naming `op` when an index is not below `size`.
void check_indices(const char* op, const std::vector<uint32_t>& indices, int64_t size, const char* what);

// y[i] = sum over k of rows[k][i] * scores[k], rounded as the stock ops multiply, sum and astype round. rows [top_k, n].
void weighted_sum(
    DType dtype,
    const void* rows,
    DType score_dtype,
    const void* scores,
    int64_t top_k,
    int64_t n,
    void* y);

} // namespace zmlx::cpu
