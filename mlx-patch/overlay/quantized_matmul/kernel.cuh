// The kernel of quantized_matmul for fewer than eight rows of x; cuda.cu launches it.
//
// A warp has a row of weights at a time, with the bits of stock's `qmv` (mlx/backend/cuda/quantized/qmm/qmv.cu): a lane takes
// 16 values (8 of weights of more than 4 bits) in turn with the others and adds each to a sum of its own, in x's type, and in
// float32 for 8 bits; then its sums in their order, then those of the lanes. What differs is when weights are asked for: those
// of four turns are on their way at any time, the first before x is there, the next row's before this one's sum is.
//
// x lies in shared memory in the order in which weights of 4 bits come out of a word two by two: value i with value i + 4.

#pragma once

#include "cuda/depend.cuh"
#include "cuda/qmv.cuh"

namespace zmlx::on_cuda {

template <typename T>
struct Product {
  const T* x; // [lines, K]
  EightRows<T> weights; // [N, K]
  const T* bias; // [N], or null
  T* y; // [lines, N]
  int K, N;
};

inline constexpr int kProductWarps = 8;

// Values of x that a warp takes in one turn, and the bytes of shared memory for x.
template <int kBits>
inline constexpr int kTurn = 32 * (kBits <= 4 ? 16 : 8);

template <int kBits>
constexpr size_t bytes_of_x(int K) {
  return size_t(K + kTurn<kBits> - 1) / kTurn<kBits> * kTurn<kBits> * 2;
}

// What a lane takes in one turn.
template <typename T>
struct Piece {
  uint2 codes;
  T scale, bias;
};

// Asks for the codes from value `k` of row `row` on. Of 3, 5 and 6 bits they begin in the midst of a word; the last word that
// is read has some of them.
template <int kBits>
__device__ uint2 ask_for_codes(const char* w, int64_t row, int k, int K) {
  auto* at = w + (row * K + k) / 8 * kBits;
  if constexpr (kBits == 4 || kBits == 8) {
    return __ldcs(reinterpret_cast<const uint2*>(at));
  } else if constexpr (kBits == 2) {
    return {__ldcs(reinterpret_cast<const uint32_t*>(at)), 0};
  } else {
    auto* words = reinterpret_cast<const uint32_t*>(reinterpret_cast<uintptr_t>(at) / 4 * 4);
    unsigned shift = reinterpret_cast<uintptr_t>(at) % 4 * 8;
    uint32_t low = __ldcs(words), high = __ldcs(words + 1);
    return {__funnelshift_r(low, high, shift), high >> shift};
  }
}

// Of 2, 3, 5 and 6 bits.
template <typename T, int kBits>
class LaneSums {
  using Pair = typename Pairs<T>::Pair;
  static constexpr int kValues = kTurn<kBits> / 32;

 public:
  __device__ LaneSums() {
#pragma unroll
    for (auto& sum : sums_) {
      sum = Pairs<T>::round2(0, 0);
    }
  }

  __device__ void add(const Piece<T>& piece, const char* x) {
    Pair scale = twice<T>(reinterpret_cast<const char*>(&piece.scale));
    Pair bias = twice<T>(reinterpret_cast<const char*>(&piece.bias));
#pragma unroll
    for (int part = 0; part < kValues / 8; part++) {
      uint4 values = *reinterpret_cast<const uint4*>(x + part * 512);
#pragma unroll
      for (int i = 0; i < 4; i++) {
        int bit = (8 * part + 2 * i) * kBits;
        uint32_t codes = bit < 32 ? __funnelshift_r(piece.codes.x, piece.codes.y, bit) : piece.codes.y >> (bit - 32);
        Pair weights = as_pair<T>(dequantized<T, kBits>(two_codes<kBits>(codes, 0), scale, bias));
        Pair& sum = sums_[4 * part + i];
        sum = __hfma2(as_pair<T>(reinterpret_cast<const uint32_t*>(&values)[i]), weights, sum);
      }
    }
  }

  __device__ float total() const {
    float sum = 0;
#pragma unroll
    for (auto& pair : sums_) {
      sum = __fadd_rn(__fadd_rn(sum, static_cast<float>(pair.x)), static_cast<float>(pair.y));
    }
    return sum;
  }

  static __device__ void stage(char* shared, int i, uint4 v) {
    constexpr int kParts = kValues / 8;
    int lane = i / kParts % 32, turn = i / (32 * kParts);
    *reinterpret_cast<uint4*>(shared + turn * 512 * kParts + i % kParts * 512 + lane * 16) = v;
  }

 private:
  Pair sums_[kValues / 2];
};

template <typename T>
class LaneSums<T, 4> {
  using Pair = typename Pairs<T>::Pair;

 public:
  __device__ LaneSums() {
#pragma unroll
    for (auto& sum : sums_) {
      sum = Pairs<T>::round2(0, 0);
    }
  }

  // `x`: of this lane in this turn.
  __device__ void add(const Piece<T>& piece, const char* x) {
    Pair scale = twice<T>(reinterpret_cast<const char*>(&piece.scale));
    Pair bias = twice<T>(reinterpret_cast<const char*>(&piece.bias));
#pragma unroll
    for (int word = 0; word < 2; word++) {
      uint32_t codes = word == 0 ? piece.codes.x : piece.codes.y;
      uint4 values = *reinterpret_cast<const uint4*>(x + word * 512);
#pragma unroll
      for (int i = 0; i < 4; i++) {
        Pair weights = as_pair<T>(dequantized<T>(codes >> (4 * i), scale, bias));
        Pair& sum = sums_[4 * word + i];
        sum = __hfma2(as_pair<T>(reinterpret_cast<const uint32_t*>(&values)[i]), weights, sum);
      }
    }
  }

