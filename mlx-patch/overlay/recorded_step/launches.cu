#include "recorded_step/launches.h"

#include <cuda.h>

#include <algorithm>
#include <unordered_map>
#include <utility>
#include <vector>

#include "cuda/driver.h"
#include "cuda/host.h"

namespace zmlx::on_cuda {

namespace {

// Nodes in the order in which they were added, empty where that is none in which each follows what it depends on.
std::vector<cudaGraphNode_t> in_order(cudaGraph_t graph) {
  size_t num_nodes = 0, num_edges = 0;
  check(cudaGraphGetNodes(graph, nullptr, &num_nodes));
  std::vector<cudaGraphNode_t> nodes(num_nodes);
  check(cudaGraphGetNodes(graph, nodes.data(), &num_nodes));
#if CUDART_VERSION >= 13000
  auto edges_of = [&](auto* from, auto* to) { check(cudaGraphGetEdges(graph, from, to, nullptr, &num_edges)); };
#else
  auto edges_of = [&](auto* from, auto* to) { check(cudaGraphGetEdges(graph, from, to, &num_edges)); };
#endif
  cudaGraphNode_t* none = nullptr;
  edges_of(none, none);
  std::vector<cudaGraphNode_t> from(num_edges), to(num_edges);
  edges_of(from.data(), to.data());
  std::unordered_map<cudaGraphNode_t, size_t> place;
  for (size_t i = 0; i < nodes.size(); i++) {
    place[nodes[i]] = i;
  }
  for (size_t i = 0; i < num_edges; i++) {
    if (place[from[i]] >= place[to[i]]) {
      return {};
    }
  }
  return nodes;
}

// Whether it is a kernel that waits by itself. MLX's do not; some are compiled at run time, and not known here.
bool is_ours(cudaGraphNode_t node) {
  cudaKernelNodeParams kernel = {};
  if (cudaGraphKernelNodeGetParams(node, &kernel) != cudaSuccess) {
    cudaGetLastError();
    return false;
  }
  return waits_for_inputs(kernel.func);
}

class Launcher {
 public:
  explicit Launcher(cudaStream_t stream) : stream_(stream) {}

  // Whether all nodes of `graph`, and of graphs in it, could be launched, and there are some.
  bool operator()(cudaGraph_t graph) {
    auto nodes = in_order(graph);
    return !nodes.empty() && std::all_of(nodes.begin(), nodes.end(), [&](auto node) { return launch(node); });
  }

 private:
  bool launch(cudaGraphNode_t node) {
    cudaGraphNodeType type = {};
    check(cudaGraphNodeGetType(node, &type));
    if (type == cudaGraphNodeTypeGraph) {
      cudaGraph_t inner = nullptr;
      check(cudaGraphChildGraphNodeGetGraph(node, &inner));
      return (*this)(inner);
    }
    if (type == cudaGraphNodeTypeEmpty) {
      return true; // one behind the other, nothing has to meet
    }
    if (type != cudaGraphNodeTypeKernel) {
      return false;
    }
    CUDA_KERNEL_NODE_PARAMS p = {};
    CUlaunchAttribute cluster = {};
    cluster.id = CU_LAUNCH_ATTRIBUTE_CLUSTER_DIMENSION;
    bool ours = is_ours(node);
    if (params_(node, &p) != CUDA_SUCCESS ||
        // clusters of our kernels are part of them
        (!ours && attribute_(node, cluster.id, &cluster.value) != CUDA_SUCCESS)) {
      return false;
    }
    std::vector<CUlaunchAttribute> attributes;
    if (!ours && cluster.value.clusterDim.x > 0) {
      attributes.push_back(cluster);
    }
    // MLX's kernels say nothing to those that follow them
    if (std::exchange(after_ours_, ours) && ours) {
      CUlaunchAttribute early = {};
      early.id = CU_LAUNCH_ATTRIBUTE_PROGRAMMATIC_STREAM_SERIALIZATION;
      early.value.programmaticStreamSerializationAllowed = 1;
      attributes.push_back(early);
    }
    CUlaunchConfig config = {
        p.gridDimX,  p.gridDimY,       p.gridDimZ, p.blockDimX,       p.blockDimY,
        p.blockDimZ, p.sharedMemBytes, stream_,    attributes.data(), static_cast<unsigned>(attributes.size())};
    auto function = p.func ? p.func : reinterpret_cast<CUfunction>(p.kern);
    return launch_(&config, function, p.kernelParams, p.extra) == CUDA_SUCCESS;
  }

  cudaStream_t stream_;
  bool after_ours_ = false;
  // of the driver, which knows kernels of every module
  decltype(&cuGraphKernelNodeGetParams) params_ =
      driver_function<decltype(&cuGraphKernelNodeGetParams)>("cuGraphKernelNodeGetParams");
  decltype(&cuGraphKernelNodeGetAttribute) attribute_ =
      driver_function<decltype(&cuGraphKernelNodeGetAttribute)>("cuGraphKernelNodeGetAttribute");
  decltype(&cuLaunchKernelEx) launch_ = driver_function<decltype(&cuLaunchKernelEx)>("cuLaunchKernelEx");
};

} // namespace

cudaGraph_t one_behind_the_other(cudaGraph_t graph) {
  cudaStream_t stream = nullptr;
  check(cudaStreamCreateWithFlags(&stream, cudaStreamNonBlocking));
  Launcher launch(stream);
  check(cudaStreamBeginCapture(stream, cudaStreamCaptureModeThreadLocal));
  bool all = launch(graph);
  cudaGraph_t captured = nullptr;
  all = cudaStreamEndCapture(stream, &captured) == cudaSuccess && all;
  check(cudaStreamDestroy(stream));
  cudaGetLastError(); // of what could not be launched
  if (all) {
    std::swap(graph, captured);
  }
  if (captured) {
    cudaGraphDestroy(captured);
  }
  return graph;
}

} // namespace zmlx::on_cuda
