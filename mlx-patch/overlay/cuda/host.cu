#include "cuda/host.h"

#include <algorithm>
#include <map>
#include <mutex>
#include <set>
#include <sstream>
#include <stdexcept>

#include "cuda/memory.h"
#include "cuda/tile.h"
#include "zmlx/mlx_version.h"

namespace zmlx::on_cuda {

using namespace mlx::core;

namespace {

// Where an array with gaps or reversed axes has its elements.
struct Layout {
  static constexpr int kMostAxes = 10;
  int num_axes;
  int sizes[kMostAxes];
  int64_t strides[kMostAxes];
};

template <typename Word>
__global__ void copy_kernel(const Word* in, Word* out, size_t size, const __grid_constant__ Layout layout) {
  auto i = size_t{blockIdx.x} * blockDim.x + threadIdx.x;
  if (i >= size) {
    return;
  }
  size_t rest = i;
  int64_t at = 0;
  for (int axis = layout.num_axes - 1; axis >= 0; axis--) {
    at += static_cast<int64_t>(rest % layout.sizes[axis]) * layout.strides[axis];
    rest /= layout.sizes[axis];
  }
  out[i] = in[at];
}

Layout layout_of(const array& a) {
  Layout layout = {};
  for (int axis = 0; axis < static_cast<int>(a.ndim()); axis++) {
    if (a.shape(axis) == 1) {
      continue;
    }
    if (layout.num_axes == Layout::kMostAxes) {
      std::ostringstream msg;
      msg << "the CUDA kernels read arrays of up to " << Layout::kMostAxes << " axes, not of shape " << a.shape();
      throw std::invalid_argument(msg.str());
    }
    layout.sizes[layout.num_axes] = a.shape(axis);
    layout.strides[layout.num_axes++] = a.strides(axis);
  }
  return layout;
}

template <typename Word>
void copy_into_rows(const array& a, array& copy, Encoder& encoder) {
  constexpr unsigned block = 256;
  unsigned blocks = (copy.size() + block - 1) / block;
  // of weights too, which kernels ask for before they wait
  launch_alone(encoder, copy_kernel<Word>, blocks, block, 0, {a}, {copy}, gpu_ptr<Word>(a), gpu_ptr<Word>(copy),
               copy.size(), layout_of(a));
}

} // namespace

void allocate(array& out, Encoder& encoder) {
  auto memory = device_memory(out.nbytes(), encoder);
  out.set_data(memory.buffer, memory.release);
}

void allocate(array& out, const Strides& strides, Encoder& encoder) {
  auto memory = device_memory(out.nbytes(), encoder);
  // rows one behind the other where all axes that are out of order have one element
  int64_t expected = 1;
  bool in_rows = true;
  for (int axis = out.ndim() - 1; axis >= 0; axis--) {
    in_rows = in_rows && (out.shape(axis) == 1 || strides[axis] == expected);
    expected *= out.shape(axis);
  }
  auto longest = out.ndim() == 0 ? 1 : *std::max_element(out.shape().begin(), out.shape().end());
  array::Flags flags = {true, in_rows, in_rows && static_cast<size_t>(longest) == out.size()};
  out.set_data(memory.buffer, out.size(), strides, flags, memory.release);
}

array in_rows(const array& a, Encoder& encoder) {
  auto address = reinterpret_cast<uintptr_t>(gpu_ptr<char>(a));
  if ((a.flags().row_contiguous && address % 16 == 0) || a.size() == 0) {
    return a;
  }
  array copy(a.shape(), a.dtype(), nullptr, {});
  allocate(copy, encoder);
  encoder.add_temporary(copy);
  switch (a.itemsize()) {
    case 1:
      copy_into_rows<uint8_t>(a, copy, encoder);
      break;
    case 2:
      copy_into_rows<uint16_t>(a, copy, encoder);
      break;
    case 4:
      copy_into_rows<uint32_t>(a, copy, encoder);
      break;
    default:
      copy_into_rows<uint64_t>(a, copy, encoder);
  }
  return copy;
}

std::vector<array> all_in_rows(const std::vector<array>& arrays, Encoder& encoder) {
  std::vector<array> in;
  for (auto& a : arrays) {
    in.push_back(in_rows(a, encoder));
  }
  return in;
}

array written_in_place(const array& a, const char* name) {
  if (a.size() != 0 && (!a.flags().row_contiguous || a.data_size() != a.size() || a.offset() != 0)) {
    throw std::invalid_argument(std::string("a recorded step writes to its buffers, and ") + name +
                                " is a view of another array");
  }
  return a;
}

namespace {

// Launches come from several threads, one for each stream; recording reads.
std::mutex kernels_mutex;

std::set<const void*>& kernels() {
  static auto* kernels = new std::set<const void*>;
  return *kernels;
}

} // namespace

bool waits_for_inputs(const void* kernel) {
  std::lock_guard lock(kernels_mutex);
  return kernels().count(kernel) != 0;
}

void note_kernel(const void* kernel) {
  static thread_local const void* last = nullptr;
  if (kernel != last) {
    std::lock_guard lock(kernels_mutex);
    kernels().insert(kernel);
    last = kernel;
  }
}

int multiprocessors(Encoder& encoder) {
  static const int number = [&] {
    int number = 0;
    check(cudaDeviceGetAttribute(&number, cudaDevAttrMultiProcessorCount, encoder.device().cuda_device()));
    return number;
  }();
  return number;
}

void allow_shared(const void* kernel, size_t bytes) {
  static std::mutex mutex;
  static std::map<const void*, size_t> allowed;
  std::lock_guard lock(mutex);
  auto& most = allowed[kernel];
  if (bytes > most) {
    check(cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, static_cast<int>(bytes)));
    most = bytes;
  }
}

