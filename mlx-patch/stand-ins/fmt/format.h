// Stands in for fmt when MLX is compiled with nvcc, which older releases of fmt
// do not get through. MLX needs fmt::format with {}, {0} and {:x}; the output is
// that of fmt for strings, numbers and bool.

#pragma once

#include <charconv>
#include <cstddef>
#include <sstream>
#include <stdexcept>
#include <string>
#include <string_view>
#include <type_traits>

namespace fmt {
namespace detail {

template <typename T>
void put(std::ostringstream& os, std::string_view spec, const T& value) {
  using U = std::remove_cv_t<T>;
  if constexpr (std::is_same_v<U, bool>) {
    os << (value ? "true" : "false");
  } else if constexpr (std::is_integral_v<U> && !std::is_same_v<U, char>) {
    char buffer[72];
    auto end = std::to_chars(
                   buffer, buffer + sizeof(buffer), value, spec == "x" ? 16 : 10)
                   .ptr;
    os.write(buffer, end - buffer);
  } else if constexpr (std::is_floating_point_v<U>) {
    char buffer[64];
    auto end = std::to_chars(buffer, buffer + sizeof(buffer), value).ptr;
    os.write(buffer, end - buffer);
  } else {
    os << value;
  }
}

template <typename... Args>
void put_nth(
    std::ostringstream& os,
    std::string_view spec,
    size_t n,
    const Args&... args) {
  if (n >= sizeof...(Args)) {
    throw std::runtime_error("[fmt::format] Argument not found.");
  }
  size_t i = 0;
  ((i++ == n ? put(os, spec, args) : void()), ...);
}

} // namespace detail

template <typename... Args>
std::string format(std::string_view pattern, const Args&... args) {
  std::ostringstream os;
  size_t next = 0;
  for (size_t i = 0; i < pattern.size(); ++i) {
    char c = pattern[i];
    bool twice = i + 1 < pattern.size() && pattern[i + 1] == c;
    if ((c == '{' || c == '}') && twice) {
      os << c;
      ++i;
    } else if (c == '{') {
      size_t close = pattern.find('}', i);
      std::string_view field = pattern.substr(i + 1, close - i - 1);
      size_t colon = field.find(':');
      std::string_view index = field.substr(0, colon);
      auto spec = colon == field.npos ? field.substr(0, 0)
                                      : field.substr(colon + 1);
      size_t n = next;
      if (index.empty()) {
        ++next;
      } else {
        std::from_chars(index.data(), index.data() + index.size(), n);
      }
      detail::put_nth(os, spec, n, args...);
      i = close;
    } else {
      os << c;
    }
  }
  return os.str();
}

} // namespace fmt
