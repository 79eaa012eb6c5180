//! What DeepSeek-V3 (arXiv:2412.19437) and the families after it have in common: decoder layers of multi-head latent
//! attention, whose feed-forward is dense in the first layers and a mixture of grouped experts in the others.

use serde::Deserialize;
use serde_json::{Value, json};

use super::Model;
use super::causal::CausalLm;
use super::family::{Conversion, Experts, Shape};
use crate::config::{Count, Finite, ModelConfig, Positive, Size};
use crate::error::Result;
use crate::layers::{
    DecoderLayer, FeedForward, GroupedExperts, Groups, Heads, IndexerOptions, Mla, MlaOptions, Mlp,
    Rope, RopeOptions, RopeScaling,
};
use crate::rewrite::{Op, Rules};
use crate::weights::Scope;

/// The fields of `config.json` that shape such a model.
#[derive(Debug, Clone, Deserialize)]
#[expect(missing_docs, reason = "the names are those of config.json")]
pub struct Config {
    pub vocab_size: Size,
    pub hidden_size: Size,
    pub num_hidden_layers: Size,
    pub rms_norm_eps: Positive,
    pub max_position_embeddings: Size,
    pub rope_theta: Positive,
    pub rope_scaling: Option<RopeScaling>,
    pub num_attention_heads: Size,
    /// `null`: queries come from the residual stream.
    pub q_lora_rank: Option<Size>,
    pub kv_lora_rank: Size,
    pub qk_nope_head_dim: Size,
    pub qk_rope_head_dim: Size,
    pub v_head_dim: Size,
    pub attention_bias: bool,
    /// That of dense layers.
    pub intermediate_size: Size,
    /// `null`: all layers are dense.
    pub n_routed_experts: Option<Size>,
    /// `null`: none.
    pub n_shared_experts: Option<Size>,
    pub num_experts_per_tok: Size,
    pub moe_intermediate_size: Size,
    pub first_k_dense_replace: Count,
    pub moe_layer_freq: Size,
    pub topk_method: String,
    pub n_group: Size,
    pub topk_group: Size,
    pub norm_topk_prob: bool,
    pub routed_scaling_factor: Finite,
    /// This and what follows: of the indexer, in families that have one.
    pub index_n_heads: Option<Size>,
    pub index_head_dim: Option<Size>,
    pub index_topk: Option<Size>,
    pub indexer_rope_interleave: Option<bool>,
}

/// What a conversion has to know of such a family.
pub const CONVERSION: Conversion = Conversion {
    own_dtype: &["e_score_correction_bias"],
    order: &[
        ("layers", &["self_attn", "mlp", "input_layernorm", "post_attention_layernorm"]),
        ("mlp", &["switch_mlp", "gate", "shared_experts"]),
    ],
    ..Conversion::DEFAULT
};

/// The fields of the indexer.
pub const INDEXER: &[&str] =
    &["index_n_heads", "index_head_dim", "index_topk", "indexer_rope_interleave"];

/// Epsilons that are no fields.
#[derive(Debug, Clone, Copy)]
pub struct Epsilons {
    /// Of the norms of latents.
    pub latent_norm: f32,
    /// Added to the sum of a token's expert weights before they are divided by it.
    pub expert_weights: f32,
}

impl Config {
    /// Checks what one field cannot know of another.
    ///
    /// # Errors
    /// `Config`.
    pub fn check(&self, config: &ModelConfig) -> Result<()> {
        check_topk_method(config, &self.topk_method)?;
        self.experts(0.0).map_or(Ok(()), |experts| experts.check(config))
    }

    /// Whether the heads of attention and indexer are not too wide together.
    ///
    /// # Errors
    /// `Config`.
    pub fn check_heads(&self, config: &ModelConfig) -> Result<()> {
        let heads = |heads: Size, dims: i64| i64::from(*heads) * dims;
        let [nope, rope, v] = [self.qk_nope_head_dim, self.qk_rope_head_dim, self.v_head_dim]
            .map(|dims| i64::from(*dims));
        let index = self.index_n_heads.zip(self.index_head_dim);
        let widest = heads(self.num_attention_heads, nope + rope.max(v))
            .max(i64::from(*self.kv_lora_rank) + rope)
            .max(index.map_or(0, |(n, dims)| heads(n, i64::from(*dims))));
        if i32::try_from(widest).is_ok() {
            return Ok(());
        }
        let reason = format!("is {}, too large for heads so wide", *self.num_attention_heads);
        Err(config.error("num_attention_heads", reason))
    }

