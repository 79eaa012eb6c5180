// CPU backend of CacheAppend.
//
// Idea:    rows of a batch keep caches of their own: stock takes each row's part of the tokens, then writes it. Here that
//          is one launch, in place where nobody else holds the buffer.
// Layout:  tokens [B, H, L, D] with any strides; buffer [1, H, T, D].
// Tasks:   one; a step's tokens are a few kilobytes.
// Bound:   the bytes of the tokens; the buffer's as well where it is shared.
// Memory:  a buffer that only tasks before it still read is waited for.
// Limits:  a length outside the buffer is taken for the nearest that fits.

#include <algorithm>
#include <atomic>
#include <chrono>
#include <cstring>
#include <memory>
#include <thread>

#include "cache_append/cache_append.h"
#include "cpu/operands.h"
#include "cpu/task.h"
#include "mlx/allocator.h"

namespace zmlx {

using mlx::core::array;

namespace {

void copy_buffer(const array& from, array& to) {
  auto rows = cpu::rows_of(from);
  int64_t bytes = from.shape(3) * from.itemsize();
  auto y = to.data<uint8_t>();
  for (int64_t i = 0; i < rows.size(); i++) {
    std::memcpy(y + i * bytes, rows.at(i), bytes);
  }
}

// Where row b of the tokens goes in a dense buffer. Bare addresses: a batch has two of these tasks a row and layer.
struct Append {
  Append(const array& tokens, int64_t b, const array& lengths, array& buffer)
      : from(tokens.data<uint8_t>() + b * tokens.strides(0) * tokens.itemsize()),
        head_stride(tokens.strides(1) * tokens.itemsize()),
        token_stride(tokens.strides(2) * tokens.itemsize()),
        heads(buffer.shape(1)),
        count(tokens.shape(2)),
        room(buffer.shape(2)),
        bytes(buffer.shape(3) * buffer.itemsize()),
        length(lengths.data<int32_t>() + b * lengths.strides(0)),
        to(buffer.data<uint8_t>()) {}

  // The last token becomes the buffer's token `length - 1`.
  void operator()() const {
    int64_t start = std::clamp<int64_t>(*length - count, 0, room - count);
    for (int64_t h = 0; h < heads; h++) {
      for (int64_t l = 0; l < count; l++) {
        std::memcpy(to + (h * room + start + l) * bytes, from + h * head_stride + l * token_stride, bytes);
      }
    }
  }

  const uint8_t* from;
  int64_t head_stride, token_stride, heads, count, room, bytes;
  const int32_t* length;
  uint8_t* to;
};

bool is_ours(const array& buffer) {
  return buffer.is_donatable() && buffer.flags().row_contiguous && buffer.data_size() == buffer.size();
}

// Whoever builds the graph may be a whole step ahead of the stream, which then has yet to read the buffer for the token
// before and holds it till then. It has enough to do meanwhile: waiting for that is cheaper than a copy of the cache. Who
// holds it still when the stream has come this far holds it for good.
void wait_for_readers(const array& buffer, mlx::core::Stream stream) {
  using namespace std::chrono_literals;
  if (is_ours(buffer)) {
    return;
  }
  auto reached = std::make_shared<std::atomic<bool>>(false);
  mlx::core::scheduler::enqueue(stream, [reached] { *reached = true; });
  // the stream may wait for another, and that one for us
  for (auto until = std::chrono::steady_clock::now() + 200ms; !is_ours(buffer) && !*reached;) {
    if (std::chrono::steady_clock::now() > until) {
      return;
    }
    std::this_thread::sleep_for(20us);
  }
}

} // namespace

void CacheAppend::eval_cpu(const std::vector<array>& inputs, array& out) {
  wait_for_readers(inputs[kBuffer], stream());
  bool in_place = is_ours(inputs[kBuffer]);
  if (in_place) {
    out.copy_shared_buffer(inputs[kBuffer]);
  } else {
    out.set_data(mlx::core::allocator::malloc(out.nbytes()));
  }
  if (out.size() == 0) {
    return;
  }
  auto& encoder = mlx::core::cpu::get_command_encoder(stream());
  for (auto& a : inputs) {
    encoder.set_input_array(a);
  }
  encoder.set_output_array(out);
  if (!in_place) {
    cpu::dispatch(
        stream(),
        name(),
        [from = array::unsafe_weak_copy(inputs[kBuffer]), to = array::unsafe_weak_copy(out)]() mutable {
          copy_buffer(from, to);
        });
  }
  auto& tokens = inputs[kTokens];
  if (tokens.shape(3) == 1 || tokens.strides(3) == 1) {
    cpu::dispatch(stream(), name(), Append(tokens, row_, inputs[kLengths], out));
    return;
  }
  cpu::dispatch(
      stream(),
      name(),
      [tokens = array::unsafe_weak_copy(tokens),
       row = row_,
       lengths = array::unsafe_weak_copy(inputs[kLengths]),
       out = array::unsafe_weak_copy(out)]() mutable {
        auto dense = cpu::read_dense(tokens);
        Append append(tokens, row, lengths, out);
        int64_t row_bytes = append.heads * append.count * append.bytes;
        append.from = dense.data() + row * row_bytes;
        append.head_stride = append.count * append.bytes;
        append.token_stride = append.bytes;
        append();
      });
}

} // namespace zmlx
