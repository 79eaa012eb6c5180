use mlx::primitives::QuantizedEmbedding;
use mlx::quantization::QuantizedWeight;
use mlx::{Array, ops, primitives};

use super::linear::{quantized_linear, quantized_site};
use super::site::ask;
use super::{ModuleKind, ModulePath, Path, Site, Weight};
use crate::error::Result;
use crate::weights::{Role, Scope};

/// A table of vectors, one per token.
#[derive(Debug, Clone)]
pub struct Embedding {
    pub(crate) weight: Weight,
    /// Of the table as an output projection.
    path: Path,
    lookup: Path,
}

impl Embedding {
    /// Takes `[num_embeddings, dims]` weights.
    ///
    /// # Errors
    /// As [`Weight::load`].
    pub fn load(scope: &Scope<'_>, num_embeddings: i32, dims: i32) -> Result<Self> {
        Ok(Self {
            weight: Weight::load(&scope.role(Role::Embedding), &[num_embeddings, dims])?,
            path: Path::Stock,
            lookup: Path::Stock,
        })
    }

    /// - `tokens`: `[..]` u32; returns `[.., dims]`. Only the rows taken are dequantised.
    ///
    /// # Errors
    /// `Mlx`.
    pub fn forward(&self, tokens: &Array) -> Result<Array> {
        match &self.weight {
            Weight::Dense(w) => Ok(ops::take(w, tokens, 0)?),
            Weight::Quantized(q) if self.lookup != Path::Stock => {
                Ok(primitives::quantized_embedding(tokens, q)?)
            }
            Weight::Quantized(q) => {
                let rows = |all: &Array| ops::take(all, tokens, 0);
                let taken = QuantizedWeight {
                    w: rows(&q.w)?,
                    scales: rows(&q.scales)?,
                    biases: q.biases.as_ref().map(rows).transpose()?,
                    quantization: q.quantization,
                };
                Ok(taken.dequantize()?)
            }
        }
    }

    /// The table as an output projection, for tied weights: `x · Wᵀ`.
    ///
    /// # Errors
    /// `Mlx`.
    pub fn as_linear(&self, x: &Array) -> Result<Array> {
        match &self.weight {
            Weight::Dense(w) => Ok(ops::matmul(x, &ops::transpose(w, &[1, 0])?)?),
            Weight::Quantized(q) => quantized_linear(x, q, self.path),
        }
    }

    /// Its weight.
    pub fn weight(&self) -> &Weight {
        &self.weight
    }

    /// Its sites: where rows are taken, and where it is `tied` to the output projection.
    pub(super) fn sites_as<'a>(
        &'a mut self,
        tied: bool,
        at: &ModulePath,
        sites: &mut Vec<Site<'a>>,
    ) {
        if let Some(table) = self.weight.quantized() {
            sites.push(Site {
                module: at.clone(),
                kind: ModuleKind::Embedding,
                pattern: "embedding",
                questions: ask(QuantizedEmbedding { quantization: table.quantization }),
                path: &mut self.lookup,
                trace: None,
            });
        }
        if tied {
            sites.extend(quantized_site(&self.weight, &mut self.path, ModuleKind::Linear, at));
        }
    }
}
