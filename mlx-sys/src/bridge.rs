//! The bridge: every C++ function that Rust calls, as one table of signatures.
//!
//! All functions return `Result` unless the C++ side is `noexcept`; `shim/error.h` decides what an
//! exception becomes. Every argument is explicit here: defaults live in `crates/mlx`. An absent
//! optional array is a null `UniquePtr`.

#[cxx::bridge(namespace = "zmlx_sys")]
pub mod ffi {
    /// Element type of an array (mirrors `mlx::core::Dtype::Val`).
    #[derive(Debug, PartialEq, Eq, Hash)]
    #[repr(u8)]
    enum DtypeId {
        Bool = 0,
        Uint8 = 1,
        Uint16 = 2,
        Uint32 = 3,
        Uint64 = 4,
        Int8 = 5,
        Int16 = 6,
        Int32 = 7,
        Int64 = 8,
        Float16 = 9,
        Float32 = 10,
        Float64 = 11,
        Bfloat16 = 12,
        Complex64 = 13,
    }

    /// A stream: its index and whether it lives on the GPU.
    #[derive(Debug, PartialEq, Eq)]
    struct StreamId {
        index: i32,
        gpu: bool,
    }

    /// Parameters of a quantized weight; `mode` is MLX's name for it (`affine`, `mxfp4`, ...).
    struct QuantParams {
        group_size: i32,
        bits: i32,
        mode: String,
    }

    /// What joins two projections; names as in the overlay's `GluParams`.
    struct GluParams {
        activation: String,
        alpha: f32,
        limit: f32,
    }

    /// How a router goes from logits to experts and weights; names as in the overlay's `RouterParams`.
    struct RouterParams {
        top_k: i32,
        scoring: String,
        precise: bool,
        descending: bool,
        in_f32: bool,
        num_groups: i32,
        top_k_groups: i32,
        normalize: bool,
        epsilon: f32,
        scale: f32,
        /// Whether the weights become `weights`; they stay as they come otherwise.
        casts: bool,
        weights: DtypeId,
    }

    /// Which field of a [`Parameter`] holds its value.
    #[derive(Debug, PartialEq, Eq)]
    enum ParameterKind {
        Integer,
        Number,
        Flag,
        Text,
    }

    /// Something that a primitive is asked about.
    #[derive(Debug, PartialEq)]
    struct Parameter {
        name: String,
        kind: ParameterKind,
        integer: i64,
        number: f64,
        flag: bool,
        text: String,
    }

    /// Whether a primitive runs fused, and why not; `reason` is empty exactly when `fused`.
    struct Support {
        fused: bool,
        reason: String,
    }

    /// A stretch of work that a CPU thread did while a profile was taken.
    struct ProfileSpan {
        /// The primitive.
        name: String,
        /// 0: a primitive's work, 1: a launch of the pool, 2: work that stayed on its thread, 3: a thread's part.
        kind: u8,
        thread: u32,
        begin_ns: i64,
        end_ns: i64,
        tasks: i64,
    }

    /// What was noted, and for how much more there was no room.
    struct ProfileSpans {
        spans: Vec<ProfileSpan>,
        dropped: i64,
    }

    /// One array of a graph that is not evaluated; those that it is computed from come before it.
    struct GraphNode {
        /// MLX's name of the primitive; empty for an array that is given.
        primitive: String,
        /// Whether it is one of zmlx.
        fused: bool,
        /// The first node that the same call of the primitive returned.
        call: u32,
        /// Its identity while it lives.
        id: usize,
        shape: Vec<i32>,
        item_size: u32,
        inputs: Vec<u32>,
        /// What else decides about layouts and launches: axes, strides of a slice, rotated dimensions.
        parameters: Vec<i64>,
    }

    extern "Rust" {
        type Callback;
        fn call(self: &Callback, inputs: &ArrayVec) -> Result<UniquePtr<ArrayVec>>;

        fn available_threads() -> i32;
    }

