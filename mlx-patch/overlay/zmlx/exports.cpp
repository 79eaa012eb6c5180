// The overlay's rows in MLX's export table: one per primitive, from its state().

#include <cstring>
#include <stdexcept>
#include <tuple>
#include <type_traits>

#include "attention/attention.h"
#include "gather_qmm_combine/gather_qmm_combine.h"
#include "gather_qmm_swiglu/gather_qmm_swiglu.h"
#include "greedy_token/greedy_token.h"
#include "moe_router/moe_router.h"
#include "qk_norm_rope/qk_norm_rope.h"
#include "quantized_matmul/quantized_matmul.h"
#include "rms_norm/rms_norm.h"
#include "zmlx/export_hook.h"
#include "zmlx/exports.h"

namespace zmlx {

using mlx::core::Primitive;
using mlx::core::StateT;
using mlx::core::Stream;

namespace {

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

template <typename P>
void add(const char* name) {
  using State = StateOf<P>;
  register_export(
      name,
      [](const Primitive& p) { return to_bytes(State::get(static_cast<const P&>(p))); },
      [name](const std::string& bytes, Stream s) {
        return std::apply(
            [&](auto... field) -> std::shared_ptr<Primitive> {
              if constexpr (std::is_constructible_v<P, Stream, decltype(field)...>) {
                return std::make_shared<P>(s, field...);
              } else {
                return std::make_shared<P>(s, typename P::State{field...});
              }
            },
            from_bytes<typename State::type>(bytes, name));
      },
      [](const Primitive& p) {
        std::vector<StateT> shown;
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
      });
}

} // namespace

bool register_exports() {
  static const bool done = [] {
    add<GatherQMMSwiGLU>("GatherQMMSwiGLU");
    add<GatherQMMCombine>("GatherQMMCombine");
    add<MoERouter>("MoERouter");
    add<QuantizedMatmulRows>("QuantizedMatmulRows");
    add<FusedRMSNorm>("FusedRMSNorm");
    add<QKNormRope>("QKNormRope");
    add<Attention>("Attention");
    add<GreedyToken>("GreedyToken");
    return exports_primitives;
  }();
  return done;
}

} // namespace zmlx
