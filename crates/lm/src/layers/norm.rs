use mlx::{Array, fast, primitives};

use super::site::ask;
use super::{Fusable, ModuleKind, ModulePath, Path, Site};
use crate::error::Result;
use crate::weights::{Role, Scope};

/// Root-mean-square normalisation over the last axis (arXiv:1910.07467).
#[derive(Debug, Clone)]
pub struct RmsNorm {
    weight: Array,
    eps: f32,
    path: Path,
}

impl RmsNorm {
    /// With a weight of `[dims]` that something else has made.
    pub fn new(weight: Array, eps: f32) -> Self {
        Self { weight, eps, path: Path::Stock }
    }

    /// Takes a weight of `[dims]`.
    ///
    /// # Errors
    /// `MissingWeight`, `WeightShape`, `WeightDtype`.
    pub fn load(scope: &Scope<'_>, dims: i32, eps: f32) -> Result<Self> {
        let weight = scope.role(Role::Norm).take_float("weight", &[dims])?;
        Ok(Self::new(weight, eps))
    }

    /// - `x`: `[.., dims]`; returns the same shape.
    ///
    /// # Errors
    /// `Mlx`.
    pub fn forward(&self, x: &Array) -> Result<Array> {
        Ok(match self.path {
            Path::Stock => fast::rms_norm(x, Some(&self.weight), self.eps)?,
            Path::Fused(_) => primitives::rms_norm(x, &self.weight, self.eps)?,
        })
    }

    pub(super) fn parts(&self) -> (&Array, f32) {
        (&self.weight, self.eps)
    }
}

impl Fusable for RmsNorm {
    fn sites<'a>(&'a mut self, at: &ModulePath, sites: &mut Vec<Site<'a>>) {
        sites.push(Site {
            module: at.clone(),
            kind: ModuleKind::Norm,
            pattern: "rms_norm",
            questions: ask(primitives::RmsNorm { dims: self.weight.dim(0), weight: true }),
            path: &mut self.path,
            trace: None,
        });
    }
}

/// Normalisation over the last axis to mean 0 and variance 1, with weight and bias (arXiv:1607.06450).
#[derive(Debug, Clone)]
pub struct LayerNorm {
    weight: Array,
    bias: Array,
    eps: f32,
}

impl LayerNorm {
    /// Takes a weight and a bias of `[dims]`.
    ///
    /// # Errors
    /// `MissingWeight`, `WeightShape`, `WeightDtype`.
    pub fn load(scope: &Scope<'_>, dims: i32, eps: f32) -> Result<Self> {
        let weight = scope.role(Role::Norm).take_float("weight", &[dims])?;
        Ok(Self { weight, bias: scope.take_float("bias", &[dims])?, eps })
    }

    /// - `x`: `[.., dims]`; returns the same shape.
    ///
    /// # Errors
    /// `Mlx`.
    pub fn forward(&self, x: &Array) -> Result<Array> {
        Ok(fast::layer_norm(x, Some(&self.weight), Some(&self.bias), self.eps)?)
    }
}
