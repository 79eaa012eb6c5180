// The part of Apple's Foundation, as metal-cpp declares it for C++, that MLX's Metal headers and our Metal host code name.
// Declarations of ours for checking types where there is no Mac; nothing here is Apple's, and nothing is linked on one.
//
// Source: the names and signatures that MLX 0.32.2 uses (mlx/backend/metal/*.h), and Apple's documentation of metal-cpp.

#pragma once

#include <cstddef>
#include <cstdint>
#include <utility>

namespace NS {

using UInteger = std::uintptr_t;
using Integer = std::intptr_t;

enum StringEncoding : UInteger { ASCIIStringEncoding = 1, UTF8StringEncoding = 4 };

class Object {
 public:
  void release();
};

template <typename Class, typename Base = Object>
class Referencing : public Base {
 public:
  Class* retain();
  Class* autorelease();
};

class String : public Referencing<String> {
 public:
  static String* string(const char* text, StringEncoding encoding);
  const char* utf8String() const;
};

class Error : public Referencing<Error> {
 public:
  String* localizedDescription() const;
};

class AutoreleasePool : public Object {
 public:
  static AutoreleasePool* alloc();
  AutoreleasePool* init();
};

// Shares what it points to; the counting is Apple's.
template <typename T>
class SharedPtr {
 public:
  SharedPtr() = default;
  T* get() const {
    return object_;
  }
  T* operator->() const {
    return object_;
  }
  explicit operator bool() const {
    return object_ != nullptr;
  }
  bool operator==(const SharedPtr&) const = default;
  void reset() {
    object_ = nullptr;
  }

 private:
  explicit SharedPtr(T* object) : object_(object) {}

  template <typename U>
  friend SharedPtr<U> TransferPtr(U* object);

  T* object_ = nullptr;
};

template <typename T>
SharedPtr<T> TransferPtr(T* object) {
  return SharedPtr<T>(object);
}

} // namespace NS
