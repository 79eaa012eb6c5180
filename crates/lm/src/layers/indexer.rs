use mlx::{Array, Dtype, ops};

use super::{Fusable, LayerNorm, Linear, ModulePath, Rope, Site};
use crate::cache::{KeysValues, LayerCache, Position};
use crate::error::{Error, Result};
use crate::weights::Scope;

/// What an [`Indexer`] is made of.
#[derive(Debug, Clone)]
pub struct IndexerOptions {
    /// Width of the residual stream.
    pub hidden_size: i32,
    /// Width of the latents of attention's queries.
    pub q_lora_rank: i32,
    /// Its heads.
    pub num_heads: i32,
    /// Width of one.
    pub head_dim: i32,
    /// Keys that a query of attention sees.
    pub top_k: i32,
    /// Rotation of its queries and keys.
    pub rope: Rope,
}

/// Chooses the keys that each query of attention sees (DeepSeek Sparse Attention, arXiv:2512.02556): those for which the
/// weighted sum over its heads of `max(q·k, 0)` is largest.
#[derive(Debug, Clone)]
pub struct Indexer {
    wq_b: Linear,
    wk: Linear,
    k_norm: LayerNorm,
    weights_proj: Linear,
    rope: Rope,
    num_heads: i32,
    top_k: i32,
    /// What the weights of heads are multiplied by.
    scale: f32,
}

impl Indexer {
    /// Epsilon of the norm of keys, that of mlx's `LayerNorm`.
    const NORM_EPS: f32 = 1e-5;

    /// Takes `wq_b`, `wk`, `k_norm` and `weights_proj`, of which every rank needs all.
    ///
    /// # Errors
    /// As [`Linear::load`] and [`LayerNorm::load`].
    pub fn load(scope: &Scope<'_>, options: IndexerOptions) -> Result<Self> {
        let IndexerOptions { hidden_size, q_lora_rank, num_heads, head_dim, .. } = options;
        let scale = f64::from(num_heads).powf(-0.5) * f64::from(head_dim).powf(-0.5);
        Ok(Self {
            wq_b: Linear::load(&scope.pp("wq_b"), q_lora_rank, num_heads * head_dim)?,
            wk: Linear::load(&scope.pp("wk"), hidden_size, head_dim)?,
            k_norm: LayerNorm::load(&scope.pp("k_norm"), head_dim, Self::NORM_EPS)?,
            weights_proj: Linear::load(&scope.pp("weights_proj"), hidden_size, num_heads)?,
            rope: options.rope,
            num_heads,
            top_k: options.top_k,
            scale: scale as f32,
        })
    }

    /// What it makes of new tokens: queries `[B, H, L, D]`, keys `[B, 1, L, D]`, weights of heads `[B, H, L, 1]`.
    ///
    /// - `x`: `[B, L, D_model]`; `q_latent`: the latents of attention's queries, `[B, L, rank]`
    ///
    /// # Errors
    /// `Mlx`.
    /// # Source
    /// mlx-lm `deepseek_v32.py` (`Indexer`).
    pub(super) fn project(
        &self,
        x: &Array,
        q_latent: &Array,
        positions: &Position,
    ) -> Result<[Array; 3]> {
        let (b, l) = (x.dim(0), x.dim(1));
        let q = self.wq_b.forward(q_latent)?.reshape(&[b, l, self.num_heads, -1])?;
        let q = self.rope.forward(&ops::swapaxes(&q, 1, 2)?, positions)?;
        let k = ops::expand_dims(&self.k_norm.forward(&self.wk.forward(x)?)?, &[1])?;
        let k = self.rope.forward(&k, positions)?;
        let w = self.weights_proj.forward(x)?;
        let w = ops::multiply(&w, &Array::scalar_like(self.scale, &w)?)?;
        let w = ops::expand_dims(&ops::swapaxes(&w, -1, -2)?, &[-1])?;
        Ok([q, k, w])
    }

