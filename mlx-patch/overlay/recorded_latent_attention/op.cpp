#include "recorded_latent_attention/recorded_latent_attention.h"

#include "mlx/ops.h"
#include "zmlx/invalid.h"

namespace zmlx {

using namespace mlx::core;

namespace {

const QKNormRope* rope_of(const array& a) {
  bool is_one = a.status() == array::Status::unscheduled && a.has_primitive();
  auto* rope = is_one ? dynamic_cast<const QKNormRope*>(&a.primitive()) : nullptr;
  // a norm, or a scale of the input that is not one, is no part of the rotation
  bool turns = rope && !rope->params().has_weight && rope->params().input_scale == 1;
  return turns ? rope : nullptr;
}

// Where queries and key are rotations that were not computed yet, and alike, the kernel computes them: two launches less.
void take_in_rope(std::vector<array>& inputs, RecordedLatentAttention::State& state) {
  using P = RecordedLatentAttention;
  auto *of_q = rope_of(inputs[P::kQRope]), *of_k = rope_of(inputs[P::kKRope]);
  if (!of_q || !of_k) {
    return;
  }
  auto alike = of_k->params();
  alike.num_heads = of_q->params().num_heads;
  auto in_q = inputs[P::kQRope].inputs(), in_k = inputs[P::kKRope].inputs();
  constexpr auto offset = QKNormRope::kOffset;
  bool same_offset = in_q[offset].id() == in_k[offset].id();
  bool same_freqs = !alike.has_freqs || in_q.back().id() == in_k.back().id();
  if (!(alike == of_q->params()) || !same_offset || !same_freqs || in_q[offset].size() != 1 ||
      in_q[QKNormRope::kX].ndim() != 4) {
    return;
  }
  state.rope = alike;
  inputs[P::kQRope] = in_q[QKNormRope::kX];
  inputs[P::kKRope] = in_k[QKNormRope::kX];
  inputs.push_back(in_q[offset]);
  if (alike.has_freqs) {
    inputs.push_back(in_q.back());
  }
}

} // namespace

array recorded_latent_attention(
    const std::array<array, 2>& q,
    const std::array<array, 2>& token,
    const std::array<array, 2>& held,
    const array& lengths,
    float scale,
    StreamOrDevice s_) {
  auto s = to_stream(s_);
  auto fail = [](auto&&... args) {
    throw_invalid("recorded_latent_attention", args...);
  };
  auto dtype = q[0].dtype();
  const char* parts[] = {"latent", "rotated"};
  for (int i = 0; i < 2; i++) {
    auto &of_q = q[i].shape(), &buffer = held[i].shape();
    if (of_q.size() != 4 || of_q[2] != 1 || q[1].shape(0) != of_q[0] || q[1].shape(1) != of_q[1]) {
      fail("queries should be [B, H, 1, D] but received the ", parts[i], " part ", of_q, ".");
    }
    if (buffer.size() != 4 || buffer[0] != of_q[0] || buffer[1] != 1 || buffer[2] == 0 ||
        buffer[2] != held[0].shape(2) || buffer[3] != of_q[3]) {
      fail("a buffer of shape ", buffer, " is not for the ", parts[i], " part ", of_q, " of queries.");
    }
    if (Shape one = {buffer[0], 1, 1, buffer[3]}; token[i].shape() != one) {
      fail("the token's ", parts[i], " part should be ", one, " but received ", token[i].shape(), ".");
    }
    if (q[i].dtype() != dtype || held[i].dtype() != dtype || token[i].dtype() != dtype) {
      fail("the ", parts[i], " parts of queries, token and buffer should be ", dtype, " but are ", q[i].dtype(), ", ",
           token[i].dtype(), " and ", held[i].dtype(), ".");
    }
  }
  if (lengths.shape() != Shape{q[0].shape(0)} || lengths.dtype() != int32) {
    fail("expected a length of int32 for each row of q but received ", lengths.dtype(), " ", lengths.shape(), ".");
  }
  const Parameter asked[] = {{"latent_dim", q[0].shape(3)}, {"rope_dim", q[1].shape(3)}};
  require_support("recorded_latent_attention", {s.device, dtype, Precision::Exact, asked});
  RecordedLatentAttention::State state = {scale, {}};
  std::vector<array> inputs = {q[0], q[1], token[0], token[1], held[0], held[1], lengths};
  take_in_rope(inputs, state);
  return array(q[0].shape(), dtype, std::make_shared<RecordedLatentAttention>(s, state), std::move(inputs));
}

void RecordedLatentAttention::eval_cpu(const std::vector<array>&, array&) {
  throw std::runtime_error("recorded_latent_attention has no CPU kernel");
}

Definition define_recorded_latent_attention() {
  return {
      "recorded_latent_attention",
      {"latent_dim", "rope_dim"},
      [](const Request&) { return std::string(); },
      refuse_recorded_on_cpu,
      unsaved_row("RecordedLatentAttention")};
}

} // namespace zmlx
