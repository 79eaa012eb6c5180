use std::borrow::Cow;
use std::f64::consts::PI;

use mlx::primitives::{self, Ask, ScaledRope};
use mlx::{Array, Dtype, fast, ops};
use serde::Deserialize;

use crate::cache::Position;
use crate::config::{Count, Finite, ModelConfig, Positive, Size, shown};
use crate::error::{Error, Result};
use crate::layers::RmsNorm;

/// `rope_scaling`, or one entry of `rope_parameters`: which rotation, and its numbers.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(default)]
#[expect(missing_docs, reason = "the names are those of config.json")]
pub struct RopeScaling {
    /// Counts before `rope_type`.
    #[serde(rename = "type")]
    pub kind: Option<String>,
    pub rope_type: Option<String>,
    pub rope_theta: Option<Positive>,
    pub factor: Option<Positive>,
    pub original_max_position_embeddings: Option<Size>,
    pub low_freq_factor: Option<Positive>,
    pub high_freq_factor: Option<Positive>,
    pub beta_fast: Option<Positive>,
    pub beta_slow: Option<Positive>,
    pub mscale: Option<Finite>,
    pub mscale_all_dim: Option<Finite>,
    pub short_factor: Option<Factors>,
    pub long_factor: Option<Factors>,
    pub partial_rotary_factor: Option<Positive>,
    pub mrope_section: Vec<Count>,
    /// No part of the rotation; see [`QueryScale`](super::QueryScale).
    pub llama_4_scaling_beta: Option<Finite>,
}

/// One factor for all frequencies or one for each.
#[derive(Debug, Clone, Deserialize)]
#[serde(untagged, expecting = "expected a number above zero or a list of them")]
pub enum Factors {
    /// For all.
    One(Positive),
    /// One for each.
    Each(Vec<Positive>),
}

/// What a rotation is made of.
#[derive(Debug, Clone, Copy)]
pub struct RopeOptions<'a> {
    /// Leading part of a head that is turned.
    pub dims: i32,
    /// `rope_theta`.
    pub base: Positive,
    /// Whether neighbours are turned together instead of halves.
    pub traditional: bool,
    /// How positions or frequencies are stretched, and under which field of the configuration that is said.
    pub scaling: Option<(&'a str, &'a RopeScaling)>,
    /// Longest sequence that the model was made for.
    pub max_position_embeddings: Option<Size>,
}

/// Rotary position embedding (arXiv:2104.09864).
#[derive(Debug, Clone)]
pub struct Rope {
    kernel: fast::Rope,
    /// What the turned part is multiplied by first, in its own type.
    input_scale: Option<f32>,
    dynamic: Option<DynamicNtk>,
}

/// A base that grows with the sequence beyond the length that the model was made for.
#[derive(Debug, Clone, Copy)]
struct DynamicNtk {
    base: f64,
    factor: f64,
    max_position: i32,
}

impl RopeScaling {
    /// Names of [`Rope::from_config`].
    pub const KINDS: &'static [&'static str] = &[
        "default",
        "linear",
        "dynamic",
        "llama3",
        "yarn",
        "deepseek_yarn",
        "telechat3-yarn",
        "longrope",
        "su",
        "proportional",
        "mrope",
    ];

    /// Which rotation it asks for.
    pub fn kind(&self) -> &str {
        let kind = self.kind.as_deref().filter(|kind| !kind.is_empty());
        kind.or(self.rope_type.as_deref()).unwrap_or("default")
    }

    /// The scale of attention logits: `scale`, with the square of yarn's `mscale_all_dim` folded in.
    ///
    /// # Source
    /// mlx-lm `rope_utils.py` (`apply_yarn_mscale`).
    pub fn attention_scale(&self, scale: f64) -> f64 {
        if self.kind() == "default" { scale } else { self.with_mscale(scale) }
    }

    /// The same whatever kind of rotation it is.
    ///
    /// # Source
    /// mlx-lm `deepseek_v3.py` (`DeepseekV3Attention`).
    pub fn with_mscale(&self, scale: f64) -> f64 {
        let all_dim = self.mscale_all_dim.map_or(0.0, Finite::f64);
        let factor = self.factor.map_or(1.0, Positive::f64);
        if all_dim == 0.0 || factor <= 1.0 {
            return scale;
        }
        let s = 0.1 * all_dim * factor.ln() + 1.0;
        scale * s * s
    }
}

