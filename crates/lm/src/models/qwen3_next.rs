//! Qwen3-Next: Gated DeltaNet (arXiv:2412.06464) in three layers of four, gated attention in the fourth, a mixture of
//! experts with a shared one.
//!
//! Reference: mlx-lm 0.32.0, `models/qwen3_next.py`. Like it, this file takes the kinds of layers from
//! `full_attention_interval`, not from `layer_types`.

use serde::Deserialize;
use serde_json::{Value, json};

use super::Model;
use super::causal::CausalLm;
use super::family::{Conversion, Experts, Family, Shape};
use crate::config::{Count, Fields, ModelConfig, Positive, Size};
use crate::error::Result;
use crate::layers::{
    Attention, AttentionOptions, DecoderLayer, FeedForward, GatedDeltaNet, GatedDeltaOptions,
    GatedDeltaProjections, Heads, LayerNames, LayerOptions, Mixer, Mlp, MoeBlock, MoeOptions,
    QkNorm, Rope, RopeOptions, RopeScaling, Routing, SharedOptions,
};
use crate::rewrite::{Op, Rules};
use crate::weights::{Scope, Weights};

/// The fields of `config.json` that shape the model.
#[derive(Debug, Clone, Deserialize)]
#[expect(missing_docs, reason = "the names are those of config.json")]
pub struct Config {
    pub hidden_size: Size,
    pub num_hidden_layers: Size,
    pub intermediate_size: Size,
    pub num_attention_heads: Size,
    pub num_key_value_heads: Size,
    pub head_dim: Size,
    pub linear_num_value_heads: Size,
    pub linear_num_key_heads: Size,
    pub linear_key_head_dim: Size,
    pub linear_value_head_dim: Size,
    pub linear_conv_kernel_dim: Size,
    /// Every how many layers attention comes; 4 by default.
    pub full_attention_interval: Option<Size>,
    #[serde(default)]
    pub attention_bias: bool,
    pub num_experts: Count,
    pub num_experts_per_tok: Count,
    pub decoder_sparse_step: Size,
    pub mlp_only_layers: Vec<Count>,
    pub moe_intermediate_size: Size,
    pub shared_expert_intermediate_size: Size,
    #[serde(default)]
    pub norm_topk_prob: bool,
    pub rms_norm_eps: Positive,
    pub vocab_size: Size,
    pub max_position_embeddings: Size,
    pub rope_theta: Positive,
    pub partial_rotary_factor: Positive,
    pub rope_scaling: Option<RopeScaling>,
    #[serde(default)]
    pub tie_word_embeddings: bool,
}

impl Fields for Config {
    const UNUSED: &'static [&'static str] = &["layer_types", "max_window_layers"];
    const ASSUMED: &'static [(&'static str, &'static str)] = &[("hidden_act", "\"silu\"")];

    fn check(&self, config: &ModelConfig) -> Result<()> {
        if let Some(experts) = self.experts() {
            experts.check(config, "num_experts_per_tok", "num_experts")?;
        }
        self.delta().check(config)
    }
}

impl Config {
    fn experts(&self) -> Option<Experts> {
        let experts = Experts {
            num_experts: *self.num_experts,
            top_k: *self.num_experts_per_tok,
            intermediate_size: *self.moe_intermediate_size,
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
            projections: GatedDeltaProjections::ByKeyHead,
        }
    }

