use mlx::primitives::AddRmsNorm;
use mlx::{Array, fast, ops, primitives};

use super::site::ask;
use super::{Fusable, ModuleKind, ModulePath, Path, Site};
use crate::error::Result;
use crate::step::Step;
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

/// The residual stream, `[B, L, D]`, between two parts of a model: what it was, and what the part before adds to it.
#[derive(Debug, Clone)]
pub struct Residual {
    x: Array,
    added: Option<Array>,
}

impl Residual {
    /// `x + added`, both `[B, L, D]`.
    pub fn new(x: Array, added: Array) -> Self {
        Self { x, added: Some(added) }
    }
}

/// A stream to which nothing has been added.
impl From<Array> for Residual {
    fn from(x: Array) -> Self {
        Self { x, added: None }
    }
}

/// A norm of the residual stream, with the sum before it.
#[derive(Debug, Clone)]
pub struct NormOfSum {
    norm: RmsNorm,
    pattern: &'static str,
    path: Path,
}

impl NormOfSum {
    /// `pattern` is the one that takes both together.
    pub fn new(norm: RmsNorm, pattern: &'static str) -> Self {
        Self { norm, pattern, path: Path::Stock }
    }

    /// The sum and its norm, `[B, L, D]` each.
    ///
    /// # Errors
    /// `Mlx`.
    pub fn forward(&self, stream: &Residual) -> Result<(Array, Array)> {
        let Residual { x, added } = stream;
        let (weight, eps) = self.norm.parts();
        let x = match (added, self.path) {
            (Some(r), Path::Fused(_)) => return Ok(primitives::add_rms_norm(x, r, weight, eps)?),
            (Some(r), Path::Stock) => ops::add(x, r)?,
            (None, _) => x.clone(),
        };
        let normed = self.norm.forward(&x)?;
        Ok((x, normed))
    }

    /// The norm of the positions of the stream that `step` wants.
    ///
    /// # Errors
    /// `Mlx`.
    pub fn forward_wanted(&self, stream: &Residual, step: &Step<'_>) -> Result<Array> {
        let Residual { x, added } = stream;
        if let (Some(r), Path::Fused(_)) = (added, self.path) {
            let wanted = Residual::new(step.wanted(x)?, step.wanted(r)?);
            return Ok(self.forward(&wanted)?.1);
        }
        let x = match added {
            Some(r) => ops::add(x, r)?,
            None => x.clone(),
        };
        self.norm.forward(&step.wanted(&x)?)
    }
}

impl Fusable for NormOfSum {
    fn sites<'a>(&'a mut self, at: &ModulePath, sites: &mut Vec<Site<'a>>) {
        let (weight, _) = self.norm.parts();
        sites.push(Site {
            module: at.clone(),
            kind: ModuleKind::Norm,
            pattern: self.pattern,
            questions: ask(AddRmsNorm { dims: weight.dim(0), weight: weight.dtype() }),
            path: &mut self.path,
            trace: None,
        });
        self.norm.sites(at, sites);
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
