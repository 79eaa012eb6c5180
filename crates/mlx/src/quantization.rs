//! MLX's quantization and the products with quantized or gathered matrices.

use zmlx_sys::ffi;

use crate::array::{from_array_vec, opt};
use crate::ops::{self, unless_empty, zeros};
use crate::{Array, Device, Dtype, Error, Result, default_device};

/// How the values of a group are stored.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Mode {
    /// Integer codes with a scale and a bias per group: `scale · code + bias`.
    Affine,
    /// 4-bit floats (E2M1) with a power-of-two scale per 32 (OCP MX).
    Mxfp4,
    /// 8-bit floats (E4M3) with a power-of-two scale per 32 (OCP MX).
    Mxfp8,
    /// 4-bit floats (E2M1) with an E4M3 scale per 16.
    Nvfp4,
}

impl Mode {
    /// Every mode.
    pub const ALL: &[Mode] = &[Mode::Affine, Mode::Mxfp4, Mode::Mxfp8, Mode::Nvfp4];

    /// MLX's name of the mode.
    pub fn name(self) -> &'static str {
        match self {
            Mode::Affine => "affine",
            Mode::Mxfp4 => "mxfp4",
            Mode::Mxfp8 => "mxfp8",
            Mode::Nvfp4 => "nvfp4",
        }
    }

    /// The mode of that name.
    pub fn from_name(name: &str) -> Option<Mode> {
        Mode::ALL.iter().copied().find(|m| m.name() == name)
    }

    /// MLX's group size for this mode when none is named.
    pub fn default_group_size(self) -> i32 {
        match self {
            Mode::Affine => 64,
            Mode::Mxfp4 | Mode::Mxfp8 => 32,
            Mode::Nvfp4 => 16,
        }
    }

    /// MLX's bits for this mode when none are named.
    pub fn default_bits(self) -> i32 {
        match self {
            Mode::Affine | Mode::Mxfp4 | Mode::Nvfp4 => 4,
            Mode::Mxfp8 => 8,
        }
    }
}

impl std::fmt::Display for Mode {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.name())
    }
}

/// How a matrix is quantized along its last axis.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Quantization {
    /// Weights per scale.
    pub group_size: i32,
    /// Bits per weight.
    pub bits: i32,
    /// How the values are stored.
    pub mode: Mode,
}

impl Quantization {
    /// Affine quantization.
    pub fn affine(group_size: i32, bits: i32) -> Self {
        Self { group_size, bits, mode: Mode::Affine }
    }

    /// `mode` with MLX's group size and bits for it.
    pub fn default_of(mode: Mode) -> Self {
        Self { group_size: mode.default_group_size(), bits: mode.default_bits(), mode }
    }

    /// Refuses what MLX has no codes for; it divides by these numbers before it looks at them.
    pub(crate) fn check(self, op: &str) -> Result<()> {
        let Self { group_size, bits, mode } = self;
        let known = match mode {
            Mode::Affine => {
                matches!(group_size, 32 | 64 | 128) && matches!(bits, 2 | 3 | 4 | 5 | 6 | 8)
            }
            _ => self == Self::default_of(mode),
        };
        if known {
            return Ok(());
        }
        let message = format!("[{op}] MLX has no quantization of {self}");
        Err(Error::InvalidArgument { message })
    }

    pub(crate) fn params(self) -> ffi::QuantParams {
        ffi::QuantParams {
            group_size: self.group_size,
            bits: self.bits,
            mode: self.mode.name().to_owned(),
        }
    }
}

impl std::fmt::Display for Quantization {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} {} bits, group size {}", self.mode, self.bits, self.group_size)
    }
}

/// A quantized matrix `[.., N, K]`: the arrays and how to read them.
#[derive(Debug, Clone)]
pub struct QuantizedWeight {
    /// Packed codes `[.., N, K·bits/32]`, `uint32`.
    pub w: Array,
    /// `[.., N, K/group_size]`: floating for affine, `uint8` otherwise.
    pub scales: Array,
    /// As `scales`; affine only.
    pub biases: Option<Array>,
    /// How the codes are stored.
    pub quantization: Quantization,
}

impl QuantizedWeight {
    /// Quantizes `w` `[.., N, K]` along its last axis.
    ///
    /// # Errors
    /// `InvalidArgument` when K is not a multiple of the group size or MLX lacks the parameters.
    pub fn quantize(w: &Array, quantization: Quantization) -> Result<Self> {
        quantization.check("quantize")?;
        let mut parts =
            from_array_vec(&*ffi::quantize(w.raw(), &quantization.params())?)?.into_iter();
        match (parts.next(), parts.next()) {
            (Some(w), Some(scales)) => Ok(Self { w, scales, biases: parts.next(), quantization }),
            _ => unreachable!("quantize returns the codes and the scales"),
        }
    }

