// What a recorded step needs of MLX's encoder, which keeps it to itself: the graph that it is collecting, the buffers that
// the graph touches, and how large a graph may become. Explicit instantiation may name private members; their names and
// types are those of the release in zmlx/mlx_version.h, whose headers the build has checked.

#pragma once

#include <limits>
#include <memory>
#include <utility>
#include <vector>

#include "cuda/host.h"
#include "cuda/memory.h"
#include "mlx/backend/cuda/device.h"

namespace zmlx::on_cuda {

namespace access {

using Encoder = mlx::core::cu::CommandEncoder;
using mlx::core::array;

template <typename Tag, typename Tag::Type member>
struct Expose {
  friend typename Tag::Type expose(Tag) {
    return member;
  }
};

#define ZMLX_EXPOSE(name, ...)            \
  struct name {                           \
    using Type = __VA_ARGS__ Encoder::*;  \
    friend Type expose(name);             \
  };                                      \
  template struct Expose<name, &Encoder::name>;

ZMLX_EXPOSE(graph_, mlx::core::CudaGraph)
ZMLX_EXPOSE(from_nodes_, std::vector<cudaGraphNode_t>)
ZMLX_EXPOSE(to_nodes_, std::vector<cudaGraphNode_t>)
ZMLX_EXPOSE(temporaries_, std::vector<std::shared_ptr<array::Data>>)
ZMLX_EXPOSE(max_ops_per_graph_, int)
ZMLX_EXPOSE(max_mb_per_graph_, int)

#undef ZMLX_EXPOSE

} // namespace access

class EncoderAccess {
 public:
  explicit EncoderAccess(mlx::core::cu::CommandEncoder& encoder) : encoder_(encoder) {}

  // Everything that the graph touches, in the order in which it was added.
  const std::vector<std::shared_ptr<mlx::core::array::Data>>& buffers() const {
    return encoder_.*expose(access::temporaries_());
  }

  // The graph as it is now, with its dependencies, which MLX adds to it only when it commits.
  cudaGraph_t clone_graph() const {
    cudaGraph_t graph = encoder_.*expose(access::graph_());
    cudaGraph_t clone = nullptr;
    check(cudaGraphClone(&clone, graph));
    auto in_clone = [&](std::vector<cudaGraphNode_t> nodes) {
      for (auto& node : nodes) {
        check(cudaGraphNodeFindInClone(&node, node, clone));
      }
      return nodes;
    };
    auto from = in_clone(encoder_.*expose(access::from_nodes_()));
    auto to = in_clone(encoder_.*expose(access::to_nodes_()));
    add_dependencies(clone, from, to);
    return clone;
  }

  // Lifts the limits on the size of a graph as long as what it returns lives.
  auto without_limits() {
    auto& ops = encoder_.*expose(access::max_ops_per_graph_());
    auto& mb = encoder_.*expose(access::max_mb_per_graph_());
    struct Limits {
      int &ops, &mb, old_ops, old_mb;
      ~Limits() {
        ops = old_ops;
        mb = old_mb;
      }
    };
    int old_ops = ops, old_mb = mb;
    ops = mb = std::numeric_limits<int>::max();
    return Limits{ops, mb, old_ops, old_mb};
  }

 private:
  // Between kernels of which the second waits by itself, it may begin early (programmatic dependent launch).
  static void add_dependencies(
      cudaGraph_t graph,
      const std::vector<cudaGraphNode_t>& from,
      const std::vector<cudaGraphNode_t>& to) {
    std::vector<cudaGraphEdgeData> edges(from.size());
    for (size_t i = 0; i < from.size(); i++) {
      if (kernel_of(from[i]) && waits_for_inputs(kernel_of(to[i]))) {
        edges[i].type = cudaGraphDependencyTypeProgrammatic;
        edges[i].from_port = cudaGraphKernelNodePortProgrammatic;
      }
    }
#if CUDART_VERSION >= 13000
    check(cudaGraphAddDependencies(graph, from.data(), to.data(), edges.data(), from.size()));
#else
    check(cudaGraphAddDependencies_v2(graph, from.data(), to.data(), edges.data(), from.size()));
#endif
  }

  // Null where the node is none, or one that was compiled at run time.
  static const void* kernel_of(cudaGraphNode_t node) {
    cudaGraphNodeType type = {};
    check(cudaGraphNodeGetType(node, &type));
    cudaKernelNodeParams kernel = {};
    if (type != cudaGraphNodeTypeKernel) {
      return nullptr;
    }
    if (cudaGraphKernelNodeGetParams(node, &kernel) != cudaSuccess) {
      cudaGetLastError();
      return nullptr;
    }
    return kernel.func;
  }

  mlx::core::cu::CommandEncoder& encoder_;
};

} // namespace zmlx::on_cuda
