#pragma once

namespace zmlx {

// Adds every primitive of the overlay to MLX's export table, once. False where this MLX takes no rows (prebuilt).
// registry.cpp calls it when the program starts, so that a saved graph can be loaded before any op has run.
bool register_exports();

} // namespace zmlx
