// How long recorded_attention takes inside a chain: the layers of a step in one CUDA graph, each with keys of its own, behind
// a launch that reads as many weights as the products before it do; all of them dependent launches that may begin early, as
// in a recorded step. Every plan has the bits of the first one. No MLX runs here.
//
//   keys [heads kv_heads dim length...]

#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <functional>
#include <vector>

#include "recorded_attention/kernel.cuh"

using namespace zmlx::on_cuda;
using namespace zmlx::on_cuda::attention;
using T = __nv_bfloat16;

namespace {

constexpr int kLayers = 48;

void check(cudaError_t error) {
  if (error != cudaSuccess) {
    std::printf("CUDA: %s\n", cudaGetErrorString(error));
    std::exit(1);
  }
}

// Values between -1 and 1.
__global__ void fill(T* to, size_t count, uint32_t seed) {
  for (size_t i = blockIdx.x * size_t{blockDim.x} + threadIdx.x; i < count; i += size_t{gridDim.x} * blockDim.x) {
    uint64_t x = (i + 1) * 0x9e3779b97f4a7c15ull + seed * 0xbf58476d1ce4e5b9ull;
    x = (x ^ x >> 31) * 0x94d049bb133111ebull;
    to[i] = __float2bfloat16(static_cast<int>(x >> 40) * 0x1p-23f - 1);
  }
}

template <typename V>
V* memory(size_t count) {
  void* p = nullptr;
  check(cudaMalloc(&p, count * sizeof(V)));
  return static_cast<V*>(p);
}

T* random_values(size_t count) {
  static uint32_t seed = 0;
  auto* p = memory<T>(count);
  fill<<<1024, 256>>>(p, count, ++seed);
  check(cudaGetLastError());
  return p;
}

// Reads `count` times 16 bytes as the products before attention do, and then what it depends on.
__global__ void __launch_bounds__(256) read_weights(const uint4* weights, int count, uint32_t* y) {
  uint32_t sum = 0;
  for (int i = blockIdx.x * blockDim.x + threadIdx.x; i < count; i += gridDim.x * blockDim.x) {
    auto four = __ldcs(weights + i);
    sum ^= four.x ^ four.y ^ four.z ^ four.w;
  }
  wait_for_inputs();
  let_next_begin();
  y[blockIdx.x * blockDim.x + threadIdx.x] ^= sum;
}

template <typename... Parameters, typename... Arguments>
void launch(cudaStream_t stream, void (*kernel)(Parameters...), dim3 grid, int block, size_t shared, Arguments... arguments) {
  check(cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, static_cast<int>(shared)));
  cudaLaunchAttribute early = {};
  early.id = cudaLaunchAttributeProgrammaticStreamSerialization;
  early.val.programmaticStreamSerializationAllowed = 1;
  cudaLaunchConfig_t config = {};
  config.gridDim = grid;
  config.blockDim = block;
  config.dynamicSmemBytes = shared;
  config.stream = stream;
  config.attrs = &early;
  config.numAttrs = 1;
  check(cudaLaunchKernelEx(&config, kernel, Parameters(arguments)...));
}

// Microseconds of a layer, the best of 20; `add(stream, layer)` adds what one has.
double of_layer(const std::function<void(cudaStream_t, int)>& add) {
  static cudaStream_t stream = [] {
    cudaStream_t s;
    check(cudaStreamCreate(&s));
    return s;
  }();
  check(cudaStreamBeginCapture(stream, cudaStreamCaptureModeGlobal));
  for (int layer = 0; layer < kLayers; layer++) {
    add(stream, layer);
  }
  cudaGraph_t graph;
  check(cudaStreamEndCapture(stream, &graph));
  cudaGraphExec_t executable;
  check(cudaGraphInstantiate(&executable, graph, 0));
  cudaEvent_t begin, end;
  check(cudaEventCreate(&begin));
  check(cudaEventCreate(&end));
  float best = 1e9;
  for (int repetition = 0; repetition < 20; repetition++) {
    check(cudaEventRecord(begin, stream));
    check(cudaGraphLaunch(executable, stream));
    check(cudaEventRecord(end, stream));
    check(cudaEventSynchronize(end));
    float ms;
    check(cudaEventElapsedTime(&ms, begin, end));
    best = std::min(best, ms);
  }
  check(cudaGraphExecDestroy(executable));
  check(cudaGraphDestroy(graph));
  return best * 1000 / kLayers;
}

struct Layers {
  size_t results; // values
  std::vector<Step<T>> steps;

