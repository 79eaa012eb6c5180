//! Tensors as rules see them: shape and dtype at once, the array when somebody takes it.

use std::cell::OnceCell;
use std::rc::Rc;

use mlx::quantization::{Mode, Quantization, QuantizedWeight};
use mlx::{Array, Dtype, bf16, ops};

use crate::error::{Error, Result};
use crate::quantization;

/// Why a step cannot be applied to a tensor.
pub(crate) type Refusal = String;

/// What a rule does to one tensor. Axes count from the end when negative.
#[derive(Debug, Clone, PartialEq)]
pub enum Op {
    /// The part `index` of `of` equal ones.
    Part {
        /// Axis that is cut.
        axis: i32,
        /// Which part.
        index: i32,
        /// How many there are.
        of: i32,
    },
    /// From `start` up to `stop`.
    Slice {
        /// Axis that is cut.
        axis: i32,
        /// The first.
        start: i32,
        /// One after the last.
        stop: i32,
    },
    /// Every `step`-th from `start`: one of several interleaved tensors.
    Every {
        /// Axis that is cut.
        axis: i32,
        /// The first.
        start: i32,
        /// How many are interleaved.
        step: i32,
    },
    /// Two axes swapped.
    Swap(i32, i32),
    /// The same elements in another shape; one dimension may be -1.
    Reshape(Vec<i32>),
    /// The last two axes as one.
    Flatten,
    /// The same bytes as another type; the last dimension shrinks or grows.
    View(Dtype),
    /// Plus a number, in the tensor's own type.
    Add(f32),
    /// Times a number, in the tensor's own type.
    Multiply(f32),
}

/// A tensor that some file holds or that rules make of others.
#[derive(Debug)]
pub(crate) struct Tensor {
    pub(crate) shape: Vec<i32>,
    pub(crate) dtype: Dtype,
    /// The first tensor in a file that it is made of.
    pub(crate) origin: String,
    node: Node,
    array: OnceCell<Array>,
}

#[derive(Debug)]
enum Node {
    /// As it is in its file.
    File,
    /// Nobody's values: a placeholder of zeros.
    Blank,
    Apply(Rc<Tensor>, Op),
    /// Elements side by side in memory, as kernels want them.
    Contiguous(Rc<Tensor>),
    Stack(Vec<Rc<Tensor>>),
    Dequantize(Packed),
    Quantized(Rc<Repacked>, PackedPart),
    /// e4m3 codes times one scale per square block.
    BlockFp8 {
        codes: Rc<Tensor>,
        scales: Rc<Tensor>,
        block: i32,
    },
    Product(Rc<Tensor>, Rc<Tensor>),
}

/// A quantised matrix in its parts.
#[derive(Debug, Clone)]
pub(crate) struct Packed {
    pub(crate) weight: Rc<Tensor>,
    pub(crate) scales: Rc<Tensor>,
    pub(crate) biases: Option<Rc<Tensor>>,
    pub(crate) quantization: Quantization,
}

/// A dense tensor packed once for all its parts.
#[derive(Debug)]
struct Repacked {
    dense: Rc<Tensor>,
    quantization: Quantization,
    packed: OnceCell<QuantizedWeight>,
}

#[derive(Debug, Clone, Copy)]
enum PackedPart {
    Weight,
    Scales,
    Biases,
}

/// Where the arrays of tensors in files come from.
pub(crate) type Read<'a> = &'a dyn Fn(&str) -> Result<Array>;

impl Tensor {
    fn new(shape: Vec<i32>, dtype: Dtype, origin: &str, node: Node) -> Rc<Self> {
        Rc::new(Self { shape, dtype, origin: origin.to_owned(), node, array: OnceCell::new() })
    }

    /// A tensor in a file.
    pub(crate) fn in_file(name: &str, shape: Vec<i32>, dtype: Dtype) -> Rc<Self> {
        Self::new(shape, dtype, name, Node::File)
    }

    /// A placeholder.
    pub(crate) fn blank(name: &str, shape: &[i32], dtype: Dtype) -> Rc<Self> {
        Self::new(shape.to_vec(), dtype, name, Node::Blank)
    }

    /// `op` applied to it.
    pub(crate) fn apply(self: &Rc<Self>, op: &Op) -> Result<Rc<Self>, Refusal> {
        let (shape, dtype) = op.result(&self.shape, self.dtype)?;
        Ok(Self::new(shape, dtype, &self.origin, Node::Apply(self.clone(), op.clone())))
    }

