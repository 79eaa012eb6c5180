// CUDA backend of RecordedAppend: a block for each head of each row copies its key and its value.

#include "recorded_append/recorded_append.h"

#include "cuda/dispatch.h"
#include "cuda/host.h"

namespace zmlx {

using namespace mlx::core;

namespace on_cuda {

namespace {

template <typename T>
struct Append {
  const T* token;
  T* buffer;
  int width;

  __device__ void operator()(int64_t head, int64_t at, int capacity) const {
    for (int i = threadIdx.x; i < width; i += blockDim.x) {
      buffer[(head * capacity + at) * width + i] = token[head * width + i];
    }
  }
};

template <typename T>
__global__ void recorded_append(Append<T> keys, Append<T> values, const int* lengths, int capacity) {
  int row = blockIdx.y;
  int64_t head = int64_t{row} * gridDim.x + blockIdx.x;
  int at = min(max(lengths[row], 1), capacity) - 1;
  keys(head, at, capacity);
  values(head, at, capacity);
}

} // namespace

} // namespace on_cuda

namespace {

void eval(const RecordedAppend& primitive, const std::vector<array>& inputs, std::span<array> outputs) {
  using P = RecordedAppend;
  using namespace on_cuda;
  auto& keys = outputs[0];
  auto& values = outputs[1];
  auto& encoder = cu::get_command_encoder(keys.primitive().stream());
  keys.copy_shared_buffer(written_in_place(inputs[P::kKeys], "keys"));
  values.copy_shared_buffer(written_in_place(inputs[P::kValues], "values"));
  if (keys.size() == 0 && values.size() == 0) {
    return;
  }
  auto k = in_rows(inputs[P::kK], encoder);
  auto v = in_rows(inputs[P::kV], encoder);
  auto& lengths = inputs[P::kLengths];
  dispatch_type(keys.dtype(), [&](auto type) {
    using T = typename decltype(type)::type;
    launch(encoder, recorded_append<T>, dim3(keys.shape(1), keys.shape(0)), 128, 0, {k, v, lengths}, {keys, values},
           Append<T>{gpu_ptr<T>(k), gpu_ptr<T>(keys), keys.shape(3)},
           Append<T>{gpu_ptr<T>(v), gpu_ptr<T>(values), values.shape(3)}, gpu_ptr<int>(lengths), keys.shape(2));
  });
}

} // namespace

GpuBackend recorded_append_gpu() {
  return gpu_backend<RecordedAppend, eval>(on_cuda::refuse);
}

} // namespace zmlx
