use mlx::primitives::{self, Ask, AttentionOptions, RopeParts};
use mlx::{Array, fast, ops};

use super::{
    Fusable, Fusion, Indexer, IndexerOptions, Linear, Mixer, ModuleKind, ModulePath, MultiLinear,
    Path, RmsNorm, Rope, Site,
};
use crate::cache::{KeysValues, KvCache, LayerCache, Position, masked, on_cuda};
use crate::error::{Error, Result};
use crate::placement::Split;
use crate::step::LayerRows;
use crate::weights::Scope;

/// What a layer of latent attention is made of.
#[derive(Debug, Clone)]
pub struct MlaOptions {
    /// Width of the residual stream.
    pub hidden_size: i32,
    /// Attention heads.
    pub num_heads: i32,
    /// Width of the latents of queries; `None`: queries come from the residual stream.
    pub q_lora_rank: Option<i32>,
    /// Width of the latents of keys and values.
    pub kv_lora_rank: i32,
    /// Width of the part of a query head that is not rotated.
    pub qk_nope_head_dim: i32,
    /// Width of the part that is.
    pub qk_rope_head_dim: i32,
    /// Width of a value head.
    pub v_head_dim: i32,
    /// Whether the projections to latents and the output projection have a bias.
    pub bias: bool,
    /// Epsilon of the norms of latents.
    pub norm_eps: f32,
    /// Rotation of queries and of the key that all heads share.
    pub rope: Rope,
    /// What products of queries and keys are multiplied by.
    pub scale: f64,
    /// Chooses the keys that a query sees; `None`: all before it.
    pub indexer: Option<IndexerOptions>,
}

/// Multi-head latent attention (arXiv:2405.04434): what is remembered of a token is one latent, of which each head makes
/// its key and value, and one rotated key for all heads.
///
/// A single token leaves the latents as they are and takes its queries to them instead; several tokens expand them.
/// The two round differently, in mlx-lm as here.
#[derive(Debug, Clone)]
pub struct Mla {
    queries: Queries,
    kv_a_proj_with_mqa: Linear,
    kv_a_layernorm: RmsNorm,
    embed_q: MultiLinear,
    unembed_out: MultiLinear,
    o_proj: Linear,
    indexer: Option<Indexer>,
    rope: Rope,
    num_heads: i32,
    kv_lora_rank: i32,
    qk_nope_head_dim: i32,
    qk_rope_head_dim: i32,
    v_head_dim: i32,
    scale: f32,
    norm_rope_path: Path,
    path: Path,
}

/// From the residual stream to the queries of all heads.
#[derive(Debug, Clone)]
struct Queries {
    /// To latents, normalised, where there are any.
    latent: Option<(Linear, RmsNorm)>,
    heads: Linear,
}

impl Queries {
    fn load(scope: &Scope<'_>, options: &MlaOptions) -> Result<Self> {
        let MlaOptions { hidden_size, num_heads, bias, norm_eps, .. } = *options;
        let width = num_heads * (options.qk_nope_head_dim + options.qk_rope_head_dim);
        let heads = |name: &str, in_dims| {
            Linear::load(&scope.pp(name).split(Split::Outputs), in_dims, width)
        };
        let Some(rank) = options.q_lora_rank else {
            return Ok(Self { latent: None, heads: heads("q_proj", hidden_size)? });
        };
        let latent = Linear::load_with(&scope.pp("q_a_proj"), hidden_size, rank, bias)?;
        let norm = RmsNorm::load(&scope.pp("q_a_layernorm"), rank, norm_eps)?;
        Ok(Self { latent: Some((latent, norm)), heads: heads("q_b_proj", rank)? })
    }

    /// The queries, and the latents that they are made of; the residual stream where there are none.
    fn forward(&self, x: &Array) -> Result<(Array, Array)> {
        let latent = match &self.latent {
            Some((latent, norm)) => norm.forward(&latent.forward(x)?)?,
            None => x.clone(),
        };
        Ok((self.heads.forward(&latent)?, latent))
    }
}

