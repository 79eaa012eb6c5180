// CPU backend of QuantizedEmbedding.
//
// Idea:    stock takes rows of three arrays and unpacks them by shifts, one array for each field of a word: seventy arrays
//          for a step of decode, behind which the step waits. Here a row is unpacked at once, with stock's own functors:
//          code * scale (rounded) + bias (rounded).
// Layout:  w [V, D * bits / 32] packed; tokens [..]; the result [.., D].
// Tasks:   one per row.
// Bound:   about a nanosecond a value: a group has fewer codes than values up to 4 bits, each is computed once.
// Limits:  affine.

#include "cpu/operands.h"
#include "cpu/task.h"
#include "cpu/thread_pool.h"
#include "mlx/backend/cpu/binary_ops.h"
#include "mlx/types/half_types.h"
#include "quantized_embedding/quantized_embedding.h"

namespace zmlx {

using mlx::core::array;

namespace {

struct Lookup {
  Lookup(const std::vector<array>& in, array& out, int group_size, int bits)
      : tokens(in[QuantizedEmbedding::kTokens]),
        w(cpu::rows_of(in[QuantizedEmbedding::kW])),
        scales(cpu::rows_of(in[QuantizedEmbedding::kScales])),
        biases(cpu::rows_of(in[QuantizedEmbedding::kBiases])),
        dtype(cpu::dtype_of(out.dtype())),
        group_size(group_size),
        bits(bits),
        groups(in[QuantizedEmbedding::kScales].shape(1)),
        y(out.data<uint8_t>()) {}

  template <typename T>
  void row(int64_t token, T* to) const {
    using mlx::core::detail::Add;
    using mlx::core::detail::Multiply;
    auto words = reinterpret_cast<const uint32_t*>(w.at(token));
    auto scale = reinterpret_cast<const T*>(scales.at(token));
    auto bias = reinterpret_cast<const T*>(biases.at(token));
    const int codes = 1 << bits;
    T values[256];
    for (int64_t g = 0; g < groups; g++) {
      auto value = [&](int code) -> T { return Add{}(Multiply{}(static_cast<T>(static_cast<float>(code)), scale[g]), bias[g]); };
      bool by_table = codes <= group_size;
      for (int code = 0; by_table && code < codes; code++) {
        values[code] = value(code);
      }
      for (int64_t i = g * group_size; i < (g + 1) * group_size; i++) {
        int64_t bit = i * bits;
        uint64_t both = words[bit / 32];
        if (bit % 32 + bits > 32) {
          both |= static_cast<uint64_t>(words[bit / 32 + 1]) << 32;
        }
        int code = both >> bit % 32 & (codes - 1);
        to[i] = by_table ? values[code] : value(code);
      }
    }
  }

  template <typename T>
  void rows() const {
    auto ids = tokens.read();
    cpu::check_indices("quantized_embedding", ids, w.size(), "tokens");
    int64_t dims = groups * group_size;
    cpu::parallel_for(ids.size(), 16 * static_cast<int64_t>(ids.size()) * dims, [&](int64_t i) {
      row<T>(ids[i], reinterpret_cast<T*>(y) + i * dims);
    });
  }

  void run() const {
    switch (dtype) {
      case cpu::DType::F32:
        return rows<float>();
      case cpu::DType::F16:
        return rows<mlx::core::float16_t>();
      case cpu::DType::BF16:
        return rows<mlx::core::bfloat16_t>();
    }
  }

  cpu::Indices tokens;
  cpu::StridedBlocks w;
  cpu::StridedBlocks scales;
  cpu::StridedBlocks biases;
  cpu::DType dtype;
  int64_t group_size;
  int bits;
  int64_t groups;
  uint8_t* y;
};

} // namespace

void QuantizedEmbedding::eval_cpu(const std::vector<array>& inputs, array& out) {
  cpu::dispatch_prepared(stream(), name(), inputs, out, [group_size = group_size_, bits = bits_](auto& in, auto& out) {
    return [lookup = std::make_shared<Lookup>(in, out, group_size, bits)] { lookup->run(); };
  });
}

} // namespace zmlx
