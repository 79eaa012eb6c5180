use mlx::primitives::{InType, QuantizedMatmul};
use mlx::quantization::{self, QuantizedWeight};
use mlx::{Array, Dtype, ops, primitives};

use super::site::ask;
use super::{Fusable, Fusion, ModuleKind, ModulePath, Path, Site, Weight};
use crate::error::Result;
use crate::weights::Scope;

/// `x · Wᵀ + b`.
#[derive(Debug, Clone)]
pub struct Linear {
    pub(crate) weight: Weight,
    bias: Option<Array>,
    dtype: Option<Dtype>,
    path: Path,
}

impl Linear {
    /// Takes `[out_dims, in_dims]` weights.
    ///
    /// # Errors
    /// As [`Weight::load`].
    pub fn load(scope: &Scope<'_>, in_dims: i32, out_dims: i32) -> Result<Self> {
        Self::load_with(scope, in_dims, out_dims, false)
    }

    /// Takes `[out_dims, in_dims]` weights and, if `bias`, a bias of `[out_dims]`.
    ///
    /// # Errors
    /// As [`Weight::load`].
    pub fn load_with(scope: &Scope<'_>, in_dims: i32, out_dims: i32, bias: bool) -> Result<Self> {
        let weight = Weight::load(scope, &[out_dims, in_dims])?;
        let bias = if bias { Some(scope.take_float("bias", &[out_dims])?) } else { None };
        Ok(Self { weight, bias, dtype: None, path: Path::Stock })
    }

    /// Takes `[out_dims, in_dims]` weights that no checkpoint packs.
    ///
    /// # Errors
    /// As [`Weight::load`].
    pub fn load_dense(scope: &Scope<'_>, in_dims: i32, out_dims: i32) -> Result<Self> {
        let weight = Weight::Dense(scope.take_float("weight", &[out_dims, in_dims])?);
        Ok(Self { weight, bias: None, dtype: None, path: Path::Stock })
    }

    /// The same, with what goes in brought to a type of its own, which what comes out then has too.
    pub fn in_type(self, dtype: Dtype) -> Self {
        Self { dtype: Some(dtype), ..self }
    }

    /// The type that it computes in, where that is not the type of what goes in.
    pub(super) fn dtype(&self) -> Option<Dtype> {
        self.dtype
    }

    /// - `x`: `[.., K]`; returns `[.., N]`.
    ///
    /// # Errors
    /// `Mlx`.
    /// # Source
    /// mlx `nn/layers/linear.py` (`Linear`), `nn/layers/quantized.py` (`QuantizedLinear`).
    pub fn forward(&self, x: &Array) -> Result<Array> {
        match self.dtype {
            Some(dtype) => self.product(&x.astype(dtype)?),
            None => self.product(x),
        }
    }

    fn product(&self, x: &Array) -> Result<Array> {
        match (&self.weight, &self.bias) {
            (Weight::Dense(w), None) => Ok(ops::matmul(x, &ops::transpose(w, &[1, 0])?)?),
            (Weight::Dense(w), Some(b)) => Ok(ops::addmm(b, x, &ops::transpose(w, &[1, 0])?)?),
            (Weight::Quantized(q), None) => quantized_linear(x, q, self.path),
            (Weight::Quantized(q), Some(b)) => Ok(match self.path {
                Path::Stock => ops::add(&quantization::quantized_matmul(x, q, true)?, b)?,
                Path::Fused(Fusion { precision, .. }) => {
                    primitives::quantized_linear(x, q, b, precision)?
                }
            }),
        }
    }

    /// Its weight.
    pub fn weight(&self) -> &Weight {
        &self.weight
    }

    /// Its bias.
    pub(super) fn bias(&self) -> Option<&Array> {
        self.bias.as_ref()
    }

    /// Its site, as a module of the kind given.
    pub(super) fn sites_as<'a>(
        &'a mut self,
        kind: ModuleKind,
        at: &ModulePath,
        sites: &mut Vec<Site<'a>>,
    ) {
        let Some(mut site) = quantized_site(&self.weight, &mut self.path, kind, at) else { return };
        if let (Some(dtype), Some(weight)) = (self.dtype, self.weight.quantized()) {
            site.questions = ask(InType { ask: QuantizedMatmul::of(weight), dtype });
        }
        sites.push(site);
    }
}

impl Fusable for Linear {
    fn sites<'a>(&'a mut self, at: &ModulePath, sites: &mut Vec<Site<'a>>) {
        self.sites_as(ModuleKind::Linear, at, sites);
    }
}

/// `x · Wᵀ` with a packed `W`, on the path given.
pub(super) fn quantized_linear(x: &Array, w: &QuantizedWeight, path: Path) -> Result<Array> {
    quantized_product(x, w, true, path)
}

/// `x · Wᵀ`, or `x · W` unless `transpose`, with a packed `W` on the path given.
pub(super) fn quantized_product(
    x: &Array,
    w: &QuantizedWeight,
    transpose: bool,
    path: Path,
) -> Result<Array> {
    Ok(match path {
        Path::Stock => quantization::quantized_matmul(x, w, transpose)?,
        Path::Fused(Fusion { precision, .. }) => {
            primitives::quantized_matmul(x, w, transpose, precision)?
        }
    })
}

/// The site of [`quantized_linear`]; a dense product is stock's business.
pub(super) fn quantized_site<'a>(
    weight: &Weight,
    path: &'a mut Path,
    kind: ModuleKind,
    at: &ModulePath,
) -> Option<Site<'a>> {
    let weight = weight.quantized()?;
    Some(Site {
        module: at.clone(),
        kind,
        pattern: "quantized_linear",
        questions: ask(QuantizedMatmul::of(weight)),
        path,
        trace: None,
    })
}
