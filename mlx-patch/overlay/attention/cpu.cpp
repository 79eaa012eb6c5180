// CPU backend of Attention.
//
// Idea:    queries that share a key head go together: a block of keys is unpacked once for up to 64 rows, and every
//          product is a tile with one lane per key (q k^T) or per value column (p v), summed in order over the inner
//          axis. That order is stock's, so exact costs no speed. Exact keeps whole rows of scores, because stock rounds
//          them before the softmax and sums the exponentials in order; fast runs over blocks of keys with a running
//          maximum (arXiv:2205.14135) and rounds nothing before the result.
//          A window cuts whole blocks of keys away; a sink starts its row's maximum and sum; rotated parts are a second
//          product whose rounded values join the scores.
// Layout:  one cache for all batch rows, or one of its own length for each. q, k, v by rows with any strides over batch,
//          heads and length: cache slices are read in place. The result is [B, H, Lq, D] over memory [B, Lq, H, D], so
//          that merging the heads copies nothing.
// Tasks:   (batch row, key head, block of query rows), the longest causal rows first. Fast, one query, no window: also parts
//          of the keys, whose sums are joined afterwards. Where a row's keys are cut depends on their number alone: a row
//          of a batch has the bits that it has alone, with any number of threads.
// Bound:   decode: the bytes of k and v; prefill: 2 * H * Lq * Lk * (D + R + Dv) FLOPs, half of it when causal.
// Limits:  exact: values behind the causal mask are taken to be finite (stock multiplies them by zero), and so are
//          scores (a row whose visible scores are all -inf is not given stock's even weights).

#include <cmath>
#include <limits>
#include <optional>

#include "attention/attention.h"
#include "cpu/operands.h"
#include "cpu/step.h"
#include "cpu/task.h"
#include "cpu/thread_pool.h"
#include "mlx/allocator.h"
#include "mlx/types/half_types.h"

namespace zmlx {

using mlx::core::array;

namespace {

// [B, H, L, D] with contiguous rows; a dense copy where they are not. Made when the task is, of an array that will have
// its values once the task runs.
class Heads {
 public:
  explicit Heads(const array& a) : data_(a.data<uint8_t>()), length_(a.shape(2)) {
    int64_t item = a.itemsize();
    if (a.shape(3) > 1 && a.strides(3) != 1) {
      strided_ = array::unsafe_weak_copy(a);
      row_ = a.shape(3) * item;
      head_ = a.shape(2) * row_;
      batch_ = a.shape(1) * head_;
    } else {
      batch_ = a.strides(0) * item;
      head_ = a.strides(1) * item;
      row_ = a.strides(2) * item;
    }
  }

  void read() {
    if (strided_) {
      copy_ = cpu::read_dense(*strided_);
      data_ = copy_.data();
    }
  }

  const uint8_t* at(int64_t b, int64_t h, int64_t l = 0) const {
    return data_ + b * batch_ + h * head_ + l * row_;
  }
  int64_t row_bytes() const {
    return row_;
  }
  int64_t length() const {
    return length_;
  }