    /// All of `ops` applied in turn; the result is contiguous.
    pub(crate) fn apply_all(self: &Rc<Self>, ops: &[Op]) -> Result<Rc<Self>, Refusal> {
        let mut tensor = self.clone();
        for op in ops {
            tensor = tensor.apply(op)?;
        }
        if ops.iter().any(Op::leaves_gaps) { Ok(tensor.contiguous()) } else { Ok(tensor) }
    }

    fn contiguous(self: &Rc<Self>) -> Rc<Self> {
        let node = Node::Contiguous(self.clone());
        Self::new(self.shape.clone(), self.dtype, &self.origin, node)
    }

    /// Tensors of one shape stacked along a new first axis.
    pub(crate) fn stack(parts: Vec<Rc<Self>>) -> Result<Rc<Self>, Refusal> {
        let Some(first) = parts.first() else { return Err("has no parts".to_owned()) };
        for part in &parts {
            if (&part.shape, part.dtype) != (&first.shape, first.dtype) {
                return Err(format!(
                    "is {} {:?} where `{}`, stacked with it, is {} {:?}",
                    part.dtype, part.shape, first.origin, first.dtype, first.shape
                ));
            }
        }
        let count = i32::try_from(parts.len()).map_err(|_| "has too many parts".to_owned())?;
        let shape = [&[count], &first.shape[..]].concat();
        checked_size(&shape)?;
        let (dtype, origin) = (first.dtype, first.origin.clone());
        Ok(Self::new(shape, dtype, &origin, Node::Stack(parts)))
    }

    /// What a quantised matrix of `in_dims` columns stands for.
    pub(crate) fn dequantize(packed: Packed, in_dims: i32) -> Result<Rc<Self>, Refusal> {
        let Packed { weight, scales, biases, quantization } = &packed;
        let Some((rows, _)) = weight.shape.split_last().map(|(last, rows)| (rows, last)) else {
            return Err("is a scalar".to_owned());
        };
        let expected = |last: i32| [rows, &[last]].concat();
        let groups = expected(in_dims / quantization.group_size);
        let columns = i64::from(in_dims) * i64::from(quantization.bits) / 32;
        let fits = weight.shape.last().is_some_and(|last| i64::from(*last) == columns)
            && scales.shape == groups
            && biases.as_ref().is_none_or(|biases| biases.shape == groups)
            && in_dims % quantization.group_size == 0;
        if !fits || weight.dtype != Dtype::U32 {
            return Err(format!(
                "is {} {:?} with scales {:?}, which is no {quantization} matrix of {in_dims} columns",
                weight.dtype, weight.shape, scales.shape
            ));
        }
        let dtype = if quantization.mode == Mode::Affine { scales.dtype } else { Dtype::Bf16 };
        let (shape, origin) = (expected(in_dims), weight.origin.clone());
        checked_size(&shape)?;
        Ok(Self::new(shape, dtype, &origin, Node::Dequantize(packed)))
    }

    /// The parts of this tensor packed.
    pub(crate) fn quantize(
        self: &Rc<Self>,
        quantization: Quantization,
    ) -> Result<Vec<(&'static str, Rc<Self>)>, Refusal> {
        let Quantization { group_size, bits, mode } = quantization;
        let (columns, rows) = self.shape.split_last().ok_or_else(|| "is a scalar".to_owned())?;
        if rows.is_empty() || columns % group_size != 0 {
            let shape = &self.shape;
            return Err(format!("is {shape:?}, which has no whole groups of {group_size}"));
        }
        let packed = (i64::from(*columns) * i64::from(bits) / 32) as i32;
        let groups = [rows, &[columns / group_size]].concat();
        let repacked =
            Rc::new(Repacked { dense: self.clone(), quantization, packed: OnceCell::new() });
        let part = |shape: Vec<i32>, dtype, part| {
            let node = Node::Quantized(repacked.clone(), part);
            Self::new(shape, dtype, &self.origin, node)
        };
        let weight = part([rows, &[packed]].concat(), Dtype::U32, PackedPart::Weight);
        let affine = mode == Mode::Affine;
        let scales_dtype = if affine { self.dtype } else { Dtype::U8 };
        let scales = part(groups.clone(), scales_dtype, PackedPart::Scales);
        let mut parts = vec![("weight", weight), ("scales", scales)];
        if affine {
            parts.push(("biases", part(groups, self.dtype, PackedPart::Biases)));
        }
        Ok(parts)
    }

