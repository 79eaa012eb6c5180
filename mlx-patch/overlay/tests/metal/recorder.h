// A stand-in for MLX's Metal backend that launches nothing and writes down what it is told: for tests of the host code
// where there is no Mac.

#pragma once

#include <cstdint>
#include <map>
#include <string>
#include <vector>

#include "mlx/array.h"
#include "mlx/backend/metal/device.h"

namespace recorder {

// What a kernel finds in one buffer.
struct Argument {
  // Bytes that were copied.
  std::vector<uint8_t> bytes;
  // Or an array, and whether it is written to.
  const void* buffer = nullptr;
  bool is_output = false;

  template <typename T>
  std::vector<T> as() const {
    std::vector<T> values(bytes.size() / sizeof(T));
    std::copy(bytes.begin(), bytes.end(), reinterpret_cast<uint8_t*>(values.data()));
    return values;
  }
};

struct Launch {
  std::string kernel;
  // The text that it was compiled from; empty for a kernel of a metallib.
  std::string source;
  std::map<int, Argument> arguments;
  MTL::Size grid;
  MTL::Size group;
};

// What has been launched since the last call.
std::vector<Launch> take();

} // namespace recorder
