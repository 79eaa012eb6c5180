// CPU backend of QuantizedMatmulRows.
//
// Idea:    all rows of x that meet one matrix are taken together, at most 32 at a time, so that a packed block is
//          unpacked once for all of them.
// Layout:  w [.., N, K * bits / 32] packed (or [.., K, N * bits / 32] when not transposed); kernels in cpu/qmm.h.
// Tasks:   (run of rows, 32 to 512 columns).
// Bound:   one row: N * K * (bits / 8 + 2 * sizeof(T) / group_size) bytes; many: M * 2 * N * K FLOPs.
// Limits:  none beyond MLX's own.

#include "cpu/operands.h"
#include "cpu/task.h"
#include "cpu/thread_pool.h"
#include "quantized_matmul/quantized_matmul.h"

namespace zmlx {

using mlx::core::array;

namespace {

void run(const std::vector<array>& in, array& out, const QuantParams& params, Precision precision) {
  using P = QuantizedMatmulRows;
  namespace c = zmlx::cpu;
  auto dtype = c::dtype_of(out.dtype());
  int64_t item = c::size_of(dtype);
  c::QuantStack weight(
      in[P::kW], in[P::kScales], params.affine() ? &in[P::kBiases] : nullptr, params, dtype);
  auto x = c::rows_of(in[P::kX]);
  int64_t K = in[P::kX].shape(-1);
  int64_t N = out.shape(-1);
  int64_t M = in[P::kX].ndim() > 1 ? in[P::kX].shape(-2) : 1;
  // A batch of matrices meets a batch of x, element by element; a single one (or the first) meets all rows.
  bool batched = in[P::kW].ndim() > 2 && in[P::kX].ndim() > 2;
  std::vector<c::Route> routes(x.size());
  for (int64_t i = 0; i < x.size(); i++) {
    routes[i] = {x.at(i), batched ? i / M : 0, i};
  }
  auto runs = c::group_routes(routes);
  auto kernel = weight.kernel(precision);
  auto y = out.data<uint8_t>();
  int64_t work = x.size() * N * K;
  int64_t columns = c::columns_per_task(
      N, runs.size(), work, params.transpose, c::want_whole_blocks(precision, x.size(), runs.size()));
  int64_t blocks = (N + columns - 1) / columns;

  c::parallel_for(runs.size() * blocks, work, [&](int64_t task) {
    // Column blocks outermost: runs that share a matrix then find its block in cache.
    const auto& run = runs[task % runs.size()];
    int64_t n0 = task / runs.size() * columns;
    int64_t n1 = std::min(n0 + columns, N);
    int m = run.end - run.begin;
    const void* xs[c::kMaxRows];
    void* ys[c::kMaxRows];
    for (int i = 0; i < m; i++) {
      const auto& route = routes[run.begin + i];
      xs[i] = route.x;
      ys[i] = y + (route.out * N + n0) * item;
    }
    kernel(weight.at(run.matrix), n0, n1, m, xs, ys);
  });
}

} // namespace

void QuantizedMatmulRows::eval_cpu(const std::vector<array>& inputs, array& out) {
  cpu::dispatch_task(stream(), name(), inputs, out, [params = params_, precision = precision_](auto& in, auto& out) {
    run(in, out, params, precision);
  });
}

} // namespace zmlx
