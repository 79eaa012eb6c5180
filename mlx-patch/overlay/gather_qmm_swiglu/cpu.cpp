// CPU backend of GatherQMMSwiGLU.
//
// Idea:    gate and up of the same column block are computed by one task, which then adds their biases and joins them
//          while both blocks are in L1: neither projection is ever written to memory (cpu/glu_products.cpp).
// Layout:  gate, up [E, N, K * bits / 32] packed; the block kernels of cpu/qmm.h do the arithmetic.
// Tasks:   (rows that share an expert, 32 to 128 columns); an expert's packed block is read
//          once for up to 32 rows.
// Bound:   decode: 2 * N * K * (bits / 8 + 2 * sizeof(T) / group_size) bytes an expert; prefill: M * 4 * N * K FLOPs.
// Limits:  none beyond MLX's own.

#include "cpu/glu.h"
#include "cpu/task.h"
#include "gather_qmm_swiglu/gather_qmm_swiglu.h"

namespace zmlx {

using mlx::core::array;

namespace {

void run(const std::vector<array>& in, array& out, const GatherQMMSwiGLU::State& state) {
  using P = GatherQMMSwiGLU;
  namespace c = zmlx::cpu;
  auto params = state.params();
  auto dtype = c::dtype_of(out.dtype());
  auto biases = [&](int i) { return params.affine() ? &in[i] : nullptr; };
  auto x = c::matrices_of(in[P::kX]);
  c::GluWeights weights = {
      {in[P::kGateW], in[P::kGateScales], biases(P::kGateBiases), params, dtype},
      {in[P::kUpW], in[P::kUpScales], biases(P::kUpBiases), params, dtype},
      std::nullopt,
      std::nullopt};
  if (state.has_bias) {
    weights.gate_bias.emplace(c::rows_of(in[P::bias_at(params)]));
    weights.up_bias.emplace(c::rows_of(in[P::bias_at(params) + 1]));
  }
  auto lhs = c::read_indices(in[P::kLhsIndices]);
  auto rhs = c::read_indices(in[P::kRhsIndices]);
  c::check_indices("gather_qmm_swiglu", lhs, x.size(), "lhs_indices");
  c::check_indices("gather_qmm_swiglu", rhs, weights.gate.size(), "rhs_indices");

  int64_t M = in[P::kX].shape(-2);
  int64_t K = in[P::kX].shape(-1);
  std::vector<c::Route> routes;
  routes.reserve(lhs.size() * M);
  for (size_t i = 0; i < lhs.size(); i++) {
    for (int64_t m = 0; m < M; m++) {
      int64_t row = i * M + m;
      routes.push_back({x.at(lhs[i]) + m * x.row_stride(), rhs[i], row});
    }
  }
  c::glu_products(
      routes, weights, state.glu(), dtype, state.precision, K, out.shape(-1), out.data<uint8_t>());
}

} // namespace

void GatherQMMSwiGLU::eval_cpu(const std::vector<array>& inputs, array& out) {
  cpu::dispatch_task(stream(), name(), inputs, out, [state = state_](auto& in, auto& out) { run(in, out, state); });
}

} // namespace zmlx