    fn hybrid(&self, config: &ModelConfig) -> Result<Hybrid> {
        let shape = self.shape();
        let rope = Partial {
            factor: self.partial_rotary_factor,
            base: self.rope_theta,
            scaling: self.rope_scaling.as_ref().map(|scaling| ("rope_scaling", scaling)),
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

    fn load_feed_forward(&self, layer: i32, scope: &Scope<'_>) -> Result<FeedForward> {
        let Some(experts) = self.experts().filter(|_| self.is_moe(layer)) else {
            return Ok(Mlp::load(scope, *self.hidden_size, *self.intermediate_size)?.into());
        };
        let shared = *self.shared_expert_intermediate_size;
        load_moe(scope, *self.hidden_size, experts, shared, self.norm_topk_prob)
    }
}

impl Family for Config {
    const CONVERSION: Conversion = CONVERSION;

    fn shape(&self) -> Shape {
        Shape {
            hidden_size: *self.hidden_size,
            num_layers: *self.num_hidden_layers,
            intermediate_size: None,
            heads: Heads {
                num_heads: *self.num_attention_heads,
                num_kv_heads: *self.num_key_value_heads,
                head_dim: *self.head_dim,
            },
            experts: self.experts(),
            vocab_size: *self.vocab_size,
            max_position_embeddings: Some(*self.max_position_embeddings),
            norm_eps: self.rms_norm_eps.f32(),
            tied: self.tie_word_embeddings,
        }
    }

    fn is_moe(&self, layer: i32) -> bool {
        *self.num_experts > 0
            && !self.mlp_only_layers.iter().any(|dense| **dense == layer)
            && (layer + 1) % *self.decoder_sparse_step == 0
    }

    fn facts(&self) -> Vec<(&'static str, Value)> {
        delta_facts(&self.delta())
    }

    fn load(&self, config: &ModelConfig, weights: &Weights) -> Result<Box<dyn Model>> {
        let experts = "model.layers.{l#}.mlp.experts.{e#}.{p:up_proj|down_proj|gate_proj}.weight";
        let is_original = weights.any(|name, _, _| name.ends_with(".mlp.experts.0.up_proj.weight"));
        let mut rules = Rules::new().drop("{before*}mtp.{rest*}").stack(
            experts,
            "e",
            *self.num_experts,
            "model.layers.{l}.mlp.switch_mlp.{p}.weight",
        );
        if is_original {
            rules = original_rules(rules);
        }
        weights.rewrite(&rules)?;
        let feed_forward = |i, scope: &Scope<'_>| self.load_feed_forward(i, scope);
        let hybrid = self.hybrid(config)?;
        Ok(Box::new(hybrid.load_model(&weights.root(), feed_forward)?))
    }
}

/// The order of what is in a layer without attention, whichever way its projections are stored.
const LINEAR_ATTN: &[&str] = &[
    "conv1d",
    "in_proj_qkvz",
    "in_proj_ba",
    "in_proj_qkv",
    "in_proj_z",
    "in_proj_b",
    "in_proj_a",
    "dt_bias",
    "A_log",
    "norm",
    "out_proj",
];

/// What a conversion has to know.
pub(super) const CONVERSION: Conversion = Conversion {
    precise: &["mlp.gate", "shared_expert_gate"],
    own_dtype: &[],
    order: &[
        (
            "layers",
            &["linear_attn", "self_attn", "input_layernorm", "post_attention_layernorm", "mlp"],
        ),
        ("linear_attn", LINEAR_ATTN),
        ("mlp", &["gate_proj", "down_proj", "up_proj"]),
        ("shared_expert", &["gate_proj", "down_proj", "up_proj"]),
    ],
};

/// `full_attention_interval` where none is given.
pub(super) const INTERVAL: i32 = 4;

/// From Qwen's layout to MLX's: convolutions `[channels, 1, kernel]`, and norms whose weight is what they differ from one
/// by.
pub(super) fn original_rules(rules: Rules) -> Rules {
    let norms = "{module*}.{norm:input_layernorm|post_attention_layernorm|q_norm|k_norm}.weight";
    let is_vector = |shape: &[i32]| shape.len() == 1;
    rules
        .map_if(
            "{module*}conv1d.weight",
            &[Op::Swap(1, 2)],
            |found| matches!(found.shape, [_, _, last] if *last != 1),
        )
        .map_if(norms, &[Op::Add(1.0)], move |found| is_vector(found.shape))
        .map_if("{root*}model.norm.weight", &[Op::Add(1.0)], move |found| is_vector(found.shape))
}

/// What to show of the layers without attention.
pub(super) fn delta_facts(delta: &GatedDeltaOptions) -> Vec<(&'static str, Value)> {
    vec![
        ("linear_num_key_heads", json!(delta.num_key_heads)),
        ("linear_num_value_heads", json!(delta.num_value_heads)),
        ("linear_key_head_dim", json!(delta.key_dim)),
        ("linear_value_head_dim", json!(delta.value_dim)),
    ]
}

/// A rotation of the first part of a head.
pub(super) struct Partial<'a> {
    pub(super) factor: Positive,
    pub(super) base: Positive,
    pub(super) scaling: Option<(&'a str, &'a RopeScaling)>,
    pub(super) max_position_embeddings: Size,
}

impl Partial<'_> {
    pub(super) fn load(&self, config: &ModelConfig, heads: Heads) -> Result<Rope> {
        let turned = f64::from(heads.head_dim) * self.factor.f64();
        if turned as i32 > heads.head_dim {
            let reason = format!("is {}, more than the whole of a head", self.factor.f64());
            return Err(config.error("partial_rotary_factor", reason));
        }
        let options = RopeOptions {
            dims: turned as i32,
            base: self.base,
            traditional: false,
            scaling: self.scaling,
            max_position_embeddings: Some(self.max_position_embeddings),
        };
        Rope::from_config(config, options)
    }
}

