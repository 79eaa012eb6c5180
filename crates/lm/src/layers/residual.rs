//! The residual stream. What a layer adds to it waits for the norm that reads the sum, so that both may be one launch.

use mlx::primitives::AddRmsNorm;
use mlx::{Array, ops, primitives};

use super::site::ask;
use super::{Fusable, ModuleKind, ModulePath, Path, RmsNorm, Site};
use crate::error::Result;
use crate::weights::Scope;

/// A residual stream `[B, L, D]`, and what is still to be added to it.
#[derive(Debug, Clone)]
pub struct Residual {
    x: Array,
    added: Option<Array>,
}

impl Residual {
    /// One to which nothing is added.
    pub fn new(x: Array) -> Self {
        Self { x, added: None }
    }

    /// `x + r`.
    pub fn sum(x: Array, r: Array) -> Self {
        Self { x, added: Some(r) }
    }

    /// Some of its tokens, as `f` chooses them.
    ///
    /// # Errors
    /// Those of `f`.
    pub fn select(&self, f: impl Fn(&Array) -> Result<Array>) -> Result<Self> {
        Ok(Self { x: f(&self.x)?, added: self.added.as_ref().map(f).transpose()? })
    }
}

/// A norm of the residual stream.
#[derive(Debug, Clone)]
pub struct ResidualNorm {
    norm: RmsNorm,
    path: Path,
    /// Whether anything is added before it.
    has_sum: bool,
}

impl ResidualNorm {
    /// As [`RmsNorm::load`].
    ///
    /// # Errors
    /// Those of [`RmsNorm::load`].
    pub fn load(scope: &Scope<'_>, dims: i32, eps: f32) -> Result<Self> {
        Ok(Self { norm: RmsNorm::load(scope, dims, eps)?, path: Path::Stock, has_sum: true })
    }

    /// The same where the stream begins with it.
    pub fn without_sum(self) -> Self {
        Self { has_sum: false, ..self }
    }

    /// The stream with what was to be added, and its norm.
    ///
    /// # Errors
    /// `Mlx`.
    pub fn forward(&self, stream: &Residual) -> Result<(Array, Array)> {
        let x = match (&stream.x, &stream.added) {
            (x, None) => x.clone(),
            (x, Some(r)) => match self.path {
                Path::Stock => ops::add(x, r)?,
                Path::Fused(_) => {
                    let (weight, eps) = self.norm.parts();
                    return Ok(primitives::add_rms_norm(x, r, weight, eps)?);
                }
            },
        };
        let normed = self.norm.forward(&x)?;
        Ok((x, normed))
    }

    /// The norm by itself.
    pub fn norm(&self) -> &RmsNorm {
        &self.norm
    }
}

impl Fusable for ResidualNorm {
    fn sites<'a>(&'a mut self, at: &ModulePath, sites: &mut Vec<Site<'a>>) {
        let weight = self.norm.parts().0;
        if self.has_sum {
            sites.push(Site {
                module: at.clone(),
                kind: ModuleKind::Norm,
                pattern: "add_norm",
                questions: ask(AddRmsNorm { dims: weight.dim(0), weight: weight.dtype() }),
                path: &mut self.path,
                trace: None,
            });
        }
        self.norm.sites(at, sites);
    }
}