    /// A matrix of e4m3 codes times one scale per block of `block` × `block`, as bf16.
    pub(crate) fn block_fp8(
        codes: Rc<Self>,
        scales: Rc<Self>,
        block: i32,
    ) -> Result<Rc<Self>, Refusal> {
        let [rows, columns] = codes.shape[..] else {
            return Err(format!("is {:?}, no matrix", codes.shape));
        };
        let blocks =
            |n: i32| i32::try_from((i64::from(n) + i64::from(block) - 1) / i64::from(block));
        let expected = [blocks(rows), blocks(columns)].map(|n| n.unwrap_or(0));
        if codes.dtype != Dtype::U8 || scales.shape != expected || !scales.dtype.is_float() {
            return Err(format!(
                "is {} {:?} with scales {} {:?}; 8-bit codes need one scale for each {block} by {block}",
                codes.dtype, codes.shape, scales.dtype, scales.shape
            ));
        }
        let (shape, origin) = (codes.shape.clone(), codes.origin.clone());
        let node = Node::BlockFp8 { codes, scales, block };
        Ok(Self::new(shape, Dtype::Bf16, &origin, node))
    }

    /// The product with a scalar or a vector along the last axis, promoted as MLX promotes.
    pub(crate) fn product(a: Rc<Self>, b: Rc<Self>) -> Result<Rc<Self>, Refusal> {
        let fits = b.shape.iter().product::<i32>() == 1 || b.shape == a.shape[a.shape.len() - 1..];
        if !a.dtype.is_float() || !b.dtype.is_float() || !fits {
            return Err(format!(
                "is {} {:?}, scaled by {} {:?}",
                a.dtype, a.shape, b.dtype, b.shape
            ));
        }
        let dtype = if a.dtype == b.dtype { a.dtype } else { Dtype::F32 };
        let (shape, origin) = (a.shape.clone(), a.origin.clone());
        Ok(Self::new(shape, dtype, &origin, Node::Product(a, b)))
    }

    /// The tensors that hold its bytes one after the other, all of them of the same shape.
    pub(crate) fn parts(self: &Rc<Self>) -> Vec<Rc<Self>> {
        match &self.node {
            Node::Contiguous(source) => source.parts(),
            Node::Stack(parts) => parts.iter().flat_map(Self::parts).collect(),
            _ => vec![self.clone()],
        }
    }

    /// The same tensor without the arrays that were made for it, so that those of the copy go with the copy.
    pub(crate) fn fresh(&self) -> Rc<Self> {
        let node = match &self.node {
            Node::File => Node::File,
            Node::Blank => Node::Blank,
            Node::Apply(source, op) => Node::Apply(source.fresh(), op.clone()),
            Node::Contiguous(source) => Node::Contiguous(source.fresh()),
            Node::Stack(parts) => Node::Stack(parts.iter().map(|part| part.fresh()).collect()),
            Node::Dequantize(packed) => Node::Dequantize(packed.fresh()),
            Node::Quantized(of, part) => {
                let (dense, quantization) = (of.dense.fresh(), of.quantization);
                let packed = OnceCell::new();
                Node::Quantized(Rc::new(Repacked { dense, quantization, packed }), *part)
            }
            Node::BlockFp8 { codes, scales, block } => {
                let (codes, scales) = (codes.fresh(), scales.fresh());
                Node::BlockFp8 { codes, scales, block: *block }
            }
            Node::Product(a, b) => Node::Product(a.fresh(), b.fresh()),
        };
        Self::new(self.shape.clone(), self.dtype, &self.origin, node)
    }

