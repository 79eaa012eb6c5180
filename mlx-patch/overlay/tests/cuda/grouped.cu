// Products over experts of many lines, grouped by expert, against the kernels for single lines, which product.cpp holds to
// stock: the bits of every output, with uneven experts, and how long both take. "From 3": tiles of 3 * 16 lines and more are
// multiplied by a warpgroup, the others by warps; 9 is never, 1 always. No MLX runs here.
//
//   grouped [K N experts top_k tokens...]

#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <vector>

#include "cuda/grouped.cuh"
#include "cuda/grouping.cuh"
#include "gather_qmm_swiglu/kernel.cuh"

using namespace zmlx::on_cuda;
using T = __nv_bfloat16;

namespace {

constexpr int kBits = 4, kGroup = 64;
int failures = 0;

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
V* memory(size_t count) {
  void* memory = nullptr;
  check(cudaMalloc(&memory, count * sizeof(V)));
  return static_cast<V*>(memory);
}

template <typename V>
V* copied(const std::vector<V>& data) {
  V* to = memory<V>(data.size());
  check(cudaMemcpy(to, data.data(), data.size() * sizeof(V), cudaMemcpyHostToDevice));
  return to;
}

// A number for every i.
__device__ uint32_t noise(uint64_t i) {
  i = (i + 1) * 0x9e3779b97f4a7c15;
  i = (i ^ i >> 29) * 0xbf58476d1ce4e5b9;
  return static_cast<uint32_t>(i >> 32);
}

__global__ void fill(uint32_t* to, size_t count) {
  for (size_t i = size_t{blockIdx.x} * blockDim.x + threadIdx.x; i < count; i += size_t{gridDim.x} * blockDim.x) {
    to[i] = noise(i);
  }
}

__global__ void fill(T* to, size_t count, float scale, uint64_t seed) {
  for (size_t i = size_t{blockIdx.x} * blockDim.x + threadIdx.x; i < count; i += size_t{gridDim.x} * blockDim.x) {
    to[i] = __float2bfloat16_rn((noise(i + (seed << 40)) * (2.0f / 4294967296.0f) - 1) * scale);
  }
}

T* values(size_t count, float scale) {
  static uint64_t seed = 0;
  T* to = memory<T>(count);
  fill<<<1024, 256>>>(to, count, scale, ++seed);
  return to;
}

EightRows<T> matrices(int64_t E, int64_t N, int64_t K) {
  auto* w = memory<uint32_t>(E * N * K / 8);
  fill<<<1024, 256>>>(w, E * N * K / 8);
  return {reinterpret_cast<char*>(w), values(E * N * K / kGroup, 0.01f), values(E * N * K / kGroup, 0.05f)};
}

// The best of ten, in microseconds.
template <typename F>
double microseconds(F&& f) {
  cudaEvent_t begin, end;
  check(cudaEventCreate(&begin));
  check(cudaEventCreate(&end));
  float best = 1e9;
  for (int i = 0; i < 10; i++) {
    check(cudaEventRecord(begin));
    f();
    check(cudaEventRecord(end));
    check(cudaEventSynchronize(end));
    float ms;
    check(cudaEventElapsedTime(&ms, begin, end));
    best = std::min(best, ms);
  }
  check(cudaGetLastError());
  return best * 1000;
}

std::vector<uint16_t> bits_of(const T* values, size_t count) {
  std::vector<uint16_t> bits(count);
  check(cudaMemcpy(bits.data(), values, count * 2, cudaMemcpyDeviceToHost));
  return bits;
}

void compare(const char* what, const std::vector<uint16_t>& expected, const T* y) {
  auto got = bits_of(y, expected.size());
  size_t differ = 0, nonzero = 0;
  for (size_t i = 0; i < expected.size(); i++) {
    differ += got[i] != expected[i];
    nonzero += (expected[i] & 0x7fff) != 0;
  }
  failures += differ != 0;
  std::printf("  %s: %zu of %zu differ (%zu are not zero)\n", what, differ, expected.size(), nonzero);
}

struct Problem {
  int K, N, E, top_k, tokens;
};

// Every expert its own number of lines: none, few, around the sizes of tiles, and what is left by chance.
std::vector<uint32_t> routes(const Problem& p) {
  std::vector<uint32_t> experts;
  size_t lines = size_t(p.tokens) * p.top_k;
  const int sizes[] = {0, 1, 7, 8, 9, 15, 16, 17, 33, 48, 49, 63, 64, 65, 129};
  for (int e = 0; e < 15 && e < p.E && lines > 2048; e++) {
    experts.insert(experts.end(), sizes[e], e);
  }
  while (experts.size() < lines) {
    experts.push_back(lines > 2048 && p.E > 15 ? 15 + std::rand() % (p.E - 15) : std::rand() % p.E);
  }
  for (size_t i = lines - 1; i > 0; i--) {
    std::swap(experts[i], experts[std::rand() % (i + 1)]);
  }
  return experts;
}

template <int kMatrices, int kFrom>
void run(const char* what, const Problem& p, const T* x, const uint32_t* lhs, const uint32_t* rhs, Tile* tiles,
         Line* list, const EightRows<T>* weights, T* y, const std::vector<uint16_t>& expected) {
  int lines = p.tokens * p.top_k;
  int tiles_in_all = num_tiles(lines, p.E);
  Grouping grouping = {lhs, rhs, tiles, list, lines, 1, p.E, false};
  Grouped<T, kMatrices> grouped = {x, tiles, list, {}, y, p.K, p.N, 0, 0, {}};
  for (int i = 0; i < kMatrices; i++) {
    auto bytes = [](const T* values) { return reinterpret_cast<const char*>(values); };
    grouped.weights[i] = {weights[i].w, bytes(weights[i].scales), bytes(weights[i].biases), nullptr};
  }
  auto kernel = grouped_product<AffineWeights<T, kBits, kGroup>, kMatrices, kFrom>;
  size_t shared = grouped_shared_bytes(true, kBits, kGroup, p.K);
  allow_shared(reinterpret_cast<const void*>(kernel), shared);
  check(cudaMemset(y, 0xff, size_t(lines) * p.N * 2));
  auto group = [&] { group_lines<<<p.E, kGroupingThreads>>>(grouping); };
  auto multiply = [&] {
    kernel<<<tiles_in_all * (p.N / (kBlockRows / kMatrices)), kGroupedThreads, shared>>>(grouped);
  };
  double grouping_us = microseconds(group), us = microseconds(multiply);
  double flops = 2.0 * lines * p.K * p.N * kMatrices, bytes = 1.0 * p.E * p.N * p.K * kMatrices * (0.5 + 4.0 / kGroup);
  int blocks = 0;
  check(cudaOccupancyMaxActiveBlocksPerMultiprocessor(&blocks, kernel, kGroupedThreads, shared));
  std::printf("%s K %d N %d, %d of %d, %d tokens: grouping %.1f us, product %.1f us, %.0f TFLOP/s, weights at %.0f GB/s; %d blocks\n",
              what, p.K, p.N, p.top_k, p.E, p.tokens, grouping_us, us, flops / us / 1e6, bytes / us / 1e3, blocks);
  if (!expected.empty()) {
    compare(what, expected, y);
  }
}

void both(const Problem& p) {
  int lines = p.tokens * p.top_k;
  auto* rhs = copied(routes(p));
  std::vector<uint32_t> of_lines(lines);
  for (int i = 0; i < lines; i++) {
    of_lines[i] = i / p.top_k;
  }
  auto* lhs = copied(of_lines);
  auto* tiles = memory<Tile>(num_tiles(lines, p.E));
  auto* list = memory<Line>(lines);
  int widest = std::max(p.K, p.N);
  T* y = memory<T>(size_t(lines) * widest);
  T* x = values(size_t(p.tokens) * p.K, 1);
  EightRows<T> weights[2] = {matrices(p.E, p.N, p.K), matrices(p.E, p.N, p.K)};

  // by single lines
  int warps = swiglu_warps(int64_t{lines} * (p.N / 8), p.N / 8, SixteenRows<T, kBits, kGroup>::bytes(p.K), p.K * 2, 132);
  size_t shared = swiglu_shared_bytes<T, kBits, kGroup>(p.K, warps);
  auto single = gather_qmm_swiglu_mma<T, kBits, kGroup>;
  allow_shared(reinterpret_cast<const void*>(single), shared);
  Swiglu<T> parameters = {x, lhs, rhs, weights[0], weights[1], y, p.K, p.N, 1, false};
  double us = microseconds([&] { single<<<lines * (p.N / (8 * warps)), warps * 32, shared>>>(parameters); });
  std::printf("single lines: %.1f us\n", us);
  auto expected = bits_of(y, size_t(lines) * p.N);
  run<2, 9>("swiglu from 9", p, x, lhs, rhs, tiles, list, weights, y, expected);
  run<2, 3>("swiglu from 3", p, x, lhs, rhs, tiles, list, weights, y, expected);
  run<2, 1>("swiglu from 1", p, x, lhs, rhs, tiles, list, weights, y, expected);

  // down: every line has its own x
  Problem down = {p.N, p.K, p.E, p.top_k, p.tokens};
  T* hidden = values(size_t(lines) * p.N, 1);
  run<1, 9>("down from 9", down, hidden, nullptr, rhs, tiles, list, weights, y, {});
  auto by_mma = bits_of(y, size_t(lines) * p.K);
  run<1, 3>("down from 3", down, hidden, nullptr, rhs, tiles, list, weights, y, by_mma);
  run<1, 1>("down from 1", down, hidden, nullptr, rhs, tiles, list, weights, y, by_mma);
  for (void* used : {(void*)rhs, (void*)lhs, (void*)tiles, (void*)list, (void*)y, (void*)x, (void*)hidden}) {
    check(cudaFree(used));
  }
  for (auto& matrix : weights) {
    check(cudaFree(const_cast<char*>(matrix.w)));
    check(cudaFree(const_cast<T*>(matrix.scales)));
    check(cudaFree(const_cast<T*>(matrix.biases)));
  }
}

} // namespace

int main(int argc, char** argv) {
  auto argument = [&](int i, int usual) { return argc > i ? std::atoi(argv[i]) : usual; };
  Problem p = {argument(1, 2048), argument(2, 768), argument(3, 128), argument(4, 8), 0};
  std::vector<int> tokens;
  for (int i = 5; i < argc; i++) {
    tokens.push_back(std::atoi(argv[i]));
  }
  for (int t : tokens.empty() ? std::vector<int>{16, 128, 512, 2048} : tokens) {
    p.tokens = t;
    both(p);
  }
  check(cudaDeviceSynchronize());
  std::printf("%d comparisons failed\n", failures);
  return failures != 0;
}
