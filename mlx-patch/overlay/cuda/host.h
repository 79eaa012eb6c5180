// What the CUDA backends of our primitives share on the host: launches into MLX's graph, memory for outputs, inputs as
// the kernels read them, and what no kernel does.

#pragma once

#include <array>
#include <initializer_list>
#include <string>

#include "mlx/array.h"
#include "mlx/backend/cuda/device.h"
#include "mlx/backend/cuda/utils.h"
#include "zmlx/support.h"

namespace zmlx::on_cuda {

using mlx::core::array;
using Encoder = mlx::core::cu::CommandEncoder;

// Memory on the device for an output, in rows.
void allocate(array& out, Encoder& encoder);
// The same with axes in another order in memory.
void allocate(array& out, const mlx::core::Strides& strides, Encoder& encoder);

// `a`, or a copy of it, with one row behind the other and its first element where 16 bytes can be read at once.
array in_rows(const array& a, Encoder& encoder);

// `a`, to be written in place whoever holds it. Throws std::invalid_argument unless it is one row behind the other, all of
// its memory and its own.
array written_in_place(const array& a, const char* name);

// Of the encoder's device.
int multiprocessors(Encoder& encoder);

// Adds a launch after everything that `inputs` depend on. `arguments` are those of the kernel.
template <typename... Parameters, typename... Arguments>
void launch(
    Encoder& encoder,
    void (*kernel)(Parameters...),
    dim3 grid,
    dim3 block,
    size_t shared,
    std::initializer_list<std::reference_wrapper<const array>> inputs,
    std::initializer_list<std::reference_wrapper<array>> outputs,
    Arguments... arguments);

// Whether a kernel is launched by `launch`: all of those wait for their inputs (cuda/depend.cuh).
bool waits_for_inputs(const void* kernel);
void note_kernel(const void* kernel);

// Lets a kernel have more than the 48 KB of shared memory that each may have.
void allow_shared(const void* kernel, size_t bytes);

// Where the kernels were not held to stock, what none of them does, and what those for quantized weights do not.
std::string refuse_device(const Request& request);
std::string refuse(const Request& request);
std::string refuse_quantized(const Request& request);
// The same but for the number of rows of the weights, and where there is no 'transpose': what kernels for fewer than eight
// rows of x do not do.
std::string refuse_few_rows(const Request& request);

// Whether stock computes so many rows by `gather_qmv`, and not on tensor cores (mlx/backend/cuda/quantized/quantized.cpp).
inline bool stock_takes_qmv(int64_t rows) {
  return rows < 8;
}

template <typename... Parameters, typename... Arguments>
void launch(
    Encoder& encoder,
    void (*kernel)(Parameters...),
    dim3 grid,
    dim3 block,
    size_t shared,
    std::initializer_list<std::reference_wrapper<const array>> inputs,
    std::initializer_list<std::reference_wrapper<array>> outputs,
    Arguments... arguments) {
  if (shared > 48 * 1024) {
    allow_shared(reinterpret_cast<const void*>(kernel), shared);
  }
  note_kernel(reinterpret_cast<const void*>(kernel));
  for (const array& in : inputs) {
    encoder.set_input_array(in);
  }
  for (const array& out : outputs) {
    encoder.set_output_array(out);
  }
  // of the kernel's own types, since it reads them by address
  auto convert = [&](Parameters... parameters) {
    void* addresses[] = {&parameters...};
    encoder.add_kernel_node_raw(reinterpret_cast<void*>(kernel), grid, block, {}, shared, addresses);
  };
  convert(arguments...);
}

} // namespace zmlx::on_cuda
