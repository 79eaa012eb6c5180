// What a primitive is asked before it runs.

#pragma once

#include <cstdint>
#include <span>
#include <string>
#include <string_view>
#include <variant>

#include "mlx/device.h"
#include "mlx/dtype.h"

namespace zmlx {

enum class Precision : uint8_t { Exact = 0, Fast = 1 };

using Value = std::variant<int64_t, double, bool, std::string_view>;

struct Parameter {
  std::string_view name;
  Value value;
};

// Everything that is going to be run: the device, the type of the activations, the op's arguments that are no arrays and
// the sizes of those that are. Looking up a name that is not there, or as another kind, throws std::invalid_argument.
struct Request {
  mlx::core::Device device;
  mlx::core::Dtype dtype;
  Precision precision;
  std::span<const Parameter> parameters;

  int64_t integer(std::string_view name) const;
  double number(std::string_view name) const;
  bool flag(std::string_view name) const;
  std::string_view text(std::string_view name) const;
};

// `reason` is empty only when `fused`.
struct Support {
  bool fused;
  std::string reason;
};

// Whether `primitive` runs fused as requested. The names of the parameters are those of its folder, all of them: one that
// is missing or unknown is the reason, by name.
Support supports(std::string_view primitive, const Request& request);
// Whether it would on a Mac, whatever this build is for.
Support supports_on_metal(std::string_view primitive, const Request& request);

} // namespace zmlx
