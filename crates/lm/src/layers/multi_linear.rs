use mlx::primitives::{Ask, QuantizedMatmul};
use mlx::{Array, ops};

use super::linear::quantized_product;
use super::{Fusable, ModuleKind, ModulePath, Path, Site, Weight};
use crate::error::Result;
use crate::placement::Split;
use crate::weights::Scope;

/// One matrix for each attention head.
#[derive(Debug, Clone)]
pub struct MultiLinear {
    weight: Weight,
    path: Path,
}

impl MultiLinear {
    /// Takes `[num_heads, out_dims, in_dims]` weights; ranks share the heads.
    ///
    /// # Errors
    /// As [`Weight::load`].
    pub fn load(scope: &Scope<'_>, num_heads: i32, in_dims: i32, out_dims: i32) -> Result<Self> {
        let weight = Weight::load(&scope.split(Split::Stack), &[num_heads, out_dims, in_dims])?;
        Ok(Self { weight, path: Path::Stock })
    }

    /// Each head's `x · Wᵀ`.
    ///
    /// - `x`: `[B, H, L, K]`, or `[B, 1, L, K]` for all heads; returns `[B, H, L, N]`
    ///
    /// # Errors
    /// `Mlx`.
    /// # Source
    /// mlx-lm `mla.py` (`MultiLinear`).
    pub fn forward(&self, x: &Array) -> Result<Array> {
        match &self.weight {
            Weight::Dense(w) => Ok(ops::matmul(x, &ops::swapaxes(w, -1, -2)?)?),
            Weight::Quantized(q) => quantized_product(x, q, true, self.path),
        }
    }

    /// Each head's `x · W`.
    ///
    /// - `x`: `[B, H, L, N]`, or `[B, 1, L, N]` for all heads; returns `[B, H, L, K]`
    ///
    /// # Errors
    /// `Mlx`.
    pub fn forward_transposed(&self, x: &Array) -> Result<Array> {
        match &self.weight {
            Weight::Dense(w) => Ok(ops::matmul(x, w)?),
            Weight::Quantized(q) => {
                let path = if on_gpu() { Path::Stock } else { self.path };
                quantized_product(x, q, false, path)
            }
        }
    }
}

/// Prompts take the way back, which is stock's business on a GPU.
fn on_gpu() -> bool {
    mlx::default_device() == mlx::Device::Gpu
}

/// Asks about both directions: prefill and decode take different ones.
impl Fusable for MultiLinear {
    fn sites<'a>(&'a mut self, at: &ModulePath, sites: &mut Vec<Site<'a>>) {
        let Some(weight) = self.weight.quantized() else { return };
        let along = QuantizedMatmul::of(weight);
        let QuantizedMatmul { inner, outer, .. } = along;
        let back = QuantizedMatmul { transpose: false, inner: outer, outer: inner, ..along };
        let mut questions: Vec<Box<dyn Ask>> = vec![Box::new(along)];
        if !on_gpu() {
            questions.push(Box::new(back));
        }
        sites.push(Site {
            module: at.clone(),
            kind: ModuleKind::Linear,
            pattern: "quantized_linear",
            questions: Ok(questions),
            path: &mut self.path,
            trace: None,
        });
    }
}
