// The C++ half of src/bridge.rs: thin functions over mlx::core, no logic.
#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "error.h"
#include "mlx/mlx.h"
#include "rust/cxx.h"

namespace zmlx {
class Recording;
}

namespace zmlx_sys {

namespace mx = mlx::core;

enum class DtypeId : uint8_t;
struct StreamId;
struct QuantParams;
struct Support;
struct Parameter;
struct ProfileSpans;
struct RouterParams;
struct GluParams;
struct Callback;
struct GraphNode;

// An mlx array that counts itself, so that tests can prove nothing leaks.
struct Array {
  mx::array a;
  explicit Array(mx::array arr);
  ~Array();
  Array(const Array&) = delete;
  Array& operator=(const Array&) = delete;
};

struct ArrayVec {
  std::vector<mx::array> v;
};

struct NamedArrays {
  std::vector<std::pair<std::string, mx::array>> v;
  std::vector<std::pair<std::string, std::string>> metadata;
};

struct ImportedFn {
  mx::ImportedFunction f;
};

// A step that can be taken again, of the thread and the stream that it was recorded on.
struct Recording {
  std::shared_ptr<zmlx::Recording> r;
};

using ArrayPtr = std::unique_ptr<Array>;
using ArrayVecPtr = std::unique_ptr<ArrayVec>;
using Ints = rust::Slice<const int32_t>;

// Helpers for the .cc files.
ArrayPtr box(mx::array a);
ArrayVecPtr box(std::vector<mx::array> v);
mx::Shape to_shape(Ints s);
std::vector<int> to_ints(Ints s);
mx::Dtype to_dtype(DtypeId d);
std::optional<mx::array> opt(const ArrayPtr& p);
// Throws where a shape of the graph is not one that memory can hold. To be called before `eval`.
void check_graph(const std::vector<mx::array>& outputs);
// The current thread's default stream of the default device: what every op here runs on.
mx::Stream current();

// While a thread plans, ops of mlx::core::fast are one node each, as on a GPU (graph.cc). `real` is what MLX returned.
mx::array plan_norm(
    const char* name,
    const mx::array& real,
    const mx::array& x,
    std::vector<mx::array> parts);
mx::array plan_rope(
    const mx::array& real,
    const mx::array& x,
    int dims,
    const mx::array& offset,
    const std::optional<mx::array>& freqs);
std::vector<mx::array> plan_quantize(const std::vector<mx::array>& real, std::vector<mx::array> inputs);
// Nothing where Metal has no kernel for it either.
std::optional<mx::array> plan_attention(
    const mx::array& real,
    const mx::array& q,
    const mx::array& k,
    const mx::array& v,
    bool causal,
    const std::optional<mx::array>& mask,
    const std::optional<mx::array>& sinks);

// handles and lists (array.cc)
size_t live_arrays() noexcept;
ArrayPtr array_clone(const Array& a) noexcept;
ArrayPtr array_from_bytes(rust::Slice<const uint8_t> data, Ints shape, DtypeId dtype);
DtypeId array_dtype(const Array& a) noexcept;
size_t array_ndim(const Array& a) noexcept;
rust::Slice<const int32_t> array_shape(const Array& a) noexcept;
size_t array_size(const Array& a) noexcept;
size_t array_nbytes(const Array& a) noexcept;
bool array_is_available(const Array& a) noexcept;
bool array_is_row_contiguous(const Array& a) noexcept;
rust::Slice<const uint8_t> array_bytes(const Array& a);
void array_detach(Array& a);
ArrayVecPtr vec_new() noexcept;
void vec_push(ArrayVec& v, const Array& a) noexcept;
size_t vec_len(const ArrayVec& v) noexcept;
ArrayPtr vec_get(const ArrayVec& v, size_t i);
std::unique_ptr<NamedArrays> named_new() noexcept;
void named_push(NamedArrays& n, rust::Str name, const Array& a) noexcept;
void named_push_metadata(NamedArrays& n, rust::Str key, rust::Str value) noexcept;
size_t named_len(const NamedArrays& n) noexcept;
rust::String named_name(const NamedArrays& n, size_t i);
ArrayPtr named_array(const NamedArrays& n, size_t i);
rust::Vec<rust::String> named_metadata(const NamedArrays& n) noexcept;

// evaluation, devices, streams, memory (runtime.cc)
void eval(const ArrayVec& v);
void async_eval(const ArrayVec& v);
void synchronize();
void synchronize_stream(StreamId s);
bool gpu_available() noexcept;
bool default_device_is_gpu() noexcept;
void set_default_device(bool gpu);
rust::String device_name(bool gpu);
StreamId default_stream(bool gpu);
void set_default_stream(StreamId s);
StreamId new_stream(bool gpu);
rust::String mlx_version() noexcept;
size_t memory_active();
size_t memory_peak();
void memory_reset_peak();
size_t memory_cache();
size_t memory_set_cache_limit(size_t bytes);
size_t memory_set_limit(size_t bytes);
void memory_clear_cache();
void end_process(int32_t code);
std::unique_ptr<NamedArrays> load_safetensors(rust::Str path);
void save_safetensors(rust::Str path, const NamedArrays& arrays);

// ops (ops.cc)
ArrayPtr abs(const Array& a);
ArrayPtr negative(const Array& a);
ArrayPtr exp(const Array& a);
ArrayPtr log(const Array& a);
ArrayPtr log1p(const Array& a);
ArrayPtr sqrt(const Array& a);
ArrayPtr rsqrt(const Array& a);
ArrayPtr square(const Array& a);
ArrayPtr sin(const Array& a);
ArrayPtr cos(const Array& a);
ArrayPtr tanh(const Array& a);
ArrayPtr sigmoid(const Array& a);
ArrayPtr erf(const Array& a);
ArrayPtr floor(const Array& a);
ArrayPtr ceil(const Array& a);
ArrayPtr round(const Array& a);
ArrayPtr logical_not(const Array& a);
ArrayPtr isnan(const Array& a);
ArrayPtr isinf(const Array& a);
ArrayPtr stop_gradient(const Array& a);
ArrayPtr add(const Array& a, const Array& b);
ArrayPtr subtract(const Array& a, const Array& b);
ArrayPtr multiply(const Array& a, const Array& b);
ArrayPtr divide(const Array& a, const Array& b);
ArrayPtr floor_divide(const Array& a, const Array& b);
ArrayPtr remainder(const Array& a, const Array& b);
ArrayPtr power(const Array& a, const Array& b);
ArrayPtr maximum(const Array& a, const Array& b);
ArrayPtr minimum(const Array& a, const Array& b);
ArrayPtr logaddexp(const Array& a, const Array& b);
ArrayPtr matmul(const Array& a, const Array& b);
ArrayPtr equal(const Array& a, const Array& b);
ArrayPtr not_equal(const Array& a, const Array& b);
ArrayPtr less(const Array& a, const Array& b);
ArrayPtr less_equal(const Array& a, const Array& b);
ArrayPtr greater(const Array& a, const Array& b);
ArrayPtr greater_equal(const Array& a, const Array& b);
ArrayPtr logical_and(const Array& a, const Array& b);
ArrayPtr logical_or(const Array& a, const Array& b);
ArrayPtr sum(const Array& a, rust::Slice<const int32_t> axes, bool keepdims);
ArrayPtr mean(const Array& a, rust::Slice<const int32_t> axes, bool keepdims);
ArrayPtr max(const Array& a, rust::Slice<const int32_t> axes, bool keepdims);
ArrayPtr min(const Array& a, rust::Slice<const int32_t> axes, bool keepdims);
ArrayPtr prod(const Array& a, rust::Slice<const int32_t> axes, bool keepdims);
ArrayPtr all(const Array& a, rust::Slice<const int32_t> axes, bool keepdims);
ArrayPtr any(const Array& a, rust::Slice<const int32_t> axes, bool keepdims);
ArrayPtr logsumexp(const Array& a, rust::Slice<const int32_t> axes, bool keepdims);
ArrayPtr addmm(const Array& c, const Array& a, const Array& b);
ArrayPtr conv1d(const Array& x, const Array& w, int32_t groups);
ArrayPtr astype(const Array& a, DtypeId dtype);
ArrayPtr view(const Array& a, DtypeId dtype);
ArrayPtr select(const Array& cond, const Array& a, const Array& b);
ArrayPtr array_equal(const Array& a, const Array& b, bool equal_nan);
ArrayPtr softmax(const Array& a, int32_t axis, bool precise);
ArrayPtr cumsum(const Array& a, int32_t axis, bool reverse, bool inclusive);
ArrayPtr zeros(Ints shape, DtypeId dtype);
ArrayPtr ones(Ints shape, DtypeId dtype);
ArrayPtr full(Ints shape, const Array& value, DtypeId dtype);
ArrayPtr arange(double start, double stop, double step, DtypeId dtype);
ArrayPtr tri(int32_t n, int32_t m, int32_t k, DtypeId dtype);
ArrayPtr reshape(const Array& a, Ints shape);
ArrayPtr transpose(const Array& a, Ints axes);
ArrayPtr swapaxes(const Array& a, int32_t axis1, int32_t axis2);
ArrayPtr expand_dims(const Array& a, Ints axes);
ArrayPtr squeeze(const Array& a, Ints axes);
ArrayPtr flatten(const Array& a, int32_t start_axis, int32_t end_axis);
ArrayPtr unflatten(const Array& a, int32_t axis, Ints shape);
ArrayPtr broadcast_to(const Array& a, Ints shape);
ArrayPtr contiguous(const Array& a);
ArrayPtr depends(const Array& a, const ArrayVec& on);
ArrayPtr concatenate(const ArrayVec& v, int32_t axis);
ArrayPtr stack(const ArrayVec& v, int32_t axis);
ArrayVecPtr split(const Array& a, Ints indices, int32_t axis);
ArrayPtr repeat(const Array& a, int32_t repeats, int32_t axis);
ArrayPtr slice(const Array& a, Ints start, Ints stop, Ints strides);
ArrayPtr slice_update(const Array& a, const Array& update, Ints start, Ints stop, Ints strides);
ArrayPtr slice_dynamic(const Array& a, const Array& start, Ints axes, Ints size);
ArrayPtr slice_update_dynamic(const Array& a, const Array& update, const Array& start, Ints axes);
ArrayPtr take(const Array& a, const Array& indices, int32_t axis);
ArrayPtr take_along_axis(const Array& a, const Array& indices, int32_t axis);
ArrayPtr put_along_axis(const Array& a, const Array& indices, const Array& values, int32_t axis);
ArrayPtr argmax(const Array& a, int32_t axis, bool keepdims);
ArrayPtr argmin(const Array& a, int32_t axis, bool keepdims);
ArrayPtr sort(const Array& a, int32_t axis);
ArrayPtr argsort(const Array& a, int32_t axis);
ArrayPtr argpartition(const Array& a, int32_t kth, int32_t axis);
ArrayPtr topk(const Array& a, int32_t k, int32_t axis);

// fast, quantization, random (fast.cc)
ArrayPtr rms_norm(const Array& x, const ArrayPtr& weight, float eps);
ArrayPtr layer_norm(const Array& x, const ArrayPtr& weight, const ArrayPtr& bias, float eps);
ArrayPtr rope(
    const Array& x,
    int32_t dims,
    bool traditional,
    float base,
    float scale,
    int32_t offset,
    const ArrayPtr& freqs);
ArrayPtr rope_dynamic(
    const Array& x,
    int32_t dims,
    bool traditional,
    float base,
    float scale,
    const Array& offset,
    const ArrayPtr& freqs);
ArrayPtr sdpa(
    const Array& q,
    const Array& k,
    const Array& v,
    float scale,
    rust::Str mask_mode,
    const ArrayPtr& mask,
    const ArrayPtr& sinks);
ArrayVecPtr quantize(const Array& w, const QuantParams& q);
ArrayPtr dequantize(
    const Array& w,
    const Array& scales,
    const ArrayPtr& biases,
    const QuantParams& q);
ArrayPtr quantized_matmul(
    const Array& x,
    const Array& w,
    const Array& scales,
    const ArrayPtr& biases,
    bool transpose,
    const QuantParams& q);
ArrayPtr gather_qmm(
    const Array& x,
    const Array& w,
    const Array& scales,
    const ArrayPtr& biases,
    const ArrayPtr& lhs_indices,
    const ArrayPtr& rhs_indices,
    bool transpose,
    const QuantParams& q,
    bool sorted_indices);
ArrayPtr gather_mm(
    const Array& a,
    const Array& b,
    const ArrayPtr& lhs_indices,
    const ArrayPtr& rhs_indices,
    bool sorted_indices);
ArrayPtr random_key(uint64_t seed);
void random_seed(uint64_t seed);
ArrayPtr random_split(const Array& key, int32_t num);
ArrayPtr random_uniform(float low, float high, Ints shape, DtypeId dtype, const ArrayPtr& key);
ArrayPtr random_normal(Ints shape, DtypeId dtype, float loc, float scale, const ArrayPtr& key);
ArrayPtr
random_randint(int32_t low, int32_t high, Ints shape, DtypeId dtype, const ArrayPtr& key);
ArrayPtr random_categorical(const Array& logits, int32_t axis, const ArrayPtr& key);

// function transforms (transforms.cc)
ArrayVecPtr vjp(const Callback& f, const ArrayVec& primals, const ArrayVec& cotangents);
ArrayVecPtr jvp(const Callback& f, const ArrayVec& primals, const ArrayVec& tangents);
ArrayVecPtr vmap(const Callback& f, const ArrayVec& inputs, Ints in_axes, Ints out_axes);
void export_function(rust::Str path, const Callback& f, const ArrayVec& inputs);
std::unique_ptr<ImportedFn> import_function(rust::Str path);
ArrayVecPtr imported_call(const ImportedFn& f, const ArrayVec& inputs);

// graphs as data (graph.cc)
bool set_planning(bool on) noexcept;
bool is_planning() noexcept;
size_t array_id(const Array& a) noexcept;
rust::Vec<GraphNode> graph_nodes(const ArrayVec& outputs, const ArrayVec& given);

// zmlx primitives (primitives.cc)
ArrayPtr fused_gather_qmm_swiglu(
    const Array& x,
    const ArrayVec& gate,
    const ArrayVec& up,
    const ArrayVec& biases,
    const GluParams& glu,
    const ArrayPtr& lhs_indices,
    const ArrayPtr& rhs_indices,
    bool transpose,
    const QuantParams& q,
    bool sorted_indices,
    bool fast);
ArrayPtr fused_gather_qmm_combine(
    const Array& x,
    const ArrayVec& down,
    const ArrayPtr& bias,
    const Array& rhs_indices,
    const Array& scores,
    const QuantParams& q,
    bool fast);
ArrayVecPtr fused_moe_router(
    const Array& logits,
    const RouterParams& router,
    const ArrayPtr& selection_bias,
    const ArrayPtr& expert_scale);
ArrayPtr fused_quantized_matmul(
    const Array& x,
    const ArrayVec& w,
    bool transpose,
    const QuantParams& q,
    bool fast);
ArrayPtr fused_quantized_embedding(const Array& tokens, const ArrayVec& table, const QuantParams& q);
ArrayPtr fused_quantized_linear(
    const Array& x,
    const ArrayVec& w,
    const Array& bias,
    const QuantParams& q,
    bool fast);
ArrayVecPtr fused_short_conv(
    const Array& x,
    const Array& weight,
    const ArrayPtr& bias,
    const Array& state,
    bool gated);
// qkv, z, b, a, a_log, dt_bias, norm, state
ArrayVecPtr fused_gated_delta(const ArrayVec& inputs, float norm_eps);
ArrayPtr fused_rms_norm(const Array& x, const Array& weight, float eps);
ArrayVecPtr fused_add_rms_norm(const Array& x, const Array& r, const Array& weight, float eps);
ArrayPtr fused_qk_norm_rope(
    const Array& x,
    int32_t num_heads,
    const ArrayPtr& weight,
    float eps,
    int32_t dims,
    bool traditional,
    float base,
    float scale,
    float input_scale,
    const ArrayPtr& freqs,
    const Array& offset);
ArrayPtr fused_attention(
    const Array& q,
    const ArrayVec& keys,
    const ArrayVec& values,
    const ArrayPtr& lengths,
    const ArrayPtr& sinks,
    const ArrayPtr& q_rope,
    const ArrayVec& rope_keys,
    float scale,
    bool causal,
    int32_t window,
    bool fast);
ArrayPtr fused_swiglu_mlp(
    const Array& x,
    const ArrayVec& gate,
    const ArrayVec& up,
    const ArrayVec& biases,
    const GluParams& glu,
    const QuantParams& q,
    bool fast);
ArrayPtr
fused_cache_append(const Array& buffer, const Array& tokens, int32_t row, const Array& lengths);
ArrayPtr fused_greedy_token(const Array& logits);
ArrayPtr fused_recorded_attention(
    const Array& q,
    const Array& k,
    const Array& v,
    const Array& keys,
    const Array& values,
    const Array& lengths,
    const ArrayPtr& sinks,
    float scale,
    bool many_keys,
    Ints ring); // empty, or what stays and the shift
ArrayPtr fused_recorded_latent_attention(
    const Array& q,
    const Array& q_rope,
    const Array& latent,
    const Array& k_rope,
    const Array& latents,
    const Array& keys,
    const Array& lengths,
    float scale);
std::unique_ptr<Recording> fused_recorded_step(
    const Array& token,
    const Array& position,
    const Array& chosen,
    const ArrayVec& before,
    const ArrayVec& after);
void recording_launch(Recording& r);
uint64_t recording_num_started(const Recording& r) noexcept;
uint32_t recording_token(Recording& r, uint64_t index);
Support fused_supports(
    rust::Str primitive,
    bool gpu,
    bool metal,
    DtypeId dtype,
    bool fast,
    rust::Slice<const Parameter> parameters);
rust::Vec<rust::String> fused_primitives() noexcept;
void set_num_threads(int32_t n);
int32_t num_threads() noexcept;
void profile_start(int64_t capacity);
ProfileSpans profile_stop() noexcept;
rust::String cpu_isa() noexcept;
bool set_cpu_isa(rust::Str name) noexcept;

} // namespace zmlx_sys