  Layers(int heads, int kv_heads, int dim, int length) : results(size_t(kLayers) * heads * dim) {
    int capacity = length + 16;
    auto* lengths = memory<int>(1);
    auto* position = memory<int>(1);
    int at = length - 1;
    check(cudaMemcpy(lengths, &length, 4, cudaMemcpyHostToDevice));
    check(cudaMemcpy(position, &at, 4, cudaMemcpyHostToDevice));
    auto* weight = random_values(dim);
    auto* partials = memory<float>(size_t(heads) * kShares * dim);
    auto* sums = memory<float2>(heads * kShares);
    NormRope<T> norm_rope = {weight, nullptr, dim, dim, 0, false, 1e-6f, 19.9f, 1.0f};
    size_t of_layer = size_t(kv_heads) * capacity * dim, of_token = size_t(heads + 2 * kv_heads) * dim;
    auto* tokens = random_values(kLayers * of_token);
    auto *keys = random_values(kLayers * of_layer), *values = random_values(kLayers * of_layer);
    auto* out = memory<T>(results);
    for (int layer = 0; layer < kLayers; layer++) {
      auto* q = tokens + layer * of_token;
      auto* k = q + heads * dim;
      steps.push_back({q, k, k + kv_heads * dim, keys + layer * of_layer, values + layer * of_layer, lengths, nullptr,
                       out + layer * size_t(heads) * dim, partials, sums, heads, kv_heads, capacity, 0, 0, false, 0.09f,
                       position, norm_rope, norm_rope});
    }
  }

  std::vector<uint16_t> result() const {
    std::vector<uint16_t> all(results);
    check(cudaMemcpy(all.data(), steps[0].out, all.size() * 2, cudaMemcpyDeviceToHost));
    check(cudaMemset(steps[0].out, 0, all.size() * 2));
    return all;
  }
};

template <int kDim, typename P>
void few(cudaStream_t stream, const Step<T>& step) {
  dim3 grid(P::kBlocks, step.kv_heads * P::sets(step.heads / step.kv_heads), 1);
  launch(stream, few_keys<T, kDim, P>, grid, P::kWarps * 32, P::template kSharedBytes<T, kDim>, step);
}

template <int kDim, typename P>
void many(cudaStream_t stream, const Step<T>& step) {
  dim3 grid(P::kBlocks, step.kv_heads * P::sets(step.heads / step.kv_heads), 1);
  launch(stream, many_keys<T, kDim, P>, grid, P::kWarps * 32, P::template kSharedBytes<T, kDim>, step);
  launch(stream, join_shares<T, kDim>, dim3(kDim / 32, step.heads, 1), 256, 0, step);
}

template <int kDim>
void measure(int heads, int kv_heads, const std::vector<int>& lengths) {
  // queries, keys and values of Qwen3-30B-A3B in 4 bits
  constexpr int kRead = 2048 * 5120 / 16 * 9 / 16;
  auto* weights = reinterpret_cast<uint4*>(random_values(size_t{kLayers} * kRead * 8));
  auto* read = memory<uint32_t>(264 * 256);
  auto before = [&](cudaStream_t stream, int layer) {
    launch(stream, read_weights, 264, 256, 0, weights + size_t(layer) * kRead, kRead, read);
  };
  double alone = of_layer(before);
  std::printf("%d of %d x %d, us a layer behind weights, which alone take %.2f\n", heads, kv_heads, kDim, alone);
  for (int length : lengths) {
    Layers layers(heads, kv_heads, kDim, length);
    std::vector<uint16_t> expected;
    std::printf("%6d keys:", length);
    auto row = [&](const char* name, auto add) {
      double t = of_layer([&](cudaStream_t stream, int layer) {
        before(stream, layer);
        add(stream, layers.steps[layer]);
      });
      auto result = layers.result();
      expected = expected.empty() ? result : expected;
      std::printf("  %s %.2f%s", name, t - alone, result == expected ? "" : " (OTHER BITS)");
    };
    if (length > 1024) {
      row("8 heads a warp", many<kDim, ManyKeys<8>>);
      row("4 heads", many<kDim, ManyKeys<4>>);
      row("8 heads, 3 stages", many<kDim, Plan<8, 8, 256, 3>>);
    } else {
      row("2 heads a warp", few<kDim, FewKeys<kDim>>);
      row("4 heads", few<kDim, Plan<4, 4, 32, 2>>);
    }
    std::printf("\n");
  }
}

} // namespace

int main(int argc, char** argv) {
  auto argument = [&](int i, int usual) { return argc > i ? std::atoi(argv[i]) : usual; };
  int heads = argument(1, 32), kv_heads = argument(2, 4), dim = argument(3, 128);
  std::vector<int> lengths;
  for (int i = 4; i < argc; i++) {
    lengths.push_back(std::atoi(argv[i]));
  }
  if (lengths.empty()) {
    lengths = {64, 512, 1024, 2048, 8192, 32768};
  }
  dim == 64 ? measure<64>(heads, kv_heads, lengths) : measure<128>(heads, kv_heads, lengths);
  check(cudaDeviceSynchronize());
  return 0;
}
