use mlx::quantization::QuantizedWeight;
use mlx::{Array, fast, ops, primitives};

use super::site::ask;
use super::{
    Fusable, Fusion, Linear, ModuleKind, ModulePath, Path, QueryScale, RmsNorm, Rope,
    SharedKeysValues, Site,
};
use crate::cache::{
    AttentionMask, KeysValues, LayerCache, Position, RecordedKvCache, quantized_attention,
};
use crate::config::{ModelConfig, Size};
use crate::error::{Error, Result};
use crate::placement::Split;
use crate::step::LayerRows;
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

impl Heads {
    /// What families leave out: as many key and value heads as query heads, and equal shares of the hidden size.
    pub fn new(
        hidden_size: Size,
        num_heads: Size,
        num_kv_heads: Option<Size>,
        head_dim: Option<Size>,
    ) -> Self {
        Self {
            num_heads: *num_heads,
            num_kv_heads: *num_kv_heads.unwrap_or(num_heads),
            head_dim: head_dim.map_or(*hidden_size / *num_heads, |dim| *dim),
        }
    }

    /// Whether they fit together; `config` is named in errors.
    ///
    /// # Errors
    /// `Config`.
    pub fn check(&self, config: &ModelConfig) -> Result<()> {
        let Self { num_heads, num_kv_heads, head_dim } = *self;
        if num_heads % num_kv_heads != 0 {
            let reason = format!(
                "is {num_kv_heads}, which does not divide num_attention_heads ({num_heads})"
            );
            return Err(config.error("num_key_value_heads", reason));
        }
        if head_dim == 0 || head_dim % 2 != 0 {
            let reason = format!("is {head_dim}, expected an even number from 2");
            return Err(config.error("head_dim", reason));
        }
        if num_heads.checked_mul(head_dim).is_none() {
            let reason = format!("is {num_heads}, too large with head_dim {head_dim}");
            return Err(config.error("num_attention_heads", reason));
        }
        Ok(())
    }
}

/// How queries and keys are normalised, with which epsilon.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum QkNorm {
    /// Each head by itself, with weights for one head.
    Heads(f32),
    /// All heads together, with weights for all.
    Whole(f32),
}

/// What the parts of an attention layer are called where families differ.
#[derive(Debug, Clone, Copy)]
pub struct AttentionNames {
    /// The norm of queries.
    pub q_norm: &'static str,
    /// The norm of keys.
    pub k_norm: &'static str,
    /// The output projection.
    pub o_proj: &'static str,
}

/// Those of Qwen.
impl Default for AttentionNames {
    fn default() -> Self {
        Self { q_norm: "q_norm", k_norm: "k_norm", o_proj: "o_proj" }
    }
}

/// Where keys and values come from.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum KvProjections {
    /// `k_proj` and `v_proj`.
    #[default]
    Both,
    /// `k_proj`: what it gives is the values too, before norms and rotation.
    Keys,
    /// An earlier layer, whose keys and values are used.
    None,
}

/// What an attention layer is made of.
#[derive(Debug, Clone)]
pub struct AttentionOptions {
    /// Width of the residual stream.
    pub hidden_size: i32,
    /// Its heads.
    pub heads: Heads,
    /// Whether the projections of queries, keys and values have a bias.
    pub qkv_bias: bool,
    /// Whether the output projection has one.
    pub output_bias: bool,
    /// Where keys and values come from.
    pub kv: KvProjections,
    /// Norms of queries and keys, where there are any.
    pub qk_norm: Option<QkNorm>,
    /// Epsilon of a norm of each value head that has no weights, where there is one.
    pub v_norm: Option<f32>,
    /// What products of queries and keys are multiplied by; `1 / sqrt(head_dim)` by default.
    pub scale: Option<f32>,
    /// Rotation of queries and keys, where there is any.
    pub rope: Option<Rope>,
    /// What queries are multiplied by after that, where it depends on their position.
    pub query_scale: Option<QueryScale>,
    /// How many tokens a query sees, its own included; `None`: all before it.
    pub window: Option<i32>,
    /// Whether each head has a learned logit that takes part in the softmax alone (arXiv:2309.17453).
    pub sinks: bool,
    /// Whether the query projection also gives each head a gate, `y · sigmoid(gate)`, before the output projection.
    pub gated: bool,
    /// What its parts are called.
    pub names: AttentionNames,
}

