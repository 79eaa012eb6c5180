#include "cpu/operands.h"

#include <algorithm>
#include <cstring>
#include <numeric>
#include <sstream>
#include <stdexcept>

#include "cpu/thread_pool.h"
#include "mlx/types/half_types.h"

namespace zmlx::cpu {

using namespace mlx::core;

DType dtype_of(Dtype t) {
  switch (t) {
    case float32:
      return DType::F32;
    case float16:
      return DType::F16;
    case bfloat16:
      return DType::BF16;
    default:
      throw std::invalid_argument("[zmlx::cpu] only float32, float16 and bfloat16 are supported");
  }
}

namespace {

// Calls f(offset in elements) for elements begin .. end in row-major order.
template <typename F>
void for_each_offset(const Shape& shape, const Strides& strides, int64_t begin, int64_t end, F&& f) {
  std::vector<int> position(shape.size(), 0);
  int64_t offset = 0;
  for (int64_t d = static_cast<int64_t>(shape.size()) - 1, left = begin; d >= 0; d--) {
    position[d] = left % shape[d];
    offset += position[d] * strides[d];
    left /= shape[d];
  }
  for (int64_t i = begin; i < end; i++) {
    f(offset);
    for (int d = static_cast<int>(shape.size()) - 1; d >= 0; d--) {
      offset += strides[d];
      if (++position[d] < shape[d]) {
        break;
      }
      offset -= strides[d] * shape[d];
      position[d] = 0;
    }
  }
}

int64_t product(const Shape& shape) {
  return std::accumulate(shape.begin(), shape.end(), int64_t{1}, std::multiplies<int64_t>{});
}

} // namespace

std::vector<uint8_t> read_dense(const array& a) {
  int64_t item = a.itemsize();
  std::vector<uint8_t> out(a.size() * item);
  if (a.size() == 0) {
    return out;
  }
  auto in = a.data<uint8_t>();
  if (a.flags().row_contiguous) {
    std::memcpy(out.data(), in, out.size());
    return out;
  }
  constexpr int64_t kPart = 1 << 14; // elements of one task
  int64_t size = a.size();
  parallel_for((size + kPart - 1) / kPart, 4 * size, [&](int64_t part) {
    int64_t begin = part * kPart;
    uint8_t* to = out.data() + begin * item;
    for_each_offset(a.shape(), a.strides(), begin, std::min(begin + kPart, size), [&](int64_t offset) {
      std::memcpy(to, in + offset * item, item);
      to += item;
    });
  });
  return out;
}

std::vector<float> read_floats(const array& a) {
  auto bytes = read_dense(a);
  std::vector<float> out(a.size());
  auto convert = [&](auto* values) {
    std::transform(values, values + a.size(), out.begin(), [](auto v) { return static_cast<float>(v); });
  };
  switch (dtype_of(a.dtype())) {
    case DType::F32:
      convert(reinterpret_cast<const float*>(bytes.data()));
      break;
    case DType::F16:
      convert(reinterpret_cast<const float16_t*>(bytes.data()));
      break;
    case DType::BF16:
      convert(reinterpret_cast<const bfloat16_t*>(bytes.data()));
      break;
  }
  return out;
}

Indices::Indices(const array& a)
    : data_(a.size() ? a.data<uint32_t>() : nullptr), size_(a.size()), shape_(a.shape()), strides_(a.strides()) {}

std::vector<uint32_t> Indices::read() const {
  std::vector<uint32_t> out;
  out.reserve(size_);
  for_each_offset(shape_, strides_, 0, size_, [&](int64_t offset) { out.push_back(data_[offset]); });
  return out;
}

StridedBlocks::StridedBlocks(const array& a, int inner) {
  const auto& shape = a.shape();
  const auto& strides = a.strides();
  int64_t item = a.itemsize();
  int outer = static_cast<int>(a.ndim()) - inner;
  shape_ = Shape(shape.begin(), shape.begin() + outer);
  size_ = product(shape_);
  row_stride_ = shape.back() * item;
  block_bytes_ = inner == 2 ? shape[outer] * row_stride_ : row_stride_;
  if (a.size() == 0) {
    return;
  }
  if (shape.back() > 1 && strides.back() != 1) {
    copy_ = read_dense(a);
    data_ = copy_.data();
    return;
  }
  if (inner == 2 && shape[outer] > 1) {
    row_stride_ = strides[outer] * item;
  }
  data_ = a.data<uint8_t>();
  int64_t dense = block_bytes_;
  for (int d = outer - 1; d >= 0; d--) {
    dense_ = dense_ && (shape[d] == 1 || strides[d] * item == dense);
    dense *= shape[d];
  }
  for (int d = 0; d < outer; d++) {
    strides_.push_back(strides[d] * item);
  }
}

const uint8_t* StridedBlocks::at(int64_t i) const {
  if (dense_) {
    return data_ + i * block_bytes_;
  }
  int64_t offset = 0;
  for (int d = static_cast<int>(shape_.size()) - 1; d >= 0; d--) {
    offset += (i % shape_[d]) * strides_[d];
    i /= shape_[d];
  }
  return data_ + offset;
}

QuantStack::QuantStack(
    const array& w,
    const array& scales,
    const array* biases,
    const QuantParams& p,
    DType dtype)
    : w_(matrices_of(w)), scales_(matrices_of(scales)) {
  if (biases) {
    biases_.emplace(matrices_of(*biases));
  }
  int64_t packed = static_cast<int64_t>(scales.shape(-1)) * p.group_size;
  view_.N = p.transpose ? w.shape(-2) : packed;
  view_.K = p.transpose ? packed : w.shape(-2);
  view_.bits = p.bits;
  view_.group_size = p.group_size;
  view_.mode = static_cast<Mode>(p.mode);
  view_.dtype = dtype;
  view_.transpose = p.transpose;
  view_.w_stride = w_.row_stride();
  view_.scale_stride = scales_.row_stride();
  view_.bias_stride = biases_ ? biases_->row_stride() : 0;
}

QuantView QuantStack::at(int64_t i) const {
  QuantView v = view_;
  v.w = w_.at(i);
  v.scales = scales_.at(i);
  v.biases = biases_ ? biases_->at(i) : nullptr;
  return v;
}

namespace {

// The sum over no terms: a kernel may count on K > 0.
void zeros(const QuantView& q, int64_t n0, int64_t n1, int m, const void* const*, void* const* y) {
  for (int i = 0; i < m; i++) {
    std::memset(y[i], 0, (n1 - n0) * size_of(q.dtype));
  }
}

} // namespace

BlockKernel QuantStack::kernel(Precision precision) const {
  if (view_.K == 0) {
    return zeros;
  }
  return precision == Precision::Exact ? kernels().exact : kernels().fast;
}

std::vector<Run> group_routes(std::vector<Route>& routes) {
  auto by_matrix = [](const Route& a, const Route& b) { return a.matrix < b.matrix; };
  if (!std::is_sorted(routes.begin(), routes.end(), by_matrix)) {
    std::stable_sort(routes.begin(), routes.end(), by_matrix);
  }
  std::vector<Run> runs;
  int64_t n = routes.size();
  for (int64_t begin = 0; begin < n;) {
    int64_t end = begin + 1;
    while (end < n && end - begin < kMaxRows && routes[end].matrix == routes[begin].matrix) {
      end++;
    }
    runs.push_back({routes[begin].matrix, begin, end});
    begin = end;
  }
  return runs;
}

void check_indices(const char* op, const std::vector<uint32_t>& indices, int64_t size, const char* what) {
  for (uint32_t i : indices) {
    if (i >= size) {
      std::ostringstream msg;
      msg << "[" << op << "] " << what << " holds " << i << " but there are only " << size << " to choose from.";
      throw std::out_of_range(msg.str());
    }
  }
}

static_assert(
    static_cast<int>(Mode::Affine) == static_cast<int>(QuantizationMode::Affine) &&
    static_cast<int>(Mode::Mxfp4) == static_cast<int>(QuantizationMode::Mxfp4) &&
    static_cast<int>(Mode::Mxfp8) == static_cast<int>(QuantizationMode::Mxfp8) &&
    static_cast<int>(Mode::Nvfp4) == static_cast<int>(QuantizationMode::Nvfp4));

} // namespace zmlx::cpu
