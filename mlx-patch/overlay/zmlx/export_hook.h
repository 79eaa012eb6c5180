// Saving and loading graphs that contain a primitive of ours.
//
// A patched MLX (ZMLX_MLX_PATCHED, set by the build) takes new rows for its
// export table. A prebuilt MLX does not, so there this compiles to nothing and
// exporting such a graph throws MLX's own "Unable to serialize primitive".

#pragma once

#include <functional>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "mlx/export.h"
#include "mlx/primitives.h"

namespace zmlx {

#ifdef ZMLX_MLX_PATCHED
inline constexpr bool exports_primitives = true;
#else
inline constexpr bool exports_primitives = false;
#endif

// Adds the primitive called `name` (Primitive::name() up to the first space).
// `save` writes its state as bytes that only `load` has to understand; `state`
// shows it to export callbacks.
inline void register_export(
    std::string name,
    std::function<std::string(const mlx::core::Primitive&)> save,
    std::function<std::shared_ptr<mlx::core::Primitive>(
        const std::string&,
        mlx::core::Stream)> load,
    std::function<std::vector<mlx::core::StateT>(const mlx::core::Primitive&)>
        state) {
#ifdef ZMLX_MLX_PATCHED
  mlx::core::register_exported_primitive(
      {std::move(name), std::move(save), std::move(load), std::move(state)});
#else
  (void)name, (void)save, (void)load, (void)state;
#endif
}

} // namespace zmlx