impl AttentionOptions {
    /// Projections without biases, no norms, no rotation, every token before in sight.
    pub fn new(hidden_size: i32, heads: Heads) -> Self {
        Self {
            hidden_size,
            heads,
            qkv_bias: false,
            output_bias: false,
            kv: KvProjections::Both,
            qk_norm: None,
            v_norm: None,
            scale: None,
            rope: None,
            query_scale: None,
            window: None,
            sinks: false,
            gated: false,
            names: AttentionNames::default(),
        }
    }
}

/// Grouped-query attention (arXiv:2305.13245).
#[derive(Debug, Clone)]
pub struct Attention {
    q_proj: Linear,
    k_proj: Option<Linear>,
    v_proj: Option<Linear>,
    o_proj: Linear,
    q_norm: Option<RmsNorm>,
    k_norm: Option<RmsNorm>,
    norm_is_whole: bool,
    v_norm: Option<f32>,
    rope: Option<Rope>,
    query_scale: Option<QueryScale>,
    sinks: Option<Array>,
    heads: Heads,
    window: Option<i32>,
    gated: bool,
    names: AttentionNames,
    scale: f32,
    norm_rope_path: Path,
    path: Path,
    append_path: Path,
}

impl Attention {
    /// Takes `q_proj`, the output projection, and of `k_proj`, `v_proj`, norms and `sinks` what `options` ask for; ranks
    /// share the heads.
    ///
    /// # Errors
    /// As [`Linear::load`] and [`RmsNorm::load`].
    pub fn load(scope: &Scope<'_>, options: AttentionOptions) -> Result<Self> {
        let AttentionOptions { hidden_size, heads, qkv_bias, names, .. } = options;
        let Heads { num_heads, num_kv_heads, head_dim } = heads;
        let (wide, narrow) = (num_heads * head_dim, num_kv_heads * head_dim);
        let input = |name: &str, width| {
            let scope = scope.pp(name).split(Split::Outputs);
            Linear::load_with(&scope, hidden_size, width, qkv_bias)
        };
        let has_keys = options.kv != KvProjections::None;
        let (q_dims, k_dims, eps) = match options.qk_norm {
            Some(QkNorm::Heads(eps)) => (head_dim, head_dim, Some(eps)),
            Some(QkNorm::Whole(eps)) => (wide, narrow, Some(eps)),
            None => (0, 0, None),
        };
        let norm =
            |name: &str, dims| eps.map(|eps| RmsNorm::load(&scope.pp(name), dims, eps)).transpose();
        let heads = Heads {
            num_heads: scope.per_rank("query heads", num_heads)?,
            num_kv_heads: scope.per_rank("key and value heads", num_kv_heads)?,
            head_dim,
        };
        Ok(Self {
            q_proj: input("q_proj", if options.gated { 2 * wide } else { wide })?,
            k_proj: if has_keys { Some(input("k_proj", narrow)?) } else { None },
            v_proj: match options.kv {
                KvProjections::Both => Some(input("v_proj", narrow)?),
                KvProjections::Keys | KvProjections::None => None,
            },
            o_proj: {
                let scope = scope.pp(names.o_proj).split(Split::Inputs);
                Linear::load_with(&scope, wide, hidden_size, options.output_bias)?
            },
            q_norm: norm(names.q_norm, q_dims)?,
            k_norm: if has_keys { norm(names.k_norm, k_dims)? } else { None },
            norm_is_whole: match options.qk_norm {
                Some(QkNorm::Whole(_)) => {
                    scope.not_shared("a norm over all heads")?;
                    true
                }
                _ => false,
            },
            v_norm: options.v_norm,
            rope: options.rope,
            query_scale: options.query_scale,
            sinks: match options.sinks {
                true => Some(scope.split(Split::Outputs).take_float("sinks", &[num_heads])?),
                false => None,
            },
            heads,
            window: options.window,
            gated: options.gated,
            names,
            // in f64 as Python computes it, rounded once
            scale: options.scale.unwrap_or_else(|| f64::from(head_dim).powf(-0.5) as f32),
            norm_rope_path: Path::Stock,
            path: Path::Stock,
            append_path: Path::Stock,
        })
    }

