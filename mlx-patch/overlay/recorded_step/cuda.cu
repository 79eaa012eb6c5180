// CUDA backend of RecordedStep.
//
// MLX adds every launch of a step to a CUDA graph by itself, which takes longer than the GPU needs to run it. Here the graph
// of one step is kept: what it reads that changes from token to token - the last token, the position, states - lies in memory that the
// step's last launches write over, so that the same graph is the next step. The CPU starts it and waits for a number.
//
// MLX builds the step's graph, which is then taken from it: all steps, the first one too, are launches of what it becomes. It is
// valid as long as its buffers are, so it holds all of them.

#include "recorded_step/recorded_step.h"

#include <algorithm>
#include <array>
#include <utility>
#include <vector>

#include "cuda/depend.cuh"
#include "cuda/encoder_access.h"
#include "cuda/host.h"
#include "cuda/memory.h"
#include "mlx/backend/cuda/allocator.h"
#include "mlx/transforms.h"
#include "recorded_step/joined.h"
#include "recorded_step/launches.h"

namespace zmlx {

using namespace mlx::core;

namespace on_cuda {

namespace {

constexpr unsigned kSlots = 2 * Recording::kMostAhead;

// Everything that one step hands on to the next but states.
struct Advance {
  const uint32_t* chosen;
  uint32_t* token;
  int* position;
  uint32_t* slots; // of tokens, on the host
  unsigned* count;
};

__global__ void advance(Advance a) {
  wait_for_inputs();
  let_next_begin();
  uint32_t token = *a.chosen;
  *a.token = token;
  *a.position += 1;
  a.slots[*a.count % kSlots] = token;
  *a.count += 1;
}

// A state of the next step.
struct Carry {
  const uint8_t* from;
  uint8_t* to;
  size_t bytes;
};

__global__ void carry(const Carry* carries) {
  wait_for_inputs();
  let_next_begin();
  auto [from, to, bytes] = carries[blockIdx.x];
  bool wide = (reinterpret_cast<uintptr_t>(from) | reinterpret_cast<uintptr_t>(to) | bytes) % 16 == 0;
  if (wide) {
    for (size_t i = threadIdx.x; i < bytes / 16; i += blockDim.x) {
      reinterpret_cast<uint4*>(to)[i] = reinterpret_cast<const uint4*>(from)[i];
    }
  } else {
    for (size_t i = threadIdx.x; i < bytes; i += blockDim.x) {
      to[i] = from[i];
    }
  }
}

// Memory that is one's own, on the device or, pinned, on the host.
template <typename T>
class Block {
 public:
  enum Place { kDevice, kHost };

  Block(Place place, size_t size) : place_(place) {
    size_t bytes = std::max<size_t>(size, 1) * sizeof(T);
    check(place == kHost ? cudaMallocHost(&data_, bytes) : cudaMalloc(&data_, bytes));
    check(cudaMemset(data_, 0, bytes));
  }
  explicit Block(const std::vector<T>& values) : Block(kDevice, values.size()) {
    check(cudaMemcpy(data_, values.data(), values.size() * sizeof(T), cudaMemcpyHostToDevice));
  }
  Block(const Block&) = delete;
  ~Block() {
    place_ == kHost ? cudaFreeHost(data_) : cudaFree(data_);
  }
  T* data() const {
    return static_cast<T*>(data_);
  }

 private:
  Place place_;
  void* data_ = nullptr;
};

using Buffers = std::vector<std::shared_ptr<array::Data>>;

class CudaRecording : public Recording {
 public:
  CudaRecording(Encoder& encoder, const std::vector<Carry>& carries)
      : stream_(encoder.stream()), carries_(carries) {
    for (auto& event : events_) {
      check(cudaEventCreateWithFlags(&event, cudaEventDisableTiming | cudaEventBlockingSync));
    }
  }

  ~CudaRecording() override {
    cudaStreamSynchronize(stream_);

    if (exec_) {
      cudaGraphExecDestroy(exec_);
    }
    if (graph_) {
      cudaGraphDestroy(graph_);
    }
    for (auto event : events_) {
      cudaEventDestroy(event);
    }
  }

  Advance advance_of(const array& chosen, array& token, array& position) const {
    return {
        gpu_ptr<uint32_t>(chosen),
        gpu_ptr<uint32_t>(token),
        gpu_ptr<int>(position),
        slots_.data(),
        count_.data()};
  }

  const Carry* carries() const {
    return carries_.data();
  }

  // Keeps the launches that the encoder has collected, and everything that they touch.
  void keep(Encoder& encoder) {
    EncoderAccess access(encoder);
    graph_ = one_behind_the_other(access.take_graph());
    buffers_ = access.buffers();
    for (auto& data : buffers_) {
      auto* buffer = static_cast<cu::CudaBuffer*>(data->buffer.ptr());
      if (buffer && buffer->device >= 0) {
        places_.push_back({buffer, buffer->data});
      }
    }
    std::sort(places_.begin(), places_.end());
    places_.erase(std::unique(places_.begin(), places_.end()), places_.end());
    prefetch();
    if (auto error = cudaGraphInstantiate(&exec_, graph_, 0); error != cudaSuccess) {
      // others may hold what only this step computes
      access.give_back(std::exchange(graph_, nullptr));
      check(error);
    }
  }

