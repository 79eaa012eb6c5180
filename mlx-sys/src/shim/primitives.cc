// The zmlx primitives. Without the `custom-primitive` feature nothing of theirs is linked, and every op says so.

#include "zmlx-sys/src/bridge.rs.h"

#if ZMLX_CUSTOM_PRIMITIVE
#include "cpu/profile.h"
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

// `biases` are none or two.
zmlx::GluProjections projections(const ArrayVec& gate, const ArrayVec& up, const ArrayVec& biases) {
  if (biases.v.empty()) {
    return {weight(gate), weight(up)};
  }
  if (biases.v.size() != 2) {
    throw std::invalid_argument(
        "[projections] expected no biases or two, got " + std::to_string(biases.v.size()));
  }
  return {weight(gate), weight(up), biases.v[0], biases.v[1]};
}

// `ring` is none or what a Ring has.
std::optional<zmlx::Ring> of_window(Ints ring) {
  return ring.size() == 2 ? std::optional<zmlx::Ring>({ring[0], ring[1]}) : std::nullopt;
}

zmlx::GluParams params(const GluParams& g) {
  return {std::string(g.activation), g.alpha, g.limit};
}

zmlx::RouterParams params(const RouterParams& r) {
  return {
      r.top_k,
      std::string(r.scoring),
      r.precise,
      r.descending,
      r.in_f32,
      r.num_groups,
      r.top_k_groups,
      r.normalize,
      r.epsilon,
      r.scale,
      r.casts ? std::optional<mx::Dtype>(to_dtype(r.weights)) : std::nullopt};
}

std::optional<zmlx::AttentionRope> rope(const ArrayPtr& q, const ArrayVec& keys) {
  auto queries = opt(q);
  return queries ? std::optional<zmlx::AttentionRope>({*queries, keys.v}) : std::nullopt;
}

std::vector<mx::array> both(std::pair<mx::array, mx::array> outputs) {
  return {std::move(outputs.first), std::move(outputs.second)};
}

static_assert(zmlx::Recording::kMostAhead == 8, "also Recording::MOST_AHEAD in crates/mlx/src/recording.rs");

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
    const ArrayVec& biases,
    const GluParams& glu,
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
          projections(gate, up, biases),
          params(glu),
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
    const ArrayPtr& bias,
    const Array& rhs_indices,
    const Array& scores,
    const QuantParams& q,
    bool fast) {
  ZMLX_OP(
      "gather_qmm_combine",
      box(zmlx::gather_qmm_combine(
          x.a,
          weight(down),
          opt(bias),
          rhs_indices.a,
          scores.a,
          q.group_size,
          q.bits,
          std::string(q.mode),
          precision(fast),
          current())));
}

