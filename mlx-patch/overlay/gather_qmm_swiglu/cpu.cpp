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

struct Operands {
  Operands(const std::vector<array>& in, array& out, const GatherQMMSwiGLU::State& state);
  void run() const;

  cpu::StridedBlocks x;
  cpu::Indices lhs;
  cpu::Indices rhs;
  std::shared_ptr<cpu::GluWeights> weights;
  GatherQMMSwiGLU::State state;
  cpu::DType dtype;
  int64_t M;
  int64_t K;
  int64_t N;
  uint8_t* y;
};

Operands::Operands(const std::vector<array>& in, array& out, const GatherQMMSwiGLU::State& state)
    : x(cpu::matrices_of(in[GatherQMMSwiGLU::kX])),
      lhs(in[GatherQMMSwiGLU::kLhsIndices]),
      rhs(in[GatherQMMSwiGLU::kRhsIndices]),
      state(state),
      dtype(cpu::dtype_of(out.dtype())),
      M(in[GatherQMMSwiGLU::kX].shape(-2)),
      K(in[GatherQMMSwiGLU::kX].shape(-1)),
      N(out.shape(-1)),
      y(out.data<uint8_t>()) {
  using P = GatherQMMSwiGLU;
  auto params = state.params();
  auto biases = [&](int i) { return params.affine() ? &in[i] : nullptr; };
  weights = std::make_shared<cpu::GluWeights>(cpu::GluWeights{
      {in[P::kGateW], in[P::kGateScales], biases(P::kGateBiases), params, dtype},
      {in[P::kUpW], in[P::kUpScales], biases(P::kUpBiases), params, dtype},
      std::nullopt,
      std::nullopt});
  if (state.has_bias) {
    weights->gate_bias.emplace(cpu::rows_of(in[P::bias_at(params)]));
    weights->up_bias.emplace(cpu::rows_of(in[P::bias_at(params) + 1]));
  }
}

void Operands::run() const {
  namespace c = zmlx::cpu;
  auto from = lhs.read();
  auto to = rhs.read();
  c::check_indices("gather_qmm_swiglu", from, x.size(), "lhs_indices");
  c::check_indices("gather_qmm_swiglu", to, weights->gate.size(), "rhs_indices");
  std::vector<c::Route> routes;
  routes.reserve(from.size() * M);
  for (size_t i = 0; i < from.size(); i++) {
    for (int64_t m = 0; m < M; m++) {
      int64_t row = i * M + m;
      routes.push_back({x.at(from[i]) + m * x.row_stride(), to[i], row});
    }
  }
  auto work = c::glu_products(std::move(routes), weights, state.glu(), dtype, state.precision, K, N, y);
  const c::ColumnWork* const works[] = {&work};
  c::run_columns(works);
}

} // namespace

void GatherQMMSwiGLU::eval_cpu(const std::vector<array>& inputs, array& out) {
  cpu::dispatch_prepared(stream(), name(), inputs, out, [state = state_](auto& in, auto& out) {
    return [operands = std::make_shared<Operands>(in, out, state)] { operands->run(); };
  });
}

} // namespace zmlx
