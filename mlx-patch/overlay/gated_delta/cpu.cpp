// CPU backend of GatedDelta.
//
// Idea:    one pass in place of some fifteen ops a token. A sum over keys has an order, values do not depend on each other:
//          values are the lanes. For that the state lies transposed in memory, [.., Dk, Dv]; it is written over where
//          nobody else holds it. A state that lies otherwise (from a file, or zeros) is transposed once.
// Layout:  qkv, z by rows; y [B, L, Hv, Dv].
// Tasks:   one per batch row and value head.
// Exact:   MLX's own functors for the few numbers of a head, its order of summation, types rounded as by its ops.
// Bound:   decode: one read and write of the state (2 MB in a layer of Qwen3.5-35B-A3B); prefill: seven operations for
//          each element of the state and token.
// Limits:  none.

#include "cpu/operands.h"
#include "cpu/step.h"
#include "cpu/task.h"
#include "cpu/thread_pool.h"
#include "gated_delta/gated_delta.h"
#include "mlx/allocator.h"
#include "mlx/backend/cpu/binary_ops.h"
#include "mlx/backend/cpu/unary_ops.h"

namespace zmlx {

using mlx::core::array;
using mlx::core::bfloat16_t;
using mlx::core::float16_t;

namespace {

// Tokens whose queries and keys are held at once.
constexpr int64_t kTokens = 64;

mlx::core::Strides transposed(const mlx::core::Shape& shape) {
  int64_t values = shape[2];
  int64_t keys = shape[3];
  return {shape[1] * values * keys, values * keys, 1, values};
}

bool is_transposed(const array& state) {
  auto strides = transposed(state.shape());
  for (int axis = 0; axis < static_cast<int>(state.ndim()); axis++) {
    if (state.shape(axis) > 1 && state.strides(axis) != strides[axis]) {
      return false;
    }
  }
  return true;
}

// softplus(a + dt_bias) in the type of the sum
template <typename T>
float softplus(T a, T dt_bias) {
  namespace d = mlx::core::detail;
  return static_cast<float>(d::LogAddExp{}(d::Add{}(a, dt_bias), static_cast<T>(0.0f)));
}

template <typename T>
float decay_of(const T& a, float a_log, const array& dt_bias, int64_t head) {
  namespace d = mlx::core::detail;
  float rate = -d::Exp{}(a_log);
  auto at = head * dt_bias.strides(0);
  float amount = dt_bias.dtype() == mlx::core::float32 ? softplus(static_cast<float>(a), dt_bias.data<float>()[at])
                                                       : softplus(a, dt_bias.data<T>()[at]);
  return d::Exp{}(rate * amount);
}

// Where everything is.
template <typename T>
struct Job {
  Job(const std::vector<array>& in, std::vector<array>& out, float eps)
      : n(GatedDelta::sizes(in)),
        scales(GatedDelta::scales(n.key_dim)),
        norm_eps(eps),
        dtype(cpu::dtype_of(in[GatedDelta::kQKV].dtype())),
        qkv(cpu::matrices_of(in[GatedDelta::kQKV])),
        z(cpu::rows_of(in[GatedDelta::kZ])),
        b(cpu::rows_of(in[GatedDelta::kB])),
        a(cpu::rows_of(in[GatedDelta::kA])),
        norm(cpu::rows_of(in[GatedDelta::kNorm])),
        a_log(in[GatedDelta::kALog]),
        dt_bias(in[GatedDelta::kDtBias]),
        state(in[GatedDelta::kState]),
        y(out[GatedDelta::kY].data<T>()),
        memory(out[GatedDelta::kNewState].data<float>()) {}

