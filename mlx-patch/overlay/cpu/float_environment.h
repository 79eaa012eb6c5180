// The floating-point environment that every kernel computes in: round to nearest, denormals kept, no traps. A thread
// inherits its creator's, and programs (audio, games, -ffast-math start-up code) set flush-to-zero.

#pragma once

#include <cstdint>

namespace zmlx::cpu {

class DefaultFloatEnvironment {
 public:
  DefaultFloatEnvironment() : before_(read()) {
    if ((before_ & kControl) != kDefault) {
      write((before_ & ~kControl) | kDefault);
    }
  }
  ~DefaultFloatEnvironment() {
    if ((before_ & kControl) != kDefault) {
      write(before_);
    }
  }
  DefaultFloatEnvironment(const DefaultFloatEnvironment&) = delete;
  DefaultFloatEnvironment& operator=(const DefaultFloatEnvironment&) = delete;

 private:
#if defined(__x86_64__)
  using Word = uint32_t;
  static constexpr Word kControl = 0xffc0; // MXCSR without its sticky flags
  static constexpr Word kDefault = 0x1f80;
  static Word read() {
    return __builtin_ia32_stmxcsr();
  }
  static void write(Word w) {
    __builtin_ia32_ldmxcsr(w);
  }
#elif defined(__aarch64__)
  using Word = uint64_t;
  static constexpr Word kControl = 0x07ff9f07; // FPCR: AHP, DN, FZ, RMode, FZ16, traps, and what newer cores add
  static constexpr Word kDefault = 0;
  static Word read() {
    Word w;
    asm volatile("mrs %0, fpcr" : "=r"(w));
    return w;
  }
  static void write(Word w) {
    asm volatile("msr fpcr, %0" : : "r"(w) : "memory");
  }
#else
  using Word = uint32_t;
  static constexpr Word kControl = 0;
  static constexpr Word kDefault = 0;
  static Word read() {
    return 0;
  }
  static void write(Word) {}
#endif

  Word before_;
};

} // namespace zmlx::cpu
