// What MLX's headers declare of its graph of launches and a shared libmlx keeps to itself: members of CommandEncoder that
// add one kernel. They write what MLX's own would (mlx/backend/cuda/device.cpp of the release in zmlx/mlx_version.h), so
// that its commit finds the graph, the dependencies and the key of the cache in order. A build from source has the
// originals, and nothing from here.

#ifndef ZMLX_MLX_PATCHED

#include <algorithm>
#include <cstdlib>
#include <cstring>

#include "cuda/memory.h"
#include "mlx/backend/cuda/device.h"

namespace mlx::core::cu {

namespace {

// MLX_USE_CUDA_GRAPHS=0 makes MLX launch at once.
bool use_graphs() {
  static const bool use = [] {
    auto* value = std::getenv("MLX_USE_CUDA_GRAPHS");
    return !value || std::atoi(value) != 0;
  }();
  return use;
}

uintptr_t id_of(const array& a) {
  return reinterpret_cast<uintptr_t>(a.buffer().ptr());
}

} // namespace

void CommandEncoder::set_input_array(const array& a) {
  if (use_graphs()) {
    bytes_in_graph_ += a.data_size();
    active_deps_.push_back(id_of(a));
  }
}

void CommandEncoder::set_output_array(const array& a) {
  if (use_graphs()) {
    active_deps_.push_back(id_of(a));
    active_outputs_.push_back(id_of(a));
  }
}

void CommandEncoder::add_kernel_node_raw(
    void* kernel,
    dim3 grid,
    dim3 block,
    dim3,
    uint32_t shared,
    void** parameters) {
  if (!use_graphs()) {
    node_count_++;
    zmlx::on_cuda::check(cudaLaunchKernel(kernel, grid, block, parameters, shared, stream()));
    return;
  }
  cudaKernelNodeParams launch = {};
  launch.func = kernel;
  launch.gridDim = grid;
  launch.blockDim = block;
  launch.sharedMemBytes = shared;
  launch.kernelParams = parameters;
  GraphNode node = {nullptr, "K", ""};
  zmlx::on_cuda::check(cudaGraphAddKernelNode(&node.node, graph_, nullptr, 0, &launch));
  insert_graph_dependencies(std::move(node));
}

void CommandEncoder::insert_graph_dependencies(GraphNode node) {
  node.id = std::to_string(node_count_++);
  graph_nodes_key_ += node.node_type + "-";
  std::vector<GraphNode> before;
  for (auto id : active_deps_) {
    auto known = node_map_.find(id);
    auto listed = [&](const GraphNode& n) { return n.node == known->second.node; };
    if (known != node_map_.end() && std::none_of(before.begin(), before.end(), listed)) {
      before.push_back(known->second);
    }
  }
  for (auto id : active_outputs_) {
    node_map_[id] = node;
  }
  for (auto& from : before) {
    from_nodes_.push_back(from.node);
    to_nodes_.push_back(node.node);
    graph_deps_key_ += from.id + "-" + node.id + "-";
  }
  active_deps_.clear();
  active_outputs_.clear();
}

} // namespace mlx::core::cu

#endif
