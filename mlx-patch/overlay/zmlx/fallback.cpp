#include "zmlx/fallback.h"

#include "mlx/transforms.h"

namespace zmlx {

using namespace mlx::core;

namespace {

// `f` as a function of the inputs named by `argnums`; the others (packed weights, indices) are constants to it.
Fallback restrict_to(const Fallback& f, const std::vector<array>& inputs, const std::vector<int>& argnums) {
  return [f, inputs, argnums](const std::vector<array>& chosen) {
    auto all = inputs;
    for (size_t i = 0; i < argnums.size(); i++) {
      all[argnums[i]] = chosen[i];
    }
    return f(all);
  };
}

std::vector<array> pick(const std::vector<array>& inputs, const std::vector<int>& argnums) {
  std::vector<array> chosen;
  for (int i : argnums) {
    chosen.push_back(inputs[i]);
  }
  return chosen;
}

} // namespace

std::pair<std::vector<array>, std::vector<int>>
fallback_vmap(const Fallback& f, const std::vector<array>& inputs, const std::vector<int>& axes) {
  auto outputs = vmap(f, axes)(inputs);
  return {outputs, std::vector<int>(outputs.size(), 0)};
}

std::vector<array> fallback_jvp(
    const Fallback& f,
    const std::vector<array>& primals,
    const std::vector<array>& tangents,
    const std::vector<int>& argnums) {
  return jvp(restrict_to(f, primals, argnums), pick(primals, argnums), tangents).second;
}

std::vector<array> fallback_vjp(
    const Fallback& f,
    const std::vector<array>& primals,
    const std::vector<array>& cotangents,
    const std::vector<int>& argnums) {
  return vjp(restrict_to(f, primals, argnums), pick(primals, argnums), cotangents).second;
}

} // namespace zmlx
