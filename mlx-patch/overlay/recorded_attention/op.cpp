#include "recorded_attention/recorded_attention.h"

#include <sstream>

#include "mlx/ops.h"

namespace zmlx {

using namespace mlx::core;

array recorded_attention(
    const array& q,
    const array& k,
    const array& v,
    const array& keys,
    const array& values,
    const array& lengths,
    const std::optional<array>& sinks,
    float scale,
    StreamOrDevice s_) {
  auto s = to_stream(s_);
  auto fail = [](auto&&... args) {
    std::ostringstream msg;
    msg << "[recorded_attention] ";
    (msg << ... << args);
    throw std::invalid_argument(msg.str());
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
  if (keys.dtype() != q.dtype() || values.dtype() != q.dtype()) {
    fail("the buffers are ", keys.dtype(), " and ", values.dtype(), ", and q is ", q.dtype(), ".");
  }
  const Parameter asked[] = {{"head_dim", q.shape(3)}};
  require_support("recorded_attention", {s.device, q.dtype(), Precision::Exact, asked});
  std::vector<array> inputs = {q, astype(k, q.dtype(), s), astype(v, q.dtype(), s), keys, values, lengths};
  if (sinks) {
    inputs.push_back(astype(*sinks, q.dtype(), s));
  }
  return array(q.shape(), q.dtype(), std::make_shared<RecordedAttention>(s, scale), std::move(inputs));
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
      export_row<RecordedAttention>("RecordedAttention")};
}

} // namespace zmlx