  __device__ float total() const {
    float sum = 0;
#pragma unroll
    for (int i = 0; i < 16; i++) {
      Pair pair = sums_[i / 8 * 4 + i % 4];
      sum = __fadd_rn(sum, static_cast<float>(i / 4 % 2 ? pair.y : pair.x));
    }
    return sum;
  }

  // Eight values of x to where `add` finds them.
  static __device__ void stage(char* shared, int i, uint4 v) {
    int lane = i / 2 % 32, turn = i / 64;
    *reinterpret_cast<uint4*>(shared + turn * 1024 + i % 2 * 512 + lane * 16) = {
        __byte_perm(v.x, v.z, 0x5410), __byte_perm(v.x, v.z, 0x7632), __byte_perm(v.y, v.w, 0x5410),
        __byte_perm(v.y, v.w, 0x7632)};
  }

 private:
  Pair sums_[8];
};

template <typename T>
class LaneSums<T, 8> {
  using Pair = typename Pairs<T>::Pair;

 public:
  __device__ void add(const Piece<T>& piece, const char* x) {
    Pair scale = twice<T>(reinterpret_cast<const char*>(&piece.scale));
    Pair bias = twice<T>(reinterpret_cast<const char*>(&piece.bias));
    uint4 values = *reinterpret_cast<const uint4*>(x);
#pragma unroll
    for (int i = 0; i < 4; i++) {
      uint32_t word = i < 2 ? piece.codes.x : piece.codes.y;
      auto number = [&](int byte) {
        return __uint_as_float(__byte_perm(word, 0x4b000000, 0x7440 | byte)) - 8388608.0f;
      };
      Pair weights = __hfma2(Pairs<T>::round2(number(i % 2 * 2), number(i % 2 * 2 + 1)), scale, bias);
      Pair v = as_pair<T>(reinterpret_cast<const uint32_t*>(&values)[i]);
      sums_[2 * i] = __fmaf_rn(static_cast<float>(v.x), static_cast<float>(weights.x), sums_[2 * i]);
      sums_[2 * i + 1] = __fmaf_rn(static_cast<float>(v.y), static_cast<float>(weights.y), sums_[2 * i + 1]);
    }
  }

  __device__ float total() const {
    float sum = 0;
#pragma unroll
    for (float of_value : sums_) {
      sum = __fadd_rn(sum, of_value);
    }
    return sum;
  }

  static __device__ void stage(char* shared, int i, uint4 v) {
    reinterpret_cast<uint4*>(shared)[i] = v;
  }

 private:
  float sums_[8] = {};
};

template <typename T, int kBits, int kGroup>
__global__ __launch_bounds__(kProductWarps * 32, 4) void quantized_matmul_qmv(const __grid_constant__ Product<T> p) {
  extern __shared__ __align__(16) char shared[];
  constexpr int kAhead = 4;
  constexpr int kValues = kTurn<kBits> / 32;
  int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
  int stride = gridDim.x * kProductWarps;

  auto ask = [&](Piece<T>& piece, int64_t row, int k) {
    if (k < p.K && row < p.N) {
      piece.codes = ask_for_codes<kBits>(p.weights.w, row, k, p.K);
      int64_t group = row * (p.K / kGroup) + k / kGroup;
      piece.scale = p.weights.scales[group];
      piece.bias = p.weights.biases[group];
    }
  };
  Piece<T> pieces[kAhead];
  int64_t row = int64_t{blockIdx.x} * kProductWarps + warp;
#pragma unroll
  for (int a = 0; a < kAhead; a++) {
    ask(pieces[a], row, a * kTurn<kBits> + lane * kValues);
  }

  wait_for_inputs();
  let_next_begin();
  auto* x = reinterpret_cast<const uint4*>(p.x + int64_t{blockIdx.y} * p.K);
  for (int i = threadIdx.x; i < p.K / 8; i += kProductWarps * 32) {
    LaneSums<T, kBits>::stage(shared, i, x[i]);
  }
  __syncthreads();

  for (; row < p.N; row += stride) {
    LaneSums<T, kBits> sums;
    for (int first = 0; first < p.K; first += kAhead * kTurn<kBits>) {
      bool last = first + kAhead * kTurn<kBits> >= p.K;
#pragma unroll
      for (int a = 0; a < kAhead; a++) {
        int turn = first + a * kTurn<kBits>;
        if (turn + lane * kValues < p.K) {
          sums.add(pieces[a], shared + turn * 2 + lane * 16);
        }
        int next = (last ? a * kTurn<kBits> : turn + kAhead * kTurn<kBits>) + lane * kValues;
        ask(pieces[a], last ? row + stride : row, next);
      }
    }
    float sum = sum_over_warp(sums.total());
    if (lane == 0) {
      T y = Pairs<T>::round(sum);
      p.y[int64_t{blockIdx.y} * p.N + row] = p.bias ? __hadd_rn(y, p.bias[row]) : y;
    }
  }
}

} // namespace zmlx::on_cuda