    /// How many tokens a query sees, where that is limited.
    pub fn window(&self) -> Option<i32> {
        self.window
    }

    /// - `x`: `[B, L, D]`; returns the same shape.
    ///
    /// # Errors
    /// `Mlx`.
    pub fn forward(&self, x: &Array, rows: LayerRows<'_, '_>) -> Result<Array> {
        self.forward_sharing(x, rows, None)
    }

    /// The same, with keys and values that are left to later layers, or are those of an earlier one where this layer has
    /// none. `rows` are then those of that layer.
    ///
    /// # Errors
    /// `Mlx`; `Argument` where there are no keys and values.
    pub fn forward_sharing(
        &self,
        x: &Array,
        mut rows: LayerRows<'_, '_>,
        shared: Option<&mut SharedKeysValues>,
    ) -> Result<Array> {
        let q = self.q_proj.forward(x)?; // [B, L, H * D]
        let (q, gate) = self.split_gate(q)?;
        let y = match &self.k_proj {
            Some(k_proj) => {
                let k = k_proj.forward(x)?; // [B, L, H_kv * D]
                let v = match &self.v_proj {
                    Some(v_proj) => v_proj.forward(x)?,
                    None => k.clone(),
                };
                self.mix([q, k, v], &mut rows, shared)?
            }
            None => self.mix_shared(q, &mut rows, shared)?,
        }; // [B, L, H * D]
        let y = match gate {
            Some(gate) => ops::multiply(&y, &ops::sigmoid(&gate)?)?,
            None => y,
        };
        self.o_proj.forward(&y)
    }

    /// Each head's queries, and its gate behind them where there is one.
    fn split_gate(&self, q: Array) -> Result<(Array, Option<Array>)> {
        if !self.gated {
            return Ok((q, None));
        }
        let Heads { num_heads, head_dim, .. } = self.heads;
        let (b, l) = (q.dim(0), q.dim(1));
        let q = q.reshape(&[b, l, num_heads, 2 * head_dim])?;
        let half =
            |from, to| ops::slice_axis(&q, -1, from, to)?.reshape(&[b, l, num_heads * head_dim]);
        Ok((half(0, head_dim)?, Some(half(head_dim, 2 * head_dim)?)))
    }

    /// What joins the tokens of each sequence: `[B, L, ..]` queries, keys and values to `[B, L, H * D]`.
    fn mix(
        &self,
        [q, k, v]: [Array; 3],
        rows: &mut LayerRows<'_, '_>,
        mut shared: Option<&mut SharedKeysValues>,
    ) -> Result<Array> {
        let Heads { num_kv_heads, .. } = self.heads;
        let positions = rows.positions()?;
        let q = self.queries(q, &positions)?; // [B, H, L, D]
        let k = self.norm_rope(k, num_kv_heads, self.k_norm.as_ref(), &positions)?;
        let v = self.values(v)?; // [B, H_kv, L, D]
        let together = match &mut shared {
            Some(shared) => {
                shared.begin(positions);
                None
            }
            None => self.attend_together(&q, &k, &v, rows)?,
        };
        let y = match together {
            Some(y) => y,
            None => rows.each(2, [&q, &k, &v], |[q, k, v], cache| {
                if let LayerCache::Recorded(recorded) = cache {
                    return self.attend_recorded([&q, &k, &v], recorded, shared.is_some());
                }
                let mask = cache.mask(q.dim(2), self.window)?;
                let held = cache.update(&k, &v)?;
                let y = self.attend_held(&q, &held, &mask)?;
                if let Some(shared) = &mut shared {
                    shared.push(held, mask);
                }
                Ok(y)
            })?,
        }; // [B, H, L, D]
        merge_heads(&y)
    }