void check(cudaError_t error) {
  if (error != cudaSuccess) {
    throw std::runtime_error(std::string("CUDA: ") + cudaGetErrorString(error));
  }
}

std::string refuse_device(const Request& r) {
  if (!linked::cuda_kernels_known) {
    return "the CUDA kernels have the order of additions of MLX 0.32.2, and another release is linked";
  }
  auto& device = cu::device(r.device);
  int major = device.compute_capability_major();
  int minor = device.compute_capability_minor();
  if (major != 9 || minor != 0) {
    return "the CUDA kernels are held to stock on compute capability 9.0 (H100, H200) alone, and this is " +
        std::to_string(major) + "." + std::to_string(minor);
  }
  return "";
}

std::string refuse(const Request& r) {
  if (r.dtype != float32 && r.dtype != float16 && r.dtype != bfloat16) {
    std::ostringstream reason;
    reason << "the CUDA kernels compute in float32, float16 or bfloat16, not in " << r.dtype;
    return reason.str();
  }
  return refuse_device(r);
}

std::string refuse_quantized(const Request& r, Products products) {
  return r.flag("transpose") ? refuse_weights(r, products) : "weights that are not transposed have no CUDA kernel";
}

std::string refuse_weights(const Request& r, Products products) {
  auto bits = r.integer("bits");
  auto group_size = r.integer("group_size");
  auto inner = r.integer("inner");
  auto outer = r.integer("outer");
  std::ostringstream reason;
  if (r.text("mode") != "affine") {
    reason << "the CUDA kernels are for mode 'affine', not '" << r.text("mode") << "'";
  } else if (r.dtype == float32) {
    reason << "stock multiplies float32 by its kernel `qmm_naive`, which has no fused counterpart";
  } else if (inner % std::max<int64_t>(64, group_size) != 0) {
    // where it has no other kernel for eight rows and more
    reason << "stock multiplies rows of " << inner << " values in groups of " << group_size << " by `qmv` alone";
  } else if (products == Products::All && (outer % 16 != 0 || inner * bits / 8 % 16 != 0)) {
    reason << "the CUDA kernels for experts read 16 rows at once, by 16 bytes, and not [" << outer << ", " << inner << "] of "
           << bits << " bits";
  } else {
    return refuse(r);
  }
  return reason.str();
}

std::string refuse_rows(const Request& request) {
  auto inner = request.integer("inner");
  if (request.integer("group_size") >= inner) {
    return "stock multiplies rows of one group by its kernel `qmm_sm90`, which has no fused counterpart";
  }
  return static_cast<size_t>(inner) * 2 > kMostShared / 2
      ? "rows of " + std::to_string(inner) + " values are too long for the shared memory of a block"
      : "";
}

std::string refuse_mxfp4(const Request& r, int64_t vectors) {
  auto inner = r.integer("inner");
  if (!r.flag("transpose")) {
    return "weights that are not transposed have no CUDA kernel";
  }
  if (r.dtype == float32) {
    return "weights in mode 'mxfp4' by float32 have no CUDA kernel";
  }
  // where it has no other kernel for eight rows and more
  if (inner % 64 != 0) {
    return "stock multiplies rows of " + std::to_string(inner) + " values in mode 'mxfp4' by `qmv` alone";
  }
  constexpr int64_t turn = 512, most = 220 * 1024;
  if ((inner + turn - 1) / turn * turn * 2 * vectors > most) {
    return std::to_string(vectors) + " rows of " + std::to_string(inner) + " values are too long for the shared memory of a block";
  }
  return refuse(r);
}

} // namespace zmlx::on_cuda
