#include "cuda/grouped.h"

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

} // namespace zmlx::on_cuda
