// CUDA backend of QuantizedEmbedding: a thread for eight values of a row, with the bits of stock's `affine_dequantize`
// (mlx/backend/cuda/quantized/affine_quantize.cu).

#include "cuda/depend.cuh"
#include "cuda/dispatch.h"
#include "cuda/host.h"
#include "cuda/mma.cuh"
#include "quantized_embedding/quantized_embedding.h"

namespace zmlx {

using namespace mlx::core;

namespace on_cuda {

namespace {

constexpr int kLookupThreads = 128;

template <typename T>
struct Lookup {
  const uint32_t* tokens; // [lines]
  EightRows<T> table; // [rows, K]
  T* y; // [lines, K]
  int64_t pieces; // of eight values, in all lines
  uint32_t rows;
  int K;
};

template <typename T, int kBits, int kGroup>
__global__ __launch_bounds__(kLookupThreads) void quantized_embedding(const __grid_constant__ Lookup<T> p) {
  using Pair = typename Pairs<T>::Pair;
  wait_for_inputs();
  let_next_begin();
  int64_t piece = int64_t{blockIdx.x} * kLookupThreads + threadIdx.x;
  if (piece >= p.pieces) {
    return;
  }
  int k = piece % (p.K / 8) * 8;
  // a token that is none reads the last row
  int64_t row = min(p.tokens[piece / (p.K / 8)], p.rows - 1);
  auto* codes = p.table.w + (row * p.K + k) / 8 * kBits;
  int64_t group = row * (p.K / kGroup) + k / kGroup;
  Pair scale = twice<T>(reinterpret_cast<const char*>(p.table.scales + group));
  Pair bias = twice<T>(reinterpret_cast<const char*>(p.table.biases + group));
  uint4 values;
#pragma unroll
  for (int i = 0; i < 4; i++) {
    uint32_t& pair = reinterpret_cast<uint32_t*>(&values)[i];
    if constexpr (kBits == 4) {
      uint32_t both = reinterpret_cast<const uint8_t*>(codes)[i];
      pair = dequantized<T>(both * 0x1001 & 0x000f000f, scale, bias);
    } else if constexpr (kBits == 8) {
      auto* two = reinterpret_cast<const uint8_t*>(codes) + 2 * i;
      pair = as_word(__hfma2(Pairs<T>::round2(two[0], two[1]), scale, bias));
    } else {
      uint64_t all = 0;
#pragma unroll
      for (int byte = 0; byte < kBits; byte++) {
        all |= uint64_t{reinterpret_cast<const uint8_t*>(codes)[byte]} << (8 * byte);
      }
      pair = dequantized<T, kBits>(two_codes<kBits>(static_cast<uint32_t>(all >> (2 * i * kBits)), 0), scale, bias);
    }
  }
  reinterpret_cast<uint4*>(p.y)[piece] = values;
}

} // namespace

} // namespace on_cuda

namespace {

void eval(const QuantizedEmbedding& primitive, const std::vector<array>& inputs, std::span<array> outputs) {
  using P = QuantizedEmbedding;
  using namespace on_cuda;
  auto& out = outputs[0];
  auto& encoder = cu::get_command_encoder(out.primitive().stream());
  allocate(out, encoder);
  if (out.size() == 0) {
    return;
  }
  auto in = all_in_rows(inputs, encoder);
  auto [group_size, bits] = primitive.state();
  dispatch_any_width(out.dtype(), bits, group_size, [&](auto type, auto bits, auto group) {
    using T = typename decltype(type)::type;
    constexpr int kBits = bits, kGroup = group;
    Lookup<T> parameters = {
        gpu_ptr<uint32_t>(in[P::kTokens]),
        {gpu_ptr<char>(in[P::kW]), gpu_ptr<T>(in[P::kScales]), gpu_ptr<T>(in[P::kBiases])},
        gpu_ptr<T>(out),
        static_cast<int64_t>(out.size() / 8),
        static_cast<uint32_t>(in[P::kW].shape(0)),
        out.shape(-1)};
    launch(encoder, on_cuda::quantized_embedding<T, kBits, kGroup>, (parameters.pieces + kLookupThreads - 1) / kLookupThreads,
           kLookupThreads, 0, {in[P::kTokens], in[P::kW], in[P::kScales], in[P::kBiases]}, {out}, parameters);
  });
}

std::string refuse_on_cuda(const Request& r) {
  if (r.dtype == float32) {
    return "the CUDA kernel has tables in float16 or bfloat16";
  }
  return on_cuda::refuse(r);
}

} // namespace

GpuBackend quantized_embedding_gpu() {
  return gpu_backend<QuantizedEmbedding, eval>(refuse_on_cuda);
}

} // namespace zmlx
