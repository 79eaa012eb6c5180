// How long gather_qmm_swiglu and gather_qmm_combine take inside a chain: 64 launches of each in one CUDA graph, one after
// the other, every one with other experts, so that no weights are in the cache; as plain launches, and as dependent ones that
// may begin early, as in a recorded step. Swiglu is timed with bulk copies too, and has to give the same bits; both in `fast`
// precision, which have to give about the same. No MLX runs here.
//
//   chain [K N experts top_k]

#include <algorithm>
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <type_traits>
#include <vector>

#include "cuda/boxes.h"
#include "gather_qmm_combine/fast.cuh"
#include "gather_qmm_combine/kernel.cuh"
#include "gather_qmm_swiglu/fast.cuh"
#include "gather_qmm_swiglu/kernel.cuh"
#include "gather_qmm_swiglu/tiled.cuh"

using namespace zmlx::on_cuda;
using T = __nv_bfloat16;

namespace {

void check(cudaError_t error) {
  if (error != cudaSuccess) {
    std::printf("CUDA: %s\n", cudaGetErrorString(error));
    std::exit(1);
  }
}

void allow_shared(const void* kernel, size_t bytes) {
  check(cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, static_cast<int>(bytes)));
}

template <typename V>
V* random_memory(size_t count, uint32_t mask, uint32_t bits) {
  std::vector<V> data(count);
  for (auto& v : data) {
    v = static_cast<V>((std::rand() & mask) | bits);
  }
  void* memory = nullptr;
  check(cudaMalloc(&memory, count * sizeof(V)));
  check(cudaMemcpy(memory, data.data(), count * sizeof(V), cudaMemcpyHostToDevice));
  return static_cast<V*>(memory);
}

EightRows<T> random_matrices(int64_t E, int64_t N, int64_t K) {
  // scales about 0.01
  auto scales = [&] { return reinterpret_cast<T*>(random_memory<uint16_t>(E * N * K / 64, 0x7f, 0x3c00)); };
  auto* w = reinterpret_cast<char*>(random_memory<uint32_t>(E * N * K / 8, 0xffffffff, 0));
  return {w, scales(), scales()};
}

std::vector<uint16_t> bits_of(const T* values, size_t count) {
  std::vector<uint16_t> bits(count);
  check(cudaMemcpy(bits.data(), values, count * 2, cudaMemcpyDeviceToHost));
  return bits;
}

// That `got` is no further from `expected` than bfloat16's roundings may bring it.
void expect_close(const std::vector<uint16_t>& got, const std::vector<uint16_t>& expected) {
  auto number = [](uint16_t bits) {
    uint32_t wide = uint32_t{bits} << 16;
    float v;
    std::memcpy(&v, &wide, 4);
    return double{v};
  };
  double distance = 0, size = 0;
  for (size_t i = 0; i < got.size(); i++) {
    double d = number(got[i]) - number(expected[i]);
    distance += d * d;
    size += number(expected[i]) * number(expected[i]);
  }
  if (!(distance <= 1e-4 * size)) {
    std::printf("its results differ by %g of %g\n", std::sqrt(distance), std::sqrt(size));
    std::exit(1);
  }
}

constexpr int kLaunches = 64;

// The best of 20, per launch; `arguments_of(i)` are those of launch i.
template <typename Parameters, typename Arguments>
double microseconds(
    void (*kernel)(Parameters),
    unsigned grid,
    unsigned block,
    size_t shared,
    bool dependent,
    Arguments arguments_of) {
  allow_shared(reinterpret_cast<const void*>(kernel), shared);
  cudaStream_t stream;
  check(cudaStreamCreate(&stream));
  check(cudaStreamBeginCapture(stream, cudaStreamCaptureModeGlobal));
  for (int i = 0; i < kLaunches; i++) {
    cudaLaunchAttribute early = {};
    early.id = cudaLaunchAttributeProgrammaticStreamSerialization;
    early.val.programmaticStreamSerializationAllowed = 1;
    cudaLaunchConfig_t config = {};
    config.gridDim = grid;
    config.blockDim = block;
    config.dynamicSmemBytes = shared;
    config.stream = stream;
    config.attrs = &early;
    config.numAttrs = dependent;
    check(cudaLaunchKernelEx(&config, kernel, std::remove_const_t<Parameters>(arguments_of(i))));
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
  return best * 1000 / kLaunches;
}

} // namespace