  void launch() override {
    // MLX moves an array's memory when the CPU reads it
    if (std::any_of(places_.begin(), places_.end(), [](auto& place) { return place.first->data != place.second; })) {
      throw std::runtime_error(
          "[recorded step] an array of the step was read on the CPU, which moved its memory; the step can no longer be "
          "taken again.");
    }
    check(cudaGraphLaunch(exec_, stream_));
    check(cudaEventRecord(events_[num_started_ % events_.size()], stream_));
    num_started_++;
  }

  uint64_t num_started() const override {
    return num_started_;
  }

  uint32_t token(uint64_t index) override {
    if (index >= num_started_ || index + kMostAhead < num_started_) {
      throw std::invalid_argument(
          "[recorded step] step " + std::to_string(index) + " is not one of the last " + std::to_string(kMostAhead) +
          " of " + std::to_string(num_started_) + " started.");
    }
    check(cudaEventSynchronize(events_[index % events_.size()]));
    return static_cast<volatile uint32_t*>(slots_.data())[index % kSlots];
  }

 private:
  // MLX keeps arrays of up to 8 bytes in memory that the CPU shares. The CPU no longer looks at them, so they move.
  void prefetch() {
    int device = 0;
    check(cudaGetDevice(&device));
    for (auto& data : buffers_) {
      auto* buffer = static_cast<cu::CudaBuffer*>(data->buffer.ptr());
      if (!buffer || buffer->device >= 0 || buffer->size == 0 || buffer->size > 64) {
        continue;
      }
      cudaMemLocation location = {cudaMemLocationTypeDevice, device};
      if (cudaMemPrefetchAsync(buffer->data, buffer->size, location, 0, stream_) != cudaSuccess) {
        cudaGetLastError(); // pinned memory does not move
        return;
      }
    }
  }

  cudaStream_t stream_;
  cudaGraph_t graph_ = nullptr;
  cudaGraphExec_t exec_ = nullptr;
  std::array<cudaEvent_t, kSlots> events_ = {};
  Block<uint32_t> slots_{Block<uint32_t>::kHost, kSlots};
  Block<unsigned> count_{Block<unsigned>::kDevice, 1};
  Block<Carry> carries_;
  Buffers buffers_;
  std::vector<std::pair<cu::CudaBuffer*, void*>> places_; // on the device, and where they were
  uint64_t num_started_ = 0;
};

} // namespace

} // namespace on_cuda

void evaluate_recorded(array& done, Stream stream) {
  using namespace on_cuda;
  join_launches(done);
  auto& encoder = cu::get_command_encoder(stream);
  mlx::core::synchronize(stream);
  EncoderAccess access(encoder);
  auto limits = access.without_limits();
  mlx::core::async_eval({done});
}

namespace {

void eval(const RecordedStep& primitive, const std::vector<array>& inputs, std::span<array> outputs) {
  using P = RecordedStep;
  using namespace on_cuda;
  auto& result = primitive.result();
  auto& encoder = cu::get_command_encoder(outputs[0].primitive().stream());
  allocate(outputs[0], encoder);
  auto token = written_in_place(inputs[P::kToken], "the token");
  auto position = written_in_place(inputs[P::kPosition], "the position");
  auto next = inputs.begin() + P::kOthers;
  auto some = [&](size_t n) {
    std::vector<array> arrays(next, next + n);
    next += n;
    return arrays;
  };
  auto before = some(result.num_states), after = some(result.num_states);
  std::vector<Carry> carries;
  for (size_t i = 0; i < before.size(); i++) {
    auto to = written_in_place(before[i], "a state");
    carries.push_back({gpu_ptr<uint8_t>(after[i]), gpu_ptr<uint8_t>(to), to.nbytes()});
  }

  auto recording = std::make_shared<CudaRecording>(encoder, carries);
  auto& chosen = inputs[P::kChosen];
  for (auto& state : after) {
    encoder.set_input_array(state);
  }
  launch(encoder, advance, 1, 1, 0, {chosen}, {token, position, outputs[0]},
         recording->advance_of(chosen, token, position));
  if (!carries.empty()) {
    for (auto& state : after) {
      encoder.set_input_array(state);
    }
    for (auto& state : before) {
      encoder.set_output_array(state);
    }
    launch(encoder, carry, carries.size(), 256, 0, {outputs[0]}, {}, recording->carries());
  }
  for (auto& input : inputs) {
    encoder.add_temporary(input);
  }
  encoder.add_temporary(outputs[0]);
  recording->keep(encoder);
  recording->launch();
  result.recording = recording;
}

} // namespace

GpuBackend recorded_step_gpu() {
  return gpu_backend<RecordedStep, eval>(on_cuda::refuse_device);
}

} // namespace zmlx
