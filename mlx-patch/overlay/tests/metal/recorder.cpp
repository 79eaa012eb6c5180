#include "recorder.h"

#include <stdexcept>
#include <utility>

#include "mlx/stream.h"

namespace {

using namespace mlx::core;

// What stands behind the pointers that Metal's classes are handed around as.
struct Kernel {
  std::string name;
  std::string source;
};

std::map<std::string, Kernel> libraries;
std::map<std::string, Kernel> kernels;
recorder::Launch current;
std::vector<recorder::Launch> launches;

recorder::Argument& argument(int index) {
  auto [at, is_new] = current.arguments.try_emplace(index);
  if (!is_new) {
    throw std::logic_error("buffer " + std::to_string(index) + " of " + current.kernel + " is set twice");
  }
  return at->second;
}

} // namespace

namespace recorder {

std::vector<Launch> take() {
  return std::exchange(launches, {});
}

} // namespace recorder

void MTL::ComputeCommandEncoder::setComputePipelineState(const ComputePipelineState* state) {
  auto* kernel = reinterpret_cast<const Kernel*>(state);
  current = {};
  current.kernel = kernel->name;
  current.source = kernel->source;
}

void MTL::ComputeCommandEncoder::setBytes(const void* bytes, NS::UInteger length, NS::UInteger index) {
  if (length == 0) {
    throw std::logic_error("Metal takes no empty arguments: buffer " + std::to_string(index));
  }
  auto* from = static_cast<const uint8_t*>(bytes);
  argument(index).bytes.assign(from, from + length);
}

namespace mlx::core::metal {

ResidencySets::ResidencySets(MTL::Device* d) : device_(d) {}
ResidencySets::~ResidencySets() = default;

Device::Device() : residency_sets_(nullptr), arch_("applegpu_g15s"), arch_gen_(15) {}
Device::~Device() = default;

MTL::Library* Device::get_library(const std::string& name, const std::string&) {
  auto& library = libraries[name];
  library.name = name;
  return reinterpret_cast<MTL::Library*>(&library);
}

MTL::Library* Device::get_library(
    const std::string& name,
    const CompileOptions&,
    const std::function<std::string(void)>& builder) {
  auto& library = libraries[name];
  library = {name, builder()};
  return reinterpret_cast<MTL::Library*>(&library);
}

MTL::ComputePipelineState* Device::get_kernel(
    const std::string& name,
    MTL::Library* library,
    const std::string&,
    const MTLFCList&,
    const std::vector<MTL::Function*>&) {
  auto& kernel = kernels[name];
  kernel = {name, reinterpret_cast<Kernel*>(library)->source};
  return reinterpret_cast<MTL::ComputePipelineState*>(&kernel);
}

CommandEncoder::CommandEncoder(Device& d, int, ResidencySets& sets) : device_(d), residency_sets_(sets) {}
CommandEncoder::~CommandEncoder() = default;

MTL::ComputeCommandEncoder* CommandEncoder::get_command_encoder() {
  static MTL::ComputeCommandEncoder encoder;
  return &encoder;
}

void CommandEncoder::set_input_array(const array& a, int index, int64_t offset) {
  auto& at = argument(index);
  at.buffer = a.data<uint8_t>() + offset;
}

void CommandEncoder::set_output_array(array& a, int index, int64_t offset) {
  set_input_array(a, index, offset);
  current.arguments.at(index).is_output = true;
}

void CommandEncoder::dispatch_threadgroups(MTL::Size grid, MTL::Size group) {
  current.grid = grid;
  current.group = group;
  launches.push_back(current);
}

mlx::core::metal::Device& device(mlx::core::Device) {
  static Device d;
  return d;
}

CommandEncoder& get_command_encoder(Stream) {
  static CommandEncoder encoder(device(mlx::core::Device::gpu), 0, device(mlx::core::Device::gpu).residency_sets());
  return encoder;
}

} // namespace mlx::core::metal
