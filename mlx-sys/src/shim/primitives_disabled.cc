// The zmlx primitives, when they are not compiled in: every call says so.
// Same functions as primitives_enabled.cc.
#if !ZMLX_CUSTOM_PRIMITIVE

#include "zmlx-sys/src/bridge.rs.h"

namespace zmlx_sys {

namespace {
constexpr const char* kReason =
    "built without the `custom-primitive` feature";

[[noreturn]] void refuse(const char* op) {
  throw Unsupported("[" + std::string(op) + "] " + kReason);
}
} // namespace

ArrayPtr fused_gather_qmm_swiglu(
    const Array&,
    const ArrayVec&,
    const ArrayVec&,
    const ArrayPtr&,
    const ArrayPtr&,
    bool,
    const QuantParams&,
    bool,
    bool) {
  refuse("gather_qmm_swiglu");
}

ArrayPtr fused_gather_qmm_combine(
    const Array&,
    const ArrayVec&,
    const Array&,
    const Array&,
    const QuantParams&,
    bool) {
  refuse("gather_qmm_combine");
}

ArrayVecPtr fused_moe_router(const Array&, int32_t, bool, rust::Str) {
  refuse("moe_router");
}

ArrayPtr
fused_quantized_matmul(const Array&, const ArrayVec&, bool, const QuantParams&, bool) {
  refuse("quantized_matmul");
}

ArrayPtr fused_rms_norm(const Array&, const Array&, float) {
  refuse("rms_norm");
}

ArrayPtr fused_qk_norm_rope(
    const Array&,
    int32_t,
    const ArrayPtr&,
    float,
    int32_t,
    bool,
    float,
    float,
    const ArrayPtr&,
    const Array&) {
  refuse("qk_norm_rope");
}

ArrayPtr fused_attention(const Array&, const Array&, const Array&, float, bool, bool) {
  refuse("attention");
}

ArrayPtr fused_greedy_token(const Array&) {
  refuse("greedy_token");
}

Support fused_supports(rust::Str, bool, DtypeId, const QuantParams&, bool) {
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

} // namespace zmlx_sys

#endif // !ZMLX_CUSTOM_PRIMITIVE