    /// The array, not evaluated.
    pub(crate) fn array(&self, read: Read<'_>) -> Result<Array> {
        if let Some(array) = self.array.get() {
            return Ok(array.clone());
        }
        let array = match &self.node {
            Node::File => read(&self.origin)?,
            Node::Blank => ops::zeros(&self.shape, self.dtype)?,
            Node::Apply(source, op) => op.run(&source.array(read)?)?,
            Node::Contiguous(source) => ops::contiguous(&source.array(read)?)?,
            Node::Stack(parts) => {
                let parts =
                    parts.iter().map(|part| part.array(read)).collect::<Result<Vec<_>>>()?;
                ops::stack(&parts, 0)?
            }
            Node::Dequantize(packed) => QuantizedWeight {
                w: packed.weight.array(read)?,
                scales: packed.scales.array(read)?,
                biases: packed.biases.as_ref().map(|b| b.array(read)).transpose()?,
                quantization: packed.quantization,
            }
            .dequantize()?,
            Node::Quantized(repacked, part) => {
                let packed = repacked.get(read)?;
                match part {
                    PackedPart::Weight => packed.w.clone(),
                    PackedPart::Scales => packed.scales.clone(),
                    PackedPart::Biases => {
                        let biases = packed.biases.clone();
                        biases.ok_or_else(|| Error::checkpoint("", "packed without biases"))?
                    }
                }
            }
            Node::BlockFp8 { codes, scales, block } => {
                block_fp8(&codes.array(read)?, &scales.array(read)?, *block)?
            }
            Node::Product(a, b) => {
                let scale = b.array(read)?;
                let scale = if b.shape.iter().product::<i32>() == 1 {
                    ops::reshape(&scale, &[])?
                } else {
                    scale
                };
                ops::astype(&ops::multiply(&a.array(read)?, &scale)?, self.dtype)?
            }
        };
        Ok(self.array.get_or_init(|| array).clone())
    }
}

impl Packed {
    fn fresh(&self) -> Self {
        Self {
            weight: self.weight.fresh(),
            scales: self.scales.fresh(),
            biases: self.biases.as_ref().map(|biases| biases.fresh()),
            quantization: self.quantization,
        }
    }
}

impl Repacked {
    fn get(&self, read: Read<'_>) -> Result<&QuantizedWeight> {
        if let Some(packed) = self.packed.get() {
            return Ok(packed);
        }
        let packed = QuantizedWeight::quantize(&self.dense.array(read)?, self.quantization)?;
        Ok(self.packed.get_or_init(|| packed))
    }
}

/// mlx-lm pads, scales block by block and cuts; each element is the same product without the padding.
fn block_fp8(codes: &Array, scales: &Array, block: i32) -> Result<Array> {
    let table: Vec<bf16> = (0..=255).map(|code| bf16::from_f32(e4m3(code))).collect();
    let values = ops::take(&Array::from_slice(&table, &[256])?, codes, 0)?;
    let scales = ops::repeat(&ops::repeat(scales, block, 0)?, block, 1)?;
    let scales = ops::slice(&scales, &[0, 0], codes.shape())?;
    Ok(ops::multiply(&values, &scales)?.astype(Dtype::Bf16)?)
}

/// The value of an OCP e4m3 code: no infinities, one NaN per sign.
fn e4m3(code: u8) -> f32 {
    let sign = if code & 0x80 == 0 { 1.0 } else { -1.0 };
    let (exponent, mantissa) = (i32::from(code >> 3 & 15), f32::from(code & 7));
    sign * match (exponent, code & 7) {
        (15, 7) => f32::NAN,
        (0, _) => mantissa * f32::exp2(-9.0),
        _ => (1.0 + mantissa / 8.0) * f32::exp2((exponent - 7) as f32),
    }
}

/// Refuses shapes with more elements than MLX can count.
fn checked_size(shape: &[i32]) -> Result<i64, Refusal> {
    shape
        .iter()
        .try_fold(1_i64, |size, n| size.checked_mul(i64::from(*n)))
        .ok_or_else(|| format!("would have shape {shape:?}, more than can be counted"))
}

impl Op {
    fn leaves_gaps(&self) -> bool {
        matches!(self, Self::Part { .. } | Self::Slice { .. } | Self::Every { .. } | Self::Swap(..))
    }

