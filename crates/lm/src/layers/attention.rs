use mlx::fast::{self, Mask};
use mlx::{Array, primitives};

use super::{Fusion, Linear, Path, RmsNorm, Rope};
use crate::cache::{KvCache, Position};
use crate::error::Result;
use crate::weights::Scope;

/// Numbers and width of attention heads.
#[derive(Debug, Clone, Copy)]
pub struct Heads {
    /// Query heads.
    pub num_heads: i32,
    /// Key and value heads.
    pub num_kv_heads: i32,
    /// Width of one.
    pub head_dim: i32,
}

/// Which implementation each part of attention takes. All stock unless a pattern sets it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct AttentionPlan {
    /// Norm and rotation of queries and keys.
    pub qk_norm_rope: Path,
    /// Scores, softmax and weighted sum.
    pub attention: Path,
}

/// Grouped-query attention (arXiv:2305.13245) with normalised queries and keys.
#[derive(Debug, Clone)]
pub struct Attention {
    pub(crate) q_proj: Linear,
    pub(crate) k_proj: Linear,
    pub(crate) v_proj: Linear,
    pub(crate) o_proj: Linear,
    q_norm: RmsNorm,
    k_norm: RmsNorm,
    rope: Rope,
    heads: Heads,
    scale: f32,
    pub(crate) plan: AttentionPlan,
}

impl Attention {
    /// Takes the four projections and the two norms.
    ///
    /// # Errors
    /// As [`Linear::load`] and [`RmsNorm::load`].
    pub fn load(
        scope: &Scope<'_>,
        hidden_size: i32,
        heads: Heads,
        rope_theta: f32,
        eps: f32,
    ) -> Result<Self> {
        let Heads { num_heads, num_kv_heads, head_dim } = heads;
        let (wide, narrow) = (num_heads * head_dim, num_kv_heads * head_dim);
        Ok(Self {
            q_proj: Linear::load(&scope.pp("q_proj"), hidden_size, wide)?,
            k_proj: Linear::load(&scope.pp("k_proj"), hidden_size, narrow)?,
            v_proj: Linear::load(&scope.pp("v_proj"), hidden_size, narrow)?,
            o_proj: Linear::load(&scope.pp("o_proj"), wide, hidden_size)?,
            q_norm: RmsNorm::load(&scope.pp("q_norm"), head_dim, eps)?,
            k_norm: RmsNorm::load(&scope.pp("k_norm"), head_dim, eps)?,
            rope: Rope::new(head_dim, rope_theta),
            heads,
            // in f64 as Python computes it, rounded once
            scale: f64::from(head_dim).powf(-0.5) as f32,
            plan: AttentionPlan::default(),
        })
    }

    /// - `x`: `[B, L, D]`; returns the same shape.
    ///
    /// # Errors
    /// `Mlx`.
    pub fn forward(&self, x: &Array, cache: &mut KvCache) -> Result<Array> {
        let Heads { num_heads, num_kv_heads, head_dim } = self.heads;
        let (b, l) = (x.dim(0), x.dim(1));
        let position = cache.position();
        let q = self.q_proj.forward(x)?; // [B, L, H * D]
        let k = self.k_proj.forward(x)?; // [B, L, H_kv * D]
        let v = self.v_proj.forward(x)?;
        let q = self.norm_rope(q, num_heads, &self.q_norm, &position)?; // [B, H, L, D]
        let k = self.norm_rope(k, num_kv_heads, &self.k_norm, &position)?; // [B, H_kv, L, D]
        let v = v.reshape(&[b, l, num_kv_heads, head_dim])?.transpose(&[0, 2, 1, 3])?;
        let (k, v) = cache.update(&k, &v)?; // [B, H_kv, T, D]
        let y = self.attend(&q, &k, &v)?; // [B, H, L, D]
        let y = y.transpose(&[0, 2, 1, 3])?.reshape(&[b, l, num_heads * head_dim])?;
        self.o_proj.forward(&y)
    }

    fn norm_rope(&self, x: Array, heads: i32, norm: &RmsNorm, at: &Position) -> Result<Array> {
        let Path::Fused(_) = self.plan.qk_norm_rope else {
            let x = x.reshape(&[x.dim(0), x.dim(1), heads, self.heads.head_dim])?;
            let x = norm.forward(&x)?.transpose(&[0, 2, 1, 3])?;
            return self.rope.forward(&x, at);
        };
        let (weight, eps) = norm.parts();
        let rope = self.rope.parts();
        Ok(match at {
            Position::Static(offset) => {
                primitives::qk_norm_rope(&x, heads, Some(weight), eps, rope, *offset)?
            }
            Position::Dynamic(offset) => {
                primitives::qk_norm_rope_dynamic(&x, heads, Some(weight), eps, rope, offset)?
            }
        })
    }

    fn attend(&self, q: &Array, k: &Array, v: &Array) -> Result<Array> {
        // one query sees every key: no mask
        let causal = q.dim(2) > 1;
        Ok(match self.plan.attention {
            Path::Stock => {
                let mask = if causal { Mask::Causal } else { Mask::None };
                fast::scaled_dot_product_attention(q, k, v, self.scale, mask)?
            }
            Path::Fused(Fusion { precision, .. }) => {
                primitives::attention(q, k, v, self.scale, causal, precision)?
            }
        })
    }
}
