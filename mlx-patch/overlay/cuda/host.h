// What the CUDA backends of our primitives share on the host: launches into MLX's graph, memory for outputs, inputs as
// the kernels read them, and what no kernel does.

#pragma once

#include <array>
#include <initializer_list>
#include <string>
#include <vector>

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

std::vector<array> all_in_rows(const std::vector<array>& arrays, Encoder& encoder);

// `a`, to be written in place whoever holds it. Throws std::invalid_argument unless it is one row behind the other, all of
// its memory and its own.
array written_in_place(const array& a, const char* name);

// Of the encoder's device.
int multiprocessors(Encoder& encoder);

// Blocks for the `rows` of each of `lines`, of which a block takes `at_once`, so that all blocks have as many turns and no more
// than `most` blocks run, or as few as there are lines.
inline unsigned even_blocks(int rows, int at_once, unsigned lines, unsigned most) {
  unsigned needed = (rows + at_once - 1) / at_once, in_line = most / lines > 0 ? most / lines : 1;
  unsigned turns = (needed + in_line - 1) / in_line;
  return (needed + turns - 1) / turns;
}

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

// The same of a kernel that does not wait by itself: neither begins before what it follows is complete, nor what follows it
// before it is. For what kernels read before they wait.
template <typename... Parameters, typename... Arguments>
void launch_alone(
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

// Shared memory that is asked for at a launch which every kernel may have: 48 KB less what kernels have besides.
inline constexpr size_t kAllowedShared = 32 * 1024;
// Lets a kernel have more.
void allow_shared(const void* kernel, size_t bytes);

// Where the kernels were not held to stock, what none of them does, and what those for quantized weights do not.
std::string refuse_device(const Request& request);
std::string refuse(const Request& request);
//   Few: fewer than eight products are meant, for which stock has one kernel for every width
enum class Products { All, Few };
std::string refuse_quantized(const Request& request, Products products = Products::All);
// The same where there is no 'transpose'.
std::string refuse_weights(const Request& request, Products products);
// The same of dense rows, a block for which has x in its shared memory.
std::string refuse_rows(const Request& request);
// The same for those in mode mxfp4, by `vectors` x that lie in shared memory at the same time.
std::string refuse_mxfp4(const Request& request, int64_t vectors = 1);

// Whether stock computes so many rows by `gather_qmv`, and not on tensor cores (mlx/backend/cuda/quantized/quantized.cpp).
inline bool stock_takes_qmv(int64_t rows) {
  return rows < 8;
}

template <typename... Parameters, typename... Arguments>
void launch_alone(
    Encoder& encoder,
    void (*kernel)(Parameters...),
    dim3 grid,
    dim3 block,
    size_t shared,
    std::initializer_list<std::reference_wrapper<const array>> inputs,
    std::initializer_list<std::reference_wrapper<array>> outputs,
    Arguments... arguments) {
  if (shared > kAllowedShared) {
    allow_shared(reinterpret_cast<const void*>(kernel), shared);
  }
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
  note_kernel(reinterpret_cast<const void*>(kernel));
  launch_alone(encoder, kernel, grid, block, shared, inputs, outputs, arguments...);
}

} // namespace zmlx::on_cuda