impl Fusable for Queries {
    fn sites<'a>(&'a mut self, at: &ModulePath, sites: &mut Vec<Site<'a>>) {
        let Some((latent, norm)) = &mut self.latent else {
            return self.heads.sites(&at.pp("q_proj"), sites);
        };
        latent.sites(&at.pp("q_a_proj"), sites);
        norm.sites(&at.pp("q_a_layernorm"), sites);
        self.heads.sites(&at.pp("q_b_proj"), sites);
    }
}

impl Mla {
    /// Takes `q_proj`, or `q_a_proj`, `q_a_layernorm` and `q_b_proj`; `kv_a_proj_with_mqa`, `kv_a_layernorm`, `embed_q`,
    /// `unembed_out`, `o_proj` and, if asked for, `indexer`. Ranks share the heads.
    ///
    /// # Errors
    /// As [`Linear::load`] and [`RmsNorm::load`].
    pub fn load(scope: &Scope<'_>, options: MlaOptions) -> Result<Self> {
        let MlaOptions { hidden_size, num_heads, kv_lora_rank, v_head_dim, bias, .. } = options;
        let (nope, rope) = (options.qk_nope_head_dim, options.qk_rope_head_dim);
        let kv_a = scope.pp("kv_a_proj_with_mqa");
        let (embed_q, unembed_out) = (scope.pp("embed_q"), scope.pp("unembed_out"));
        let output = scope.pp("o_proj").split(Split::Inputs);
        Ok(Self {
            queries: Queries::load(scope, &options)?,
            kv_a_proj_with_mqa: Linear::load_with(&kv_a, hidden_size, kv_lora_rank + rope, bias)?,
            kv_a_layernorm: RmsNorm::load(
                &scope.pp("kv_a_layernorm"),
                kv_lora_rank,
                options.norm_eps,
            )?,
            embed_q: MultiLinear::load(&embed_q, num_heads, nope, kv_lora_rank)?,
            unembed_out: MultiLinear::load(&unembed_out, num_heads, kv_lora_rank, v_head_dim)?,
            o_proj: Linear::load_with(&output, num_heads * v_head_dim, hidden_size, bias)?,
            indexer: match options.indexer {
                Some(indexer) => Some(Indexer::load(&scope.pp("indexer"), indexer)?),
                None => None,
            },
            rope: options.rope,
            num_heads: scope.per_rank("attention heads", num_heads)?,
            kv_lora_rank,
            qk_nope_head_dim: nope,
            qk_rope_head_dim: rope,
            v_head_dim,
            scale: options.scale as f32,
            norm_rope_path: Path::Stock,
            path: Path::Stock,
        })
    }

    /// Single tokens of sequences with a cache each, in one launch, where the primitive can.
    ///
    /// - `q`: `[B, H, 1, D_nope]` and, rotated, `[B, H, 1, D_rope]`; `kv` as for [`Mla::attend`]
    fn attend_together(
        &self,
        [q_nope, q_pe]: [&Array; 2],
        [latent, k_pe]: [&Array; 2],
        rows: &mut LayerRows<'_, '_>,
    ) -> Result<Option<Array>> {
        let (Path::Fused(Fusion { precision, .. }), None, 1) =
            (self.path, &self.indexer, q_nope.dim(2))
        else {
            return Ok(None);
        };
        let Some(rows) = rows.update_growing(latent, k_pe, false)? else { return Ok(None) };
        let q = self.embed_q.forward(q_nope)?; // [B, H, 1, rank]
        let rope = Some(RopeParts { q: q_pe, keys: &rows.values });
        let options = AttentionOptions { rope, ..AttentionOptions::default() };
        let (latents, lengths) = (&rows.keys, Some(&rows.lengths));
        let y = primitives::attention_rows(
            &q, latents, latents, lengths, self.scale, options, precision,
        )?;
        Ok(Some(self.unembed_out.forward(&y)?))
    }

    /// Queries and the key that all heads share, turned.
    ///
    /// - `q`: `[B, L, H, D_rope]`, `k`: `[B, L, D_rope]`; returns `[B, H, L, D_rope]` and `[B, 1, L, D_rope]`
    fn rotate(&self, q: &Array, k: &Array, at: &Position) -> Result<[Array; 2]> {
        if let Path::Fused(_) = self.norm_rope_path {
            let turn = |x, heads| self.rope.forward_heads(x, heads, None, at);
            return Ok([turn(q, self.num_heads)?, turn(k, 1)?]);
        }
        let (q, k) = (q.transpose(&[0, 2, 1, 3])?, ops::expand_dims(k, &[1])?);
        Ok([self.rope.forward(&q, at)?, self.rope.forward(&k, at)?])
    }