impl Rope {
    /// Turns pairs half a head of `dims` apart, frequencies from `base`.
    pub fn new(dims: i32, base: f32) -> Self {
        Self::plain(fast::Rope { dims, traditional: false, base, scale: 1.0, freqs: None })
    }

    fn plain(kernel: fast::Rope) -> Self {
        Self { kernel, input_scale: None, dynamic: None }
    }

    /// The rotation that a configuration asks for. `config` is named in errors.
    ///
    /// # Errors
    /// `Config` for a kind that there is not, and for numbers that are missing or do not fit; `Mlx`.
    /// # Source
    /// mlx-lm `rope_utils.py` (`initialize_rope`).
    pub fn from_config(config: &ModelConfig, options: RopeOptions<'_>) -> Result<Self> {
        let RopeOptions { dims, base, traditional, scaling, .. } = options;
        if dims < 2 || dims % 2 != 0 {
            let reason =
                format!("turns {dims} dimensions of a head, expected an even number from 2");
            return Err(config.error(scaling.map_or("head_dim", |(field, _)| field), reason));
        }
        let kernel = fast::Rope { dims, traditional, base: base.f32(), scale: 1.0, freqs: None };
        let Some((field, scaling)) = scaling else { return Ok(Self::plain(kernel)) };
        let from = Source { config, field, scaling, options };
        let with = |freqs: Array| fast::Rope { freqs: Some(freqs), ..kernel.clone() };
        Ok(match scaling.kind() {
            "default" => Self::plain(kernel),
            "mrope" => {
                let sections = scaling.mrope_section.len();
                if sections != 3 {
                    return Err(
                        from.error("mrope_section", format!("has {sections} parts, expected 3"))
                    );
                }
                Self::plain(kernel)
            }
            "linear" => {
                let scale = (1.0 / from.factor()?) as f32;
                Self::plain(fast::Rope { scale, ..kernel })
            }
            "dynamic" => {
                if dims < 4 {
                    return Err(from.error("rope_type", "is \"dynamic\", which needs 4 dimensions"));
                }
                let dynamic = DynamicNtk {
                    base: base.f64(),
                    factor: from.factor()?,
                    max_position: from.max_position()?,
                };
                Self { dynamic: Some(dynamic), ..Self::plain(kernel) }
            }
            "llama3" => Self::plain(with(from.llama3()?)),
            "yarn" | "deepseek_yarn" | "telechat3-yarn" => {
                let (freqs, mscale) = from.yarn()?;
                let input_scale = (mscale != 1.0).then_some(mscale as f32);
                Self { input_scale, ..Self::plain(with(freqs)) }
            }
            "longrope" | "su" => {
                let (freqs, scale) = from.longrope()?;
                let kernel = fast::Rope { traditional: false, ..with(freqs) };
                let input_scale = (scale != 1.0).then_some(scale as f32);
                Self { input_scale, ..Self::plain(kernel) }
            }
            "proportional" => Self::plain(with(from.proportional()?)),
            kind => {
                let known = RopeScaling::KINDS.join(", ");
                let reason = format!("is {}, expected one of {known}", shown(&kind.into()));
                return Err(from.error("rope_type", reason));
            }
        })
    }

