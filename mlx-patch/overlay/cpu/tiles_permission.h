// Whether this process may use the processor's tile registers (AMX with bf16).

#pragma once

namespace zmlx::cpu {

// Asks the system for them on the first call: their state is large, and Linux saves it only for processes that have asked.
// False where the processor or the system has none, or where a thread's signal stack is too small for them.
bool request_tiles();

} // namespace zmlx::cpu
