// CPU backend of SwiGLUMLP.
//
// Idea:    as GatherQMMSwiGLU with one expert for all rows: gate and up of the same column block are computed by one
//          task, which joins them while both are in L1 (cpu/glu_products.cpp).
// Layout:  gate, up [N, K * bits / 32] packed; the block kernels of cpu/qmm.h do the arithmetic.
// Tasks:   (up to 32 rows, 128 to 512 columns), columns outermost: all rows meet a packed block while it is in cache. Of
//          neighbours in the stream together (cpu/neighbours.h).
// Bound:   one row: 2 * N * K * (bits / 8 + 2 * sizeof(T) / group_size) bytes; many: M * 4 * N * K FLOPs.
// Limits:  none beyond MLX's own.

#include "cpu/glu.h"
#include "cpu/neighbours.h"
#include "swiglu_mlp/swiglu_mlp.h"

namespace zmlx {

using mlx::core::array;

namespace {

cpu::ColumnWork prepare(const std::vector<array>& in, array& out, const SwiGLUMLP::State& state) {
  using P = SwiGLUMLP;
  namespace c = zmlx::cpu;
  auto params = state.params();
  auto dtype = c::dtype_of(out.dtype());
  auto biases = [&](int i) { return params.affine() ? &in[i] : nullptr; };
  auto weights = std::make_shared<c::GluWeights>(c::GluWeights{
      {in[P::kGateW], in[P::kGateScales], biases(P::kGateBiases), params, dtype},
      {in[P::kUpW], in[P::kUpScales], biases(P::kUpBiases), params, dtype},
      std::nullopt,
      std::nullopt});
  if (state.has_bias) {
    weights->gate_bias.emplace(c::rows_of(in[P::bias_at(params)]));
    weights->up_bias.emplace(c::rows_of(in[P::bias_at(params) + 1]));
  }
  auto x = std::make_shared<c::StridedBlocks>(c::rows_of(in[P::kX]));
  std::vector<c::Route> routes(x->size());
  for (int64_t i = 0; i < x->size(); i++) {
    routes[i] = {x->at(i), 0, i};
  }
  int64_t K = in[P::kX].shape(-1);
  auto work = c::glu_products(
      std::move(routes), weights, state.glu(), dtype, state.precision, K, out.shape(-1), out.data<uint8_t>());
  // x may be a copy, which lives as long as the work
  work.product = [x, product = std::move(work.product)](int64_t run, int64_t n0, int64_t n1) { product(run, n0, n1); };
  return work;
}

} // namespace

void SwiGLUMLP::eval_cpu(const std::vector<array>& inputs, array& out) {
  cpu::dispatch_columns(
      stream(), name(), inputs, out, [state = state_](auto& in, auto& out) { return prepare(in, out, state); });
}

} // namespace zmlx