/// Attention whose heads are gated, with normalised queries and keys.
pub(super) fn gated_attention(shape: &Shape, rope: Rope, bias: bool) -> AttentionOptions {
    AttentionOptions {
        qkv_bias: bias,
        output_bias: bias,
        qk_norm: Some(QkNorm::Heads(shape.norm_eps)),
        rope: Some(rope),
        gated: true,
        ..AttentionOptions::new(shape.hidden_size, shape.heads)
    }
}

/// Experts by softmax, and a shared one under a gate of its own.
pub(super) fn load_moe(
    scope: &Scope<'_>,
    hidden_size: i32,
    experts: Experts,
    shared_intermediate_size: i32,
    norm_topk_prob: bool,
) -> Result<FeedForward> {
    let Experts { num_experts, top_k, intermediate_size } = experts;
    let routing = Routing { norm_topk_prob, ..Routing::softmax(top_k) };
    let options = MoeOptions {
        shared: Some(SharedOptions { intermediate_size: shared_intermediate_size, gated: true }),
        ..MoeOptions::new(hidden_size, num_experts, intermediate_size, routing)
    };
    Ok(MoeBlock::load(scope, options)?.into())
}

/// What joins the tokens in each layer, which Qwen3-Next and Qwen3.5 have in common.
pub(super) struct Hybrid {
    pub(super) shape: Shape,
    /// Every how many layers attention comes.
    pub(super) interval: i32,
    pub(super) attention: AttentionOptions,
    pub(super) delta: GatedDeltaOptions,
}

impl Hybrid {
    /// The model whose feed-forwards `feed_forward` takes.
    pub(super) fn load_model<F: Into<FeedForward>>(
        &self,
        root: &Scope<'_>,
        mut feed_forward: impl FnMut(i32, &Scope<'_>) -> Result<F>,
    ) -> Result<CausalLm<DecoderLayer<Box<dyn Mixer>>>> {
        CausalLm::load(root, &self.shape, |i, layer| {
            let is_attention = (i + 1) % self.interval == 0;
            let mixer = if is_attention { "self_attn" } else { "linear_attn" };
            let names = LayerNames { mixer, ..LayerNames::default() };
            let options = LayerOptions { names, ..self.shape.layer() };
            let mixer = |scope: &Scope<'_>| -> Result<Box<dyn Mixer>> {
                Ok(match is_attention {
                    true => Box::new(Attention::load(scope, self.attention.clone())?),
                    false => Box::new(GatedDeltaNet::load(scope, self.delta)?),
                })
            };
            DecoderLayer::load(&layer, options, mixer, |scope| feed_forward(i, scope))
        })
    }
}