 private:
  std::optional<array> strided_;
  std::vector<uint8_t> copy_;
  const uint8_t* data_;
  int64_t length_;
  int64_t batch_;
  int64_t head_;
  int64_t row_;
};

// Rows of one task: whole rows of exact scores should stay in L2, and every thread should have work.
int64_t rows_per_task(int64_t groups, int64_t rows, int64_t num_keys, bool exact) {
  constexpr int64_t kScoreFloats = 1 << 17;
  constexpr int64_t kTile = 8;
  int64_t fewest = exact ? 2 : kTile; // exact rows do not depend on who is beside them
  int64_t m = cpu::kMaxQueries;
  if (exact) {
    m = std::clamp(kScoreFloats / cpu::round_up(num_keys, cpu::kKeyBlock) / kTile * kTile, kTile, m);
  }
  while (m > fewest && groups * ((rows + m - 1) / m) < cpu::pool_width()) {
    m /= 2;
  }
  return std::min(m, rows);
}

// Parts of the keys of a single query, of about 256 keys each: less is not worth a task.
int64_t key_parts(int64_t num_keys) {
  constexpr int64_t kPartKeys = 4 * cpu::kKeyBlock;
  return (num_keys + kPartKeys - 1) / kPartKeys;
}

// y = the values of a row, from `count` parts that lie `stride` floats apart.
template <typename T>
void join_parts(const float* parts, int64_t count, int64_t stride, int64_t dim, T* y) {
  constexpr float kNone = -std::numeric_limits<float>::infinity();
  float max = kNone;
  for (int64_t p = 0; p < count; p++) {
    float m = parts[p * stride];
    max = m > max || m != m ? m : max;
  }
  float sum = 0;
  std::vector<float> values(dim);
  for (int64_t p = 0; p < count; p++) {
    const float* part = parts + p * stride;
    if (part[0] == kNone && max != kNone) {
      continue; // it weighs nothing, and its own sums are not numbers
    }
    float weight = std::exp(part[0] - max);
    sum += weight * part[1];
    for (int64_t d = 0; d < dim; d++) {
      values[d] += weight * part[cpu::kPad + d];
    }
  }
  for (int64_t d = 0; d < dim; d++) {
    y[d] = static_cast<T>(values[d] / sum);
  }
}

void join_parts(cpu::DType dtype, const float* parts, int64_t count, int64_t stride, int64_t dim, uint8_t* y) {
  switch (dtype) {
    case cpu::DType::F32:
      return join_parts(parts, count, stride, dim, reinterpret_cast<float*>(y));
    case cpu::DType::F16:
      return join_parts(parts, count, stride, dim, reinterpret_cast<mlx::core::float16_t*>(y));
    case cpu::DType::BF16:
      return join_parts(parts, count, stride, dim, reinterpret_cast<mlx::core::bfloat16_t*>(y));
  }
}

// What a task needs of its arrays: of a batch with many caches they would be dear to copy.
struct Operands {
  Operands(const std::vector<array>& inputs, const array& out, const Attention::State& state)
      : Operands(Attention::Inputs(inputs, state), out, state.has_rope) {}

  Operands(const Attention::Inputs& in, const array& out, bool has_rope)
      : q(in.q()), dtype(cpu::dtype_of(out.dtype())), y(const_cast<uint8_t*>(out.data<uint8_t>())) {
    for (int i = 0; i < in.caches(); i++) {
      caches.push_back({Heads(in.k(i)), Heads(in.v(i)), std::nullopt, in.k(i).shape(2)});
      if (has_rope) {
        caches.back().k_rope.emplace(in.k_rope(i));
      }
    }
    if (auto counts = in.lengths()) {
      lengths = counts->data<int32_t>();
      length_stride = counts->strides(0);
    }
    if (has_rope) {
      q_rope.emplace(in.q_rope());
      R = in.q_rope().shape(3);
    }
    if (in.sinks()) {
      sinks = array::unsafe_weak_copy(*in.sinks());
    }
    B = out.shape(0);
    H = out.shape(1);
    Lq = out.shape(2);
    Dv = out.shape(3);
    D = in.q().shape(3);
    Hkv = in.k(0).shape(1);
  }

  // Once the arrays have their values.
  void read() {
    q.read();
    if (q_rope) {
      q_rope->read();
    }
    for (size_t i = 0; i < caches.size(); i++) {
      auto& cache = caches[i];
      cache.k.read();
      cache.v.read();
      if (cache.k_rope) {
        cache.k_rope->read();
      }
      if (lengths) {
        cache.length = std::clamp<int64_t>(lengths[i * length_stride], 1, cache.length);
      }
    }
    if (sinks) {
      head_sinks = cpu::read_floats(*sinks);
    }
  }

  // A cache of a batch row's own, or the one that all share.
  struct Cache {
    Heads k;
    Heads v;
    std::optional<Heads> k_rope;
    int64_t length;
  };