    /// Attention of one sequence's new tokens, or of several sequences in one cache.
    ///
    /// - `q`: `[B, H, L, D_nope]` and, rotated, `[B, H, L, D_rope]`
    /// - `kv`: `[B, 1, L, rank]` and, rotated, `[B, 1, L, D_rope]`
    /// - `index`: what the indexer made of the tokens
    /// - returns `[B, H, L, D_v]`
    fn attend(
        &self,
        [q_nope, q_pe]: [Array; 2],
        kv: [Array; 2],
        index: Option<[Array; 3]>,
        cache: &mut LayerCache,
    ) -> Result<Array> {
        if let LayerCache::Recorded(cache) = cache {
            let q = self.embed_q.forward(&q_nope)?; // [1, H, 1, rank]
            let y = cache.attend_latents([&q, &q_pe], [&kv[0], &kv[1]], self.scale)?;
            return self.unembed_out.forward(&y);
        }
        let l = q_nope.dim(2);
        let (cache, index_cache) = match cache {
            LayerCache::List(parts) => match &mut parts[..] {
                [latents, keys] => (latents, Some(keys)),
                _ => return Err(no_cache("a list of other than two")),
            },
            cache => (cache, None),
        };
        let mask = cache.mask(l, None)?;
        let causal = mask.as_causal();
        let KeysValues::Dense(mut latent, mut k_pe) = cache.update(&kv[0], &kv[1])? else {
            return Err(no_cache("quantized"));
        };
        let mut mask = mask.to_array(l, k_pe.dim(2))?; // [L, T]
        if let (Some(indexer), Some(index), Some(cache)) = (&self.indexer, index, index_cache) {
            [latent, k_pe] = indexer.narrow([latent, k_pe], &mut mask, index, cache)?;
        }

        let attend = |q: &Array, k: &Array, v: &Array| match (self.path, causal) {
            (Path::Fused(Fusion { precision, .. }), Some((causal, window))) => {
                let rope = Some(RopeParts { q: &q_pe, keys: std::slice::from_ref(&k_pe) });
                let options = AttentionOptions { causal, window, sinks: None, rope };
                Ok(primitives::attention(q, k, v, self.scale, options, precision)?)
            }
            _ => {
                let q_pe = ops::multiply(&q_pe, &Array::scalar_like(self.scale, &q_pe)?)?;
                let mut scores = ops::matmul(&q_pe, &ops::swapaxes(&k_pe, -1, -2)?)?; // [B, H, L, T]
                if let Some(mask) = &mask {
                    scores = masked(&scores, mask)?;
                }
                let mask = fast::Mask::Array(&scores);
                Ok::<_, Error>(fast::scaled_dot_product_attention(q, k, v, self.scale, mask, None)?)
            }
        };
        if l == 1 {
            let q = self.embed_q.forward(&q_nope)?; // [B, H, 1, rank]
            let y = match self.path {
                Path::Stock if on_cuda() => {
                    attend_by_vectors([&q, &q_pe], [&latent, &k_pe], self.scale, mask.as_ref())?
                }
                _ => attend(&q, &latent, &latent)?,
            };
            return self.unembed_out.forward(&y);
        }
        let k = self.embed_q.forward_transposed(&latent)?; // [B, H, T, D_nope]
        let v = self.unembed_out.forward(&latent)?; // [B, H, T, D_v]
        attend(&q_nope, &k, &v)
    }
}