    /// The same over the keys and values of an earlier layer.
    fn mix_shared(
        &self,
        q: Array,
        rows: &mut LayerRows<'_, '_>,
        shared: Option<&mut SharedKeysValues>,
    ) -> Result<Array> {
        let missing = || {
            let reason = "no earlier layer has left any";
            Error::argument("keys and values", "none", reason)
        };
        let shared = shared.ok_or_else(missing)?;
        let q = self.queries(q, shared.position().ok_or_else(missing)?)?;
        let mut left = shared.rows();
        let y = rows.each(2, [&q], |[q], _| {
            let (held, mask) = left.next().ok_or_else(missing)?;
            self.attend_held(&q, held, mask)
        })?;
        merge_heads(&y)
    }

    fn queries(&self, q: Array, at: &Position) -> Result<Array> {
        let q = self.norm_rope(q, self.heads.num_heads, self.q_norm.as_ref(), at)?;
        match &self.query_scale {
            Some(scale) => scale.forward(&q, at),
            None => Ok(q),
        }
    }

    fn values(&self, v: Array) -> Result<Array> {
        let Heads { num_kv_heads, head_dim, .. } = self.heads;
        let v = v.reshape(&[v.dim(0), v.dim(1), num_kv_heads, head_dim])?;
        let v = match self.v_norm {
            Some(eps) => fast::rms_norm(&v, None, eps)?,
            None => v,
        };
        Ok(v.transpose(&[0, 2, 1, 3])?)
    }

    fn attend_held(&self, q: &Array, held: &KeysValues, mask: &AttentionMask) -> Result<Array> {
        match held {
            KeysValues::Dense(k, v) => self.attend(q, k, v, mask),
            KeysValues::Quantized(k, v) => self.attend_quantized(q, k, v, mask),
        }
    }

    fn norm_rope(
        &self,
        x: Array,
        heads: i32,
        norm: Option<&RmsNorm>,
        at: &Position,
    ) -> Result<Array> {
        let (x, norm) = match norm.filter(|_| self.norm_is_whole) {
            Some(norm) => (norm.forward(&x)?, None),
            None => (x, norm),
        };
        if let (Path::Fused(_), Some(rope)) = (self.norm_rope_path, &self.rope) {
            return rope.forward_heads(&x, heads, norm, at);
        }
        let mut x = x.reshape(&[x.dim(0), x.dim(1), heads, self.heads.head_dim])?;
        if let Some(norm) = norm {
            x = norm.forward(&x)?;
        }
        let x = x.transpose(&[0, 2, 1, 3])?;
        match &self.rope {
            Some(rope) => rope.forward(&x, at),
            None => Ok(x),
        }
    }

    /// All rows over their own caches in one launch, where the primitive can.
    fn attend_together(
        &self,
        q: &Array,
        k: &Array,
        v: &Array,
        rows: &mut LayerRows<'_, '_>,
    ) -> Result<Option<Array>> {
        let Path::Fused(Fusion { precision, .. }) = self.path else { return Ok(None) };
        let fused = self.append_path != Path::Stock;
        let Some(rows) = rows.update_growing(k, v, fused)? else { return Ok(None) };
        let (keys, values, lengths) = (&rows.keys, &rows.values, Some(&rows.lengths));
        let (window, sinks) = (self.window, self.sinks.as_ref());
        let causal = q.dim(2) > 1 || window.is_some();
        let options = primitives::AttentionOptions { causal, window, sinks, rope: None };
        let y =
            primitives::attention_rows(q, keys, values, lengths, self.scale, options, precision)?;
        Ok(Some(y))
    }

