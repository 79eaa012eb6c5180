//! Qwen3.5, the text model: Gated DeltaNet (arXiv:2412.06464) in three layers of four, gated attention in the fourth, one
//! feed-forward or, as `qwen3_5_moe`, a mixture of experts with a shared one.
//!
//! Reference: mlx-lm 0.32.0, `models/qwen3_5.py`. It differs from `qwen3_next` in how the projections of the delta rule are
//! stored, and in that every layer has experts if any has.

use serde::Deserialize;
use serde_json::Value;

use super::Model;
use super::family::{Conversion, Experts, Family, Shape};
use super::qwen3_next::{
    CONVERSION, Hybrid, INTERVAL, Partial, delta_facts, gated_attention, load_moe, original_rules,
};
use crate::config::{Count, Fields, ModelConfig, Positive, Size};
use crate::error::Result;
use crate::layers::{
    FeedForward, GatedDeltaOptions, GatedDeltaProjections, Heads, Mlp, RopeScaling,
};
use crate::rewrite::Rules;
use crate::weights::{Scope, Weights};

/// What `rope_parameters` says where it says nothing.
const ROPE_THETA: f64 = 100_000.0;
const PARTIAL_ROTARY_FACTOR: f64 = 0.25;

/// The fields of `config.json` that shape the model.
#[derive(Debug, Clone, Deserialize)]
#[expect(missing_docs, reason = "the names are those of config.json")]
pub struct Config {
    pub hidden_size: Size,
    pub num_hidden_layers: Size,
    /// Of models without experts.
    pub intermediate_size: Option<Size>,
    pub num_attention_heads: Size,
    pub num_key_value_heads: Size,
    /// `hidden_size / num_attention_heads` by default.
    pub head_dim: Option<Size>,
    pub linear_num_value_heads: Size,
    pub linear_num_key_heads: Size,
    pub linear_key_head_dim: Size,
    pub linear_value_head_dim: Size,
    pub linear_conv_kernel_dim: Size,
    /// Every how many layers attention comes; 4 by default.
    pub full_attention_interval: Option<Size>,
    #[serde(default)]
    pub attention_bias: bool,
    #[serde(default)]
    pub num_experts: Count,
    #[serde(default)]
    pub num_experts_per_tok: Count,
    pub moe_intermediate_size: Option<Size>,
    pub shared_expert_intermediate_size: Option<Size>,
    /// True by default.
    pub norm_topk_prob: Option<bool>,
    pub rms_norm_eps: Positive,
    pub vocab_size: Size,
    pub max_position_embeddings: Size,
    pub rope_parameters: Option<RopeScaling>,
    #[serde(default)]
    pub tie_word_embeddings: bool,
}

impl Fields for Config {
    const UNUSED: &'static [&'static str] = &[
        "layer_types",
        "mtp_num_hidden_layers",
        "partial_rotary_factor",
        "rope_parameters.mrope_interleaved",
    ];
    const ASSUMED: &'static [(&'static str, &'static str)] = &[
        ("attn_output_gate", "true"),
        ("decoder_sparse_step", "1"),
        ("hidden_act", "\"silu\""),
        ("mamba_ssm_dtype", "\"float32\""),
        ("mlp_only_layers", "[]"),
    ];

    fn check(&self, config: &ModelConfig) -> Result<()> {
        let needed = match self.experts() {
            None => vec![("intermediate_size", self.intermediate_size)],
            Some(experts) => {
                experts.check(config, "num_experts_per_tok", "num_experts")?;
                vec![
                    ("moe_intermediate_size", self.moe_intermediate_size),
                    ("shared_expert_intermediate_size", self.shared_expert_intermediate_size),
                ]
            }
        };
        if let Some((field, _)) = needed.iter().find(|(_, size)| size.is_none()) {
            return Err(config.error(field, "is missing"));
        }
        self.delta().check(config)
    }
}

impl Config {
    fn experts(&self) -> Option<Experts> {
        let experts = Experts {
            num_experts: *self.num_experts,
            top_k: *self.num_experts_per_tok,
            intermediate_size: self.moe_intermediate_size.map_or(0, |size| *size),
        };
        Some(experts).filter(|experts| experts.num_experts > 0)
    }