    /// Shape and dtype after the step.
    fn result(&self, shape: &[i32], dtype: Dtype) -> Result<(Vec<i32>, Dtype), Refusal> {
        let axis = |axis: i32| {
            let at = if axis < 0 { axis + shape.len() as i32 } else { axis };
            usize::try_from(at)
                .ok()
                .filter(|at| *at < shape.len())
                .ok_or_else(|| format!("has shape {shape:?}, which has no axis {axis}"))
        };
        let with = |at: usize, n: i32| {
            let mut shape = shape.to_vec();
            shape[at] = n;
            shape
        };
        let shape = match self {
            Self::Part { axis: a, of, index } => {
                let at = axis(*a)?;
                if *of < 1 || shape[at] % of != 0 || !(0..*of).contains(index) {
                    return Err(format!("has shape {shape:?}; axis {a} does not divide into {of}"));
                }
                with(at, shape[at] / of)
            }
            Self::Slice { axis: a, start, stop } => {
                let at = axis(*a)?;
                if *start < 0 || start > stop || *stop > shape[at] {
                    return Err(format!("has shape {shape:?}; axis {a} has no {start} to {stop}"));
                }
                with(at, stop - start)
            }
            Self::Every { axis: a, start, step } => {
                let at = axis(*a)?;
                if *step < 1 || shape[at] % step != 0 || !(0..*step).contains(start) {
                    let reason = format!("{step} cannot be interleaved along axis {a}");
                    return Err(format!("has shape {shape:?}; {reason}"));
                }
                with(at, shape[at] / step)
            }
            Self::Swap(a, b) => {
                let (a, b) = (axis(*a)?, axis(*b)?);
                let mut shape = shape.to_vec();
                shape.swap(a, b);
                shape
            }
            Self::Reshape(to) => reshaped(shape, to)?,
            Self::Flatten => match shape {
                [rest @ .., a, b] => {
                    let merged = a.checked_mul(*b).ok_or_else(|| "is too wide".to_owned())?;
                    [rest, &[merged]].concat()
                }
                _ => return Err(format!("has shape {shape:?}, too few axes to flatten")),
            },
            Self::View(to) => {
                let last = axis(-1)?;
                let bytes = i64::from(shape[last]) * dtype.size() as i64;
                if bytes % to.size() as i64 != 0 {
                    return Err(format!("has shape {shape:?} of {dtype}, no whole {to}"));
                }
                let n = i32::try_from(bytes / to.size() as i64);
                return Ok((with(last, n.map_err(|_| "is too wide".to_owned())?), *to));
            }
            Self::Add(_) | Self::Multiply(_) => {
                if !dtype.is_float() {
                    return Err(format!("is {dtype}, expected a floating type"));
                }
                shape.to_vec()
            }
        };
        Ok((shape, dtype))
    }

    fn run(&self, a: &Array) -> Result<Array> {
        let at = |axis: i32| if axis < 0 { axis + a.ndim() as i32 } else { axis };
        Ok(match self {
            Self::Part { axis, index, of } => {
                let part = a.dim(*axis) / of;
                ops::slice_axis(a, *axis, index * part, (index + 1) * part)?
            }
            Self::Slice { axis, start, stop } => ops::slice_axis(a, *axis, *start, *stop)?,
            Self::Every { axis, start, step } => {
                let mut from = vec![0; a.ndim()];
                let mut strides = vec![1; a.ndim()];
                from[at(*axis) as usize] = *start;
                strides[at(*axis) as usize] = *step;
                ops::slice_strided(a, &from, a.shape(), &strides)?
            }
            Self::Swap(x, y) => ops::swapaxes(a, *x, *y)?,
            Self::Reshape(to) => ops::reshape(a, to)?,
            Self::Flatten => ops::flatten(a, -2, -1)?,
            Self::View(dtype) => ops::view(a, *dtype)?,
            Self::Add(value) => ops::add(a, &Array::scalar_like(*value, a)?)?,
            Self::Multiply(value) => ops::multiply(a, &Array::scalar_like(*value, a)?)?,
        })
    }
}

fn reshaped(shape: &[i32], to: &[i32]) -> Result<Vec<i32>, Refusal> {
    let size = checked_size(shape)?;
    let known = checked_size(&to.iter().copied().filter(|n| *n != -1).collect::<Vec<_>>())?;
    let refusal = || format!("has shape {shape:?}, which cannot become {to:?}");
    let free = to.iter().filter(|n| **n == -1).count();
    let rest = match free {
        0 if known == size => 1,
        1 if known > 0 && size % known == 0 => size / known,
        _ => return Err(refusal()),
    };
    let rest = i32::try_from(rest).map_err(|_| refusal())?;
    Ok(to.iter().map(|n| if *n == -1 { rest } else { *n }).collect())
}

/// The quantisation of a packed matrix by the shapes of its parts.
pub(crate) fn infer(
    weight: &Tensor,
    scales: &Tensor,
    in_dims: i32,
) -> Result<Quantization, Refusal> {
    quantization::infer(&weight.shape, &scales.shape, scales.dtype, in_dims)
}
