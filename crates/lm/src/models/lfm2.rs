//! LFM2 (arXiv:2511.23404), the dense family: short convolutions, with attention in some layers.
//!
//! Reference: mlx-lm 0.32.0, `models/lfm2.py`. Like it, this file always takes the embedding as the output projection.

use serde::Deserialize;

use super::Model;
use super::causal::CausalLm;
use super::family::{Conversion, Family, Shape};
use crate::config::{Count, Fields, ModelConfig, Positive, Size};
use crate::error::Result;
use crate::layers::{
    Attention, AttentionNames, AttentionOptions, DecoderLayer, FeedForward, GluOptions, Heads,
    LayerNames, LayerOptions, Mixer, Mlp, MlpNames, QkNorm, Rope, ShortConv,
};
use crate::rewrite::{Op, Rules};
use crate::weights::{Scope, Weights};

/// What the norm behind the layers is called.
const LAST_NORM: &str = "embedding_norm";
/// What the reference takes for granted.
pub(super) const ASSUMED: &[(&str, &str)] = &[
    ("rope_parameters.rope_type", "\"default\""),
    ("tie_embedding", "true"),
    ("tie_word_embeddings", "true"),
];
/// Of what is in its modules.
pub(super) const ORDER: &[(&str, &[&str])] = &[
    ("layers", &["self_attn", "conv", "feed_forward", "operator_norm", "ffn_norm"]),
    ("self_attn", &["q_layernorm", "k_layernorm"]),
    ("conv", &["conv", "in_proj", "out_proj"]),
    ("feed_forward", &["w1", "w3", "w2", "gate", "switch_mlp", "expert_bias"]),
];
/// `rope_theta` where none is given.
const ROPE_THETA: f32 = 1e6;

/// The fields of `config.json` that shape the model.
#[derive(Debug, Clone, Deserialize)]
#[expect(missing_docs, reason = "the names are those of config.json")]
pub struct Config {
    pub hidden_size: Size,
    pub num_hidden_layers: Size,
    pub num_attention_heads: Size,
    pub num_key_value_heads: Option<Size>,
    pub vocab_size: Size,
    pub max_position_embeddings: Size,
    pub norm_eps: Positive,
    pub conv_bias: bool,
    #[serde(rename = "conv_L_cache")]
    pub conv_l_cache: Size,
    pub block_dim: Size,
    pub block_multiple_of: Size,
    pub block_ffn_dim_multiplier: Option<Positive>,
    pub block_auto_adjust_ff_dim: bool,
    pub block_ff_dim: Option<Size>,
    /// Where there is no `block_ff_dim`.
    pub intermediate_size: Option<Size>,
    pub rope_theta: Option<Positive>,
    pub rope_parameters: Option<RopeTheta>,
    pub full_attn_idxs: Option<Vec<Count>>,
    pub layer_types: Option<Vec<String>>,
}

/// `rope_parameters`, of which the reference takes the base alone.
#[derive(Debug, Clone, Deserialize)]
#[expect(missing_docs, reason = "the names are those of config.json")]
pub struct RopeTheta {
    pub rope_theta: Option<Positive>,
}

impl Fields for Config {
    const UNUSED: &'static [&'static str] = &[
        "block_mlp_init_scale",
        "block_norm_eps",
        "block_out_init_scale",
        "block_use_swiglu",
        "block_use_xavier_init",
        "conv_dim",
        "conv_dim_out",
        "conv_use_xavier_init",
        "num_heads",
        "theta",
        "use_pos_enc",
    ];
    const ASSUMED: &'static [(&'static str, &'static str)] = ASSUMED;

    fn check(&self, config: &ModelConfig) -> Result<()> {
        if *self.block_dim != *self.hidden_size {
            let reason =
                format!("is {}, expected hidden_size ({})", *self.block_dim, *self.hidden_size);
            return Err(config.error("block_dim", reason));
        }
        if self.block_ff_dim.or(self.intermediate_size).is_none() {
            return Err(config.error("block_ff_dim", "is missing, and so is intermediate_size"));
        }
        if !(1..=i64::from(i32::MAX)).contains(&self.ff_dim()) {
            let reason = format!("makes a feed-forward of width {}", self.ff_dim());
            return Err(config.error("block_ffn_dim_multiplier", reason));
        }
        self.operators().check(config)
    }
}

impl Config {
    /// Inner width of the feed-forward, as Python computes it.
    fn ff_dim(&self) -> i64 {
        let ff_dim = self.block_ff_dim.or(self.intermediate_size).map_or(0, |dim| i64::from(*dim));
        if !self.block_auto_adjust_ff_dim {
            return ff_dim;
        }
        let mut ff_dim = ((2 * ff_dim) as f64 / 3.0) as i64;
        if let Some(multiplier) = self.block_ffn_dim_multiplier {
            ff_dim = (multiplier.f64() * ff_dim as f64) as i64;
        }
        let multiple = i64::from(*self.block_multiple_of);
        ff_dim.saturating_add(multiple - 1) / multiple * multiple
    }

    fn operators(&self) -> Operators<'_> {
        Operators {
            shape: self.shape(),
            kernel_size: *self.conv_l_cache,
            conv_bias: self.conv_bias,
            rope_theta: rope_theta(self.rope_parameters.as_ref(), self.rope_theta),
            full_attn_idxs: self.full_attn_idxs.as_deref(),
            layer_types: self.layer_types.as_deref(),
        }
    }
}

