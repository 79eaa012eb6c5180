#include "recorded_append/recorded_append.h"

#include <sstream>

#include "mlx/ops.h"

namespace zmlx {

using namespace mlx::core;

std::pair<array, array> recorded_append(
    const array& k,
    const array& v,
    const array& keys,
    const array& values,
    const array& lengths,
    StreamOrDevice s_) {
  auto s = to_stream(s_);
  auto fail = [](auto&&... args) {
    std::ostringstream msg;
    msg << "[recorded_append] ";
    (msg << ... << args);
    throw std::invalid_argument(msg.str());
  };
  auto check = [&](const array& token, const array& buffer) {
    auto one = buffer.shape();
    if (one.size() != 4 || one[2] == 0) {
      fail("buffers should be [B, H, T, D] but received shape ", one, ".");
    }
    one[2] = 1;
    if (token.shape() != one) {
      fail("one token for a buffer of shape ", buffer.shape(), " should be ", one, " but received ", token.shape(), ".");
    }
    if (lengths.shape() != Shape{one[0]} || lengths.dtype() != int32) {
      fail("expected a length of int32 for each row but received ", lengths.dtype(), " ", lengths.shape(), ".");
    }
  };
  check(k, keys);
  check(v, values);
  if (keys.shape(2) != values.shape(2) || keys.dtype() != values.dtype()) {
    fail("keys and values differ: ", keys.dtype(), " ", keys.shape(), " and ", values.dtype(), " ", values.shape(), ".");
  }
  require_support("recorded_append", {s.device, keys.dtype(), Precision::Exact, {}});
  auto outputs = array::make_arrays(
      {keys.shape(), values.shape()},
      {keys.dtype(), values.dtype()},
      std::make_shared<RecordedAppend>(s),
      {astype(k, keys.dtype(), s), astype(v, values.dtype(), s), keys, values, lengths});
  return {outputs[0], outputs[1]};
}

void RecordedAppend::eval_cpu(const std::vector<array>&, std::vector<array>&) {
  throw std::runtime_error("recorded_append has no CPU kernel");
}

Definition define_recorded_append() {
  return {
      "recorded_append",
      {},
      [](const Request&) { return std::string(); },
      refuse_recorded_on_cpu,
      export_row<RecordedAppend>("RecordedAppend")};
}

} // namespace zmlx