    /// As the kernels take it for `l` tokens from a position on.
    ///
    /// # Errors
    /// `Argument` for a dynamic base at a position that is read when the graph runs.
    fn kernel_at(&self, l: i32, position: &Position) -> Result<Cow<'_, fast::Rope>> {
        match (&self.dynamic, position) {
            (None, _) => Ok(Cow::Borrowed(&self.kernel)),
            (Some(dynamic), Position::Static(offset)) => {
                let base = dynamic.base_at(l + offset, self.kernel.dims);
                Ok(Cow::Owned(fast::Rope { base, ..self.kernel.clone() }))
            }
            (Some(_), Position::Dynamic(_)) => {
                let reason = "a dynamic base has to be known while the graph is built";
                Err(Error::argument("position", "an array", reason))
            }
        }
    }

    /// Heads split, normed and turned in one launch.
    ///
    /// - `x`: `[B, L, H * D]` or `[B, L, H, D]`; returns `[B, H, L, D]`
    pub(super) fn forward_heads(
        &self,
        x: &Array,
        num_heads: i32,
        norm: Option<&RmsNorm>,
        position: &Position,
    ) -> Result<Array> {
        let (weight, eps) = norm.map(RmsNorm::parts).unzip();
        let eps = eps.unwrap_or_default();
        let kernel = self.kernel_at(x.dim(1), position)?;
        let rope = ScaledRope { rope: &kernel, input_scale: self.input_scale.unwrap_or(1.0) };
        Ok(match position {
            Position::Static(offset) => {
                primitives::qk_norm_rope(x, num_heads, weight, eps, rope, *offset)?
            }
            Position::Dynamic(offset) => {
                primitives::qk_norm_rope_dynamic(x, num_heads, weight, eps, rope, offset)?
            }
        })
    }

    /// What [`Rope::forward_heads`] asks of its primitive.
    pub(super) fn question(&self, num_heads: i32, head_dim: i32, norm: bool) -> Box<dyn Ask> {
        Box::new(primitives::QkNormRope {
            num_heads,
            head_dim,
            norm,
            dims: self.kernel.dims,
            traditional: self.kernel.traditional,
            freqs: self.kernel.freqs.is_some(),
            input_scale: self.input_scale.unwrap_or(1.0),
        })
    }

    /// - `x`: `[B, H, L, D]`, whose first row stands at `position`; returns the same shape.
    ///
    /// # Errors
    /// `Mlx`; `Argument` for a dynamic base at a position that is read when the graph runs.
    pub fn forward(&self, x: &Array, position: &Position) -> Result<Array> {
        let scaled = self.scaled(x)?;
        let x = scaled.as_ref().unwrap_or(x);
        let kernel = self.kernel_at(x.dim(-2), position)?;
        Ok(match position {
            Position::Static(offset) => fast::rope(x, &kernel, *offset)?,
            Position::Dynamic(offset) => fast::rope_dynamic(x, &kernel, offset)?,
        })
    }

    /// `x` with the part that is turned multiplied, where there is a factor.
    fn scaled(&self, x: &Array) -> Result<Option<Array>> {
        let Some(scale) = self.input_scale else { return Ok(None) };
        let (dims, width) = (self.kernel.dims, x.dim(-1));
        let scale = Array::scalar_like(scale, x)?;
        if dims >= width {
            return Ok(Some(ops::multiply(x, &scale)?));
        }
        let turned = ops::multiply(&ops::slice_axis(x, -1, 0, dims)?, &scale)?;
        let rest = ops::slice_axis(x, -1, dims, width)?;
        Ok(Some(ops::concatenate(&[turned, rest], -1)?))
    }
}

impl DynamicNtk {
    /// In f64 as Python computes it, rounded once.
    fn base_at(&self, len: i32, dims: i32) -> f32 {
        let max_position = f64::from(self.max_position);
        let len = f64::from(len.max(self.max_position));
        let stretch = self.factor * len / max_position - (self.factor - 1.0);
        let dims = f64::from(dims);
        (self.base * stretch.powf(dims / (dims - 2.0))) as f32
    }
}

/// A setting, where it stands, and what it is for.
struct Source<'a> {
    config: &'a ModelConfig,
    field: &'a str,
    scaling: &'a RopeScaling,
    options: RopeOptions<'a>,
}

