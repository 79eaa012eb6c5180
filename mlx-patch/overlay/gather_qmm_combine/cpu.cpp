// CPU backend of GatherQMMCombine.
//
// Idea:    a task owns a column block for a chunk of tokens: it runs the rows of every expert through that block into
//          scratch, adds their biases, then weights and sums them in the order of k. The product [.., k, N] never reaches memory.
// Layout:  down [E, N, K * bits / 32] packed; block kernels of cpu/qmm.h.
// Tasks:   (chunk of tokens, 32 to 128 columns).
// Bound:   decode: top_k * N * K * (bits / 8 + 2 * sizeof(T) / group_size) bytes a token.
// Limits:  none beyond MLX's own.

#include "cpu/glu.h"
#include "cpu/task.h"
#include "cpu/thread_pool.h"
#include "gather_qmm_combine/gather_qmm_combine.h"

namespace zmlx {

using mlx::core::array;

namespace {

// Tokens that one task takes together; bounds the scratch to kTokens * top_k * 128 values.
constexpr int64_t kTokens = 512;

void run(const std::vector<array>& in, array& out, const QuantParams& params, Precision precision, bool has_bias) {
  using P = GatherQMMCombine;
  namespace c = zmlx::cpu;
  auto dtype = c::dtype_of(out.dtype());
  int64_t item = c::size_of(dtype);
  c::QuantStack down(in[P::kW], in[P::kScales], params.affine() ? &in[P::kBiases] : nullptr, params, dtype);
  std::optional<c::StridedBlocks> bias;
  if (has_bias) {
    bias.emplace(c::rows_of(in[P::bias_at(params)]));
  }
  auto x = c::matrices_of(in[P::kX]);
  auto indices = c::read_indices(in[P::kRhsIndices]);
  c::check_indices("gather_qmm_combine", indices, down.size(), "rhs_indices");
  auto score_dtype = c::dtype_of(in[P::kScores].dtype());
  auto scores = c::read_dense(in[P::kScores]);

  int64_t top_k = in[P::kRhsIndices].shape(-1);
  int64_t K = in[P::kX].shape(-1);
  int64_t N = out.shape(-1);
  int64_t tokens = out.size() / N;
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
  auto y = out.data<uint8_t>();
  int64_t work = indices.size() * N * K;
  bool whole_blocks = c::want_whole_blocks(precision, indices.size(), num_runs);
  int64_t columns =
      std::min(c::columns_per_task(N, chunks, work, params.transpose, whole_blocks), c::kColumnBlock);
  int64_t blocks = (N + columns - 1) / columns;

  c::parallel_for(chunks * blocks, work, [&](int64_t task) {
    int64_t chunk = task / blocks;
    int64_t n0 = task % blocks * columns;
    int64_t n1 = std::min(n0 + columns, N);
    int64_t width = n1 - n0;
    int64_t first = chunk * kTokens;
    int64_t last = std::min(first + kTokens, tokens);
    int64_t rows = (last - first) * top_k;
    auto products = static_cast<uint8_t*>(c::thread_scratch(c::Scratch::Driver, rows * width * item));
    const void* xs[c::kMaxRows];
    void* ys[c::kMaxRows];
    for (const auto& run : runs[chunk]) {
      int m = run.end - run.begin;
      for (int i = 0; i < m; i++) {
        const auto& route = routes[chunk][run.begin + i];
        xs[i] = route.x;
        ys[i] = products + route.out * width * item;
      }
      kernel(down.at(run.matrix), n0, n1, m, xs, ys);
      for (int i = 0; bias && i < m; i++) {
        c::add_bias_row(dtype, bias->at(run.matrix) + n0 * item, ys[i], width);
      }
    }
    for (int64_t token = first; token < last; token++) {
      c::weighted_sum(
          dtype,
          products + (token - first) * top_k * width * item,
          score_dtype,
          scores.data() + token * top_k * c::size_of(score_dtype),
          top_k,
          width,
          y + (token * N + n0) * item);
    }
  });
}

} // namespace

void GatherQMMCombine::eval_cpu(const std::vector<array>& inputs, array& out) {
  cpu::dispatch_task(stream(), name(), inputs, out, [params = params_, precision = precision_, has_bias = has_bias_](auto& in, auto& out) {
    run(in, out, params, precision, has_bias);
  });
}

} // namespace zmlx
