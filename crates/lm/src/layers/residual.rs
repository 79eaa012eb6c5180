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
            (x, Some(r)) => {
                let (weight, eps) = self.norm.parts();
                // the first layers may bring another type: embeddings in mxfp4 are bf16 whatever the norms are in
                let is_one_type = x.dtype() == r.dtype() && x.dtype() == weight.dtype();
                if self.path != Path::Stock && is_one_type {
                    return Ok(primitives::add_rms_norm(x, r, weight, eps)?);
                }
                ops::add(x, r)?
            }
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

#[cfg(test)]
mod tests {
    use mlx::Dtype;
    use mlx::primitives::{Precision, Setting, supports};

    use super::*;
    use crate::layers::Fusion;

    fn random(seed: u64, shape: &[i32], dtype: Dtype) -> Array {
        let key = mlx::random::key(seed).unwrap();
        mlx::random::normal(shape, dtype, 0.0, 1.0, Some(&key)).unwrap()
    }

    /// The residual stream of a model with f32 norms and an embedding in mxfp4 is bf16 up to the first sum.
    #[test]
    fn types_that_differ_are_added_as_stock_does() {
        let (f32, bf16) = (Dtype::F32, Dtype::Bf16);
        let ask = AddRmsNorm { dims: 64, weight: f32 };
        let setting =
            Setting { device: mlx::default_device(), dtype: f32, precision: Precision::Exact };
        if supports(&ask, &setting).is_err() {
            return; // without the feature
        }
        let fused = Path::Fused(Fusion { precision: Precision::Exact, decode_only: false });
        for types in [[f32; 3], [bf16; 3], [bf16, f32, f32], [f32, bf16, f32], [bf16, bf16, f32]] {
            let [x, r] = [0, 1].map(|i| random(i as u64, &[1, 2, 64], types[i]));
            let weight = random(2, &[64], types[2]);
            let stream = Residual::sum(x, r);
            let bits = |path| {
                let norm = RmsNorm::new(weight.clone(), 1e-6);
                let norm = ResidualNorm { norm, path, has_sum: true };
                let (sum, normed) = norm.forward(&stream).unwrap();
                [sum, normed].map(|a| (a.dtype(), a.to_bytes().unwrap()))
            };
            assert_eq!(bits(fused), bits(Path::Stock), "{types:?}");
        }
    }
}
