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
ZMLX_EXPOSE(is_graph_updatable_, bool)
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

  // The graph as it is now, with its dependencies, which MLX adds to it only when it commits. It is the caller's, and MLX goes
  // on with one that is empty.
  cudaGraph_t take_graph() const {
    auto& graph = encoder_.*expose(access::graph_());
    auto &from = encoder_.*expose(access::from_nodes_()), &to = encoder_.*expose(access::to_nodes_());
    cudaGraph_t empty = nullptr;
    check(cudaGraphCreate(&empty, 0));
    cudaGraph_t taken = graph.release();
    graph = mlx::core::CudaGraph(empty);
    has_clusters(); // so that what it makes of that one is not kept for others
#if CUDART_VERSION >= 13000
    auto error = cudaGraphAddDependencies(taken, from.data(), to.data(), nullptr, from.size());
#else
    auto error = cudaGraphAddDependencies(taken, from.data(), to.data(), from.size());
#endif
    from.clear();
    to.clear();
    if (error != cudaSuccess) {
      cudaGraphDestroy(taken);
      check(error);
    }
    return taken;
  }

  // For MLX to run what was taken.
  void give_back(cudaGraph_t graph) const {
    encoder_.*expose(access::graph_()) = mlx::core::CudaGraph(graph);
  }

  // Has the graph made anew where MLX would put its launches in place of those of an older one of the same form: that takes no
  // notice of clusters.
  void has_clusters() const {
    encoder_.*expose(access::is_graph_updatable_()) = false;
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
  mlx::core::cu::CommandEncoder& encoder_;
};

} // namespace zmlx::on_cuda
