// Saving and loading graphs that contain a primitive of ours.
//
// A patched MLX (ZMLX_MLX_PATCHED, set by the build) takes new rows for its export table. A prebuilt MLX does not, so
// exporting such a graph there throws MLX's own "Unable to serialize primitive".

#pragma once

#include <cstring>
#include <functional>
#include <memory>
#include <stdexcept>
#include <string>
#include <tuple>
#include <type_traits>
#include <utility>
#include <vector>

#include "mlx/export.h"
#include "mlx/primitives.h"

namespace zmlx {

// A row of MLX's export table.
struct ExportRow {
  // Primitive::name()
  const char* name;
  // `save` writes the state as bytes that only `load` has to understand; `state` shows it to export callbacks.
  std::function<std::string(const mlx::core::Primitive&)> save;
  std::function<std::shared_ptr<mlx::core::Primitive>(const std::string&, mlx::core::Stream)> load;
  std::function<std::vector<mlx::core::StateT>(const mlx::core::Primitive&)> state;
};

inline void add_to_exports([[maybe_unused]] const ExportRow& row) {
#ifdef ZMLX_MLX_PATCHED
  mlx::core::register_exported_primitive({row.name, row.save, row.load, row.state});
#endif
}

namespace detail {

template <typename P, typename = void>
struct StateOf {
  using type = std::tuple<>;
  static type get(const P&) {
    return {};
  }
};

template <typename P>
struct StateOf<P, std::void_t<decltype(std::declval<const P&>().state())>> {
  using type = decltype(std::declval<const P&>().state());
  static type get(const P& p) {
    return p.state();
  }
};

// The fields one after another as they lie in memory: numbers, flags and enums only.
template <typename Tuple>
std::string to_bytes(const Tuple& state) {
  std::string bytes;
  std::apply(
      [&](const auto&... field) {
        static_assert((... && (std::is_arithmetic_v<std::decay_t<decltype(field)>> || std::is_enum_v<std::decay_t<decltype(field)>>)));
        (bytes.append(reinterpret_cast<const char*>(&field), sizeof(field)), ...);
      },
      state);
  return bytes;
}

template <typename Tuple>
Tuple from_bytes(const std::string& bytes, const char* name) {
  Tuple state;
  size_t at = 0;
  std::apply(
      [&](auto&... field) {
        if (bytes.size() != (size_t{0} + ... + sizeof(field))) {
          throw std::invalid_argument(
              std::string("[import_function] the state of ") + name + " has " + std::to_string(bytes.size()) +
              " bytes, which this version did not write");
        }
        ((std::memcpy(&field, bytes.data() + at, sizeof(field)), at += sizeof(field)), ...);
      },
      state);
  return state;
}

// From the fields of its state, or from a State made of them.
template <typename P, typename... Fields>
std::shared_ptr<mlx::core::Primitive> make_from(mlx::core::Stream s, Fields... fields) {
  if constexpr (std::is_constructible_v<P, mlx::core::Stream, Fields...>) {
    return std::make_shared<P>(s, fields...);
  } else {
    return std::make_shared<P>(s, typename P::State{fields...});
  }
}

} // namespace detail

// The row of a primitive that is its state(): a tuple that its constructor, or its State, takes.
template <typename P>
ExportRow export_row(const char* name) {
  using mlx::core::Primitive;
  using State = detail::StateOf<P>;
  return {
      name,
      [](const Primitive& p) { return detail::to_bytes(State::get(static_cast<const P&>(p))); },
      [name](const std::string& bytes, mlx::core::Stream s) {
        return std::apply(
            [&](auto... field) { return detail::make_from<P>(s, field...); },
            detail::from_bytes<typename State::type>(bytes, name));
      },
      [](const Primitive& p) {
        std::vector<mlx::core::StateT> shown;
        std::apply(
            [&](auto... field) {
              [[maybe_unused]] auto show = [&](auto v) {
                if constexpr (std::is_enum_v<decltype(v)>) {
                  shown.push_back(static_cast<int>(v));
                } else {
                  shown.push_back(v);
                }
              };
              (show(field), ...);
            },
            State::get(static_cast<const P&>(p)));
        return shown;
      }};
}

} // namespace zmlx
