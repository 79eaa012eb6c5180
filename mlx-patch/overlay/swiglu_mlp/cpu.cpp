// CPU backend of SwiGLUMLP.
//
// Idea:    as GatherQMMSwiGLU with one expert for all rows: gate and up of the same column block are computed by one
//          task, which joins them while both are in L1 (cpu/glu_products.cpp).
// Layout:  gate, up [N, K * bits / 32] packed; the block kernels of cpu/qmm.h do the arithmetic.
// Tasks:   (up to 32 rows, 128 to 512 columns), columns outermost: all rows meet a packed block while it is in cache.
// Bound:   one row: 2 * N * K * (bits / 8 + 2 * sizeof(T) / group_size) bytes; many: M * 4 * N * K FLOPs.
// Limits:  none beyond MLX's own.

#include "cpu/glu.h"
#include "cpu/task.h"
#include "swiglu_mlp/swiglu_mlp.h"

namespace zmlx {

using mlx::core::array;

namespace {

void run(const std::vector<array>& in, array& out, const SwiGLUMLP::State& state) {
  using P = SwiGLUMLP;
  namespace c = zmlx::cpu;
  auto params = state.params();
  auto dtype = c::dtype_of(out.dtype());
  auto biases = [&](int i) { return params.affine() ? &in[i] : nullptr; };
  c::GluWeights weights = {
      {in[P::kGateW], in[P::kGateScales], biases(P::kGateBiases), params, dtype},
      {in[P::kUpW], in[P::kUpScales], biases(P::kUpBiases), params, dtype},
      std::nullopt,
      std::nullopt};
  if (state.has_bias) {
    weights.gate_bias.emplace(c::rows_of(in[P::bias_at(params)]));
    weights.up_bias.emplace(c::rows_of(in[P::bias_at(params) + 1]));
  }
  auto x = c::rows_of(in[P::kX]);
  std::vector<c::Route> routes(x.size());
  for (int64_t i = 0; i < x.size(); i++) {
    routes[i] = {x.at(i), 0, i};
  }
  int64_t K = in[P::kX].shape(-1);
  c::glu_products(
      routes, weights, state.glu(), dtype, state.precision, K, out.shape(-1), out.data<uint8_t>());
}

} // namespace

void SwiGLUMLP::eval_cpu(const std::vector<array>& inputs, array& out) {
  cpu::dispatch_task(stream(), name(), inputs, out, [state = state_](auto& in, auto& out) { run(in, out, state); });
}

} // namespace zmlx
