// Products of quantized rows with one row of x, in the order of MLX's gather_qmv kernels.

#pragma once

namespace zmlx {

// Of a simdgroup.
static constexpr constant int qmv_rows = 4;
// Of a threadgroup.
static constexpr constant int qmv_simdgroups = 2;

// For each of `num` matrices, the lane's partial sums of `qmv_rows` rows. Rows after `last_row` do not exist: the last one is
// read in their place. All matrices see the same x, which is read once.
template <typename Rows, int num, bool fast, typename T>
METAL_FUNC void
qmv_partial(thread Rows* matrices, const device T* x, int K, int last_row, int lane, thread float* result) {
  float values[Rows::num_values];
  x += lane * Rows::num_values;
  for (int i = 0; i < num * qmv_rows; i++) {
    result[i] = 0;
  }

  // Stock's fast kernel is for K of whole steps; its general one takes the last step apart, whole or not.
  int k = 0;
  for (; fast ? k < K : k < K - Rows::step; k += Rows::step) {
    const float sum = Rows::load(x, values);
    for (int m = 0; m < num; m++) {
      for (int row = 0; row < qmv_rows; row++) {
        result[m * qmv_rows + row] += matrices[m].dot(fast ? row : min(row, last_row), values, sum);
      }
      matrices[m].next();
    }
    x += Rows::step;
  }
  if (!fast) {
    const int n = clamp(K - k - lane * Rows::num_values, 0, Rows::num_values);
    if (n > 0) {
      const float sum = Rows::load_last(x, values, n);
      for (int m = 0; m < num; m++) {
        for (int row = 0; row < qmv_rows; row++) {
          result[m * qmv_rows + row] += matrices[m].dot_last(min(row, last_row), values, sum, n);
        }
      }
    }
  }
}

// The offset of element `i` of an array that is broadcast to `shape`.
METAL_FUNC int64_t
broadcast_offset(uint i, constant const int* shape, constant const int64_t* strides, int ndim) {
  return ndim == 1 ? i * strides[0] : elem_to_loc<int64_t>(i, shape, strides, ndim);
}

} // namespace zmlx
