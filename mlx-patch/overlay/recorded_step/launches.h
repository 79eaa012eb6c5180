// The launches of a graph as one stream would make them.

#pragma once

#include <cuda_runtime.h>

namespace zmlx::on_cuda {

// A graph with the launches of `graph`, one behind the other, in which a kernel of ours may begin while another that it follows
// still runs (programmatic dependent launch, cuda/depend.cuh). Graphs in it are taken apart: stock's convolutions come as such. Takes
// `graph`, and returns it as it is where it holds more than kernels.
//
// It is captured from a stream: edges of that kind that were added to a graph by hand had no effect (driver 580, CUDA 13.0).
cudaGraph_t one_behind_the_other(cudaGraph_t graph);

} // namespace zmlx::on_cuda
