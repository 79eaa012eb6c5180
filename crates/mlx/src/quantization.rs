//! MLX's quantization and the products with quantized or gathered matrices.

use zmlx_sys::ffi;

use crate::array::{from_array_vec, opt};
use crate::{Array, Result};

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
        let mut parts =
            from_array_vec(&*ffi::quantize(w.raw(), &quantization.params())?)?.into_iter();
        match (parts.next(), parts.next()) {
            (Some(w), Some(scales)) => Ok(Self { w, scales, biases: parts.next(), quantization }),
            _ => unreachable!("quantize returns the codes and the scales"),
        }
    }

    /// The matrix `[.., N, K]` in the dtype of the scales (affine) or `bfloat16`.
    pub fn dequantize(&self) -> Result<Array> {
        Ok(Array::wrap(ffi::dequantize(
            self.w.raw(),
            self.scales.raw(),
            &opt(self.biases.as_ref()),
            &self.quantization.params(),
        )?))
    }
}

/// x · Wᵀ (or x · W without `transpose`) with a quantized W; stock MLX.
///
/// - `x`: `[.., M, K]` floating; `w`: `[.., N, K]`, or `[.., K, N]` without `transpose`
/// - returns `[.., M, N]`
pub fn quantized_matmul(x: &Array, w: &QuantizedWeight, transpose: bool) -> Result<Array> {
    Ok(Array::wrap(ffi::quantized_matmul(
        x.raw(),
        w.w.raw(),
        w.scales.raw(),
        &opt(w.biases.as_ref()),
        transpose,
        &w.quantization.params(),
    )?))
}

/// [`quantized_matmul`] of the matrices that the indices pick from the leading axes; stock MLX.
///
/// - `x`: `[.., M, K]`; `w`: `[E, N, K]`; indices `uint32`, broadcast against each other, absent
///   means all in order
/// - `sorted`: the caller promises ascending `rhs_indices`
/// - returns `[indices.., M, N]`
pub fn gather_qmm(
    x: &Array,
    w: &QuantizedWeight,
    lhs_indices: Option<&Array>,
    rhs_indices: Option<&Array>,
    transpose: bool,
    sorted: bool,
) -> Result<Array> {
    Ok(Array::wrap(ffi::gather_qmm(
        x.raw(),
        w.w.raw(),
        w.scales.raw(),
        &opt(w.biases.as_ref()),
        &opt(lhs_indices),
        &opt(rhs_indices),
        transpose,
        &w.quantization.params(),
        sorted,
    )?))
}

/// Matrix products of the matrices that the indices pick from the leading axes; stock MLX.
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
    let (lhs, rhs) = (opt(lhs_indices), opt(rhs_indices));
    Ok(Array::wrap(ffi::gather_mm(a.raw(), b.raw(), &lhs, &rhs, sorted)?))
}