ArrayVecPtr fused_moe_router(
    const Array& logits,
    const RouterParams& router,
    const ArrayPtr& selection_bias,
    const ArrayPtr& expert_scale) {
  ZMLX_OP(
      "moe_router",
      box(both(zmlx::moe_router(
          logits.a, params(router), opt(selection_bias), opt(expert_scale), current()))));
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

ArrayPtr fused_quantized_embedding(const Array& tokens, const ArrayVec& table, const QuantParams& q) {
  ZMLX_OP(
      "quantized_embedding",
      box(zmlx::quantized_embedding(
          tokens.a, weight(table), q.group_size, q.bits, std::string(q.mode), current())));
}

ArrayPtr fused_quantized_linear(
    const Array& x,
    const ArrayVec& w,
    const Array& bias,
    const QuantParams& q,
    bool fast) {
  ZMLX_OP(
      "quantized_linear",
      box(zmlx::quantized_linear(
          x.a,
          weight(w),
          bias.a,
          q.group_size,
          q.bits,
          std::string(q.mode),
          precision(fast),
          current())));
}

ArrayVecPtr fused_short_conv(
    const Array& x,
    const Array& weight,
    const ArrayPtr& bias,
    const Array& state,
    bool gated) {
  ZMLX_OP(
      "short_conv",
      box(both(zmlx::short_conv(x.a, weight.a, opt(bias), state.a, gated, current()))));
}

ArrayVecPtr fused_gated_delta(const ArrayVec& inputs, float norm_eps) {
  [[maybe_unused]] auto& v = inputs.v;
  if (v.size() != 8) {
    throw std::invalid_argument(
        "[gated_delta] expected 8 arrays, got " + std::to_string(v.size()));
  }
  ZMLX_OP(
      "gated_delta",
      box(both(zmlx::gated_delta(
          v[0], v[1], v[2], v[3], v[4], v[5], v[6], v[7], norm_eps, current()))));
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
    float input_scale,
    const ArrayPtr& freqs,
    const Array& offset) {
  ZMLX_OP(
      "qk_norm_rope",
      box(zmlx::qk_norm_rope(
          x.a,
          num_heads,
          opt(weight),
          eps,
          {dims, traditional, base, scale, opt(freqs), input_scale},
          offset.a,
          current())));
}

ArrayPtr fused_attention(
    const Array& q,
    const ArrayVec& keys,
    const ArrayVec& values,
    const ArrayPtr& lengths,
    const ArrayPtr& sinks,
    const ArrayPtr& q_rope,
    const ArrayVec& rope_keys,
    float scale,
    bool causal,
    int32_t window,
    bool fast) {
  ZMLX_OP(
      "attention",
      box(zmlx::attention(
          q.a,
          keys.v,
          values.v,
          {opt(lengths), window, opt(sinks), rope(q_rope, rope_keys)},
          scale,
          causal,
          precision(fast),
          current())));
}

ArrayPtr fused_swiglu_mlp(
    const Array& x,
    const ArrayVec& gate,
    const ArrayVec& up,
    const ArrayVec& biases,
    const GluParams& glu,
    const QuantParams& q,
    bool fast) {
  ZMLX_OP(
      "swiglu_mlp",
      box(zmlx::swiglu_mlp(
          x.a,
          projections(gate, up, biases),
          params(glu),
          q.group_size,
          q.bits,
          std::string(q.mode),
          precision(fast),
          current())));
}

ArrayPtr
fused_cache_append(const Array& buffer, const Array& tokens, int32_t row, const Array& lengths) {
  ZMLX_OP("cache_append", box(zmlx::cache_append(buffer.a, tokens.a, row, lengths.a, current())));
}

ArrayPtr fused_greedy_token(const Array& logits) {
  ZMLX_OP("greedy_token", box(zmlx::greedy_token(logits.a, current())));
}

ArrayPtr fused_recorded_attention(
    const Array& q,
    const Array& k,
    const Array& v,
    const Array& keys,
    const Array& values,
    const Array& lengths,
    const ArrayPtr& sinks,
    float scale,
    bool many_keys,
    Ints ring) {
  ZMLX_OP(
      "recorded_attention",
      box(zmlx::recorded_attention(
          q.a, k.a, v.a, keys.a, values.a, lengths.a, opt(sinks), scale, many_keys, of_window(ring), current())));
}

ArrayPtr fused_recorded_latent_attention(
    const Array& q,
    const Array& q_rope,
    const Array& latent,
    const Array& k_rope,
    const Array& latents,
    const Array& keys,
    const Array& lengths,
    float scale) {
  ZMLX_OP(
      "recorded_latent_attention",
      box(zmlx::recorded_latent_attention(
          {q.a, q_rope.a}, {latent.a, k_rope.a}, {latents.a, keys.a}, lengths.a, scale, current())));
}

std::unique_ptr<Recording> fused_recorded_step(
    const Array& token,
    const Array& position,
    const Array& chosen,
    const ArrayVec& before,
    const ArrayVec& after) {
  auto outputs = after.v;
  outputs.push_back(chosen.a);
  check_graph(outputs);
  ZMLX_OP(
      "recorded_step",
      std::make_unique<Recording>(Recording{zmlx::record_step(
          {token.a, position.a, chosen.a, before.v, after.v}, current())}));
}

#if ZMLX_CUSTOM_PRIMITIVE

void recording_launch(Recording& r) {
  r.r->launch();
}

uint64_t recording_num_started(const Recording& r) noexcept {
  return r.r->num_started();
}

uint32_t recording_token(Recording& r, uint64_t index) {
  return r.r->token(index);
}

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

void profile_start(int64_t capacity) {
  zmlx::cpu::profile_start(capacity);
}

ProfileSpans profile_stop() noexcept {
  auto [rows, dropped] = zmlx::cpu::profile_stop();
  ProfileSpans out{{}, dropped};
  out.spans.reserve(rows.size());
  for (auto& r : rows) {
    auto name = rust::String::lossy(r.name ? r.name : "other");
    auto thread = static_cast<uint32_t>(r.thread);
    out.spans.push_back({std::move(name), static_cast<uint8_t>(r.kind), thread, r.begin, r.end, r.tasks});
  }
  return out;
}

rust::String cpu_isa() noexcept {
  return rust::String::lossy(zmlx::cpu_isa());
}

bool set_cpu_isa(rust::Str name) noexcept {
  return zmlx::set_cpu_isa(std::string(name));
}

#else

void recording_launch(Recording&) {
  refuse("recorded_step");
}

uint64_t recording_num_started(const Recording&) noexcept {
  return 0;
}

uint32_t recording_token(Recording&, uint64_t) {
  refuse("recorded_step");
}

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

void profile_start(int64_t) {}

ProfileSpans profile_stop() noexcept {
  return {};
}

rust::String cpu_isa() noexcept {
  return "none";
}

bool set_cpu_isa(rust::Str) noexcept {
  return false;
}

#endif

} // namespace zmlx_sys