    /// Refuses parts that do not belong together: MLX compares some of their lengths only and
    /// reads as many scales as the codes need.
    pub(crate) fn check(&self, op: &str) -> Result<()> {
        self.quantization.check(op)?;
        let Self { w, scales, biases, quantization: Quantization { group_size, bits, mode } } =
            self;
        let refuse =
            |message: String| Err(Error::InvalidArgument { message: format!("[{op}] {message}") });
        if w.dtype() != Dtype::U32 {
            return refuse(format!("quantized codes must be uint32, got {}", w.dtype()));
        }
        let (codes, groups) = (w.shape(), scales.shape());
        let fits = match (codes.split_last(), groups.split_last()) {
            (Some((words, rows)), Some((count, scaled_rows))) => {
                let width = i64::from(*count) * i64::from(*group_size);
                !rows.is_empty()
                    && rows == scaled_rows
                    && i64::from(*words) * 32 == width * i64::from(*bits)
            }
            _ => false,
        };
        if !fits {
            return refuse(format!(
                "codes of shape {codes:?} do not go with scales of shape {groups:?} ({})",
                self.quantization
            ));
        }
        match biases.as_ref().map(Array::shape) {
            None if *mode == Mode::Affine => refuse("affine quantization needs biases".to_owned()),
            Some(shape) if *mode == Mode::Affine && shape != groups => refuse(format!(
                "biases of shape {shape:?} do not go with scales of shape {groups:?}"
            )),
            _ => Ok(()),
        }
    }

    /// The matrix `[.., N, K]` in the dtype of the scales (affine) or `bfloat16`.
    ///
    /// # Errors
    /// When the parts do not belong together.
    pub fn dequantize(&self) -> Result<Array> {
        self.check("dequantize")?;
        Ok(Array::wrap(ffi::dequantize(
            self.w.raw(),
            self.scales.raw(),
            &opt(self.biases.as_ref()),
            &self.quantization.params(),
        )?))
    }
}

/// Refuses rows without a batch for a stack of matrices, of which MLX would take any.
pub(crate) fn check_rows(op: &str, x: &Array, w: &QuantizedWeight) -> Result<()> {
    if w.w.ndim() < 3 || x.ndim() > 2 {
        return Ok(());
    }
    let (x, codes) = (x.shape(), w.w.shape());
    let message = format!("[{op}] a stack of matrices {codes:?} needs x [.., M, K], got {x:?}");
    Err(Error::InvalidArgument { message })
}

/// `out`, or zeros where nothing is added up: CPU kernels divide by the lengths.
pub(crate) fn product(x: &Array, w: &QuantizedWeight, out: Array) -> Result<Array> {
    if x.size() == 0 || w.w.size() == 0 {
        return zeros(out.shape(), out.dtype());
    }
    unless_empty(out)
}

/// x · Wᵀ (or x · W without `transpose`) with a quantized W; stock MLX.
///
/// - `x`: `[.., M, K]` floating; `w`: `[.., N, K]`, or `[.., K, N]` without `transpose`
/// - returns `[.., M, N]`
pub fn quantized_matmul(x: &Array, w: &QuantizedWeight, transpose: bool) -> Result<Array> {
    w.check("quantized_matmul")?;
    check_rows("quantized_matmul", x, w)?;
    product(
        x,
        w,
        Array::wrap(ffi::quantized_matmul(
            x.raw(),
            w.w.raw(),
            w.scales.raw(),
            &opt(w.biases.as_ref()),
            transpose,
            &w.quantization.params(),
        )?),
    )
}

/// [`quantized_matmul`] of the matrices that the indices pick from the leading axes; stock MLX.
///
/// - `x`: `[.., M, K]`; `w`: `[E, N, K]`; indices `uint32`, broadcast against each other, absent
///   means all in order
/// - `sorted`: the caller promises ascending `rhs_indices`
/// - returns `[indices.., M, N]`
///
/// # Errors
/// Also when an index is beyond the matrices; see [`ops`](crate::ops) on what checking it costs.
pub fn gather_qmm(
    x: &Array,
    w: &QuantizedWeight,
    lhs_indices: Option<&Array>,
    rhs_indices: Option<&Array>,
    transpose: bool,
    sorted: bool,
) -> Result<Array> {
    w.check("gather_qmm")?;
    check_indices("gather_qmm", "lhs_indices", lhs_indices, x)?;
    check_indices("gather_qmm", "rhs_indices", rhs_indices, &w.w)?;
    product(
        x,
        w,
        Array::wrap(ffi::gather_qmm(
            x.raw(),
            w.w.raw(),
            w.scales.raw(),
            &opt(w.biases.as_ref()),
            &opt(lhs_indices),
            &opt(rhs_indices),
            transpose,
            &w.quantization.params(),
            sorted,
        )?),
    )
}

