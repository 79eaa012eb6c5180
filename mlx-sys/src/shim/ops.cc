#include "zmlx-sys/src/bridge.rs.h"

namespace zmlx_sys {

#define ZMLX_UNARY(name)                  \
  ArrayPtr name(const Array& a) {         \
    return box(mx::name(a.a, current())); \
  }

#define ZMLX_BINARY(name)                         \
  ArrayPtr name(const Array& a, const Array& b) { \
    return box(mx::name(a.a, b.a, current()));    \
  }

#define ZMLX_REDUCE(name)                                                  \
  ArrayPtr name(const Array& a, Ints axes, bool keepdims) {                \
    return box(                                                            \
        axes.empty() ? mx::name(a.a, keepdims, current())                  \
                     : mx::name(a.a, to_ints(axes), keepdims, current())); \
  }

ZMLX_UNARY(abs)
ZMLX_UNARY(negative)
ZMLX_UNARY(exp)
ZMLX_UNARY(log)
ZMLX_UNARY(log1p)
ZMLX_UNARY(sqrt)
ZMLX_UNARY(rsqrt)
ZMLX_UNARY(square)
ZMLX_UNARY(sin)
ZMLX_UNARY(cos)
ZMLX_UNARY(tanh)
ZMLX_UNARY(sigmoid)
ZMLX_UNARY(erf)
ZMLX_UNARY(floor)
ZMLX_UNARY(ceil)
ZMLX_UNARY(round)
ZMLX_UNARY(logical_not)
ZMLX_UNARY(isnan)
ZMLX_UNARY(isinf)
ZMLX_UNARY(stop_gradient)

ZMLX_BINARY(add)
ZMLX_BINARY(subtract)
ZMLX_BINARY(multiply)
ZMLX_BINARY(divide)
ZMLX_BINARY(floor_divide)
ZMLX_BINARY(remainder)
ZMLX_BINARY(power)
ZMLX_BINARY(maximum)
ZMLX_BINARY(minimum)
ZMLX_BINARY(logaddexp)
ZMLX_BINARY(matmul)
ZMLX_BINARY(equal)
ZMLX_BINARY(not_equal)
ZMLX_BINARY(less)
ZMLX_BINARY(less_equal)
ZMLX_BINARY(greater)
ZMLX_BINARY(greater_equal)
ZMLX_BINARY(logical_and)
ZMLX_BINARY(logical_or)

ZMLX_REDUCE(sum)
ZMLX_REDUCE(mean)
ZMLX_REDUCE(max)
ZMLX_REDUCE(min)
ZMLX_REDUCE(prod)
ZMLX_REDUCE(all)
ZMLX_REDUCE(any)
ZMLX_REDUCE(logsumexp)

ArrayPtr addmm(const Array& c, const Array& a, const Array& b) {
  return box(mx::addmm(c.a, a.a, b.a, 1.0f, 1.0f, current()));
}

ArrayPtr astype(const Array& a, DtypeId dtype) {
  return box(mx::astype(a.a, to_dtype(dtype), current()));
}

ArrayPtr view(const Array& a, DtypeId dtype) {
  return box(mx::view(a.a, to_dtype(dtype), current()));
}

ArrayPtr select(const Array& cond, const Array& a, const Array& b) {
  return box(mx::where(cond.a, a.a, b.a, current()));
}

ArrayPtr array_equal(const Array& a, const Array& b, bool equal_nan) {
  return box(mx::array_equal(a.a, b.a, equal_nan, current()));
}

ArrayPtr softmax(const Array& a, int32_t axis, bool precise) {
  return box(mx::softmax(a.a, axis, precise, current()));
}

ArrayPtr cumsum(const Array& a, int32_t axis, bool reverse, bool inclusive) {
  return box(mx::cumsum(a.a, axis, reverse, inclusive, current()));
}

ArrayPtr zeros(Ints shape, DtypeId dtype) {
  return box(mx::zeros(to_shape(shape), to_dtype(dtype), current()));
}

ArrayPtr ones(Ints shape, DtypeId dtype) {
  return box(mx::ones(to_shape(shape), to_dtype(dtype), current()));
}

ArrayPtr full(Ints shape, const Array& value, DtypeId dtype) {
  return box(mx::full(to_shape(shape), value.a, to_dtype(dtype), current()));
}

ArrayPtr arange(double start, double stop, double step, DtypeId dtype) {
  return box(mx::arange(start, stop, step, to_dtype(dtype), current()));
}

ArrayPtr tri(int32_t n, int32_t m, int32_t k, DtypeId dtype) {
  return box(mx::tri(n, m, k, to_dtype(dtype), current()));
}

ArrayPtr reshape(const Array& a, Ints shape) {
  return box(mx::reshape(a.a, to_shape(shape), current()));
}

ArrayPtr transpose(const Array& a, Ints axes) {
  return box(
      axes.empty() ? mx::transpose(a.a, current()) : mx::transpose(a.a, to_ints(axes), current()));
}

ArrayPtr swapaxes(const Array& a, int32_t axis1, int32_t axis2) {
  return box(mx::swapaxes(a.a, axis1, axis2, current()));
}

ArrayPtr expand_dims(const Array& a, Ints axes) {
  return box(mx::expand_dims(a.a, to_ints(axes), current()));
}

ArrayPtr squeeze(const Array& a, Ints axes) {
  return box(
      axes.empty() ? mx::squeeze(a.a, current()) : mx::squeeze(a.a, to_ints(axes), current()));
}

ArrayPtr flatten(const Array& a, int32_t start_axis, int32_t end_axis) {
  return box(mx::flatten(a.a, start_axis, end_axis, current()));
}

ArrayPtr unflatten(const Array& a, int32_t axis, Ints shape) {
  return box(mx::unflatten(a.a, axis, to_shape(shape), current()));
}

ArrayPtr broadcast_to(const Array& a, Ints shape) {
  return box(mx::broadcast_to(a.a, to_shape(shape), current()));
}

ArrayPtr contiguous(const Array& a) {
  return box(mx::contiguous(a.a, false, current()));
}

ArrayPtr depends(const Array& a, const ArrayVec& on) {
  return box(mx::depends({a.a}, on.v)[0]);
}

ArrayPtr concatenate(const ArrayVec& v, int32_t axis) {
  return box(mx::concatenate(v.v, axis, current()));
}

ArrayPtr stack(const ArrayVec& v, int32_t axis) {
  return box(mx::stack(v.v, axis, current()));
}

ArrayVecPtr split(const Array& a, Ints indices, int32_t axis) {
  return box(mx::split(a.a, to_shape(indices), axis, current()));
}

ArrayPtr repeat(const Array& a, int32_t repeats, int32_t axis) {
  return box(mx::repeat(a.a, repeats, axis, current()));
}

ArrayPtr slice(const Array& a, Ints start, Ints stop, Ints strides) {
  return box(mx::slice(a.a, to_shape(start), to_shape(stop), to_shape(strides), current()));
}

ArrayPtr slice_update(const Array& a, const Array& update, Ints start, Ints stop, Ints strides) {
  return box(
      mx::slice_update(
          a.a, update.a, to_shape(start), to_shape(stop), to_shape(strides), current()));
}

ArrayPtr slice_dynamic(const Array& a, const Array& start, Ints axes, Ints size) {
  return box(mx::slice(a.a, start.a, to_ints(axes), to_shape(size), current()));
}

ArrayPtr slice_update_dynamic(const Array& a, const Array& update, const Array& start, Ints axes) {
  return box(mx::slice_update(a.a, update.a, start.a, to_ints(axes), current()));
}

ArrayPtr take(const Array& a, const Array& indices, int32_t axis) {
  return box(mx::take(a.a, indices.a, axis, current()));
}

ArrayPtr take_along_axis(const Array& a, const Array& indices, int32_t axis) {
  return box(mx::take_along_axis(a.a, indices.a, axis, current()));
}

ArrayPtr put_along_axis(const Array& a, const Array& indices, const Array& values, int32_t axis) {
  return box(mx::put_along_axis(a.a, indices.a, values.a, axis, current()));
}

ArrayPtr argmax(const Array& a, int32_t axis, bool keepdims) {
  return box(mx::argmax(a.a, axis, keepdims, current()));
}

ArrayPtr argmin(const Array& a, int32_t axis, bool keepdims) {
  return box(mx::argmin(a.a, axis, keepdims, current()));
}

ArrayPtr sort(const Array& a, int32_t axis) {
  return box(mx::sort(a.a, axis, current()));
}

ArrayPtr argsort(const Array& a, int32_t axis) {
  return box(mx::argsort(a.a, axis, current()));
}

ArrayPtr argpartition(const Array& a, int32_t kth, int32_t axis) {
  return box(mx::argpartition(a.a, kth, axis, current()));
}

ArrayPtr topk(const Array& a, int32_t k, int32_t axis) {
  return box(mx::topk(a.a, k, axis, current()));
}

} // namespace zmlx_sys
