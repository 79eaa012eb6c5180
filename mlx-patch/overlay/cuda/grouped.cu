#include "cuda/grouped.h"

#include "cuda/grouped.cuh"
#include "cuda/grouping.cuh"

namespace zmlx::on_cuda {

namespace {

template <typename V>
array temporary(int64_t count, Encoder& encoder) {
  array a({static_cast<int>(count), static_cast<int>(sizeof(V) / sizeof(uint32_t))}, mlx::core::uint32, nullptr, {});
  allocate(a, encoder);
  encoder.add_temporary(a);
  return a;
}

} // namespace

Groups group_by_expert(const std::optional<array>& lhs, const array& rhs, int M, int num_experts, Encoder& encoder) {
  auto products = static_cast<int64_t>(rhs.size());
  int64_t tiles = num_tiles(products * M, num_experts);
  Groups groups = {temporary<Tile>(tiles, encoder), temporary<Line>(products * M, encoder), tiles};
  Grouping parameters = {
      lhs ? gpu_ptr<uint32_t>(*lhs) : nullptr,
      gpu_ptr<uint32_t>(rhs),
      gpu_ptr<Tile>(groups.tiles),
      gpu_ptr<Line>(groups.lines),
      static_cast<int>(products),
      M,
      num_experts,
      lhs && lhs->data_size() == 1};
  launch(encoder, group_lines, num_experts, kGroupingThreads, 0, {lhs ? *lhs : rhs, rhs}, {groups.tiles, groups.lines},
         parameters);
  return groups;
}

namespace {

// Lines of a tile of one matrix: as many as leave a block for every multiprocessor, if there are.
unsigned lines_of_tile(unsigned lines, unsigned blocks, Encoder& encoder) {
  unsigned of_tile = kTileLines;
  while (of_tile > 16 && (lines + of_tile - 1) / of_tile * blocks < static_cast<unsigned>(multiprocessors(encoder))) {
    of_tile /= 2;
  }
  return of_tile;
}

} // namespace

void multiply_lines(const array& x, const Matrices& matrices, const Groups* groups, array& y, Encoder& encoder) {
  int K = x.shape(-1), N = y.shape(-1);
  unsigned lines = y.size() / N, blocks = blocks_of(N, 1);
  unsigned of_tile = groups ? kTileLines : lines_of_tile(lines, blocks, encoder);
  unsigned tiles = groups ? groups->num_tiles : (lines + of_tile - 1) / of_tile;
  // what stands for them is no dependency more
  const array& tile_list = groups ? groups->tiles : x;
  const array& line_list = groups ? groups->lines : x;
  const array& biases = matrices.biases ? *matrices.biases : x;
  const array& bias = matrices.bias ? *matrices.bias : x;
  bool affine = matrices.biases != nullptr;
  dispatch_weights(y.dtype(), affine, matrices.bits, matrices.group_size, [&](auto weights) {
    using W = typename decltype(weights)::type;
    using T = typename W::Type;
    Grouped<T, 1> parameters = {
        gpu_ptr<T>(x),
        groups ? gpu_ptr<Tile>(groups->tiles) : nullptr,
        groups ? gpu_ptr<Line>(groups->lines) : nullptr,
        {{gpu_ptr<char>(matrices.w), gpu_ptr<char>(matrices.scales), affine ? gpu_ptr<char>(biases) : nullptr,
          matrices.bias ? gpu_ptr<T>(bias) : nullptr}},
        gpu_ptr<T>(y),
        K,
        N,
        lines,
        of_tile,
        {}};
    launch(encoder, grouped_product<W, 1>, tiles * blocks, kGroupedThreads,
           grouped_shared_bytes(affine, W::kBits, W::kGroup, K),
           {x, tile_list, line_list, matrices.w, matrices.scales, biases, bias}, {y}, parameters);
  });
}

} // namespace zmlx::on_cuda
