#include "cache_append/cache_append.h"
#include "mlx/ops.h"
#include "zmlx/invalid.h"

namespace zmlx {

using namespace mlx::core;

array cache_append(const array& buffer, const array& tokens, int row, const array& lengths, StreamOrDevice s_) {
  auto s = to_stream(s_);
  auto fail = [](auto&&... args) {
    throw_invalid("cache_append", args...);
  };
  if (tokens.ndim() != 4) {
    fail("tokens should have 4 dimensions but received shape ", tokens.shape(), ".");
  }
  if (buffer.ndim() != 4 || buffer.shape(0) != 1 || buffer.shape(1) != tokens.shape(1) ||
      buffer.shape(3) != tokens.shape(3)) {
    fail("a buffer of shape ", buffer.shape(), " is not for tokens of shape ", tokens.shape(), ".");
  }
  if (buffer.shape(2) < tokens.shape(2)) {
    fail("a buffer of shape ", buffer.shape(), " has no room for ", tokens.shape(2), " tokens.");
  }
  if (row < 0 || row >= tokens.shape(0)) {
    fail("expected a row of the tokens' ", tokens.shape(0), " but received ", row, ".");
  }
  if (lengths.ndim() != 1 || lengths.shape(0) != tokens.shape(0) || !issubdtype(lengths.dtype(), integer)) {
    fail("expected lengths of integers, one for each row of tokens, but received ", lengths.dtype(), " ",
         lengths.shape(), ".");
  }
  require_support("cache_append", {s.device, buffer.dtype(), Precision::Exact, {}});
  std::vector<array> inputs = {buffer, astype(tokens, buffer.dtype(), s), astype(lengths, int32, s)};
  return array(buffer.shape(), buffer.dtype(), std::make_shared<CacheAppend>(s, row), std::move(inputs));
}

// The definition, in stock ops.
Fallback CacheAppend::fallback(const std::vector<int>&) {
  return [row = row_, s = stream()](const std::vector<array>& in) {
    auto& buffer = in[kBuffer];
    auto shape = in[kTokens].shape();
    auto start = Shape(4, 0);
    auto stop = shape;
    start[0] = row;
    stop[0] = row + 1;
    auto tokens = slice(in[kTokens], start, stop, s);
    auto last = slice(in[kLengths], {row}, {row + 1}, s);
    auto at = clip(subtract(last, array(shape[2]), s), array(0), array(buffer.shape(2) - shape[2]), s);
    return std::vector<array>{slice_update(buffer, tokens, at, {2}, s)};
  };
}

std::vector<Shape> CacheAppend::output_shapes(const std::vector<array>& inputs) {
  return {inputs[kBuffer].shape()};
}

Definition define_cache_append() {
  return {
      "cache_append",
      {},
      [](const Request&) { return std::string(); },
      refuse_on_cpu,
      export_row<CacheAppend>("CacheAppend")};
}

} // namespace zmlx
