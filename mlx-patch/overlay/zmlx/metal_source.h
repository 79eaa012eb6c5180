// The text of Metal kernels, for compilation while the program runs.

#pragma once

#include <string_view>

namespace zmlx {

// `kernel` is the path in the overlay, such as "rms_norm/kernel.metal". Metal builds only.
std::string_view metal_source(std::string_view kernel);

} // namespace zmlx
