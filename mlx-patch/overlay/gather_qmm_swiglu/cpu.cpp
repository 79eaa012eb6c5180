// CPU backend of GatherQMMSwiGLU.
//
// Idea:    gate and up of the same column block are computed by one task, which then applies silu and the multiply
//          while both blocks are in L1: neither projection is ever written to memory.
// Layout:  gate, up [E, N, K * bits / 32] packed; the block kernels of cpu/qmm.h do the arithmetic.
// Tasks:   (rows that share an expert, column block of 128), handed out dynamically; an expert's packed block is read
//          once for up to 32 rows.
// Bound:   decode: 2 * N * K * (bits / 8 + 2 * sizeof(T) / group_size) bytes an expert; prefill: M * 4 * N * K FLOPs.
// Limits:  none beyond MLX's own.

#include "cpu/operands.h"
#include "cpu/task.h"
#include "cpu/thread_pool.h"
#include "gather_qmm_swiglu/gather_qmm_swiglu.h"

namespace zmlx {

using mlx::core::array;

namespace {

void run(
    const std::vector<array>& in,
    array& out,
    const QuantParams& params,
    Precision precision) {
  using P = GatherQMMSwiGLU;
  namespace c = zmlx::cpu;
  auto dtype = c::dtype_of(out.dtype());
  int64_t item = c::size_of(dtype);
  auto biases = [&](int i) { return params.affine() ? &in[i] : nullptr; };
  auto x = c::matrices_of(in[P::kX]);
  c::QuantStack gate(in[P::kGateW], in[P::kGateScales], biases(P::kGateBiases), params, dtype);
  c::QuantStack up(in[P::kUpW], in[P::kUpScales], biases(P::kUpBiases), params, dtype);
  auto lhs = c::read_indices(in[P::kLhsIndices]);
  auto rhs = c::read_indices(in[P::kRhsIndices]);
  c::check_indices("gather_qmm_swiglu", lhs, x.size(), "lhs_indices");
  c::check_indices("gather_qmm_swiglu", rhs, gate.size(), "rhs_indices");

  int64_t M = in[P::kX].shape(-2);
  int64_t K = in[P::kX].shape(-1);
  int64_t N = out.shape(-1);
  std::vector<c::Route> routes;
  routes.reserve(lhs.size() * M);
  for (size_t i = 0; i < lhs.size(); i++) {
    for (int64_t m = 0; m < M; m++) {
      int64_t row = i * M + m;
      routes.push_back({x.at(lhs[i]) + m * x.row_stride(), rhs[i], row});
    }
  }
  auto runs = c::group_routes(routes);
  auto kernel = gate.kernel(precision);
  auto y = out.data<uint8_t>();
  int64_t blocks = (N + c::kColumnBlock - 1) / c::kColumnBlock;

  c::parallel_for(runs.size() * blocks, 2 * routes.size() * N * K, [&](int64_t task) {
    const auto& run = runs[task / blocks];
    int64_t n0 = task % blocks * c::kColumnBlock;
    int64_t n1 = std::min(n0 + c::kColumnBlock, N);
    int m = run.end - run.begin;
    const void* xs[c::kMaxRows];
    void* gates[c::kMaxRows];
    void* ups[c::kMaxRows];
    auto up_block = static_cast<uint8_t*>(
        c::thread_scratch(c::Scratch::Driver, c::kMaxRows * c::kColumnBlock * item));
    for (int i = 0; i < m; i++) {
      const auto& route = routes[run.begin + i];
      xs[i] = route.x;
      gates[i] = y + (route.out * N + n0) * item;
      ups[i] = up_block + i * c::kColumnBlock * item;
    }
    kernel(gate.at(run.matrix), n0, n1, m, xs, gates);
    kernel(up.at(run.matrix), n0, n1, m, xs, ups);
    for (int i = 0; i < m; i++) {
      c::swiglu(dtype, gates[i], ups[i], gates[i], n1 - n0);
    }
  });
}

} // namespace

void GatherQMMSwiGLU::eval_cpu(const std::vector<array>& inputs, array& out) {
  cpu::dispatch_task(stream(), inputs, out, [params = params_, precision = precision_](auto& in, auto& out) {
    run(in, out, params, precision);
  });
}

} // namespace zmlx