/// Refuses indices of matrices that `stack` does not have.
pub(crate) fn check_indices(
    op: &str,
    what: &str,
    indices: Option<&Array>,
    stack: &Array,
) -> Result<()> {
    let Some(indices) = indices else { return Ok(()) };
    let shape = stack.shape();
    let outer = &shape[..shape.len().saturating_sub(2)];
    let matrices: i64 = outer.iter().map(|d| i64::from(*d)).product();
    indices.require(op, what, 0..=matrices - 1)
}

/// Matrix products of the matrices that the indices pick from the leading axes; stock MLX.
///
/// On a CPU stock multiplies so in `float32` alone. For `bfloat16` and `float16` each entry is there the stock
/// [`matmul`](crate::ops::matmul) of its matrices, with the same bits; the matrices are copied for it, a bounded number
/// at a time.
///
/// - `a`: `[.., M, K]`; `b`: `[E, K, N]`; indices as in [`gather_qmm`]
/// - returns `[indices.., M, N]`
pub fn gather_mm(
    a: &Array,
    b: &Array,
    lhs_indices: Option<&Array>,
    rhs_indices: Option<&Array>,
    sorted: bool,
) -> Result<Array> {
    check_indices("gather_mm", "lhs_indices", lhs_indices, a)?;
    check_indices("gather_mm", "rhs_indices", rhs_indices, b)?;
    let (lhs, rhs) = (opt(lhs_indices), opt(rhs_indices));
    let out = Array::wrap(ffi::gather_mm(a.raw(), b.raw(), &lhs, &rhs, sorted)?);
    let is_refused = matches!(out.dtype(), Dtype::Bf16 | Dtype::F16)
        && default_device() == Device::Cpu
        && (lhs_indices.is_some() || rhs_indices.is_some());
    if is_refused && out.size() > 0 && a.dim(-1) > 0 {
        return gather_then_multiply(a, b, lhs_indices, rhs_indices, out.shape());
    }
    unless_empty(out)
}

/// Bytes of matrices that are copied for one product.
const GATHERED_BYTES: usize = 32 << 20;

/// [`gather_mm`] from products of batches.
fn gather_then_multiply(
    a: &Array,
    b: &Array,
    lhs_indices: Option<&Array>,
    rhs_indices: Option<&Array>,
    shape: &[i32],
) -> Result<Array> {
    let entries = &shape[..shape.len() - 2];
    let num_entries: i32 = entries.iter().product();
    let flat = |x: &Array, indices: Option<&Array>| -> Result<(Array, Array)> {
        let outer = &x.shape()[..x.ndim() - 2];
        let num: i32 = outer.iter().product();
        let at = match indices {
            Some(indices) => indices.clone(),
            None => ops::arange(0.0, f64::from(num), 1.0, Dtype::U32)?.reshape(outer)?,
        };
        let matrices = x.reshape(&[num, x.dim(-2), x.dim(-1)])?;
        Ok((matrices, ops::broadcast_to(&at, entries)?.reshape(&[num_entries])?))
    };
    let (a, a_at) = flat(a, lhs_indices)?;
    // stacks of weights come as a view with swapped axes: rows are then copied as they lie in memory
    let (b, b_at) = flat(&ops::swapaxes(b, -1, -2)?, rhs_indices)?;
    let bytes = |x: &Array| x.dim(-1) as usize * x.dim(-2) as usize * x.dtype().size();
    let step = i32::try_from(GATHERED_BYTES / (bytes(&a) + bytes(&b))).unwrap_or(i32::MAX).max(1);
    let mut products = Vec::new();
    let mut start = 0;
    while start < num_entries {
        let stop = start.saturating_add(step).min(num_entries);
        let taken = |x: &Array, at: &Array| ops::take(x, &ops::slice_axis(at, 0, start, stop)?, 0);
        let (a, b) = (taken(&a, &a_at)?, taken(&b, &b_at)?);
        products.push(ops::matmul(&a, &ops::swapaxes(&b, -1, -2)?)?);
        start = stop;
    }
    let out =
        if products.len() == 1 { products.remove(0) } else { ops::concatenate(&products, 0)? };
    out.reshape(shape)
}