/// Frequencies are computed by MLX in f32, in the order in which mlx-lm does it.
impl Source<'_> {
    fn error(&self, key: &str, reason: impl Into<String>) -> Error {
        self.config.error(&format!("{}.{key}", self.field), reason)
    }

    fn missing(&self, key: &str) -> Error {
        self.error(key, format!("is missing, which rope_type \"{}\" needs", self.scaling.kind()))
    }

    fn factor(&self) -> Result<f64> {
        self.scaling.factor.map(Positive::f64).ok_or_else(|| self.missing("factor"))
    }

    fn max_position(&self) -> Result<i32> {
        let reason = format!("is missing, which rope_type \"{}\" needs", self.scaling.kind());
        let held = self.options.max_position_embeddings;
        held.map(|n| *n).ok_or_else(|| self.config.error("max_position_embeddings", reason))
    }

    /// `base ** (arange(0, stop, 2) / dims)`
    fn frequencies(&self, stop: i32) -> Result<Array> {
        let even = ops::arange(0.0, f64::from(stop), 2.0, Dtype::F32)?;
        let exponents = ops::divide(&even, &Array::scalar(self.options.dims as f32)?)?;
        Ok(ops::power(&Array::scalar(self.options.base.f32())?, &exponents)?)
    }

    fn llama3(&self) -> Result<Array> {
        let factor = scalar(self.factor()?)?;
        let low = self.scaling.low_freq_factor.map_or(1.0, Positive::f64);
        let high = self.scaling.high_freq_factor.map_or(4.0, Positive::f64);
        if low >= high {
            let reason = format!("is {high}, expected more than low_freq_factor ({low})");
            return Err(self.error("high_freq_factor", reason));
        }
        let len = self.scaling.original_max_position_embeddings.map_or(8192, |n| *n);
        let len = f64::from(len);
        let (low_wavelength, high_wavelength) = (scalar(len / low)?, scalar(len / high)?);

        let freqs = self.frequencies(self.options.dims)?;
        let wavelengths = ops::multiply(&scalar(2.0 * PI)?, &freqs)?;
        let is_long = ops::greater(&wavelengths, &low_wavelength)?;
        let freqs = ops::select(&is_long, &ops::multiply(&freqs, &factor)?, &freqs)?;
        let is_medium = ops::logical_and(
            &ops::greater(&wavelengths, &high_wavelength)?,
            &ops::less(&wavelengths, &low_wavelength)?,
        )?;
        let smooth = ops::divide(
            &ops::subtract(&ops::divide(&scalar(len)?, &wavelengths)?, &scalar(low)?)?,
            &scalar(high - low)?,
        )?;
        let rest = ops::divide(&ops::subtract(&scalar(1.0)?, &smooth)?, &factor)?;
        let smoothed = ops::divide(&freqs, &ops::add(&rest, &smooth)?)?;
        evaluated(ops::select(&is_medium, &smoothed, &freqs)?)
    }

    /// Frequencies and what the input is multiplied by (arXiv:2309.00071).
    fn yarn(&self) -> Result<(Array, f64)> {
        let factor = self.factor()?;
        let dims = self.options.dims;
        let len = self.scaling.original_max_position_embeddings.map_or(4096, |n| *n);
        let beta = |given: Option<Positive>, default| given.map_or(default, Positive::f64);
        let dim_of = |rotations: f64| {
            let rounds = (f64::from(len) / (rotations * 2.0 * PI)).ln();
            f64::from(dims) * rounds / (2.0 * self.options.base.f64().ln())
        };
        let low = dim_of(beta(self.scaling.beta_fast, 32.0)).floor().max(0.0);
        let high = dim_of(beta(self.scaling.beta_slow, 1.0)).ceil().min(f64::from(dims - 1));
        if !(low.is_finite() && high.is_finite()) {
            let reason =
                format!("is {}, with which yarn has no frequencies", self.options.base.f64());
            return Err(self.config.error("rope_theta", reason));
        }
        // as mlx-lm: no division by zero
        let width = if low == high { high + 0.001 - low } else { high - low };

        let extra = self.frequencies(dims)?;
        let inter = ops::multiply(&scalar(factor)?, &extra)?;
        let (zero, one) = (scalar(0.0)?, scalar(1.0)?);
        let steps = ops::arange(0.0, f64::from(dims / 2), 1.0, Dtype::F32)?;
        let ramp = ops::divide(&ops::subtract(&steps, &scalar(low)?)?, &scalar(width)?)?;
        let ramp = ops::minimum(&ops::maximum(&ramp, &zero)?, &one)?;
        let mask = ops::subtract(&one, &ramp)?;
        let below = ops::add(
            &ops::multiply(&inter, &mask)?,
            &ops::multiply(&extra, &ops::subtract(&one, &mask)?)?,
        )?;
        let freqs = ops::divide(&ops::multiply(&inter, &extra)?, &below)?;

        let mscale = |scale: Option<Finite>, default| {
            let scale = scale.map_or(default, Finite::f64);
            if factor <= 1.0 { 1.0 } else { 0.1 * scale * factor.ln() + 1.0 }
        };
        let ratio = mscale(self.scaling.mscale, 1.0) / mscale(self.scaling.mscale_all_dim, 0.0);
        if !(ratio as f32).is_finite() {
            return Err(self.error("mscale_all_dim", "makes a scale that is not finite"));
        }
        Ok((evaluated(freqs)?, ratio))
    }

    /// Frequencies and what the input is multiplied by (arXiv:2402.13753).
    fn longrope(&self) -> Result<(Array, f64)> {
        let scaling = self.scaling;
        let len = scaling.original_max_position_embeddings;
        let len = f64::from(*len.ok_or_else(|| self.missing("original_max_position_embeddings"))?);
        if scaling.short_factor.is_none() {
            return Err(self.missing("short_factor"));
        }
        let count = (self.options.dims / 2) as usize;
        let long = match scaling.long_factor.as_ref().ok_or_else(|| self.missing("long_factor"))? {
            Factors::One(factor) => scalar(factor.f64())?,
            Factors::Each(factors) if factors.len() == count || factors.len() == 1 => {
                let factors: Vec<f32> = factors.iter().map(|factor| factor.f32()).collect();
                Array::from_slice(&factors, &[factors.len() as i32])?
            }
            Factors::Each(factors) => {
                let reason = format!("has {} numbers, expected {count}", factors.len());
                return Err(self.error("long_factor", reason));
            }
        };
        let freqs = ops::multiply(&long, &self.frequencies(self.options.dims)?)?;
        let factor = f64::from(self.max_position()?) / len;
        let scale = if factor <= 1.0 { 1.0 } else { (1.0 + factor.ln() / len.ln()).sqrt() };
        if !scale.is_finite() {
            let reason = format!("is {len}, expected more than 1");
            return Err(self.error("original_max_position_embeddings", reason));
        }
        Ok((evaluated(freqs)?, scale))
    }

    /// The first part of the frequencies is spread as if all were turned; the rest stand still.
    fn proportional(&self) -> Result<Array> {
        let dims = self.options.dims;
        let part = self.scaling.partial_rotary_factor.map_or(1.0, Positive::f64);
        let turned = (f64::from(dims) * part) as i32;
        if turned > dims || turned < 2 || turned % 2 != 0 {
            let reason = format!(
                "is {part}, which turns {turned} of {dims} dimensions, expected an even number"
            );
            return Err(self.error("partial_rotary_factor", reason));
        }
        let factor = scalar(self.scaling.factor.map_or(1.0, Positive::f64))?;
        let freqs = ops::multiply(&factor, &self.frequencies(turned)?)?;
        let still = ops::full(&[(dims - turned) / 2], &Array::scalar(f32::INFINITY)?, Dtype::F32)?;
        evaluated(ops::concatenate(&[freqs, still], 0)?)
    }
}

fn scalar(value: f64) -> Result<Array> {
    Ok(Array::scalar(value as f32)?)
}

/// Computed once, not in every step.
fn evaluated(freqs: Array) -> Result<Array> {
    freqs.eval()?;
    Ok(freqs)
}

#[cfg(test)]
#[path = "rope_tests.rs"]
mod tests;
