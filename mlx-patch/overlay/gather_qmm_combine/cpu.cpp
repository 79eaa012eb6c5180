// CPU backend of GatherQMMCombine.
//
// Idea:    a task owns a column block for a chunk of tokens: it runs the rows of every expert through that block into
//          scratch, adds their biases, then weights and sums them in the order of k. The product [.., k, N] never reaches memory.
// Layout:  down [E, N, K * bits / 32] packed; block kernels of cpu/qmm.h.
// Tasks:   (chunk of tokens, 32 to 128 columns). Exact, one token: 32 columns of four experts at once, where a block of 128
//          would leave threads without work.
// Bound:   decode: top_k * N * K * (bits / 8 + 2 * sizeof(T) / group_size) bytes a token.
// Limits:  none beyond MLX's own.

#include "cpu/columns.h"
#include "cpu/glu.h"
#include "cpu/task.h"
#include "cpu/thread_pool.h"
#include "gather_qmm_combine/gather_qmm_combine.h"

namespace zmlx {

using mlx::core::array;

namespace {

// Tokens that one task takes together; bounds the scratch to kTokens * top_k * 128 values.
constexpr int64_t kTokens = 512;

struct Operands {
  Operands(const std::vector<array>& in, array& out, const QuantParams& params, Precision precision, bool has_bias);
  void run() const;

  cpu::DType dtype;
  cpu::QuantStack down;
  std::optional<cpu::StridedBlocks> bias;
  cpu::StridedBlocks x;
  cpu::Indices rhs;
  cpu::DType score_dtype;
  cpu::StridedBlocks scores;
  Precision precision;
  int64_t top_k;
  int64_t K;
  int64_t N;
  int64_t tokens;
  uint8_t* y;
};

Operands::Operands(
    const std::vector<array>& in,
    array& out,
    const QuantParams& params,
    Precision precision,
    bool has_bias)
    : dtype(cpu::dtype_of(out.dtype())),
      down(
          in[GatherQMMCombine::kW],
          in[GatherQMMCombine::kScales],
          params.affine() ? &in[GatherQMMCombine::kBiases] : nullptr,
          params,
          dtype),
      x(cpu::matrices_of(in[GatherQMMCombine::kX])),
      rhs(in[GatherQMMCombine::kRhsIndices]),
      score_dtype(cpu::dtype_of(in[GatherQMMCombine::kScores].dtype())),
      scores(cpu::rows_of(in[GatherQMMCombine::kScores])),
      precision(precision),
      top_k(in[GatherQMMCombine::kRhsIndices].shape(-1)),
      K(in[GatherQMMCombine::kX].shape(-1)),
      N(out.shape(-1)),
      tokens(out.size() / N),
      y(out.data<uint8_t>()) {
  if (has_bias) {
    bias.emplace(cpu::rows_of(in[GatherQMMCombine::bias_at(params)]));
  }
}

void Operands::run() const {
  namespace c = zmlx::cpu;
  int64_t item = c::size_of(dtype);
  auto indices = rhs.read();
  c::check_indices("gather_qmm_combine", indices, down.size(), "rhs_indices");
  int64_t chunks = (tokens + kTokens - 1) / kTokens;
  // Each chunk's routes in the order of the experts; `out` is the row of the chunk's scratch.
  std::vector<std::vector<c::Route>> routes(chunks);
  std::vector<std::vector<c::Run>> runs(chunks);
  int64_t num_runs = 0;
  for (int64_t chunk = 0; chunk < chunks; chunk++) {
    int64_t first = chunk * kTokens * top_k;
    int64_t last = std::min<int64_t>(first + kTokens * top_k, indices.size());
    for (int64_t i = first; i < last; i++) {
      routes[chunk].push_back({x.at(i), indices[i], i - first});
    }
    runs[chunk] = c::group_routes(routes[chunk]);
    num_runs += runs[chunk].size();
  }
  auto kernel = down.kernel(precision);
  int64_t work = indices.size() * N * K;
  // A few columns of every expert are as good as a block of one.
  int64_t blocks = (N + c::kColumnBlock - 1) / c::kColumnBlock;
  bool slices = K > 0 && top_k > 2 && c::want_slices(precision, true, indices.size(), num_runs, chunks * blocks);
  auto product = [&](int64_t chunk, int64_t n0, int64_t n1) {
    int64_t width = n1 - n0;
    int64_t first = chunk * kTokens;
    int64_t last = std::min(first + kTokens, tokens);
    int64_t rows = (last - first) * top_k;
    auto products = static_cast<uint8_t*>(c::thread_scratch(c::Scratch::Driver, rows * width * item));
    const void* xs[c::kMaxRows];
    void* ys[c::kMaxRows];
    if (slices) {
      thread_local std::vector<c::Slice> parts;
      parts.clear();
      for (const auto& run : runs[chunk]) {
        const auto& route = routes[chunk][run.begin];
        for (int64_t n = n0; n < n1; n += c::kTransposedBlock) {
          int64_t end = std::min(n + c::kTransposedBlock, n1);
          parts.push_back({down.at(run.matrix), n, end, route.x, products + (route.out * width + n - n0) * item});
        }
      }
      c::kernels().exact_slices(parts.data(), parts.size());
    }
    for (const auto& run : runs[chunk]) {
      int m = run.end - run.begin;
      for (int i = 0; i < m; i++) {
        const auto& route = routes[chunk][run.begin + i];
        xs[i] = route.x;
        ys[i] = products + route.out * width * item;
      }
      if (!slices) {
        kernel(down.at(run.matrix), n0, n1, m, xs, ys);
      }
      for (int i = 0; bias && i < m; i++) {
        c::add_bias_row(dtype, bias->at(run.matrix) + n0 * item, ys[i], width);
      }
    }
    for (int64_t token = first; token < last; token++) {
      c::weighted_sum(
          dtype,
          products + (token - first) * top_k * width * item,
          score_dtype,
          scores.at(token),
          top_k,
          width,
          y + (token * N + n0) * item);
    }
  };
  c::ColumnWork columns = {
      .runs = chunks,
      .columns = N,
      .work = work,
      .transpose = true,
      .whole_blocks = !slices && c::want_whole_blocks(precision, indices.size(), num_runs),
      .same_matrix = false,
      .most_columns = slices ? c::kTransposedBlock : c::kColumnBlock,
      .narrow = c::want_narrow(precision, true, indices.size(), num_runs),
      .product = product};
  const c::ColumnWork* const works[] = {&columns};
  c::run_columns(works);
}

} // namespace

void GatherQMMCombine::eval_cpu(const std::vector<array>& inputs, array& out) {
  cpu::dispatch_prepared(stream(), name(), inputs, out, [params = params_, precision = precision_, has_bias = has_bias_](auto& in, auto& out) {
    return [operands = std::make_shared<Operands>(in, out, params, precision, has_bias)] { operands->run(); };
  });
}

} // namespace zmlx