/// Attention of one token over latents, where every product is of a matrix and a vector: what
/// [`scaled_dot_product_attention`](fast::scaled_dot_product_attention) is made of where stock has no kernel for it, with the heads
/// of a product in columns. In rows, as there, stock's backend for CUDA asks cuBLAS, whose order of additions changes with
/// the number of keys; so it is its own kernel (docs/adr/0017-latents-on-cuda.md).
///
/// - `q`: `[B, H, 1, rank]` and, rotated, `[B, H, 1, D_rope]`; `kv`: `[B, 1, T, rank]` and, rotated, `[B, 1, T, D_rope]`
/// - returns `[B, H, 1, rank]`
fn attend_by_vectors(
    [q, q_pe]: [&Array; 2],
    [latent, k_pe]: [&Array; 2],
    scale: f32,
    mask: Option<&Array>,
) -> Result<Array> {
    let (b, heads) = (q.dim(0), q.dim(1));
    let product = |matrix: &Array, vectors: &Array| -> Result<Array> {
        let columns = vectors.reshape(&[b, heads, -1, 1])?;
        Ok(ops::matmul(matrix, &columns)?.reshape(&[b, heads, 1, -1])?)
    };
    let scaled = |q: &Array| ops::multiply(q, &Array::scalar_like(scale, q)?);
    let mut rotated = product(k_pe, &scaled(q_pe)?)?; // [B, H, 1, T]
    if let Some(mask) = mask {
        rotated = masked(&rotated, mask)?;
    }
    let scores = ops::add(&product(latent, &scaled(q)?)?, &rotated)?;
    let rows = ops::contiguous(&ops::swapaxes(latent, -1, -2)?)?; // [B, 1, rank, T]
    product(&rows, &ops::softmax(&scores, -1, true)?)
}

fn no_cache(kind: &str) -> Error {
    Error::argument("layer cache", kind, "latent attention needs one of latents")
}

impl Mixer for Mla {
    /// # Source
    /// mlx-lm `deepseek_v3.py` (`DeepseekV3Attention`), `deepseek_v32.py`, `glm4_moe_lite.py`.
    fn forward(&self, x: &Array, mut rows: LayerRows<'_, '_>) -> Result<Array> {
        let (b, l, nope) = (x.dim(0), x.dim(1), self.qk_nope_head_dim);
        let positions = rows.positions()?;
        let (q, q_latent) = self.queries.forward(x)?;
        let q = q.reshape(&[b, l, self.num_heads, -1])?;
        let q_nope = ops::slice_axis(&q, -1, 0, nope)?.transpose(&[0, 2, 1, 3])?; // [B, H, L, D_nope]
        let q_pe = ops::slice_axis(&q, -1, nope, q.dim(-1))?; // [B, L, H, D_rope]

        let kv = self.kv_a_proj_with_mqa.forward(x)?;
        let latent = ops::slice_axis(&kv, -1, 0, self.kv_lora_rank)?;
        let latent = ops::expand_dims(&self.kv_a_layernorm.forward(&latent)?, &[1])?; // [B, 1, L, rank]
        let k_pe = ops::slice_axis(&kv, -1, self.kv_lora_rank, kv.dim(-1))?; // [B, L, D_rope]
        let [q_pe, k_pe] = self.rotate(&q_pe, &k_pe, &positions)?;

        let together = self.attend_together([&q_nope, &q_pe], [&latent, &k_pe], &mut rows)?;
        let y = match (together, &self.indexer) {
            (Some(y), _) => y,
            (None, None) => {
                rows.each(2, [&q_nope, &q_pe, &latent, &k_pe], |[a, b, c, d], cache| {
                    self.attend([a, b], [c, d], None, cache)
                })?
            }
            (None, Some(indexer)) => {
                let [q, k, w] = &indexer.project(x, &q_latent, &positions)?;
                let inputs = [&q_nope, &q_pe, &latent, &k_pe, q, k, w];
                rows.each(2, inputs, |[a, b, c, d, q, k, w], cache| {
                    self.attend([a, b], [c, d], Some([q, k, w]), cache)
                })?
            }
        }; // [B, H, L, D_v]
        self.o_proj.forward(&y.transpose(&[0, 2, 1, 3])?.reshape(&[b, l, -1])?)
    }

    fn make_cache(&self) -> LayerCache {
        let latents = LayerCache::Kv(KvCache::of_latents());
        match &self.indexer {
            None => latents,
            Some(_) => LayerCache::List(vec![latents, LayerCache::Kv(KvCache::of_latents())]),
        }
    }
}