    unsafe extern "C++" {
        include!("zmlx_shim.h");

        // handles and lists
        type Array;
        type ArrayVec;
        type NamedArrays;
        type ImportedFn;
        type Recording;

        fn live_arrays() -> usize;
        fn array_clone(a: &Array) -> UniquePtr<Array>;
        fn array_from_bytes(data: &[u8], shape: &[i32], dtype: DtypeId)
        -> Result<UniquePtr<Array>>;
        fn array_dtype(a: &Array) -> DtypeId;
        fn array_ndim(a: &Array) -> usize;
        fn array_shape(a: &Array) -> &[i32];
        fn array_size(a: &Array) -> usize;
        fn array_nbytes(a: &Array) -> usize;
        fn array_is_available(a: &Array) -> bool;
        fn array_is_row_contiguous(a: &Array) -> bool;
        /// Bytes of an evaluated, row-contiguous array.
        fn array_bytes(a: &Array) -> Result<&[u8]>;
        fn array_detach(a: Pin<&mut Array>) -> Result<()>;

        fn vec_new() -> UniquePtr<ArrayVec>;
        fn vec_push(v: Pin<&mut ArrayVec>, a: &Array);
        fn vec_len(v: &ArrayVec) -> usize;
        fn vec_get(v: &ArrayVec, i: usize) -> Result<UniquePtr<Array>>;

        fn named_new() -> UniquePtr<NamedArrays>;
        fn named_push(n: Pin<&mut NamedArrays>, name: &str, a: &Array);
        fn named_push_metadata(n: Pin<&mut NamedArrays>, key: &str, value: &str);
        fn named_len(n: &NamedArrays) -> usize;
        fn named_name(n: &NamedArrays, i: usize) -> Result<String>;
        fn named_array(n: &NamedArrays, i: usize) -> Result<UniquePtr<Array>>;
        fn named_metadata(n: &NamedArrays) -> Vec<String>;

        // evaluation, devices, streams, memory
        fn eval(v: &ArrayVec) -> Result<()>;
        fn async_eval(v: &ArrayVec) -> Result<()>;
        fn synchronize() -> Result<()>;
        fn synchronize_stream(s: StreamId) -> Result<()>;
        fn gpu_available() -> bool;
        fn default_device_is_gpu() -> bool;
        fn set_default_device(gpu: bool) -> Result<()>;
        fn device_name(gpu: bool) -> Result<String>;
        fn default_stream(gpu: bool) -> Result<StreamId>;
        fn set_default_stream(s: StreamId) -> Result<()>;
        fn new_stream(gpu: bool) -> Result<StreamId>;
        fn mlx_version() -> String;

        fn memory_active() -> Result<usize>;
        fn memory_peak() -> Result<usize>;
        fn memory_reset_peak() -> Result<()>;
        fn memory_cache() -> Result<usize>;
        fn memory_set_cache_limit(bytes: usize) -> Result<usize>;
        fn memory_set_limit(bytes: usize) -> Result<usize>;
        fn memory_clear_cache() -> Result<()>;
        fn end_process(code: i32);

        // elementwise, one input
        fn abs(a: &Array) -> Result<UniquePtr<Array>>;
        fn negative(a: &Array) -> Result<UniquePtr<Array>>;
        fn exp(a: &Array) -> Result<UniquePtr<Array>>;
        fn log(a: &Array) -> Result<UniquePtr<Array>>;
        fn log1p(a: &Array) -> Result<UniquePtr<Array>>;
        fn sqrt(a: &Array) -> Result<UniquePtr<Array>>;
        fn rsqrt(a: &Array) -> Result<UniquePtr<Array>>;
        fn square(a: &Array) -> Result<UniquePtr<Array>>;
        fn sin(a: &Array) -> Result<UniquePtr<Array>>;
        fn cos(a: &Array) -> Result<UniquePtr<Array>>;
        fn tanh(a: &Array) -> Result<UniquePtr<Array>>;
        fn sigmoid(a: &Array) -> Result<UniquePtr<Array>>;
        fn erf(a: &Array) -> Result<UniquePtr<Array>>;
        fn floor(a: &Array) -> Result<UniquePtr<Array>>;
        fn ceil(a: &Array) -> Result<UniquePtr<Array>>;
        fn round(a: &Array) -> Result<UniquePtr<Array>>;
        fn logical_not(a: &Array) -> Result<UniquePtr<Array>>;
        fn isnan(a: &Array) -> Result<UniquePtr<Array>>;
        fn isinf(a: &Array) -> Result<UniquePtr<Array>>;
        fn stop_gradient(a: &Array) -> Result<UniquePtr<Array>>;

        // elementwise and products, two inputs, broadcasting
        fn add(a: &Array, b: &Array) -> Result<UniquePtr<Array>>;
        fn subtract(a: &Array, b: &Array) -> Result<UniquePtr<Array>>;
        fn multiply(a: &Array, b: &Array) -> Result<UniquePtr<Array>>;
        fn divide(a: &Array, b: &Array) -> Result<UniquePtr<Array>>;
        fn floor_divide(a: &Array, b: &Array) -> Result<UniquePtr<Array>>;
        fn remainder(a: &Array, b: &Array) -> Result<UniquePtr<Array>>;
        fn power(a: &Array, b: &Array) -> Result<UniquePtr<Array>>;
        fn maximum(a: &Array, b: &Array) -> Result<UniquePtr<Array>>;
        fn minimum(a: &Array, b: &Array) -> Result<UniquePtr<Array>>;
        fn logaddexp(a: &Array, b: &Array) -> Result<UniquePtr<Array>>;
        fn matmul(a: &Array, b: &Array) -> Result<UniquePtr<Array>>;
        fn addmm(c: &Array, a: &Array, b: &Array) -> Result<UniquePtr<Array>>;
        fn conv1d(x: &Array, w: &Array, groups: i32) -> Result<UniquePtr<Array>>;
        fn equal(a: &Array, b: &Array) -> Result<UniquePtr<Array>>;
        fn not_equal(a: &Array, b: &Array) -> Result<UniquePtr<Array>>;
        fn less(a: &Array, b: &Array) -> Result<UniquePtr<Array>>;
        fn less_equal(a: &Array, b: &Array) -> Result<UniquePtr<Array>>;
        fn greater(a: &Array, b: &Array) -> Result<UniquePtr<Array>>;
        fn greater_equal(a: &Array, b: &Array) -> Result<UniquePtr<Array>>;
        fn logical_and(a: &Array, b: &Array) -> Result<UniquePtr<Array>>;
        fn logical_or(a: &Array, b: &Array) -> Result<UniquePtr<Array>>;

        // reductions over `axes` (empty: all axes)
        fn sum(a: &Array, axes: &[i32], keepdims: bool) -> Result<UniquePtr<Array>>;
        fn mean(a: &Array, axes: &[i32], keepdims: bool) -> Result<UniquePtr<Array>>;
        fn max(a: &Array, axes: &[i32], keepdims: bool) -> Result<UniquePtr<Array>>;
        fn min(a: &Array, axes: &[i32], keepdims: bool) -> Result<UniquePtr<Array>>;
        fn prod(a: &Array, axes: &[i32], keepdims: bool) -> Result<UniquePtr<Array>>;
        fn all(a: &Array, axes: &[i32], keepdims: bool) -> Result<UniquePtr<Array>>;
        fn any(a: &Array, axes: &[i32], keepdims: bool) -> Result<UniquePtr<Array>>;
        fn logsumexp(a: &Array, axes: &[i32], keepdims: bool) -> Result<UniquePtr<Array>>;

        // other elementwise
        fn astype(a: &Array, dtype: DtypeId) -> Result<UniquePtr<Array>>;
        fn view(a: &Array, dtype: DtypeId) -> Result<UniquePtr<Array>>;
        fn select(cond: &Array, a: &Array, b: &Array) -> Result<UniquePtr<Array>>;
        fn array_equal(a: &Array, b: &Array, equal_nan: bool) -> Result<UniquePtr<Array>>;
        fn softmax(a: &Array, axis: i32, precise: bool) -> Result<UniquePtr<Array>>;
        fn cumsum(a: &Array, axis: i32, reverse: bool, inclusive: bool)
        -> Result<UniquePtr<Array>>;

        // creation
        fn zeros(shape: &[i32], dtype: DtypeId) -> Result<UniquePtr<Array>>;
        fn ones(shape: &[i32], dtype: DtypeId) -> Result<UniquePtr<Array>>;
        fn full(shape: &[i32], value: &Array, dtype: DtypeId) -> Result<UniquePtr<Array>>;
        fn arange(start: f64, stop: f64, step: f64, dtype: DtypeId) -> Result<UniquePtr<Array>>;
        fn tri(n: i32, m: i32, k: i32, dtype: DtypeId) -> Result<UniquePtr<Array>>;

        // shape
        fn reshape(a: &Array, shape: &[i32]) -> Result<UniquePtr<Array>>;
        fn transpose(a: &Array, axes: &[i32]) -> Result<UniquePtr<Array>>;
        fn swapaxes(a: &Array, axis1: i32, axis2: i32) -> Result<UniquePtr<Array>>;
        fn expand_dims(a: &Array, axes: &[i32]) -> Result<UniquePtr<Array>>;
        fn squeeze(a: &Array, axes: &[i32]) -> Result<UniquePtr<Array>>;
        fn flatten(a: &Array, start_axis: i32, end_axis: i32) -> Result<UniquePtr<Array>>;
        fn unflatten(a: &Array, axis: i32, shape: &[i32]) -> Result<UniquePtr<Array>>;
        fn broadcast_to(a: &Array, shape: &[i32]) -> Result<UniquePtr<Array>>;
        fn contiguous(a: &Array) -> Result<UniquePtr<Array>>;
        fn depends(a: &Array, on: &ArrayVec) -> Result<UniquePtr<Array>>;
        fn concatenate(v: &ArrayVec, axis: i32) -> Result<UniquePtr<Array>>;
        fn stack(v: &ArrayVec, axis: i32) -> Result<UniquePtr<Array>>;
        fn split(a: &Array, indices: &[i32], axis: i32) -> Result<UniquePtr<ArrayVec>>;
        fn repeat(a: &Array, repeats: i32, axis: i32) -> Result<UniquePtr<Array>>;

        // indexing and sorting
        fn slice(
            a: &Array,
            start: &[i32],
            stop: &[i32],
            strides: &[i32],
        ) -> Result<UniquePtr<Array>>;
        fn slice_update(
            a: &Array,
            update: &Array,
            start: &[i32],
            stop: &[i32],
            strides: &[i32],
        ) -> Result<UniquePtr<Array>>;
        fn slice_dynamic(
            a: &Array,
            start: &Array,
            axes: &[i32],
            size: &[i32],
        ) -> Result<UniquePtr<Array>>;
        fn slice_update_dynamic(
            a: &Array,
            update: &Array,
            start: &Array,
            axes: &[i32],
        ) -> Result<UniquePtr<Array>>;
        fn take(a: &Array, indices: &Array, axis: i32) -> Result<UniquePtr<Array>>;
        fn take_along_axis(a: &Array, indices: &Array, axis: i32) -> Result<UniquePtr<Array>>;
        fn put_along_axis(
            a: &Array,
            indices: &Array,
            values: &Array,
            axis: i32,
        ) -> Result<UniquePtr<Array>>;
        fn argmax(a: &Array, axis: i32, keepdims: bool) -> Result<UniquePtr<Array>>;
        fn argmin(a: &Array, axis: i32, keepdims: bool) -> Result<UniquePtr<Array>>;
        fn sort(a: &Array, axis: i32) -> Result<UniquePtr<Array>>;
        fn argsort(a: &Array, axis: i32) -> Result<UniquePtr<Array>>;
        fn argpartition(a: &Array, kth: i32, axis: i32) -> Result<UniquePtr<Array>>;
        fn topk(a: &Array, k: i32, axis: i32) -> Result<UniquePtr<Array>>;

        // mlx::core::fast
        fn rms_norm(x: &Array, weight: &UniquePtr<Array>, eps: f32) -> Result<UniquePtr<Array>>;
        fn layer_norm(
            x: &Array,
            weight: &UniquePtr<Array>,
            bias: &UniquePtr<Array>,
            eps: f32,
        ) -> Result<UniquePtr<Array>>;
        fn rope(
            x: &Array,
            dims: i32,
            traditional: bool,
            base: f32,
            scale: f32,
            offset: i32,
            freqs: &UniquePtr<Array>,
        ) -> Result<UniquePtr<Array>>;
        fn rope_dynamic(
            x: &Array,
            dims: i32,
            traditional: bool,
            base: f32,
            scale: f32,
            offset: &Array,
            freqs: &UniquePtr<Array>,
        ) -> Result<UniquePtr<Array>>;
        fn sdpa(
            q: &Array,
            k: &Array,
            v: &Array,
            scale: f32,
            mask_mode: &str,
            mask: &UniquePtr<Array>,
            sinks: &UniquePtr<Array>,
        ) -> Result<UniquePtr<Array>>;

        // quantization and gathered products, stock
        fn quantize(w: &Array, q: &QuantParams) -> Result<UniquePtr<ArrayVec>>;
        fn dequantize(
            w: &Array,
            scales: &Array,
            biases: &UniquePtr<Array>,
            q: &QuantParams,
        ) -> Result<UniquePtr<Array>>;
        fn quantized_matmul(
            x: &Array,
            w: &Array,
            scales: &Array,
            biases: &UniquePtr<Array>,
            transpose: bool,
            q: &QuantParams,
        ) -> Result<UniquePtr<Array>>;
        fn gather_qmm(
            x: &Array,
            w: &Array,
            scales: &Array,
            biases: &UniquePtr<Array>,
            lhs_indices: &UniquePtr<Array>,
            rhs_indices: &UniquePtr<Array>,
            transpose: bool,
            q: &QuantParams,
            sorted_indices: bool,
        ) -> Result<UniquePtr<Array>>;
        fn gather_mm(
            a: &Array,
            b: &Array,
            lhs_indices: &UniquePtr<Array>,
            rhs_indices: &UniquePtr<Array>,
            sorted_indices: bool,
        ) -> Result<UniquePtr<Array>>;

        // random
        fn random_key(seed: u64) -> Result<UniquePtr<Array>>;
        fn random_seed(seed: u64) -> Result<()>;
        fn random_split(key: &Array, num: i32) -> Result<UniquePtr<Array>>;
        fn random_uniform(
            low: f32,
            high: f32,
            shape: &[i32],
            dtype: DtypeId,
            key: &UniquePtr<Array>,
        ) -> Result<UniquePtr<Array>>;
        fn random_normal(
            shape: &[i32],
            dtype: DtypeId,
            loc: f32,
            scale: f32,
            key: &UniquePtr<Array>,
        ) -> Result<UniquePtr<Array>>;
        fn random_randint(
            low: i32,
            high: i32,
            shape: &[i32],
            dtype: DtypeId,
            key: &UniquePtr<Array>,
        ) -> Result<UniquePtr<Array>>;
        fn random_categorical(
            logits: &Array,
            axis: i32,
            key: &UniquePtr<Array>,
        ) -> Result<UniquePtr<Array>>;

        // files
        fn load_safetensors(path: &str) -> Result<UniquePtr<NamedArrays>>;
        fn save_safetensors(path: &str, arrays: &NamedArrays) -> Result<()>;

        // function transforms; the callback is called during the call, never after it
        fn vjp(
            f: &Callback,
            primals: &ArrayVec,
            cotangents: &ArrayVec,
        ) -> Result<UniquePtr<ArrayVec>>;
        fn jvp(
            f: &Callback,
            primals: &ArrayVec,
            tangents: &ArrayVec,
        ) -> Result<UniquePtr<ArrayVec>>;
        fn vmap(
            f: &Callback,
            inputs: &ArrayVec,
            in_axes: &[i32],
            out_axes: &[i32],
        ) -> Result<UniquePtr<ArrayVec>>;
        fn export_function(path: &str, f: &Callback, inputs: &ArrayVec) -> Result<()>;
        fn import_function(path: &str) -> Result<UniquePtr<ImportedFn>>;
        fn imported_call(f: &ImportedFn, inputs: &ArrayVec) -> Result<UniquePtr<ArrayVec>>;

        // graphs as data; while a thread plans, `mlx::core::fast` makes the nodes that a GPU has
        fn set_planning(on: bool) -> bool;
        fn is_planning() -> bool;
        fn array_id(a: &Array) -> usize;
        fn graph_nodes(outputs: &ArrayVec, given: &ArrayVec) -> Result<Vec<GraphNode>>;

        // zmlx primitives (shim/primitives.cc)
        fn fused_gather_qmm_swiglu(
            x: &Array,
            gate: &ArrayVec,
            up: &ArrayVec,
            biases: &ArrayVec,
            glu: &GluParams,
            lhs_indices: &UniquePtr<Array>,
            rhs_indices: &UniquePtr<Array>,
            transpose: bool,
            q: &QuantParams,
            sorted_indices: bool,
            fast: bool,
        ) -> Result<UniquePtr<Array>>;
        fn fused_gather_qmm_combine(
            x: &Array,
            down: &ArrayVec,
            bias: &UniquePtr<Array>,
            rhs_indices: &Array,
            scores: &Array,
            q: &QuantParams,
            fast: bool,
        ) -> Result<UniquePtr<Array>>;
        fn fused_moe_router(
            logits: &Array,
            router: &RouterParams,
            selection_bias: &UniquePtr<Array>,
            expert_scale: &UniquePtr<Array>,
        ) -> Result<UniquePtr<ArrayVec>>;
        fn fused_quantized_matmul(
            x: &Array,
            w: &ArrayVec,
            transpose: bool,
            q: &QuantParams,
            fast: bool,
        ) -> Result<UniquePtr<Array>>;
        fn fused_quantized_embedding(
            tokens: &Array,
            table: &ArrayVec,
            q: &QuantParams,
        ) -> Result<UniquePtr<Array>>;
        fn fused_quantized_linear(
            x: &Array,
            w: &ArrayVec,
            bias: &Array,
            q: &QuantParams,
            fast: bool,
        ) -> Result<UniquePtr<Array>>;
        fn fused_short_conv(
            x: &Array,
            weight: &Array,
            bias: &UniquePtr<Array>,
            state: &Array,
            gated: bool,
        ) -> Result<UniquePtr<ArrayVec>>;
        fn fused_gated_delta(inputs: &ArrayVec, norm_eps: f32) -> Result<UniquePtr<ArrayVec>>;
        fn fused_rms_norm(x: &Array, weight: &Array, eps: f32) -> Result<UniquePtr<Array>>;
        fn fused_add_rms_norm(
            x: &Array,
            r: &Array,
            weight: &Array,
            eps: f32,
        ) -> Result<UniquePtr<ArrayVec>>;
        fn fused_qk_norm_rope(
            x: &Array,
            num_heads: i32,
            weight: &UniquePtr<Array>,
            eps: f32,
            dims: i32,
            traditional: bool,
            base: f32,
            scale: f32,
            input_scale: f32,
            freqs: &UniquePtr<Array>,
            offset: &Array,
        ) -> Result<UniquePtr<Array>>;
        fn fused_attention(
            q: &Array,
            keys: &ArrayVec,
            values: &ArrayVec,
            lengths: &UniquePtr<Array>,
            sinks: &UniquePtr<Array>,
            q_rope: &UniquePtr<Array>,
            rope_keys: &ArrayVec,
            scale: f32,
            causal: bool,
            window: i32,
            fast: bool,
        ) -> Result<UniquePtr<Array>>;
        fn fused_swiglu_mlp(
            x: &Array,
            gate: &ArrayVec,
            up: &ArrayVec,
            biases: &ArrayVec,
            glu: &GluParams,
            q: &QuantParams,
            fast: bool,
        ) -> Result<UniquePtr<Array>>;
        fn fused_cache_append(
            buffer: &Array,
            tokens: &Array,
            row: i32,
            lengths: &Array,
        ) -> Result<UniquePtr<Array>>;
        fn fused_greedy_token(logits: &Array) -> Result<UniquePtr<Array>>;
        fn fused_recorded_attention(
            q: &Array,
            k: &Array,
            v: &Array,
            keys: &Array,
            values: &Array,
            lengths: &Array,
            sinks: &UniquePtr<Array>,
            scale: f32,
            many_keys: bool,
            ring: &[i32],
        ) -> Result<UniquePtr<Array>>;
        fn fused_recorded_latent_attention(
            q: &Array,
            q_rope: &Array,
            latent: &Array,
            k_rope: &Array,
            latents: &Array,
            keys: &Array,
            lengths: &Array,
            scale: f32,
        ) -> Result<UniquePtr<Array>>;
        fn fused_recorded_step(
            token: &Array,
            position: &Array,
            chosen: &Array,
            before: &ArrayVec,
            after: &ArrayVec,
        ) -> Result<UniquePtr<Recording>>;
        fn recording_launch(r: Pin<&mut Recording>) -> Result<()>;
        fn recording_num_started(r: &Recording) -> u64;
        fn recording_token(r: Pin<&mut Recording>, index: u64) -> Result<u32>;
        fn fused_supports(
            primitive: &str,
            gpu: bool,
            metal: bool,
            dtype: DtypeId,
            fast: bool,
            parameters: &[Parameter],
        ) -> Result<Support>;
        fn fused_primitives() -> Vec<String>;
        fn set_num_threads(n: i32) -> Result<()>;
        fn num_threads() -> i32;
        fn profile_start(capacity: i64) -> Result<()>;
        fn profile_stop() -> ProfileSpans;
        fn cpu_isa() -> String;
        fn set_cpu_isa(name: &str) -> bool;
    }
}

/// A Rust function of arrays to arrays that C++ transforms may call.
pub struct Callback {
    #[allow(clippy::type_complexity, reason = "the one place this type is written")]
    f: Box<dyn Fn(&ffi::ArrayVec) -> Result<cxx::UniquePtr<ffi::ArrayVec>, String>>,
}

impl Callback {
    /// Wraps `f`; an `Err` becomes a C++ exception and then an `Err` of the bridged call.
    pub fn new(
        f: impl Fn(&ffi::ArrayVec) -> Result<cxx::UniquePtr<ffi::ArrayVec>, String> + 'static,
    ) -> Self {
        Self { f: Box::new(f) }
    }

    fn call(&self, inputs: &ffi::ArrayVec) -> Result<cxx::UniquePtr<ffi::ArrayVec>, String> {
        // A panic must not unwind into C++.
        std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| (self.f)(inputs)))
            .unwrap_or_else(|_| Err("the function panicked".to_owned()))
    }
}

/// How many threads the process may keep busy: its affinity mask and its container's quota.
fn available_threads() -> i32 {
    std::thread::available_parallelism().map_or(1, |n| n.get().try_into().unwrap_or(i32::MAX))
}
