// The part of Metal, as metal-cpp declares it for C++, that MLX's Metal headers and our Metal host code name. See
// Foundation/Foundation.hpp: declarations of ours, for checking types and for the recorder beside this folder.

#pragma once

#include <Foundation/Foundation.hpp>

namespace MTL {

struct Size {
  Size() = default;
  Size(NS::UInteger width, NS::UInteger height, NS::UInteger depth) : width(width), height(height), depth(depth) {}

  NS::UInteger width;
  NS::UInteger height;
  NS::UInteger depth;
};

enum class DataType : NS::UInteger {
  DataTypeFloat = 3,
  DataTypeInt = 29,
  DataTypeUInt = 33,
  DataTypeUShort = 41,
  DataTypeBool = 53,
};

class Allocation : public NS::Referencing<Allocation> {};
class Resource : public NS::Referencing<Resource, Allocation> {};

class Buffer : public NS::Referencing<Buffer, Resource> {
 public:
  void* contents();
  NS::UInteger length() const;
};

class Heap : public NS::Referencing<Heap, Allocation> {};
class Fence : public NS::Referencing<Fence> {};
class SharedEvent : public NS::Referencing<SharedEvent> {};
class ResidencySet : public NS::Referencing<ResidencySet> {};
class Function : public NS::Referencing<Function> {};
class LinkedFunctions : public NS::Referencing<LinkedFunctions> {};
class Library : public NS::Referencing<Library> {};
class Device : public NS::Referencing<Device> {};
class CommandQueue : public NS::Referencing<CommandQueue> {};
class CommandBuffer : public NS::Referencing<CommandBuffer> {};

class ComputePipelineState : public NS::Referencing<ComputePipelineState> {
 public:
  NS::UInteger maxTotalThreadsPerThreadgroup() const;
  NS::UInteger threadExecutionWidth() const;
};

class ComputeCommandEncoder : public NS::Referencing<ComputeCommandEncoder> {
 public:
  void setComputePipelineState(const ComputePipelineState* state);
  void setBytes(const void* bytes, NS::UInteger length, NS::UInteger index);
  void setThreadgroupMemoryLength(NS::UInteger length, NS::UInteger index);
};

} // namespace MTL
