#include "zmlx-sys/src/bridge.rs.h"

#include <atomic>
#include <cstdio>
#include <cstdlib>
#include <filesystem>
#include <mutex>
#include <unordered_map>

#if defined(ZMLX_METALLIB)
#include "mlx/backend/common/utils.h"
#include "mlx/backend/metal/metal.h"
#endif

namespace zmlx_sys {

namespace {
mx::Device device(bool gpu) {
  return gpu ? mx::Device(mx::Device::gpu) : mx::Device(mx::Device::cpu);
}

mx::Stream stream(StreamId s) {
  return mx::Stream(s.index, device(s.gpu));
}

StreamId id(const mx::Stream& s) {
  return {s.index, s.device == mx::Device::gpu};
}

// A static MLX looks for its kernels beside the program, then in the folder that it was compiled in, which is gone: the
// build has put them into its cache. To be called before the GPU is first asked for.
void find_kernels() {
#if defined(ZMLX_METALLIB)
  static const bool found = [] {
    std::error_code unreadable;
    auto beside = mx::metal::get_metallib_path().empty() &&
        std::filesystem::exists(mx::current_binary_dir() / "mlx.metallib", unreadable);
    if (!beside) {
      mx::metal::set_metallib_path(ZMLX_METALLIB);
    }
    return true;
  }();
  (void)found;
#endif
}

// MLX keeps its default device in a plain variable that every thread reads. It is written only
// while nobody can be reading it, before the first op; later choices live here alone.
struct DefaultDevice {
  std::mutex mutex;
  std::atomic<bool> in_use{false};
  std::atomic<bool> gpu{gpu_available()};

  bool get() {
    if (!in_use.load(std::memory_order_acquire)) {
      std::lock_guard lock(mutex);
      in_use.store(true, std::memory_order_release);
    }
    return gpu.load(std::memory_order_relaxed);
  }

  void set(bool to) {
    std::lock_guard lock(mutex);
    if (!in_use.load(std::memory_order_relaxed)) {
      mx::set_default_device(device(to));
    }
    gpu.store(to, std::memory_order_relaxed);
  }
};

DefaultDevice& default_of_process() {
  static DefaultDevice d;
  return d;
}
} // namespace

mx::Stream current() {
  return mx::default_stream(device(default_of_process().get()));
}

void eval(const ArrayVec& v) {
  check_graph(v.v);
  mx::eval(v.v);
}

void async_eval(const ArrayVec& v) {
  check_graph(v.v);
  mx::async_eval(v.v);
}

void synchronize() {
  mx::synchronize(current());
}

void synchronize_stream(StreamId s) {
  mx::synchronize(stream(s));
}

bool gpu_available() noexcept {
  find_kernels();
  return mx::is_available(mx::Device(mx::Device::gpu));
}

bool default_device_is_gpu() noexcept {
  return default_of_process().get();
}

void set_default_device(bool gpu) {
  if (gpu && !gpu_available()) {
    throw std::invalid_argument("[set_default_device] this build or machine has no GPU");
  }
  default_of_process().set(gpu);
}

rust::String device_name(bool gpu) {
  auto& info = mx::device_info(device(gpu));
  auto it = info.find("device_name");
  if (it == info.end() || !std::holds_alternative<std::string>(it->second)) {
    return {};
  }
  return rust::String::lossy(std::get<std::string>(it->second));
}

StreamId default_stream(bool gpu) {
  return id(mx::default_stream(device(gpu)));
}

void set_default_stream(StreamId s) {
  mx::set_default_stream(stream(s));
}

StreamId new_stream(bool gpu) {
  return id(mx::new_stream(device(gpu)));
}

rust::String mlx_version() noexcept {
  return rust::String::lossy(mx::version());
}

size_t memory_active() {
  return mx::get_active_memory();
}

size_t memory_peak() {
  return mx::get_peak_memory();
}

void memory_reset_peak() {
  mx::reset_peak_memory();
}

size_t memory_cache() {
  return mx::get_cache_memory();
}

size_t memory_set_cache_limit(size_t bytes) {
  return mx::set_cache_limit(bytes);
}

size_t memory_set_limit(size_t bytes) {
  return mx::set_memory_limit(bytes);
}

void memory_clear_cache() {
  mx::clear_cache();
}

void end_process(int32_t code) {
  std::fflush(nullptr);
  std::_Exit(code);
}

std::unique_ptr<NamedArrays> load_safetensors(rust::Str path) {
  // On CUDA into the memory of the default device; elsewhere files are read by the CPU, whatever that device is.
  auto [arrays, metadata] = mx::load_safetensors(std::string(path));
  auto out = std::make_unique<NamedArrays>();
  for (auto& [name, array] : arrays) {
    // Whoever wrote the file may have taken any byte for true.
    bool is_bool = array.dtype() == mx::bool_;
    out->v.emplace_back(name, is_bool ? mx::not_equal(mx::view(array, mx::uint8), mx::array(0, mx::uint8)) : array);
  }
  for (auto& [key, value] : metadata) {
    out->metadata.emplace_back(key, value);
  }
  return out;
}

void save_safetensors(rust::Str path, const NamedArrays& arrays) {
  std::unordered_map<std::string, mx::array> map;
  for (auto& [name, array] : arrays.v) {
    check_graph({array});
    map.insert_or_assign(name, array);
  }
  std::unordered_map<std::string, std::string> metadata;
  for (auto& [key, value] : arrays.metadata) {
    metadata.insert_or_assign(key, value);
  }
  mx::save_safetensors(std::string(path), std::move(map), std::move(metadata));
}

} // namespace zmlx_sys
