// The zmlx primitives. Without the `custom-primitive` feature nothing of theirs is linked, and every op says so.

#include "zmlx-sys/src/bridge.rs.h"

#if ZMLX_CUSTOM_PRIMITIVE
#include "zmlx/primitives.h"
#define ZMLX_OP(name, ...) return __VA_ARGS__
#else
#define ZMLX_OP(name, ...) refuse(name)
#endif

namespace zmlx_sys {

namespace {

#if ZMLX_CUSTOM_PRIMITIVE

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

std::vector<mx::array> both(std::pair<mx::array, mx::array> outputs) {
  return {std::move(outputs.first), std::move(outputs.second)};
}

// C++ knows neither affinity masks nor quotas.
[[maybe_unused]] const bool knows_threads =
    (zmlx::set_available_threads([] { return available_threads(); }), true);

zmlx::Precision precision(bool fast) {
  return fast ? zmlx::Precision::Fast : zmlx::Precision::Exact;
}

zmlx::Value value(const Parameter& p) {
  switch (p.kind) {
    case ParameterKind::Integer:
      return p.integer;
    case ParameterKind::Number:
      return p.number;
    case ParameterKind::Flag:
      return p.flag;
    default:
      return std::string_view(p.text.data(), p.text.size());
  }
}

#else

constexpr const char* kReason = "built without the `custom-primitive` feature";

[[noreturn]] void refuse(const char* op) {
  throw Unsupported("[" + std::string(op) + "] " + kReason);
}

#endif

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
  ZMLX_OP(
      "gather_qmm_swiglu",
      box(zmlx::gather_qmm_swiglu(
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
          precision(fast),
          current())));
}

ArrayPtr fused_gather_qmm_combine(
    const Array& x,
    const ArrayVec& down,
    const Array& rhs_indices,
    const Array& scores,
    const QuantParams& q,
    bool fast) {
  ZMLX_OP(
      "gather_qmm_combine",
      box(zmlx::gather_qmm_combine(
          x.a,
          weight(down),
          rhs_indices.a,
          scores.a,
          q.group_size,
          q.bits,
          std::string(q.mode),
          precision(fast),
          current())));
}

ArrayVecPtr
fused_moe_router(const Array& logits, int32_t top_k, bool normalize, rust::Str scoring) {
  ZMLX_OP(
      "moe_router",
      box(both(zmlx::moe_router(logits.a, top_k, normalize, std::string(scoring), current()))));
}

ArrayPtr fused_quantized_matmul(
    const Array& x,
    const ArrayVec& w,
    bool transpose,
    const QuantParams& q,
    bool fast) {
  ZMLX_OP(
      "quantized_matmul",
      box(zmlx::quantized_matmul(
          x.a,
          weight(w),
          transpose,
          q.group_size,
          q.bits,
          std::string(q.mode),
          precision(fast),
          current())));
}

ArrayPtr fused_rms_norm(const Array& x, const Array& weight, float eps) {
  ZMLX_OP("rms_norm", box(zmlx::rms_norm(x.a, weight.a, eps, current())));
}

ArrayVecPtr fused_add_rms_norm(const Array& x, const Array& r, const Array& weight, float eps) {
  ZMLX_OP("add_rms_norm", box(both(zmlx::add_rms_norm(x.a, r.a, weight.a, eps, current()))));
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
  ZMLX_OP(
      "qk_norm_rope",
      box(zmlx::qk_norm_rope(
          x.a,
          num_heads,
          opt(weight),
          eps,
          {dims, traditional, base, scale, opt(freqs)},
          offset.a,
          current())));
}

ArrayPtr fused_attention(
    const Array& q,
    const ArrayVec& keys,
    const ArrayVec& values,
    const ArrayPtr& lengths,
    float scale,
    bool causal,
    bool fast) {
  ZMLX_OP(
      "attention",
      box(zmlx::attention(
          q.a, keys.v, values.v, opt(lengths), scale, causal, precision(fast), current())));
}

ArrayPtr
fused_cache_append(const Array& buffer, const Array& tokens, int32_t row, const Array& lengths) {
  ZMLX_OP("cache_append", box(zmlx::cache_append(buffer.a, tokens.a, row, lengths.a, current())));
}

ArrayPtr fused_greedy_token(const Array& logits) {
  ZMLX_OP("greedy_token", box(zmlx::greedy_token(logits.a, current())));
}

#if ZMLX_CUSTOM_PRIMITIVE

Support fused_supports(
    rust::Str primitive,
    bool gpu,
    bool metal,
    DtypeId dtype,
    bool fast,
    rust::Slice<const Parameter> parameters) {
  std::vector<zmlx::Parameter> asked;
  for (auto& p : parameters) {
    asked.push_back({{p.name.data(), p.name.size()}, value(p)});
  }
  zmlx::Request request = {
      mx::Device(gpu ? mx::Device::gpu : mx::Device::cpu), to_dtype(dtype), precision(fast), asked};
  auto s = metal ? zmlx::supports_on_metal(std::string(primitive), request)
                 : zmlx::supports(std::string(primitive), request);
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

#else

Support fused_supports(rust::Str, bool, bool, DtypeId, bool, rust::Slice<const Parameter>) {
  return {false, kReason};
}

rust::Vec<rust::String> fused_primitives() noexcept {
  return {};
}

void set_num_threads(int32_t) {}

int32_t num_threads() noexcept {
  return 1;
}

rust::String cpu_isa() noexcept {
  return "none";
}

bool set_cpu_isa(rust::Str) noexcept {
  return false;
}

#endif

} // namespace zmlx_sys
