// CPU backend of QuantizedMatmulRows.
//
// Idea:    all rows of x that meet one matrix are taken together, at most 32 at a time, so that a packed block is
//          unpacked once for all of them.
// Layout:  w [.., N, K * bits / 32] packed (or [.., K, N * bits / 32] when not transposed); kernels in cpu/qmm.h.
// Tasks:   (run of rows, 32 to 512 columns), of neighbours in the stream together (cpu/neighbours.h).
// Bound:   one row: N * K * (bits / 8 + 2 * sizeof(T) / group_size) bytes; many: M * 2 * N * K FLOPs.
// Limits:  none beyond MLX's own.

#include "cpu/neighbours.h"
#include "quantized_matmul/quantized_matmul.h"

namespace zmlx {

using mlx::core::array;

namespace {

struct Product {
  Product(const std::vector<array>& in, array& out, const QuantParams& params)
      : weight(
            in[QuantizedMatmulRows::kW],
            in[QuantizedMatmulRows::kScales],
            params.affine() ? &in[QuantizedMatmulRows::kBiases] : nullptr,
            params,
            cpu::dtype_of(out.dtype())),
        x(cpu::rows_of(in[QuantizedMatmulRows::kX])),
        y(out.data<uint8_t>()),
        row_bytes(out.shape(-1) * out.itemsize()),
        item(out.itemsize()) {}

  cpu::QuantStack weight;
  cpu::StridedBlocks x;
  uint8_t* y;
  int64_t row_bytes;
  int64_t item;
  std::vector<cpu::Route> routes;
  std::vector<cpu::Run> runs;
};

cpu::ColumnWork prepare(const std::vector<array>& in, array& out, const QuantParams& params, Precision precision) {
  using P = QuantizedMatmulRows;
  namespace c = zmlx::cpu;
  auto product = std::make_shared<Product>(in, out, params);
  auto& x = product->x;
  int64_t K = in[P::kX].shape(-1);
  int64_t N = out.shape(-1);
  int64_t M = in[P::kX].ndim() > 1 ? in[P::kX].shape(-2) : 1;
  // A batch of matrices meets a batch of x, element by element; a single one (or the first) meets all rows.
  bool batched = in[P::kW].ndim() > 2 && in[P::kX].ndim() > 2;
  product->routes.resize(x.size());
  for (int64_t i = 0; i < x.size(); i++) {
    product->routes[i] = {x.at(i), batched ? i / M : 0, i};
  }
  product->runs = c::group_routes(product->routes);
  int64_t runs = product->runs.size();
  return {
      .runs = runs,
      .columns = N,
      .work = x.size() * N * K,
      .transpose = params.transpose,
      .whole_blocks = c::want_whole_blocks(precision, x.size(), runs),
      .same_matrix = true,
      .most_columns = c::kMostColumns,
      .narrow = c::want_narrow(precision, params.transpose, x.size(), runs),
      .product = [product, kernel = product->weight.kernel(precision)](int64_t index, int64_t n0, int64_t n1) {
        const auto& run = product->runs[index];
        int m = run.end - run.begin;
        const void* xs[c::kMaxRows];
        void* ys[c::kMaxRows];
        for (int i = 0; i < m; i++) {
          const auto& route = product->routes[run.begin + i];
          xs[i] = route.x;
          ys[i] = product->y + route.out * product->row_bytes + n0 * product->item;
        }
        kernel(product->weight.at(run.matrix), n0, n1, m, xs, ys);
      }};
}

} // namespace

void QuantizedMatmulRows::eval_cpu(const std::vector<array>& inputs, array& out) {
  auto described = [params = params_, precision = precision_](auto& in, auto& out) {
    return prepare(in, out, params, precision);
  };
  cpu::dispatch_columns(stream(), name(), inputs, out, described);
}

} // namespace zmlx