    /// The sizes that the fields say.
    pub fn shape(&self) -> Shape {
        Shape {
            hidden_size: *self.hidden_size,
            num_layers: *self.num_hidden_layers,
            intermediate_size: Some(*self.intermediate_size),
            heads: Heads {
                num_heads: *self.num_attention_heads,
                num_kv_heads: *self.num_attention_heads,
                head_dim: *self.qk_nope_head_dim + *self.qk_rope_head_dim,
            },
            experts: self.n_routed_experts.map(|num_experts| Experts {
                num_experts: *num_experts,
                top_k: *self.num_experts_per_tok,
                intermediate_size: *self.moe_intermediate_size,
            }),
            vocab_size: *self.vocab_size,
            max_position_embeddings: Some(*self.max_position_embeddings),
            norm_eps: self.rms_norm_eps.f32(),
            tied: false,
        }
    }

    /// Whether a layer has experts.
    pub fn is_moe(&self, layer: i32) -> bool {
        self.n_routed_experts.is_some()
            && layer >= *self.first_k_dense_replace
            && layer % *self.moe_layer_freq == 0
    }

    /// What to show to people besides the shape.
    pub fn facts(&self) -> Vec<(&'static str, Value)> {
        let size = |size: Option<Size>| json!(size.map(|size| *size));
        vec![
            ("q_lora_rank", size(self.q_lora_rank)),
            ("kv_lora_rank", json!(*self.kv_lora_rank)),
            ("qk_rope_head_dim", json!(*self.qk_rope_head_dim)),
            ("v_head_dim", json!(*self.v_head_dim)),
            ("n_shared_experts", size(self.n_shared_experts)),
        ]
    }

    /// The experts of a layer that has some.
    fn experts(&self, weights_eps: f32) -> Option<GroupedExperts> {
        Some(GroupedExperts {
            num_experts: *self.n_routed_experts?,
            top_k: *self.num_experts_per_tok,
            intermediate_size: *self.moe_intermediate_size,
            num_shared: self.n_shared_experts.map_or(0, |shared| *shared),
            groups: Groups { num_groups: *self.n_group, top_k: *self.topk_group },
            norm_topk_prob: self.norm_topk_prob,
            norm_eps: weights_eps,
            scale: self.routed_scaling_factor.f64() as f32,
        })
    }

    fn rope(&self, config: &ModelConfig, traditional: bool) -> Result<Rope> {
        let options = RopeOptions {
            dims: *self.qk_rope_head_dim,
            base: self.rope_theta,
            traditional,
            scaling: self.rope_scaling.as_ref().map(|scaling| ("rope_scaling", scaling)),
            max_position_embeddings: Some(self.max_position_embeddings),
        };
        Rope::from_config(config, options)
    }

    fn attention(&self, config: &ModelConfig, norm_eps: f32) -> Result<MlaOptions> {
        let head_dim = *self.qk_nope_head_dim + *self.qk_rope_head_dim;
        let scale = f64::from(head_dim).powf(-0.5);
        Ok(MlaOptions {
            hidden_size: *self.hidden_size,
            num_heads: *self.num_attention_heads,
            q_lora_rank: self.q_lora_rank.map(|rank| *rank),
            kv_lora_rank: *self.kv_lora_rank,
            qk_nope_head_dim: *self.qk_nope_head_dim,
            qk_rope_head_dim: *self.qk_rope_head_dim,
            v_head_dim: *self.v_head_dim,
            bias: self.attention_bias,
            norm_eps,
            rope: self.rope(config, true)?,
            scale: self.rope_scaling.as_ref().map_or(scale, |rope| rope.with_mscale(scale)),
            indexer: self.indexer(config)?,
        })
    }