  GatedDelta::Sizes n;
  GatedDelta::Scales scales;
  float norm_eps;
  cpu::DType dtype;
  cpu::StridedBlocks qkv;
  cpu::StridedBlocks z;
  cpu::StridedBlocks b;
  cpu::StridedBlocks a;
  cpu::StridedBlocks norm;
  const array& a_log;
  const array& dt_bias;
  const array& state;
  T* y;
  float* memory;
};

// The memory that a head starts with, its values together; written to `into` where it lies otherwise.
template <typename T>
const float* memory_before(const Job<T>& job, int64_t batch, int64_t head, float* into) {
  const array& state = job.state;
  auto from = state.data<float>() + batch * state.strides(0) + head * state.strides(1);
  if (is_transposed(state)) {
    return from;
  }
  for (int64_t i = 0; i < job.n.key_dim; i++) {
    for (int64_t j = 0; j < job.n.value_dim; j++) {
      into[i * job.n.value_dim + j] = from[j * state.strides(2) + i * state.strides(3)];
    }
  }
  return into;
}

// Queries and keys of tokens first .. first + m, normalised.
template <typename T>
void unit_rows(const Job<T>& job, int64_t batch, int64_t head, int64_t first, int64_t m, float* q, float* k) {
  auto& kernels = cpu::step_kernels();
  auto& n = job.n;
  int64_t bytes = n.key_dim * sizeof(T);
  auto rounded = [](float x) { return static_cast<float>(static_cast<T>(x)); };
  float factors[2] = {rounded(job.scales.query), rounded(job.scales.key)};
  float* to[2] = {q, k};
  // queries and keys take turns, so that those of one token share the lanes
  auto row = [&](int64_t i) {
    auto token = job.qkv.at(batch) + (first + i / 2) * job.qkv.row_stride();
    return token + (i % 2 * n.key_heads + head) * bytes;
  };
  for (int64_t r0 = 0; r0 < 2 * m; r0 += kernels.lanes) {
    int count = std::min<int64_t>(kernels.lanes, 2 * m - r0);
    const uint8_t* rows[cpu::kMaxLanes] = {};
    float scale[cpu::kMaxLanes];
    for (int i = 0; i < count; i++) {
      rows[i] = row(r0 + i);
    }
    kernels.rms_scale(job.dtype, rows, count, n.key_dim, job.scales.eps, scale);
    for (int i = 0; i < count; i++) {
      int64_t at = r0 + i;
      auto out = to[at % 2] + at / 2 * n.key_dim;
      kernels.scaled_row(job.dtype, rows[i], scale[i], factors[at % 2], out, n.key_dim);
    }
  }
}

// y of tokens first .. first + m: norm(y) under the gate.
template <typename T>
void norm_and_gate(const Job<T>& job, int64_t batch, int64_t head, int64_t first, int64_t m) {
  auto& kernels = cpu::step_kernels();
  auto& n = job.n;
  auto index = [&](int64_t l) { return (batch * n.length + l) * n.value_heads + head; };
  auto row = [&](int64_t l) { return reinterpret_cast<uint8_t*>(job.y + index(l) * n.value_dim); };
  for (int64_t l0 = first; l0 < first + m; l0 += kernels.lanes) {
    int count = std::min<int64_t>(kernels.lanes, first + m - l0);
    const uint8_t* rows[cpu::kMaxLanes] = {};
    float scale[cpu::kMaxLanes];
    for (int i = 0; i < count; i++) {
      rows[i] = row(l0 + i);
    }
    kernels.rms_scale(job.dtype, rows, count, n.value_dim, job.norm_eps, scale);
    for (int i = 0; i < count; i++) {
      auto y = row(l0 + i);
      kernels.norm_row(job.dtype, y, job.norm.at(0), scale[i], y, n.value_dim);
      kernels.gate_row(job.dtype, job.z.at(index(l0 + i)), y, y, n.value_dim);
    }
  }
}

template <typename T>
void run_head(const Job<T>& job, int64_t batch, int64_t head) {
  auto& n = job.n;
  int64_t m = std::min<int64_t>(kTokens, n.length);
  int64_t floats = n.key_dim * (2 * m + cpu::kMaxValueBlock) + 2 * m;
  auto scratch = static_cast<float*>(cpu::thread_scratch(cpu::Scratch::Driver, floats * sizeof(float)));
  float* q = scratch + n.key_dim * cpu::kMaxValueBlock;
  float* k = q + n.key_dim * m;
  float* decay = k + n.key_dim * m;
  float* beta = decay + m;
  int64_t key_head = head / (n.value_heads / n.key_heads);
  int64_t values = 2 * int64_t{n.key_heads} * n.key_dim + head * n.value_dim;
  float* memory = job.memory + (batch * n.value_heads + head) * int64_t{n.key_dim} * n.value_dim;
  float a_log = job.a_log.template data<float>()[head * job.a_log.strides(0)];

  cpu::DeltaTask task = {};
  task.dtype = job.dtype;
  task.key_dim = n.key_dim;
  task.value_dim = n.value_dim;
  task.q = q;
  task.k = k;
  task.decay = decay;
  task.beta = beta;
  task.v_stride = job.qkv.row_stride();
  task.memory = memory_before(job, batch, head, memory);
  task.new_memory = memory;
  task.y_stride = int64_t{n.value_heads} * n.value_dim * sizeof(T);
  task.scratch = scratch;
  for (int64_t first = 0; first < n.length; first += m) {
    m = std::min(m, n.length - first);
    unit_rows(job, batch, key_head, first, m, q, k);
    for (int64_t i = 0; i < m; i++) {
      int64_t row = batch * n.length + first + i;
      decay[i] = decay_of(reinterpret_cast<const T*>(job.a.at(row))[head], a_log, job.dt_bias, head);
      auto b = reinterpret_cast<const T*>(job.b.at(row))[head];
      beta[i] = static_cast<float>(mlx::core::detail::Sigmoid{}(b));
    }
    task.length = m;
    task.v = job.qkv.at(batch) + first * task.v_stride + values * sizeof(T);
    task.y = reinterpret_cast<uint8_t*>(job.y + ((batch * n.length + first) * n.value_heads + head) * n.value_dim);
    cpu::step_kernels().delta_rule(task);
    task.memory = memory;
    norm_and_gate(job, batch, head, first, m);
  }
}

template <typename T>
void run(const std::vector<array>& in, std::vector<array>& out, float norm_eps) {
  Job<T> job(in, out, norm_eps);
  int64_t heads = int64_t{job.n.batch} * job.n.value_heads;
  int64_t work = heads * job.n.length * job.n.key_dim * job.n.value_dim * 4;
  cpu::parallel_for(heads, work, [&](int64_t i) {
    run_head(job, i / job.n.value_heads, i % job.n.value_heads);
  });
}

} // namespace

void GatedDelta::eval_cpu(const std::vector<array>& inputs, std::vector<array>& outputs) {
  auto& y = outputs[kY];
  y.set_data(mlx::core::allocator::malloc(y.nbytes()));
  auto& state = inputs[kState];
  auto& next = outputs[kNewState];
  if (state.is_donatable() && state.data_size() == state.size() && is_transposed(state)) {
    next.copy_shared_buffer(state);
  } else {
    auto flags = next.flags();
    flags.contiguous = true;
    flags.row_contiguous = next.size() <= 1 || next.shape(2) == 1 || next.shape(3) == 1;
    flags.col_contiguous = next.size() <= 1;
    next.set_data(
        mlx::core::allocator::malloc(next.nbytes()), next.size(), transposed(next.shape()), flags);
  }
  cpu::dispatch_task(stream(), name(), inputs, outputs, [eps = norm_eps_](auto& in, auto& out) {
    switch (cpu::dtype_of(in[kQKV].dtype())) {
      case cpu::DType::F32:
        return run<float>(in, out, eps);
      case cpu::DType::F16:
        return run<float16_t>(in, out, eps);
      case cpu::DType::BF16:
        return run<bfloat16_t>(in, out, eps);
    }
  });
}

} // namespace zmlx