int main(int argc, char** argv) {
  auto argument = [&](int i, int usual) { return argc > i ? std::atoi(argv[i]) : usual; };
  int K = argument(1, 2048), N = argument(2, 768), E = argument(3, 128), top_k = argument(4, 8);
  std::vector<uint32_t> many(kLaunches * top_k);
  for (auto& expert : many) {
    expert = std::rand() % E;
  }
  uint32_t *experts, *lhs;
  check(cudaMalloc(&experts, many.size() * 4));
  check(cudaMemcpy(experts, many.data(), many.size() * 4, cudaMemcpyHostToDevice));
  check(cudaMalloc(&lhs, top_k * 4));
  check(cudaMemset(lhs, 0, top_k * 4));
  auto* x = reinterpret_cast<T*>(random_memory<uint16_t>(top_k * std::max(N, K), 0x7f, 0x3f00));
  auto* scores = reinterpret_cast<T*>(random_memory<uint16_t>(top_k, 0x7f, 0x3e00));
  T* y;
  check(cudaMalloc(&y, top_k * std::max(N, K) * sizeof(T)));
  auto gate = random_matrices(E, N, K), up = random_matrices(E, N, K), down = random_matrices(E, K, N);

  // with bulk copies
  int tiled = tiled_swiglu_warps<T, 4, 64>(K, top_k * (N / kTiledOutputs), N / kTiledOutputs, 132);
  if (K % kPieceValues<4> != 0) {
    tiled = 0;
  }
  auto boxes = [&](const EightRows<T>& m) { return boxes_of(m.w, int64_t{E} * N, K / 2, tiled * kTiledOutputs); };
  TiledSwiglu<T> by_copies = {};
  if (tiled) {
    by_copies = {boxes(gate), boxes(up), gate.scales, gate.biases, up.scales, up.biases, x, lhs, experts, y, K, N, 1, true};
  }

  // and in `fast` precision, of so many tiles a block
  bool is_fast = K % fast::Layout<4, 64>::kPiece == 0 && N % fast::Layout<4, 64>::kPiece == 0;
  auto fast_copies = [&](int tiles) {
    auto boxes = [&](const EightRows<T>& m) { return boxes_of(m.w, int64_t{E} * N, K / 2, tiles * fast::kTileOutputs); };
    return TiledSwiglu<T>{
        boxes(gate), boxes(up), gate.scales, gate.biases, up.scales, up.biases, x, nullptr, experts, y, K, N, 1, true};
  };

  double bytes = 1.0 * top_k * N * K * (0.5 + 4.0 / 64); // of one projection
  int swiglu = swiglu_warps(top_k * (N / 8), N / 8, SixteenRows<T, 4, 64>::bytes(K), K * sizeof(T), 132);
  for (bool dependent : {false, true}) {
    double t = microseconds(
        gather_qmm_swiglu_mma<T, 4, 64>, top_k * (N / (8 * swiglu)), swiglu * 32, swiglu_shared_bytes<T, 4, 64>(K, swiglu), dependent,
        [&](int i) { return Swiglu<T>{x, lhs, experts + i * top_k, gate, up, y, K, N, 1, true}; });
    auto say = [&](const char* what) {
      std::printf("gather_qmm_swiglu%s K %d N %d, %d of %d%s: %.2f us, %.0f GB/s\n", what, K, N, top_k, E,
                  dependent ? ", dependent" : "", t, 2 * bytes / t / 1e3);
    };
    say("");
    if (tiled) {
      auto expected = bits_of(y, size_t(top_k) * N);
      check(cudaMemset(y, 0xff, size_t(top_k) * N * sizeof(T)));
      unsigned grid = top_k * (N / (kTiledOutputs * tiled));
      t = microseconds(
          gather_qmm_swiglu_tiled<T, 4, 64>, grid, tiled * 32, tiled_swiglu_shared<T, 4, 64>(K, tiled, grid, 132), dependent,
          [&](int i) {
            auto parameters = by_copies;
            parameters.rhs = experts + i * top_k;
            return parameters;
          });
      say(" by bulk copies");
      auto got = bits_of(y, size_t(top_k) * N);
      if (got != expected) {
        std::printf("its bits differ\n");
        std::exit(1);
      }
    }
    auto time_fast = [&](auto tiles) {
      constexpr int kTiles = tiles, kOutputs = kTiles * fast::kTileOutputs;
      if (!is_fast || N % kOutputs != 0) {
        return;
      }
      auto expected = bits_of(y, size_t(top_k) * N);
      check(cudaMemset(y, 0xff, size_t(top_k) * N * sizeof(T)));
      t = microseconds(
          fast::fast_swiglu<T, 4, 64, kTiles>, top_k * (N / kOutputs), fast::swiglu_threads(kTiles),
          fast::SwigluShared<T, 4, 64>(K, kTiles).bytes(), dependent, [&, parameters = fast_copies(kTiles)](int i) mutable {
            parameters.rhs = experts + i * top_k;
            return parameters;
          });
      say(kTiles == 3 ? " fast" : " fast, blocks of six tiles");
      expect_close(bits_of(y, size_t(top_k) * N), expected);
    };
    time_fast(std::integral_constant<int, 3>());
    time_fast(std::integral_constant<int, 6>());
    int warps = std::min(top_k, kMostCombineWarps);
    t = microseconds(
        gather_qmm_combine_mma<T, T, 4, 64>, K / 16, warps * 32,
        warps * combine_shared_bytes<T, 4, 64>(N), dependent,
        [&](int i) { return Combine<T, T>{x, experts + i * top_k, scores, down, y, N, K, top_k, warps}; });
    std::printf("gather_qmm_combine K %d N %d, %d of %d%s: %.2f us, %.0f GB/s\n", N, K, top_k, E,
                dependent ? ", dependent" : "", t, bytes / t / 1e3);
    if (is_fast) {
      auto expected = bits_of(y, K);
      check(cudaMemset(y, 0xff, K * sizeof(T)));
      int at_once = fast::experts_at_once<4, 64>(N, top_k);
      t = microseconds(
          fast::fast_combine<T, T, 4, 64>, K / fast::kOutputs, at_once * 32,
          at_once * fast::Layout<4, 64>::bytes(N), dependent,
          [&](int i) { return Combine<T, T>{x, experts + i * top_k, scores, down, y, N, K, top_k, at_once}; });
      std::printf("gather_qmm_combine fast K %d N %d, %d of %d%s: %.2f us, %.0f GB/s\n", N, K, top_k, E,
                  dependent ? ", dependent" : "", t, bytes / t / 1e3);
      expect_close(bits_of(y, K), expected);
    }
  }
  check(cudaDeviceSynchronize());
  return 0;
}
