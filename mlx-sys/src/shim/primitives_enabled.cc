// The zmlx primitives, when they are compiled in. Same functions as
// primitives_disabled.cc.
#if ZMLX_CUSTOM_PRIMITIVE

#include "zmlx-sys/src/bridge.rs.h"
#include "zmlx/primitives.h"

namespace zmlx_sys {

namespace {
// {w, scales} or {w, scales, biases}
zmlx::QuantizedWeight weight(const ArrayVec& v) {
  if (v.v.size() != 2 && v.v.size() != 3) {
    throw std::invalid_argument(
        "[quantized weight] expected w, scales and maybe biases, got " +
        std::to_string(v.v.size()) + " arrays");
  }
  return {
      v.v[0],
      v.v[1],
      v.v.size() == 3 ? std::optional<mx::array>(v.v[2]) : std::nullopt};
}

zmlx::Precision precision(bool fast) {
  return fast ? zmlx::Precision::Fast : zmlx::Precision::Exact;
}
} // namespace

ArrayPtr fused_gather_qmm_swiglu(
    const Array& x,
    const ArrayVec& gate,
    const ArrayVec& up,
    const ArrayPtr& lhs_indices,
    const ArrayPtr& rhs_indices,
    bool transpose,
    const QuantParams& q,
    bool sorted_indices,
    bool fast) {
  return box(
      zmlx::gather_qmm_swiglu(
          x.a,
          weight(gate),
          weight(up),
          opt(lhs_indices),
          opt(rhs_indices),
          transpose,
          q.group_size,
          q.bits,
          std::string(q.mode),
          sorted_indices,
          precision(fast)));
}

ArrayPtr fused_gather_qmm_combine(
    const Array& x,
    const ArrayVec& down,
    const Array& rhs_indices,
    const Array& scores,
    const QuantParams& q,
    bool fast) {
  return box(
      zmlx::gather_qmm_combine(
          x.a,
          weight(down),
          rhs_indices.a,
          scores.a,
          q.group_size,
          q.bits,
          std::string(q.mode),
          precision(fast)));
}

ArrayVecPtr
fused_moe_router(const Array& logits, int32_t top_k, bool normalize, rust::Str scoring) {
  auto [indices, scores] =
      zmlx::moe_router(logits.a, top_k, normalize, std::string(scoring));
  return box(std::vector<mx::array>{indices, scores});
}

ArrayPtr fused_quantized_matmul(
    const Array& x,
    const ArrayVec& w,
    bool transpose,
    const QuantParams& q,
    bool fast) {
  return box(
      zmlx::quantized_matmul(
          x.a,
          weight(w),
          transpose,
          q.group_size,
          q.bits,
          std::string(q.mode),
          precision(fast)));
}

ArrayPtr fused_rms_norm(const Array& x, const Array& weight, float eps) {
  return box(zmlx::rms_norm(x.a, weight.a, eps));
}

ArrayPtr fused_qk_norm_rope(
    const Array& x,
    int32_t num_heads,
    const ArrayPtr& weight,
    float eps,
    int32_t dims,
    bool traditional,
    float base,
    float scale,
    const ArrayPtr& freqs,
    const Array& offset) {
  return box(
      zmlx::qk_norm_rope(
          x.a,
          num_heads,
          opt(weight),
          eps,
          {dims, traditional, base, scale, opt(freqs)},
          offset.a));
}

ArrayPtr fused_attention(
    const Array& q,
    const Array& k,
    const Array& v,
    float scale,
    bool causal,
    bool fast) {
  return box(zmlx::attention(q.a, k.a, v.a, scale, causal, precision(fast)));
}

ArrayPtr fused_greedy_token(const Array& logits) {
  return box(zmlx::greedy_token(logits.a));
}

Support fused_supports(
    rust::Str primitive,
    bool gpu,
    DtypeId dtype,
    const QuantParams& q,
    bool transpose) {
  auto s = zmlx::supports(
      std::string(primitive),
      mx::Device(gpu ? mx::Device::gpu : mx::Device::cpu),
      to_dtype(dtype),
      q.bits,
      q.group_size,
      std::string(q.mode),
      transpose);
  return {s.fused, rust::String::lossy(s.reason)};
}

rust::Vec<rust::String> fused_primitives() noexcept {
  rust::Vec<rust::String> out;
  for (auto& name : zmlx::primitives()) {
    out.push_back(rust::String::lossy(name));
  }
  return out;
}

void set_num_threads(int32_t n) {
  zmlx::set_num_threads(n);
}

int32_t num_threads() noexcept {
  return zmlx::num_threads();
}

rust::String cpu_isa() noexcept {
  return rust::String::lossy(zmlx::cpu_isa());
}

bool set_cpu_isa(rust::Str name) noexcept {
  return zmlx::set_cpu_isa(std::string(name));
}

} // namespace zmlx_sys

#endif // ZMLX_CUSTOM_PRIMITIVE
