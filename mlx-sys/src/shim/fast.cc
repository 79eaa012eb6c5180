#include "zmlx-sys/src/bridge.rs.h"
#include "zmlx/mlx_api.h"

namespace zmlx_sys {

namespace {
std::string mode(const QuantParams& q) {
  return std::string(q.mode);
}

std::vector<mx::array> present(std::initializer_list<const ArrayPtr*> parts) {
  std::vector<mx::array> all;
  for (auto* part : parts) {
    if (*part) {
      all.push_back((*part)->a);
    }
  }
  return all;
}
} // namespace

ArrayPtr rms_norm(const Array& x, const ArrayPtr& weight, float eps) {
  auto y = mx::fast::rms_norm(x.a, opt(weight), eps, current());
  return box(is_planning() ? plan_norm("RMSNorm", y, x.a, present({&weight})) : y);
}

ArrayPtr layer_norm(const Array& x, const ArrayPtr& weight, const ArrayPtr& bias, float eps) {
  auto y = mx::fast::layer_norm(x.a, opt(weight), opt(bias), eps, current());
  return box(is_planning() ? plan_norm("LayerNorm", y, x.a, present({&weight, &bias})) : y);
}

// MLX takes either a base or explicit frequencies.
static std::optional<float> rope_base(float base, const ArrayPtr& freqs) {
  return freqs ? std::nullopt : std::optional<float>(base);
}

ArrayPtr rope(
    const Array& x,
    int32_t dims,
    bool traditional,
    float base,
    float scale,
    int32_t offset,
    const ArrayPtr& freqs) {
  auto y = mx::fast::rope(
      x.a, dims, traditional, rope_base(base, freqs), scale, offset, opt(freqs), current());
  return box(is_planning() ? plan_rope(y, x.a, dims, mx::array(offset), opt(freqs)) : y);
}

ArrayPtr rope_dynamic(
    const Array& x,
    int32_t dims,
    bool traditional,
    float base,
    float scale,
    const Array& offset,
    const ArrayPtr& freqs) {
  auto y = mx::fast::rope(
      x.a, dims, traditional, rope_base(base, freqs), scale, offset.a, opt(freqs), current());
  return box(is_planning() ? plan_rope(y, x.a, dims, offset.a, opt(freqs)) : y);
}

ArrayPtr sdpa(
    const Array& q,
    const Array& k,
    const Array& v,
    float scale,
    rust::Str mask_mode,
    const ArrayPtr& mask,
    const ArrayPtr& sinks) {
  auto y = mx::fast::scaled_dot_product_attention(
      q.a,
      k.a,
      v.a,
      scale,
      std::string(mask_mode),
      opt(mask),
      opt(sinks),
      false,
      current());
  if (is_planning()) {
    bool causal = mask_mode == "causal";
    return box(plan_attention(y, q.a, k.a, v.a, causal, opt(mask), opt(sinks)).value_or(y));
  }
  return box(std::move(y));
}

ArrayVecPtr quantize(const Array& w, const QuantParams& q) {
  auto parts = mx::quantize(w.a, q.group_size, q.bits, mode(q), std::nullopt, current());
  return box(is_planning() ? plan_quantize(parts, {w.a}) : std::move(parts));
}

ArrayPtr dequantize(
    const Array& w,
    const Array& scales,
    const ArrayPtr& biases,
    const QuantParams& q) {
  auto dense = mx::dequantize(
      w.a,
      scales.a,
      opt(biases),
      q.group_size,
      q.bits,
      mode(q),
      std::nullopt,
      std::nullopt,
      current());
  if (is_planning()) {
    std::vector<mx::array> inputs = {w.a, scales.a};
    for (auto& part : present({&biases})) {
      inputs.push_back(part);
    }
    dense = plan_quantize({dense}, std::move(inputs))[0];
  }
  return box(std::move(dense));
}

ArrayPtr quantized_matmul(
    const Array& x,
    const Array& w,
    const Array& scales,
    const ArrayPtr& biases,
    bool transpose,
    const QuantParams& q) {
  return box(
      mx::quantized_matmul(
          x.a, w.a, scales.a, opt(biases), transpose, q.group_size, q.bits, mode(q), current()));
}

ArrayPtr gather_qmm(
    const Array& x,
    const Array& w,
    const Array& scales,
    const ArrayPtr& biases,
    const ArrayPtr& lhs_indices,
    const ArrayPtr& rhs_indices,
    bool transpose,
    const QuantParams& q,
    bool sorted_indices) {
  return box(
      zmlx::linked::gather_qmm(
          x.a,
          w.a,
          scales.a,
          opt(biases),
          opt(lhs_indices),
          opt(rhs_indices),
          transpose,
          q.group_size,
          q.bits,
          mode(q),
          sorted_indices,
          current()));
}

ArrayPtr gather_mm(
    const Array& a,
    const Array& b,
    const ArrayPtr& lhs_indices,
    const ArrayPtr& rhs_indices,
    bool sorted_indices) {
  return box(
      mx::gather_mm(a.a, b.a, opt(lhs_indices), opt(rhs_indices), sorted_indices, current()));
}

ArrayPtr random_key(uint64_t seed) {
  current();
  return box(mx::random::key(seed));
}

void random_seed(uint64_t seed) {
  current();
  mx::random::seed(seed);
}

ArrayPtr random_split(const Array& key, int32_t num) {
  return box(mx::random::split(key.a, num, current()));
}

ArrayPtr random_uniform(float low, float high, Ints shape, DtypeId dtype, const ArrayPtr& key) {
  return box(
      mx::random::uniform(
          mx::array(low), mx::array(high), to_shape(shape), to_dtype(dtype), opt(key), current()));
}

ArrayPtr random_normal(Ints shape, DtypeId dtype, float loc, float scale, const ArrayPtr& key) {
  return box(mx::random::normal(to_shape(shape), to_dtype(dtype), loc, scale, opt(key), current()));
}

ArrayPtr
random_randint(int32_t low, int32_t high, Ints shape, DtypeId dtype, const ArrayPtr& key) {
  return box(
      mx::random::randint(
          mx::array(low), mx::array(high), to_shape(shape), to_dtype(dtype), opt(key), current()));
}

ArrayPtr random_categorical(const Array& logits, int32_t axis, const ArrayPtr& key) {
  return box(mx::random::categorical(logits.a, axis, opt(key), current()));
}

} // namespace zmlx_sys