impl Fusable for Mla {
    fn sites<'a>(&'a mut self, at: &ModulePath, sites: &mut Vec<Site<'a>>) {
        self.queries.sites(at, sites);
        self.kv_a_proj_with_mqa.sites(&at.pp("kv_a_proj_with_mqa"), sites);
        self.kv_a_layernorm.sites(&at.pp("kv_a_layernorm"), sites);
        let is_sparse = self.indexer.is_some();
        if let Some(indexer) = &mut self.indexer {
            indexer.sites(&at.pp("indexer"), sites);
        }
        let (num_heads, rope_dim) = (self.num_heads, self.qk_rope_head_dim);
        let mut push = |pattern, questions, path| {
            let kind = ModuleKind::Attention;
            sites.push(Site { module: at.clone(), kind, pattern, questions, path, trace: None });
        };
        let rope = |heads| self.rope.question(heads, rope_dim, false);
        push("qk_norm_rope", Ok(vec![rope(num_heads), rope(1)]), &mut self.norm_rope_path);
        let question = |num_kv_heads, head_dim, value_dim, causal| -> Box<dyn Ask> {
            Box::new(primitives::Attention {
                num_heads,
                num_kv_heads,
                head_dim,
                value_dim,
                causal,
                window: None,
                mask: false,
                sinks: false,
                rope_dim,
            })
        };
        let rank = self.kv_lora_rank;
        let questions = if is_sparse {
            Err("an indexer chooses the keys by a mask, which is not fused".to_owned())
        } else {
            Ok(vec![
                question(1, rank, rank, false),
                question(num_heads, self.qk_nope_head_dim, self.v_head_dim, true),
            ])
        };
        push("attention", questions, &mut self.path);
        self.embed_q.sites(&at.pp("embed_q"), sites);
        self.unembed_out.sites(&at.pp("unembed_out"), sites);
        self.o_proj.sites(&at.pp("o_proj"), sites);
    }
}

#[cfg(test)]
mod tests {
    use mlx::Dtype;

    use super::*;

    fn random(seed: u64, shape: &[i32]) -> Array {
        let key = mlx::random::key(seed).unwrap();
        mlx::random::normal(shape, Dtype::F32, 0.0, 1.0, Some(&key)).unwrap()
    }

    #[test]
    fn products_by_vectors_are_those_by_rows() {
        for (b, heads, tokens) in [(1, 5, 1), (1, 5, 2), (2, 3, 70), (1, 1, 9)] {
            let [q, q_pe] = [(1, 16), (2, 8)].map(|(seed, dim)| random(seed, &[b, heads, 1, dim]));
            let [latent, k_pe] =
                [(3, 16), (4, 8)].map(|(seed, dim)| random(seed, &[b, 1, tokens, dim]));
            let hidden: Vec<bool> = (0..b * tokens).map(|i| i % 7 == 3).collect();
            let seen = Array::from_slice(&hidden, &[b, 1, 1, tokens]).unwrap();
            for mask in [None, Some(ops::logical_not(&seen).unwrap())] {
                let of_rope = ops::matmul(&q_pe, &ops::swapaxes(&k_pe, -1, -2).unwrap()).unwrap();
                let scale = Array::scalar(0.3f32).unwrap();
                let mut scores = ops::multiply(&of_rope, &scale).unwrap();
                if let Some(mask) = &mask {
                    scores = masked(&scores, mask).unwrap();
                }
                let expected = fast::scaled_dot_product_attention(
                    &q,
                    &latent,
                    &latent,
                    0.3,
                    fast::Mask::Array(&scores),
                    None,
                );
                let y = attend_by_vectors([&q, &q_pe], [&latent, &k_pe], 0.3, mask.as_ref());
                let (y, expected) = (y.unwrap(), expected.unwrap());
                assert_eq!(y.shape(), expected.shape());
                let (y, expected) = (y.to_vec::<f32>().unwrap(), expected.to_vec::<f32>().unwrap());
                for (y, expected) in y.iter().zip(&expected) {
                    assert!((y - expected).abs() < 1e-4, "{y} {expected}");
                }
            }
        }
    }
}
