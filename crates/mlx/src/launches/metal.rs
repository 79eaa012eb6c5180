//! The rules: how many kernels MLX's Metal backend encodes for a primitive, and how it lays out the result.
//!
//! Source: MLX 0.32.2, `mlx/backend/metal/*.cpp` and `mlx/backend/gpu/*.cpp`, the `eval_gpu` of each primitive; the
//! files are named at the rules. What depends on the chip is taken for one without NAX. An input that nothing else
//! uses and that is no larger than the output is written over ("donated"), as it is when MLX evaluates.

use super::Node;
use super::layout::{Layout, reshape};

/// What goes into a node.
pub(super) struct Input<'a> {
    pub(super) node: &'a Node,
    pub(super) layout: &'a Layout,
    /// Nothing else takes it.
    pub(super) last: bool,
}

/// What a node does.
pub(super) struct Launch {
    pub(super) launches: usize,
    pub(super) layout: Layout,
    /// There is no rule for it.
    pub(super) assumed: bool,
}

/// `unary_op_gpu`, and what a compiled function fuses of one input.
const UNARY: &[&str] = &[
    "Abs",
    "ArcCos",
    "ArcCosh",
    "ArcSin",
    "ArcSinh",
    "ArcTan",
    "ArcTanh",
    "BitwiseInvert",
    "Ceil",
    "Conjugate",
    "Cos",
    "Cosh",
    "Erf",
    "ErfInv",
    "Exp",
    "Expm1",
    "Floor",
    "Imag",
    "Log",
    "Log1p",
    "Log10",
    "Log2",
    "LogicalNot",
    "Negative",
    "Real",
    "Round",
    "Rsqrt",
    "Sigmoid",
    "Sign",
    "Sin",
    "Sinh",
    "Sqrt",
    "Square",
    "Tan",
    "Tanh",
];

/// `binary_op_gpu`.
const BINARY: &[&str] = &[
    "Add",
    "ArcTan2",
    "BitwiseAnd",
    "BitwiseOr",
    "BitwiseXor",
    "Divide",
    "Equal",
    "Greater",
    "GreaterEqual",
    "LeftShift",
    "Less",
    "LessEqual",
    "LogAddExp",
    "LogicalAnd",
    "LogicalOr",
    "Maximum",
    "Minimum",
    "Multiply",
    "NaNEqual",
    "NotEqual",
    "Power",
    "Remainder",
    "RightShift",
    "Subtract",
];

/// Whether a primitive runs a kernel over its elements alone.
pub(super) fn is_elementwise(name: &str) -> bool {
    name == "AsType" || name == "Select" || UNARY.contains(&name) || BINARY.contains(&name)
}

/// What `mx.compile` makes one kernel of (`mlx/compile.cpp`, `is_fusable`).
pub(super) fn is_fusable(name: &str) -> bool {
    is_elementwise(name) || name == "Broadcast"
}

