// What a C++ exception becomes in Rust: "<kind>\x1f<what>". The kinds are the
// rows of `ErrorKind::from_tag` in crates/mlx/src/error.rs.
#pragma once

#include <new>
#include <stdexcept>
#include <string>

namespace zmlx_sys {

// Thrown when a primitive is not compiled in.
struct Unsupported : std::runtime_error {
  using std::runtime_error::runtime_error;
};

// Thrown for what cannot be allocated, with the reason.
class OutOfMemory : public std::bad_alloc {
 public:
  explicit OutOfMemory(std::string message) : message_(std::move(message)) {}
  const char* what() const noexcept override {
    return message_.c_str();
  }

 private:
  std::string message_;
};

} // namespace zmlx_sys

namespace rust::behavior {

template <typename Try, typename Fail>
static void trycatch(Try&& func, Fail&& fail) noexcept try {
  func();
} catch (const zmlx_sys::Unsupported& e) {
  fail(std::string("unsupported\x1f") + e.what());
} catch (const std::bad_alloc& e) {
  fail(std::string("out_of_memory\x1f") + e.what());
} catch (const std::invalid_argument& e) {
  fail(std::string("invalid_argument\x1f") + e.what());
} catch (const std::out_of_range& e) {
  fail(std::string("invalid_argument\x1f") + e.what());
} catch (const std::exception& e) {
  fail(std::string("backend\x1f") + e.what());
} catch (...) {
  fail(std::string("backend\x1f") + "an exception that is not a std::exception");
}

} // namespace rust::behavior