impl Family for Config {
    const CONVERSION: Conversion = Conversion { order: ORDER, ..Conversion::DEFAULT };

    fn shape(&self) -> Shape {
        let num_heads = *self.num_attention_heads;
        Shape {
            hidden_size: *self.hidden_size,
            num_layers: *self.num_hidden_layers,
            intermediate_size: i32::try_from(self.ff_dim()).ok(),
            heads: Heads {
                num_heads,
                num_kv_heads: self.num_key_value_heads.map_or(num_heads, |heads| *heads),
                head_dim: *self.hidden_size / num_heads,
            },
            experts: None,
            vocab_size: *self.vocab_size,
            max_position_embeddings: Some(*self.max_position_embeddings),
            norm_eps: self.norm_eps.f32(),
            tied: true,
        }
    }

    fn load(&self, _: &ModelConfig, weights: &Weights) -> Result<Box<dyn Model>> {
        weights.rewrite(&conv_rules())?;
        let (operators, ff_dim) = (self.operators(), self.ff_dim() as i32);
        let names = MlpNames { gate: "w1", up: "w3", down: "w2" };
        let model = operators.load_model(weights, |_, scope| {
            let options = GluOptions::default();
            Mlp::load_named(scope, *self.hidden_size, ff_dim, options, names)
        })?;
        Ok(Box::new(model))
    }
}

/// The base of the rotation: the nested one counts first.
pub(super) fn rope_theta(nested: Option<&RopeTheta>, outer: Option<Positive>) -> f32 {
    let base = nested.and_then(|nested| nested.rope_theta).or(outer);
    base.map_or(ROPE_THETA, Positive::f32)
}

/// From PyTorch's layout of a convolution's weight, `[channels, 1, kernel]`, to MLX's, `[channels, kernel, 1]`.
pub(super) fn conv_rules() -> Rules {
    Rules::new().map_if(
        "{module*}conv.weight",
        &[Op::Swap(1, 2)],
        |found| matches!(found.shape, [_, one, kernel] if kernel > one),
    )
}

/// What joins the tokens in each layer, which both LFM2 families have.
pub(super) struct Operators<'a> {
    pub(super) shape: Shape,
    /// Tokens that a convolution sees.
    pub(super) kernel_size: i32,
    pub(super) conv_bias: bool,
    pub(super) rope_theta: f32,
    /// The layers with attention; where this is not given, those of `layer_types` are.
    pub(super) full_attn_idxs: Option<&'a [Count]>,
    pub(super) layer_types: Option<&'a [String]>,
}

impl Operators<'_> {
    pub(super) fn check(&self, config: &ModelConfig) -> Result<()> {
        if self.full_attn_idxs.is_none() && self.layer_types.is_none() {
            return Err(config.error("layer_types", "is missing, and so is full_attn_idxs"));
        }
        if self.kernel_size < 2 {
            let reason = format!("is {}, expected 2 or more", self.kernel_size);
            return Err(config.error("conv_L_cache", reason));
        }
        if self.shape.hidden_size.checked_mul(3).is_none() {
            let reason = format!("is {}, too large", self.shape.hidden_size);
            return Err(config.error("hidden_size", reason));
        }
        Ok(())
    }

    fn is_attention(&self, layer: i32) -> bool {
        match (self.full_attn_idxs, self.layer_types) {
            (Some(idxs), _) => idxs.iter().any(|idx| **idx == layer),
            (None, Some(types)) => {
                types.get(layer as usize).is_some_and(|kind| kind == "full_attention")
            }
            (None, None) => false,
        }
    }

    fn load_mixer(&self, layer: i32, scope: &Scope<'_>) -> Result<Box<dyn Mixer>> {
        let Shape { hidden_size, heads, norm_eps, .. } = self.shape;
        if !self.is_attention(layer) {
            let conv = ShortConv::load(scope, hidden_size, self.kernel_size, self.conv_bias)?;
            return Ok(Box::new(conv));
        }
        let options = AttentionOptions {
            qk_norm: Some(QkNorm::Heads(norm_eps)),
            rope: Some(Rope::new(heads.head_dim, self.rope_theta)),
            names: AttentionNames {
                q_norm: "q_layernorm",
                k_norm: "k_layernorm",
                o_proj: "out_proj",
            },
            ..AttentionOptions::new(hidden_size, heads)
        };
        Ok(Box::new(Attention::load(scope, options)?))
    }

    /// The model whose feed-forwards `feed_forward` takes.
    pub(super) fn load_model<F: Into<FeedForward>>(
        &self,
        weights: &Weights,
        mut feed_forward: impl FnMut(i32, &Scope<'_>) -> Result<F>,
    ) -> Result<CausalLm<DecoderLayer<Box<dyn Mixer>>>> {
        CausalLm::load_named(&weights.root(), &self.shape, LAST_NORM, |i, layer| {
            let names = LayerNames {
                mixer_norm: "operator_norm",
                mixer: if self.is_attention(i) { "self_attn" } else { "conv" },
                feed_forward_norm: "ffn_norm",
                feed_forward: "feed_forward",
            };
            let options = LayerOptions { names, ..self.shape.layer() };
            let mixer = |scope: &Scope<'_>| self.load_mixer(i, scope);
            DecoderLayer::load(&layer, options, mixer, |scope| feed_forward(i, scope))
        })
    }
}
