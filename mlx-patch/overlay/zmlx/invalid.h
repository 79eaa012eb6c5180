// Refusing what an op was called with.

#pragma once

#include <concepts>
#include <cstdint>
#include <initializer_list>
#include <iosfwd>
#include <string>
#include <string_view>

#include "mlx/array.h"

namespace zmlx {

// A part of a message. Nothing but a reference, so that the many places that refuse something stay small; written as a
// stream writes it.
class Word {
 public:
  Word(std::string_view text) : kind_(Kind::Text), text_(text) {}
  Word(const char* text) : Word(std::string_view(text)) {}
  Word(const std::string& text) : Word(std::string_view(text)) {}
  Word(std::integral auto number) : kind_(Kind::Integer), integer_(static_cast<int64_t>(number)) {}
  Word(float number) : kind_(Kind::Number), number_(number) {}
  Word(const mlx::core::Shape& shape) : kind_(Kind::Shape), shape_(&shape) {}
  Word(mlx::core::Dtype dtype) : kind_(Kind::Dtype), dtype_(dtype) {}

  friend std::ostream& operator<<(std::ostream& out, const Word& word);

 private:
  enum class Kind : uint8_t { Text, Integer, Number, Shape, Dtype };

  Kind kind_;
  union {
    std::string_view text_;
    int64_t integer_;
    float number_;
    const mlx::core::Shape* shape_;
    mlx::core::Dtype dtype_;
  };
};

// Throws std::invalid_argument: "[<op>] " and the words one after the other.
[[noreturn]] void throw_invalid(std::string_view op, std::initializer_list<Word> words);

template <typename... Args>
[[noreturn]] void throw_invalid(std::string_view op, const Args&... words) {
  throw_invalid(op, {Word(words)...});
}

} // namespace zmlx