    fn attend(&self, q: &Array, k: &Array, v: &Array, mask: &AttentionMask) -> Result<Array> {
        let (scale, sinks) = (self.scale, self.sinks.as_ref());
        if let (Path::Fused(Fusion { precision, .. }), Some((causal, window))) =
            (self.path, mask.as_causal())
        {
            let options = primitives::AttentionOptions { causal, window, sinks, rope: None };
            return Ok(primitives::attention(q, k, v, scale, options, precision)?);
        }
        Ok(fast::scaled_dot_product_attention(q, k, v, scale, mask.as_mask(), sinks)?)
    }

    /// One token of a step that is going to be recorded.
    fn attend_recorded(
        &self,
        qkv: [&Array; 3],
        cache: &RecordedKvCache,
        is_shared: bool,
    ) -> Result<Array> {
        if is_shared || !cache.is_seen_by(self.window) {
            let reason = "a window over a cache that holds more, and keys and values that layers share, are not recorded";
            return Err(Error::argument("layer cache", "recorded", reason));
        }
        cache.attend(qkv, self.scale, self.sinks.as_ref())
    }

    fn attend_quantized(
        &self,
        q: &Array,
        k: &QuantizedWeight,
        v: &QuantizedWeight,
        mask: &AttentionMask,
    ) -> Result<Array> {
        if self.sinks.is_some() {
            let reason = "attention with sinks needs one that is not";
            return Err(Error::argument("layer cache", "quantized", reason));
        }
        quantized_attention(q, k, v, self.scale, mask)
    }
}

impl Fusable for Attention {
    fn sites<'a>(&'a mut self, at: &ModulePath, sites: &mut Vec<Site<'a>>) {
        let norm = self.q_norm.is_some() && !self.norm_is_whole;
        let has_keys = self.k_proj.is_some();
        self.q_proj.sites(&at.pp("q_proj"), sites);
        if let Some(k_proj) = &mut self.k_proj {
            k_proj.sites(&at.pp("k_proj"), sites);
        }
        if let Some(v_proj) = &mut self.v_proj {
            v_proj.sites(&at.pp("v_proj"), sites);
        }
        if self.norm_is_whole {
            let AttentionNames { q_norm, k_norm, .. } = self.names;
            for (name, norm) in [(q_norm, &mut self.q_norm), (k_norm, &mut self.k_norm)] {
                norm.iter_mut().for_each(|norm| norm.sites(&at.pp(name), sites));
            }
        }
        let Heads { num_heads, num_kv_heads, head_dim } = self.heads;
        let mut push = |pattern, questions, path| {
            let kind = ModuleKind::Attention;
            sites.push(Site { module: at.clone(), kind, pattern, questions, path, trace: None });
        };
        if let Some(rope) = &self.rope {
            let mut questions = vec![rope.question(num_heads, head_dim, norm)];
            if has_keys {
                questions.push(rope.question(num_kv_heads, head_dim, norm));
            }
            let questions = Ok(questions);
            push("qk_norm_rope", questions, &mut self.norm_rope_path);
        }
        let question = primitives::Attention {
            num_heads,
            num_kv_heads,
            head_dim,
            value_dim: head_dim,
            causal: true,
            window: self.window,
            mask: false,
            sinks: self.sinks.is_some(),
            rope_dim: 0,
        };
        push("attention", ask(question), &mut self.path);
        push("cache_append", ask(primitives::CacheAppend), &mut self.append_path);
        self.o_proj.sites(&at.pp(self.names.o_proj), sites);
    }
}

/// `[B, H, L, D]` to `[B, L, H * D]`.
fn merge_heads(y: &Array) -> Result<Array> {
    let (b, l, width) = (y.dim(0), y.dim(2), y.dim(1) * y.dim(3));
    Ok(y.transpose(&[0, 2, 1, 3])?.reshape(&[b, l, width])?)
}