    /// Narrows `kv`, `[B, 1, T, ..]` each, and `mask`, `[L, T]`, to the keys that are chosen for the new tokens. There
    /// is nothing to choose while there are no more keys than may be chosen.
    ///
    /// # Errors
    /// `Argument` for a cache of another kind; `Mlx`.
    pub(super) fn narrow(
        &self,
        kv: [Array; 2],
        mask: &mut Option<Array>,
        index: [Array; 3],
        cache: &mut LayerCache,
    ) -> Result<[Array; 2]> {
        let [latent, k_pe] = kv;
        let Some(chosen) = self.choose(index, mask.as_ref(), cache)? else {
            // nothing reads this step's keys, so that their graph would grow until something does
            let k_pe = ops::depends(&k_pe, cache.arrays())?;
            return Ok([latent, k_pe]);
        };
        if chosen.dim(2) == 1 {
            if let Some(mask) = mask {
                *mask = ops::take_along_axis(mask, &chosen, -1)?;
            }
            return Ok([gather(&latent, &chosen)?, gather(&k_pe, &chosen)?]);
        }
        let mut shape = chosen.shape().to_vec();
        shape[3] = latent.dim(2);
        let none = ops::zeros(&shape, Dtype::Bool)?;
        let sparse = ops::put_along_axis(&none, &chosen, &Array::scalar(true)?, -1)?;
        *mask = Some(match mask {
            Some(mask) => ops::logical_and(&sparse, mask)?,
            None => sparse,
        });
        Ok([latent, k_pe])
    }

    /// The keys of each new token, `[B, 1, L, top_k]`, in no order; `None` where there are no more than that.
    fn choose(
        &self,
        [q, k, w]: [Array; 3],
        mask: Option<&Array>,
        cache: &mut LayerCache,
    ) -> Result<Option<Array>> {
        // as mlx-lm's, a cache of keys alone: its values are zeros
        let KeysValues::Dense(k, _) = cache.update(&k, &ops::zeros(k.shape(), k.dtype())?)? else {
            let reason = "the indexer needs one of keys";
            return Err(Error::argument("layer cache", "quantized", reason));
        };
        let t = k.dim(2);
        if t <= self.top_k {
            return Ok(None);
        }
        let scores = ops::matmul(&q, &ops::swapaxes(&k, -1, -2)?)?; // [B, H, L, T]
        let scores = ops::maximum(&scores, &Array::scalar_like(0.0, &scores)?)?;
        let scores = self.sum_heads(&ops::multiply(&scores, &w)?)?; // [B, 1, L, T]
        let scores = match mask {
            Some(mask) => {
                let never = Array::scalar_like(f32::NEG_INFINITY, &scores)?;
                ops::select(mask, &scores, &never)?
            }
            None => scores,
        };
        let order = ops::argpartition(&scores, -self.top_k, -1)?;
        Ok(Some(ops::slice_axis(&order, -1, t - self.top_k, t)?))
    }

    /// The sum over heads: of several tokens one head after the other, each sum rounded.
    fn sum_heads(&self, scores: &Array) -> Result<Array> {
        if scores.dim(2) == 1 {
            return Ok(ops::sum(scores, &[1], true)?);
        }
        let head = |h| ops::slice_axis(scores, 1, h, h + 1);
        (1..self.num_heads).try_fold(head(0)?, |sum, h| Ok(ops::add(&sum, &head(h)?)?))
    }
}

impl Fusable for Indexer {
    fn sites<'a>(&'a mut self, at: &ModulePath, sites: &mut Vec<Site<'a>>) {
        self.wq_b.sites(&at.pp("wq_b"), sites);
        self.wk.sites(&at.pp("wk"), sites);
        self.weights_proj.sites(&at.pp("weights_proj"), sites);
    }
}

/// The tokens `chosen`, `[B, 1, 1, top_k]`, of `a`, `[B, 1, T, D]`.
fn gather(a: &Array, chosen: &Array) -> Result<Array> {
    let tokens = ops::swapaxes(chosen, -1, -2)?; // [B, 1, top_k, 1]
    let tokens = ops::broadcast_to(&tokens, &[a.dim(0), 1, chosen.dim(-1), a.dim(-1)])?;
    Ok(ops::take_along_axis(a, &tokens, 2)?)
}
