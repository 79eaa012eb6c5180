// Dependent launch. In a recorded step (recorded_step) a kernel of ours may begin while those that it depends on still run:
// it can ask for weights, and must wait before it reads what they write. Elsewhere both calls do nothing.

#pragma once

namespace zmlx::on_cuda {

// Until everything that this launch depends on is complete and can be read. Every block of every kernel of ours comes here,
// so that a launch that is complete says that all before it are.
__device__ inline void wait_for_inputs() {
#if __CUDA_ARCH__ >= 900
  asm volatile("griddepcontrol.wait;" ::: "memory");
#endif
}

// Lets the launches that depend on this one begin. After wait_for_inputs(): then a launch that has begun finds everything
// complete but those that it depends on itself.
__device__ inline void let_next_begin() {
#if __CUDA_ARCH__ >= 900
  asm volatile("griddepcontrol.launch_dependents;" ::: "memory");
#endif
}

} // namespace zmlx::on_cuda
