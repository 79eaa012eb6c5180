#include "recorded_attention/recorded_attention.h"

#include "mlx/ops.h"
#include "zmlx/invalid.h"

namespace zmlx {

using namespace mlx::core;

namespace {

const QKNormRope* norm_rope_of(const array& a) {
  bool is_one = a.status() == array::Status::unscheduled && a.has_primitive();
  return is_one ? dynamic_cast<const QKNormRope*>(&a.primitive()) : nullptr;
}

// Where q and k are norms and rotations that were not computed yet, and alike, the kernel computes them from what they are
// computed from: one launch less that everything waits for. Who else holds them computes them again.
void take_in_norm_rope(std::vector<array>& inputs, RecordedAttention::State& state) {
  using P = RecordedAttention;
  auto *of_q = norm_rope_of(inputs[P::kQ]), *of_k = norm_rope_of(inputs[P::kK]);
  if (!of_q || !of_k) {
    return;
  }
  auto alike = of_k->params();
  alike.num_heads = of_q->params().num_heads;
  auto in_q = inputs[P::kQ].inputs(), in_k = inputs[P::kK].inputs();
  constexpr auto offset = QKNormRope::kOffset;
  bool same_offset = in_q[offset].id() == in_k[offset].id();
  bool same_freqs = !alike.has_freqs || in_q.back().id() == in_k.back().id();
  if (!(alike == of_q->params()) || !same_offset || !same_freqs || in_q[offset].size() != 1) {
    return;
  }
  state.norm_rope = alike;
  inputs[P::kQ] = in_q[QKNormRope::kX];
  inputs[P::kK] = in_k[QKNormRope::kX];
  inputs.push_back(in_q[offset]);
  if (alike.has_weight) {
    inputs.push_back(in_q[QKNormRope::kOptional]);
    inputs.push_back(in_k[QKNormRope::kOptional]);
  }
  if (alike.has_freqs) {
    inputs.push_back(in_q.back());
  }
}

} // namespace

array recorded_attention(
    const array& q,
    const array& k,
    const array& v,
    const array& keys,
    const array& values,
    const array& lengths,
    const std::optional<array>& sinks,
    float scale,
    bool many_keys,
    const std::optional<Ring>& ring,
    StreamOrDevice s_) {
  auto s = to_stream(s_);
  auto fail = [](auto&&... args) {
    throw_invalid("recorded_attention", args...);
  };
  if (q.ndim() != 4 || q.shape(2) != 1 || q.shape(3) == 0) {
    fail("q should be [B, H, 1, D] but received shape ", q.shape(), ".");
  }
  if (keys.ndim() != 4 || keys.shape() != values.shape() || keys.shape(0) != q.shape(0) || keys.shape(1) == 0 ||
      q.shape(1) % keys.shape(1) != 0 || keys.shape(2) == 0 || keys.shape(3) != q.shape(3)) {
    fail("buffers of shapes ", keys.shape(), " and ", values.shape(), " are not for q ", q.shape(), ".");
  }
  auto one = keys.shape();
  one[2] = 1;
  if (k.shape() != one || v.shape() != one) {
    fail("k and v should be ", one, " but received ", k.shape(), " and ", v.shape(), ".");
  }
  if (lengths.shape() != Shape{q.shape(0)} || lengths.dtype() != int32) {
    fail("expected a length of int32 for each row of q but received ", lengths.dtype(), " ", lengths.shape(), ".");
  }
  if (sinks && sinks->shape() != Shape{q.shape(1)}) {
    fail("sinks should be [", q.shape(1), "] but received ", sinks->shape(), ".");
  }
  if (ring && (ring->keep < 0 || ring->keep >= keys.shape(2))) {
    fail("a ring of ", keys.shape(2), " rows cannot keep ", ring->keep, ".");
  }
  if (keys.dtype() != q.dtype() || values.dtype() != q.dtype()) {
    fail("the buffers are ", keys.dtype(), " and ", values.dtype(), ", and q is ", q.dtype(), ".");
  }
  const Parameter asked[] = {{"head_dim", q.shape(3)}};
  require_support("recorded_attention", {s.device, q.dtype(), Precision::Exact, asked});
  RecordedAttention::State state = {scale, many_keys, sinks.has_value(), ring, {}};
  std::vector<array> inputs = {q, astype(k, q.dtype(), s), astype(v, q.dtype(), s), keys, values, lengths};
  if (sinks) {
    inputs.push_back(astype(*sinks, q.dtype(), s));
  }
  take_in_norm_rope(inputs, state);
  return array(q.shape(), q.dtype(), std::make_shared<RecordedAttention>(s, state), std::move(inputs));
}

void RecordedAttention::eval_cpu(const std::vector<array>&, array&) {
  throw std::runtime_error("recorded_attention has no CPU kernel");
}

Definition define_recorded_attention() {
  return {
      "recorded_attention",
      {"head_dim"},
      [](const Request&) { return std::string(); },
      refuse_recorded_on_cpu,
      unsaved_row("RecordedAttention")};
}

} // namespace zmlx