  Heads q;
  std::optional<Heads> q_rope;
  std::vector<Cache> caches;
  std::optional<array> sinks;
  std::vector<float> head_sinks;
  const int32_t* lengths{nullptr};
  int64_t length_stride{0};
  cpu::DType dtype;
  uint8_t* y;
  int64_t B, H, Lq, Dv, D, Hkv;
  int64_t R{0};
};

void run(Operands& o, const Attention::State& state) {
  namespace c = zmlx::cpu;
  auto& kernels = c::step_kernels();
  bool exact = state.precision == Precision::Exact;
  auto kernel = exact ? kernels.attention_exact : kernels.attention_fast;
  auto dtype = o.dtype;
  int64_t item = c::size_of(dtype);
  o.read();
  auto& q = o.q;
  auto& q_rope = o.q_rope;
  auto& sinks = o.head_sinks;
  auto& caches = o.caches;
  int64_t H = o.H;
  int64_t Lq = o.Lq;
  int64_t D = o.D;
  int64_t Dv = o.Dv;
  int64_t R = o.R;
  int64_t Hkv = o.Hkv;
  int64_t longest = 0;
  int64_t all_keys = 0;
  for (auto& cache : caches) {
    longest = std::max(longest, cache.length);
    all_keys += (caches.size() > 1 ? 1 : o.B) * cache.length;
  }
  int64_t repeats = H / Hkv;
  int64_t groups = o.B * Hkv;
  int64_t rows = Lq * repeats;
  // Keys that the rows of a task see together.
  auto span_of = [&](int64_t m) {
    return state.window ? std::min<int64_t>(longest, state.window + m / repeats + 1 + c::kKeyBlock) : longest;
  };
  int64_t m = rows_per_task(groups, rows, span_of(c::kMaxQueries), exact);
  int64_t span = span_of(m);
  int64_t blocks = (rows + m - 1) / m;
  bool cut = !exact && Lq == 1 && !state.window && key_parts(longest) > 1;
  int64_t parts = cut ? key_parts(longest) : 1; // of the longest row; shorter ones leave some empty
  int64_t part_floats = c::attention_part(Dv);
  int64_t heads = o.B * H;
  float* sums = nullptr; // [part][batch row][head]
  if (cut) {
    sums = static_cast<float*>(c::thread_scratch(c::Scratch::Driver, parts * heads * part_floats * sizeof(float)));
  }
  int64_t scratch = c::attention_scratch(m, span, D, Dv, R, exact);
  auto y = o.y;

  // A group's vectors are laid out in tiles and its sums taken up and put down, however few keys there are: about 5 us for
  // eight queries. A vector takes 16 multiply-adds, and a causal mask halves them.
  constexpr int64_t kGroupWork = 1 << 15;
  int64_t work = std::min(all_keys, groups / Hkv * span) * Hkv * rows * (D + R + Dv) / (state.causal && Lq > 1 ? 16 : 8) +
      groups * blocks * kGroupWork;
  c::parallel_for(groups * blocks * parts, work, [&](int64_t task) {
    int64_t index = task / parts;
    int64_t part = task % parts;
    int64_t b = index % groups / Hkv;
    int64_t h = index % groups % Hkv;
    int64_t first_row = (blocks - 1 - index / groups) * m;
    auto& cache = caches[caches.size() > 1 ? b : 0];
    int64_t cache_row = caches.size() > 1 ? 0 : b;
    int64_t Lk = cache.length;
    if (cut && part >= key_parts(Lk)) {
      return;
    }
    const uint8_t* queries[c::kMaxQueries];
    const uint8_t* rotated[c::kMaxQueries];
    uint8_t* results[c::kMaxQueries];
    int64_t first[c::kMaxQueries];
    int64_t visible[c::kMaxQueries];
    float row_sinks[c::kMaxQueries];
    c::AttentionTask t = {};
    t.num_rows = std::min(m, rows - first_row);
    for (int i = 0; i < t.num_rows; i++) {
      int64_t l = (first_row + i) / repeats;
      int64_t head = h * repeats + (first_row + i) % repeats;
      queries[i] = q.at(b, head, l);
      if (q_rope) {
        rotated[i] = q_rope->at(b, head, l);
      }
      if (!sinks.empty()) {
        row_sinks[i] = sinks[head];
      }
      results[i] = y + ((b * Lq + l) * H + head) * Dv * item;
      visible[i] = state.causal ? l + Lk - Lq + 1 : Lk;
      first[i] = state.window ? std::max<int64_t>(visible[i] - state.window, 0) : 0;
      if (visible[i] <= 0) {
        visible[i] = Lk;
        t.blind = i + 1;
      }
    }
    t.dtype = dtype;
    t.q = queries;
    t.out = results;
    t.first = first;
    t.visible = visible;
    t.sinks = sinks.empty() ? nullptr : row_sinks;
    t.k = cache.k.at(cache_row, h);
    t.v = cache.v.at(cache_row, h);
    t.k_row_bytes = cache.k.row_bytes();
    t.v_row_bytes = cache.v.row_bytes();
    if (q_rope) {
      t.q_rope = rotated;
      t.k_rope = cache.k_rope->at(cache_row, 0);
      t.k_rope_row_bytes = cache.k_rope->row_bytes();
      t.rope_dim = R;
    }
    t.span = t.blind ? Lk : span;
    t.head_dim = D;
    t.value_dim = Dv;
    t.scale = state.scale;
    int64_t floats = t.blind ? c::attention_scratch(m, Lk, D, Dv, R, exact) : scratch;
    t.scratch = static_cast<float*>(c::thread_scratch(c::Scratch::Kernel, floats * sizeof(float)));
    if (int64_t count = key_parts(Lk); cut && count > 1) {
      int64_t key_blocks = (Lk + c::kKeyBlock - 1) / c::kKeyBlock;
      std::fill_n(first, t.num_rows, key_blocks * part / count * c::kKeyBlock);
      std::fill_n(visible, t.num_rows, std::min(key_blocks * (part + 1) / count * c::kKeyBlock, Lk));
      t.sinks = part == 0 ? t.sinks : nullptr;
      t.parts = sums + (part * heads + b * H + h * repeats + first_row) * part_floats;
    }
    kernel(t);
  });
  if (cut) {
    c::parallel_for(heads, heads * parts * Dv, [&](int64_t head) {
      int64_t count = key_parts(caches[caches.size() > 1 ? head / H : 0].length);
      if (count > 1) {
        join_parts(dtype, sums + head * part_floats, count, heads * part_floats, Dv, y + head * Dv * item);
      }
    });
  }
}

} // namespace

void Attention::eval_cpu(const std::vector<array>& inputs, array& out) {
  auto buffer = mlx::core::allocator::malloc(out.nbytes());
  int64_t H = out.shape(1);
  int64_t L = out.shape(2);
  int64_t D = out.shape(3);
  if (H == 1 || L == 1 || out.size() == 0) {
    out.set_data(std::move(buffer));
  } else {
    auto flags = out.flags();
    flags.contiguous = true;
    flags.row_contiguous = false;
    flags.col_contiguous = false;
    out.set_data(std::move(buffer), out.size(), {L * H * D, D, H * D, 1}, flags);
  }
  auto& encoder = mlx::core::cpu::get_command_encoder(stream());
  encoder.set_output_array(out);
  if (out.size() == 0) {
    return;
  }
  if (inputs[kK].shape(2) == 0) {
    cpu::dispatch(stream(), name(), [out = array::unsafe_weak_copy(out)]() mutable {
      std::fill_n(out.data<uint8_t>(), out.nbytes(), 0);
    });
    return;
  }
  for (auto& a : inputs) {
    encoder.set_input_array(a);
  }
  cpu::dispatch(stream(), name(), [operands = Operands(inputs, out, state_), state = state_]() mutable {
    run(operands, state);
  });
}

} // namespace zmlx
