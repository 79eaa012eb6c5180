//! LFM2-MoE (arXiv:2511.23404): short convolutions with attention in some layers, in all but the first layers a mixture
//! of experts with sigmoid scores.
//!
//! Reference: mlx-lm 0.32.0, `models/lfm2_moe.py`. Like it, this file always takes the embedding as the output projection.

use serde::Deserialize;

use super::Model;
use super::family::{Conversion, Experts, Family, Shape};
use super::lfm2::{ASSUMED, ORDER, Operators, RopeTheta, conv_rules, rope_theta};
use crate::config::{Count, Fields, Finite, ModelConfig, Positive, Size};
use crate::error::Result;
use crate::layers::{FeedForward, Heads, Mlp, MoeBlock, Routing, Score};
use crate::weights::{Scope, Weights};

/// Added to the sum that the chosen experts' scores are divided by.
const SUM_EPS: f32 = 1e-6;

/// The fields of `config.json` that shape the model.
#[derive(Debug, Clone, Deserialize)]
#[expect(missing_docs, reason = "the names are those of config.json")]
pub struct Config {
    pub hidden_size: Size,
    pub num_hidden_layers: Size,
    pub num_dense_layers: Count,
    pub intermediate_size: Size,
    pub moe_intermediate_size: Size,
    pub num_experts: Size,
    pub num_experts_per_tok: Size,
    pub norm_topk_prob: bool,
    pub use_expert_bias: bool,
    pub routed_scaling_factor: Option<Finite>,
    pub num_attention_heads: Size,
    pub num_key_value_heads: Size,
    pub vocab_size: Size,
    pub max_position_embeddings: Size,
    pub norm_eps: Positive,
    pub conv_bias: bool,
    #[serde(rename = "conv_L_cache")]
    pub conv_l_cache: Size,
    pub rope_theta: Option<Positive>,
    pub rope_parameters: Option<RopeTheta>,
    pub full_attn_idxs: Option<Vec<Count>>,
    pub layer_types: Option<Vec<String>>,
}

impl Fields for Config {
    const ASSUMED: &'static [(&'static str, &'static str)] = ASSUMED;

    fn check(&self, config: &ModelConfig) -> Result<()> {
        self.experts().check(config, "num_experts_per_tok", "num_experts")?;
        self.operators().check(config)
    }
}

impl Config {
    fn experts(&self) -> Experts {
        Experts {
            num_experts: *self.num_experts,
            top_k: *self.num_experts_per_tok,
            intermediate_size: *self.moe_intermediate_size,
        }
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

    fn load_feed_forward(&self, layer: i32, scope: &Scope<'_>) -> Result<FeedForward> {
        let (hidden_size, num_experts) = (*self.hidden_size, *self.num_experts);
        if !self.is_moe(layer) {
            return Ok(Mlp::load(scope, hidden_size, *self.intermediate_size)?.into());
        }
        let routing = Routing {
            score: Score::Sigmoid,
            // counts in the choice alone
            selection_bias: match self.use_expert_bias {
                true => Some(scope.take_float("expert_bias", &[num_experts])?),
                false => None,
            },
            norm_topk_prob: self.norm_topk_prob,
            norm_eps: SUM_EPS,
            scale: self.routed_scaling_factor.map(|factor| factor.f64() as f32),
            ..Routing::softmax(*self.num_experts_per_tok)
        };
        Ok(MoeBlock::load(scope, self.experts().options(&self.shape(), routing))?.into())
    }
}

impl Family for Config {
    const CONVERSION: Conversion =
        Conversion { precise: &["feed_forward.gate"], own_dtype: &["expert_bias"], order: ORDER };

    fn shape(&self) -> Shape {
        let num_heads = *self.num_attention_heads;
        Shape {
            hidden_size: *self.hidden_size,
            num_layers: *self.num_hidden_layers,
            intermediate_size: Some(*self.intermediate_size),
            heads: Heads {
                num_heads,
                num_kv_heads: *self.num_key_value_heads,
                head_dim: *self.hidden_size / num_heads,
            },
            experts: Some(self.experts()),
            vocab_size: *self.vocab_size,
            max_position_embeddings: Some(*self.max_position_embeddings),
            norm_eps: self.norm_eps.f32(),
            tied: true,
        }
    }

    fn is_moe(&self, layer: i32) -> bool {
        layer >= *self.num_dense_layers
    }

    fn load(&self, _: &ModelConfig, weights: &Weights) -> Result<Box<dyn Model>> {
        // from Hugging Face names: projections by their usual ones, single experts become stacks
        let rules = conv_rules()
            .rename("{module*}.w1.weight", "{module}.gate_proj.weight")
            .rename("{module*}.w2.weight", "{module}.down_proj.weight")
            .rename("{module*}.w3.weight", "{module}.up_proj.weight")
            .stack(
                "model.layers.{l#}.feed_forward.experts.{e#}.{p:up_proj|down_proj|gate_proj}.weight",
                "e",
                *self.num_experts,
                "model.layers.{l}.feed_forward.switch_mlp.{p}.weight",
            );
        weights.rewrite(&rules)?;
        let feed_forward = |i, scope: &Scope<'_>| self.load_feed_forward(i, scope);
        Ok(Box::new(self.operators().load_model(weights, feed_forward)?))
    }
}