    fn delta(&self) -> GatedDeltaOptions {
        GatedDeltaOptions {
            hidden_size: *self.hidden_size,
            num_key_heads: *self.linear_num_key_heads,
            num_value_heads: *self.linear_num_value_heads,
            key_dim: *self.linear_key_head_dim,
            value_dim: *self.linear_value_head_dim,
            kernel_size: *self.linear_conv_kernel_dim,
            norm_eps: self.rms_norm_eps.f32(),
            projections: GatedDeltaProjections::Apart,
        }
    }

    fn hybrid(&self, config: &ModelConfig) -> Result<Hybrid> {
        let shape = self.shape();
        let nested = self.rope_parameters.as_ref();
        let number = |given: Option<Positive>, default| given.or(Positive::new(default));
        let base = number(nested.and_then(|nested| nested.rope_theta), ROPE_THETA);
        let factor =
            number(nested.and_then(|nested| nested.partial_rotary_factor), PARTIAL_ROTARY_FACTOR);
        let (Some(base), Some(factor)) = (base, factor) else {
            unreachable!("the defaults are above zero")
        };
        let rope = Partial {
            factor,
            base,
            scaling: nested.map(|nested| ("rope_parameters", nested)),
            max_position_embeddings: self.max_position_embeddings,
        };
        Ok(Hybrid {
            interval: self.full_attention_interval.map_or(INTERVAL, |interval| *interval),
            attention: gated_attention(
                &shape,
                rope.load(config, shape.heads)?,
                self.attention_bias,
            ),
            delta: self.delta(),
            shape,
        })
    }

    fn load_feed_forward(&self, scope: &Scope<'_>) -> Result<FeedForward> {
        let size = |size: Option<Size>| size.map_or(0, |size| *size);
        let hidden_size = *self.hidden_size;
        let Some(experts) = self.experts() else {
            return Ok(Mlp::load(scope, hidden_size, size(self.intermediate_size))?.into());
        };
        let shared = size(self.shared_expert_intermediate_size);
        load_moe(scope, hidden_size, experts, shared, self.norm_topk_prob.unwrap_or(true))
    }
}

impl Family for Config {
    const CONVERSION: Conversion = Conversion { own_dtype: &["A_log"], ..CONVERSION };

    fn shape(&self) -> Shape {
        let num_heads = *self.num_attention_heads;
        let experts = self.experts();
        let intermediate_size = self.intermediate_size.filter(|_| experts.is_none());
        Shape {
            hidden_size: *self.hidden_size,
            num_layers: *self.num_hidden_layers,
            intermediate_size: intermediate_size.map(|size| *size),
            heads: Heads {
                num_heads,
                num_kv_heads: *self.num_key_value_heads,
                head_dim: self.head_dim.map_or(*self.hidden_size / num_heads, |dim| *dim),
            },
            experts,
            vocab_size: *self.vocab_size,
            max_position_embeddings: Some(*self.max_position_embeddings),
            norm_eps: self.rms_norm_eps.f32(),
            tied: self.tie_word_embeddings,
        }
    }

    fn facts(&self) -> Vec<(&'static str, Value)> {
        delta_facts(&self.delta())
    }

    fn load(&self, config: &ModelConfig, weights: &Weights) -> Result<Box<dyn Model>> {
        let is_original = weights.any(|name, shape, _| {
            name.contains("conv1d.weight") && shape.last().is_some_and(|last| *last != 1)
        });
        // the text model alone, by one name for it
        let rules = Rules::new()
            .drop("vision_tower{rest*}")
            .drop("model.visual{rest*}")
            .drop("{before*}mtp.{rest*}")
            .rename("model.language_model{rest*}", "language_model.model{rest}")
            .rename("model.{rest*}", "language_model.model.{rest}")
            .rename("lm_head.{rest*}", "language_model.lm_head.{rest}");
        weights.rewrite(&if is_original { original_rules(rules) } else { rules })?;
        let feed_forward = |_, scope: &Scope<'_>| self.load_feed_forward(scope);
        let root = weights.root().pp("language_model");
        Ok(Box::new(self.hybrid(config)?.load_model(&root, feed_forward)?))
    }
}