    fn indexer(&self, config: &ModelConfig) -> Result<Option<IndexerOptions>> {
        let (Some(num_heads), Some(head_dim), Some(top_k), Some(rank)) =
            (self.index_n_heads, self.index_head_dim, self.index_topk, self.q_lora_rank)
        else {
            return Ok(None);
        };
        Ok(Some(IndexerOptions {
            hidden_size: *self.hidden_size,
            q_lora_rank: *rank,
            num_heads: *num_heads,
            head_dim: *head_dim,
            top_k: *top_k,
            rope: self.rope(config, self.indexer_rope_interleave.unwrap_or(false))?,
        }))
    }

    /// Takes the weights below `root`.
    ///
    /// # Errors
    /// `Config`, and those of taking weights.
    pub fn load(
        &self,
        config: &ModelConfig,
        root: &Scope<'_>,
        eps: Epsilons,
    ) -> Result<Box<dyn Model>> {
        let (shape, experts) = (self.shape(), self.experts(eps.expert_weights));
        let attention = self.attention(config, eps.latent_norm)?;
        let dim = shape.hidden_size;
        let feed_forward = |layer, scope: &Scope<'_>| -> Result<FeedForward> {
            Ok(match experts.filter(|_| self.is_moe(layer)) {
                Some(experts) => experts.load(scope, dim)?.into(),
                None => Mlp::load(scope, dim, *self.intermediate_size)?.into(),
            })
        };
        let model = CausalLm::load(root, &shape, |i, layer| {
            let attention = |scope: &Scope<'_>| Mla::load(scope, attention.clone());
            let feed_forward = |scope: &Scope<'_>| feed_forward(i, scope);
            DecoderLayer::load(&layer, shape.layer(), attention, feed_forward)
        })?;
        Ok(Box::new(model))
    }

    /// From published names to this model's, whose names begin with `root`: layers that predict tokens further ahead go,
    /// single experts become stacks, `kv_b_proj` becomes what takes queries to latents and latents to values.
    pub fn rules(&self, rules: Rules, root: &str) -> Rules {
        let at = format!("{root}model.layers.{{l#}}.self_attn");
        let (heads, rank) = (*self.num_attention_heads, *self.kv_lora_rank);
        let (nope, v) = (*self.qk_nope_head_dim, *self.v_head_dim);
        let by_head = Op::Reshape(vec![heads, nope + v, -1]);
        let keys = Op::Slice { axis: 1, start: 0, stop: nope };
        let values = Op::Slice { axis: 1, start: nope, stop: nope + v };
        with_stacked_experts(rules, root, self.num_hidden_layers, self.n_routed_experts).requantize(
            &format!("{at}.kv_b_proj"),
            rank,
            vec![
                (format!("{at}.embed_q"), vec![by_head.clone(), keys, Op::Swap(-1, -2)]),
                (format!("{at}.unembed_out"), vec![by_head, values]),
            ],
        )
    }
}

/// That experts are chosen by biased scores, the only method there is.
///
/// # Errors
/// `Config`.
pub fn check_topk_method(config: &ModelConfig, topk_method: &str) -> Result<()> {
    if topk_method == "noaux_tc" {
        return Ok(());
    }
    Err(config.error("topk_method", format!("is {topk_method:?}, expected \"noaux_tc\"")))
}

/// Layers beyond `num_layers`, which predict tokens further ahead, go; single experts become stacks. Names begin with
/// `root`.
pub fn with_stacked_experts(
    rules: Rules,
    root: &str,
    num_layers: Size,
    num_experts: Option<Size>,
) -> Rules {
    let layer = format!("{root}model.layers.{{l#}}");
    let experts = "{e#}.{p:gate_proj|down_proj|up_proj}.{k:weight|scales|biases}";
    let num_layers = *num_layers as u64;
    rules
        .drop_if(&format!("{layer}.{{rest*}}"), move |m| m.captures.number("l") >= num_layers)
        .stack(
            &format!("{layer}.mlp.experts.{experts}"),
            "e",
            num_experts.map_or(0, |experts| *experts),
            &format!("{layer}.mlp.switch_mlp.{{p}}.{{k}}"),
        )
}