pub(super) fn launch(node: &Node, inputs: &[Input<'_>]) -> Launch {
    let name = node.primitive.as_str();
    if node.size() == 0 {
        return kernels(0, Layout::row(&node.shape));
    }
    let row = || Layout::row(&node.shape);
    if let Some(layout) = view(node, inputs) {
        return kernels(0, layout);
    }
    match name {
        "Reshape" | "Flatten" | "Unflatten" => reshaped(node, inputs),
        // common/copy.h: what lies in rows and takes no larger buffer is shared
        "Contiguous" => match inputs {
            [x] if x.layout.row => kernels(0, x.layout.clone()),
            _ => kernels(1, row()),
        },
        // evaluated on the host
        "NumberOfElements" => kernels(0, row()),
        "AsType" => match inputs {
            [x] if x.layout.contiguous => kernels(1, x.layout.clone()),
            _ => kernels(1, row()),
        },
        "Arange" | "Full" | "RandomBits" | "Compiled" | "Gather" | "GatherAxis" | "ArgReduce" => {
            kernels(1, row())
        }
        // slicing.cpp: one copy for each part
        "Concatenate" => kernels(inputs.iter().filter(|x| x.node.size() > 0).count(), row()),
        // indexing.cpp: the array, unless it can be written over, then the part
        "SliceUpdate" | "Scatter" | "ScatterAxis" => {
            kernels(1 + copied(node, inputs.first()), row())
        }
        // gpu/primitives.cpp: the offset, then the part
        "DynamicSlice" => kernels(2, row()),
        "DynamicSliceUpdate" => kernels(2 + copied(node, inputs.first()), row()),
        "Softmax" | "LogSumExp" => {
            let copies = inputs.first().map_or(0, |x| usize::from(!rows_lie_together(x)));
            kernels(1 + copies, row())
        }
        "RMSNorm" | "LayerNorm" => {
            let copies = inputs.first().map_or(0, |x| usize::from(!is_matrix(x)));
            kernels(1 + copies, row())
        }
        "RoPE" => kernels(1 + rope_copies(node, inputs), row()),
        "ScaledDotProductAttention" => attention(node, inputs),
        "Sort" | "ArgSort" | "Partition" | "ArgPartition" => {
            let axis = axis_of(node.parameters.first().copied().unwrap_or(-1), node.shape.len());
            kernels(sort(node.shape[axis], inputs), row())
        }
        "And" | "Or" | "Sum" | "Prod" | "Min" | "Max" => {
            kernels(inputs.first().map_or(1, |x| reduce(node, x)), row())
        }
        // quantized.cpp: vectors go through one kernel, the inner sums of weights that are not transposed through two
        "QuantizedMatmul" => {
            let transposed = node.parameters.first().is_none_or(|t| *t != 0);
            let inner = inputs.first().and_then(|x| x.node.shape.last().copied()).unwrap_or(0);
            let split = usize::from(!transposed && inner >= 1024);
            kernels(1 + split + matrix_copies(inputs), row())
        }
        "GatherQMM" => kernels(1 + matrix_copies(&inputs[..inputs.len().saturating_sub(2)]), row()),
        "Matmul" | "AddMM" | "GatherMM" => kernels(matmul(node, inputs), row()),
        "Convolution" | "Quantize" => {
            let copies = inputs.iter().filter(|x| !x.layout.row).count();
            kernels(1 + copies, row())
        }
        "Scan" => {
            let copies = inputs.first().map_or(0, |x| usize::from(!x.layout.contiguous));
            kernels(1 + copies, row())
        }
        "Select" => kernels(1, ternary(node, inputs)),
        _ if UNARY.contains(&name) => match inputs {
            [x] if x.layout.contiguous => kernels(1, x.layout.clone()),
            _ => kernels(1, row()),
        },
        _ if BINARY.contains(&name) => kernels(1, binary(node, inputs)),
        // a primitive of zmlx is one launch: that is what it is for
        _ => Launch { assumed: !node.fused, ..kernels(1, row()) },
    }
}

fn kernels(launches: usize, layout: Layout) -> Launch {
    Launch { launches, layout, assumed: false }
}

/// The layout of what launches nothing (`mlx/backend/common/common.cpp`, `slicing.cpp`).
fn view(node: &Node, inputs: &[Input<'_>]) -> Option<Layout> {
    let x = inputs.first();
    let axes = || node.parameters.iter().map(|axis| axis_of(*axis, usize::MAX));
    let layout = match (node.primitive.as_str(), x) {
        ("Copy" | "StopGradient" | "Depends" | "CustomTransforms" | "View", Some(x)) => {
            if x.node.shape == node.shape { x.layout.clone() } else { Layout::row(&node.shape) }
        }
        ("Broadcast" | "BroadcastAxes", Some(x)) => {
            let added = node.shape.len() - x.node.shape.len();
            let mut strides = vec![0; node.shape.len()];
            for (i, n) in x.node.shape.iter().enumerate() {
                if *n == node.shape[added + i] {
                    strides[added + i] = x.layout.strides[i];
                }
            }
            let size = x.layout.data_size;
            let mut layout = Layout::view(&node.shape, strides, size);
            layout.contiguous = x.layout.contiguous;
            layout
        }
        ("ExpandDims", Some(x)) => {
            let mut layout = x.layout.clone();
            axes().for_each(|axis| layout.strides.insert(axis, 1));
            layout
        }
        ("Squeeze", Some(x)) => {
            let gone: Vec<usize> = axes().collect();
            let mut layout = x.layout.clone();
            let kept = layout.strides.iter().enumerate().filter(|(i, _)| !gone.contains(i));
            layout.strides = kept.map(|(_, stride)| *stride).collect();
            layout
        }
        ("Transpose", Some(x)) => {
            let strides = axes().map(|axis| x.layout.strides[axis]).collect();
            let mut layout = Layout::view(&node.shape, strides, x.layout.data_size);
            layout.contiguous = x.layout.contiguous;
            if !(x.layout.contiguous && x.layout.data_size == x.node.size()) {
                (layout.row, layout.col) = (x.layout.row, x.layout.col);
            }
            layout
        }
        ("Slice", Some(x)) => {
            let steps = node.parameters.iter().copied().chain(std::iter::repeat(1));
            let strides: Vec<i64> =
                x.layout.strides.iter().zip(steps).map(|(stride, step)| stride * step).collect();
            let reach = |(stride, n): (&i64, &i64)| (stride * (n - 1)).unsigned_abs();
            let data_size = strides.iter().zip(&node.shape).map(reach).sum::<u64>() + 1;
            Layout::view(&node.shape, strides, data_size)
        }
        ("Split", Some(x)) => {
            let strides = x.layout.strides.clone();
            let mut layout = Layout::view(&node.shape, strides, node.size());
            layout.contiguous = x.layout.contiguous && (layout.row || layout.col);
            layout
        }
        ("AsStrided", Some(_)) => Layout::row(&node.shape),
        _ => return None,
    };
    Some(layout)
}

/// gpu/copy.cpp, `reshape_gpu`.
fn reshaped(node: &Node, inputs: &[Input<'_>]) -> Launch {
    let Some(x) = inputs.first() else { return kernels(0, Layout::row(&node.shape)) };
    match reshape(x.layout, &x.node.shape, &node.shape) {
        Some(strides) if !x.layout.row => {
            let mut layout = x.layout.clone();
            layout.strides = strides;
            kernels(0, layout)
        }
        Some(_) => kernels(0, Layout::row(&node.shape)),
        None => kernels(1, Layout::row(&node.shape)),
    }
}

/// Whether the output can take the input's buffer.
fn is_donated(node: &Node, x: &Input<'_>) -> bool {
    x.last
        && x.node.item_size == node.item_size
        && x.layout.data_size * x.node.item_size <= node.nbytes() + 16384
}

/// metal/copy.cpp, `copy_gpu` of the array that is going to be changed.
fn copied(node: &Node, x: Option<&Input<'_>>) -> usize {
    x.map_or(0, |x| {
        let whole = x.layout.contiguous && x.layout.data_size == x.node.size();
        usize::from(!(whole && is_donated(node, x)))
    })
}

/// softmax.cpp, logsumexp.cpp.
fn rows_lie_together(x: &Input<'_>) -> bool {
    x.layout.contiguous && x.layout.last_stride() == 1
}

/// normalization.cpp: rows one behind the other.
fn is_matrix(x: &Input<'_>) -> bool {
    let shape = &x.node.shape;
    let n = shape.len();
    rows_lie_together(x)
        && (n < 2 || {
            let stride = x.layout.strides[n - 2];
            stride == 0 || stride == shape[n - 1] || shape[n - 2] == 1
        })
}

/// quantized.cpp, `ensure_row_contiguous_matrix` of each operand.
fn matrix_copies(inputs: &[Input<'_>]) -> usize {
    let is_whole = |x: &&Input<'_>| {
        let (shape, strides) = (&x.node.shape, &x.layout.strides);
        let n = shape.len();
        x.layout.last_stride() != 1 || (n >= 2 && strides[n - 2] != shape[n - 1])
    };
    inputs.iter().filter(is_whole).count()
}

/// rope.cpp: what is turned only in part is copied first, and what lies in no order that the kernel knows.
fn rope_copies(node: &Node, inputs: &[Input<'_>]) -> usize {
    let Some(x) = inputs.first() else { return 0 };
    let (shape, strides) = (&node.shape, &x.layout.strides);
    let n = shape.len();
    let dims = node.parameters.first().copied().unwrap_or(shape[n - 1]);
    if dims < shape[n - 1] {
        return usize::from(!(x.layout.row && is_donated(node, x)));
    }
    let leading_ones = shape.iter().take_while(|n| **n == 1).count();
    if x.layout.row || n - leading_ones.min(n.saturating_sub(3)) == 3 {
        return 0;
    }
    let heads_behind_tokens = n == 4
        && strides[0] == shape[2] * shape[1] * shape[3]
        && strides[1] == shape[3]
        && strides[2] == shape[1] * shape[3];
    usize::from(!heads_behind_tokens)
}

/// scaled_dot_product_attention.cpp. Chips whose name ends in `d` or `s` take two kernels from 1,024 keys on, others
/// from 4,096 on where heads share keys; counted is what all do.
fn attention(node: &Node, inputs: &[Input<'_>]) -> Launch {
    let [q, k, v, ..] = inputs else { return kernels(1, Layout::row(&node.shape)) };
    if node.shape[2] > 8 {
        let copies = [q, k, v].iter().filter(|x| x.layout.last_stride() != 1).count();
        let s = &node.shape;
        let strides = vec![s[1] * s[2] * s[3], s[3], s[1] * s[3], 1];
        return kernels(1 + copies, Layout::view(s, strides, node.size()));
    }
    let query_fits = q.layout.row || {
        let (shape, strides) = (&q.node.shape, &q.layout.strides);
        let single = shape[0] == 1 || shape[1] == 1;
        let b = usize::from(shape[0] == 1);
        single && strides[3] == 1 && strides[2] == shape[3] * shape[b] && strides[b] == shape[3]
    };
    let keys_fit = |x: &Input<'_>| {
        let (shape, strides) = (&x.node.shape, &x.layout.strides);
        x.layout.last_stride() == 1
            && (shape[0] == 1 || shape[1] == 1 || strides[0] == strides[1] * shape[1])
    };
    let copies = usize::from(!query_fits) + [k, v].iter().filter(|x| !keys_fit(x)).count();
    let two_passes = k.node.shape[1] < q.node.shape[1] && k.node.shape[2] >= 4096;
    kernels(1 + usize::from(two_passes) + copies, Layout::row(&node.shape))
}

/// sort.cpp: one block, or blocks that are sorted and then merged in pairs, and a copy.
fn sort(length: i64, inputs: &[Input<'_>]) -> usize {
    let wide = inputs.first().is_some_and(|x| x.node.item_size > 4);
    let block = match (length + 3) / 4 {
        257.. if !wide => 512,
        129.. => 256,
        65.. => 128,
        33.. => 64,
        _ => 32,
    };
    let blocks = (length + 4 * block - 1) / (4 * block);
    if blocks <= 1 {
        return 1;
    }
    let mut merges = 0;
    let mut tiles = 2;
    while tiles / 2 < blocks {
        merges += 1;
        tiles *= 2;
    }
    1 + 2 * merges + 1
}

/// reduce.cpp, `Reduce::eval_gpu`.
fn reduce(node: &Node, x: &Input<'_>) -> usize {
    let (shape, layout) = (&x.node.shape, x.layout);
    let axes: Vec<usize> = node.parameters.iter().map(|axis| axis_of(*axis, shape.len())).collect();
    if node.size() == x.node.size() {
        return 1;
    }
    if axes.len() == shape.len() && layout.contiguous && layout.data_size == x.node.size() {
        // REDUCE_N_READS (4) elements of 1,024 threads, else two passes
        return if x.node.size() <= 4096 { 1 } else { 2 };
    }
    let reduced: Vec<usize> = axes.into_iter().filter(|axis| shape[*axis] > 1).collect();
    let smallest = reduced.iter().map(|axis| layout.strides[*axis]).min().unwrap_or(1);
    let length: i64 = reduced.iter().map(|axis| shape[*axis]).product();
    if !layout.row && smallest != 1 {
        // made contiguous first
        return 1 + strided_reduce(
            length,
            Layout::row(shape).strides[reduced[reduced.len() - 1]],
            node,
        );
    }
    if smallest == 1 { 1 } else { strided_reduce(length, smallest, node) }
}

/// `strided_reduce_general_dispatch`.
fn strided_reduce(length: i64, stride: i64, node: &Node) -> usize {
    let long_column = stride < 32 && length >= 1024;
    let few_outputs = length > 256 && node.size() / 32 < 1024;
    if length >= 32 && (long_column || few_outputs) { 2 } else { 1 }
}

/// matmul.cpp: a vector times a matrix is one kernel; small products with a long inner sum split it.
fn matmul(node: &Node, inputs: &[Input<'_>]) -> usize {
    let n = node.shape.len();
    let (a, b) = match inputs {
        [a, b, ..] => (a, b),
        _ => return 1,
    };
    let is_vector = n >= 2 && (node.shape[n - 2] == 1 || node.shape[n - 1] == 1);
    let straight = |x: &&Input<'_>| {
        let (shape, strides) = (&x.node.shape, &x.layout.strides);
        let n = shape.len();
        n < 2 || strides[n - 1] == 1 || strides[n - 2] == 1
    };
    let copies = [a, b].iter().filter(|x| !straight(x)).count();
    let inner = a.node.shape.last().copied().unwrap_or(0);
    let (rows, cols) = (node.shape[n.saturating_sub(2)], node.shape[n - 1]);
    let tiles = ((rows + 15) / 16) * ((cols + 15) / 16);
    let single = node.size() == (rows * cols) as u64;
    let splits = node.primitive != "GatherMM"
        && !is_vector
        && rows > 8
        && single
        && tiles <= 1024
        && inner >= 128
        && inner >= rows.max(cols);
    1 + copies + usize::from(splits)
}

/// common/binary.h, `set_binary_op_output_data`.
fn binary(node: &Node, inputs: &[Input<'_>]) -> Layout {
    let [a, b] = inputs else { return Layout::row(&node.shape) };
    let (x, y) = (a.layout, b.layout);
    if x.is_scalar() && y.is_scalar() {
        return x.clone();
    }
    if x.is_scalar() && y.contiguous {
        return y.clone();
    }
    if (y.is_scalar() && x.contiguous) || (x.row && y.row) || (x.col && y.col) {
        return x.clone();
    }
    Layout::row(&node.shape)
}

/// common/ternary.h.
fn ternary(node: &Node, inputs: &[Input<'_>]) -> Layout {
    match inputs {
        [a, b, c] if [a, b, c].iter().all(|x| x.layout.row || x.layout.is_scalar()) => {
            if b.layout.is_scalar() { Layout::row(&node.shape) } else { b.layout.clone() }
        }
        _ => Layout::row(&node.shape),
    }
}

fn axis_of(axis: i64, ndim: usize) -> usize {
    if axis < 0 { ndim.saturating_sub(axis.unsigned_abs() as usize) } else { axis as usize }
}
