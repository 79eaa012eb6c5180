//! MiniMax-M2 (huggingface.co/MiniMaxAI/MiniMax-M2): grouped-query attention with queries and keys normalised over all
//! heads together, of which a part of each is turned, and experts chosen by sigmoid scores with a bias for the choice
//! alone. The router computes in `float32`, its weights reach the experts in their type.
//!
//! Reference: mlx-lm 0.32.0, `models/minimax.py`. Like it, this file adds the bias, and takes sigmoid scores, whatever
//! `use_routing_bias` and `scoring_func` say; a checkpoint that says something else is told so.

use mlx::Dtype;
use serde::Deserialize;

use super::Model;
use super::causal::CausalLm;
use super::family::{Conversion, Experts, Family, Shape};
use crate::config::{Fields, ModelConfig, Positive, Size, yes};
use crate::error::Result;
use crate::layers::{
    Attention, AttentionOptions, Choice, DecoderLayer, Heads, LayerNames, LayerOptions, MoeBlock,
    MoeOptions, QkNorm, Rope, RopeOptions, Routing, Score,
};
use crate::rewrite::Rules;
use crate::weights::{Scope, Weights};

/// Added to the sum that a token's weights are divided by.
const SUM_EPS: f32 = 1e-20;
/// Published matrices have 8 bits and a scale for each block of this many rows and columns.
const FP8_BLOCK: i32 = 128;
const BIAS: &str = "e_score_correction_bias";

/// The fields of `config.json` that shape the model.
#[derive(Debug, Clone, Deserialize)]
#[expect(missing_docs, reason = "the names are those of config.json")]
pub struct Config {
    pub hidden_size: Size,
    pub num_hidden_layers: Size,
    /// Inner width of an expert.
    pub intermediate_size: Size,
    pub num_attention_heads: Size,
    pub num_key_value_heads: Size,
    /// `hidden_size / num_attention_heads` by default.
    pub head_dim: Option<Size>,
    pub num_local_experts: Size,
    pub num_experts_per_tok: Size,
    #[serde(default = "yes")]
    pub use_qk_norm: bool,
    pub rms_norm_eps: Positive,
    pub rope_theta: Positive,
    /// 1 for each layer of softmax attention, which is the only kind here.
    pub attn_type_list: Option<Vec<i64>>,
    /// How much of each head is turned.
    pub rotary_dim: Size,
    pub vocab_size: Size,
    pub max_position_embeddings: Size,
    #[serde(default)]
    pub tie_word_embeddings: bool,
}

impl Fields for Config {
    const UNUSED: &'static [&'static str] = &[
        "layernorm_full_attention_beta",
        "layernorm_linear_attention_beta",
        "layernorm_mlp_beta",
        "mlp_intermediate_size",
        "mtp_transformer_layers",
        "num_mtp_modules",
        "router_jitter_noise",
        "shared_moe_mode", // there are no shared experts
        "use_mtp",
    ];
    const ASSUMED: &'static [(&'static str, &'static str)] = &[
        ("hidden_act", "\"silu\""),
        ("qk_norm_type", "\"per_layer\""),
        ("scoring_func", "\"sigmoid\""),
        ("shared_intermediate_size", "0"),
        ("use_routing_bias", "true"),
    ];

    fn check(&self, config: &ModelConfig) -> Result<()> {
        let head_dim = self.shape().heads.head_dim;
        if *self.rotary_dim > head_dim || *self.rotary_dim % 2 != 0 {
            let reason = format!(
                "is {}, expected an even number up to head_dim ({head_dim})",
                *self.rotary_dim
            );
            return Err(config.error("rotary_dim", reason));
        }
        if let Some(kind) = self.attn_type_list.iter().flatten().find(|kind| **kind != 1) {
            let reason = format!("has {kind}, expected 1 (softmax attention) for every layer");
            return Err(config.error("attn_type_list", reason));
        }
        self.experts().check(config, "num_experts_per_tok", "num_local_experts")
    }
}

impl Config {
    fn experts(&self) -> Experts {
        Experts {
            num_experts: *self.num_local_experts,
            top_k: *self.num_experts_per_tok,
            intermediate_size: *self.intermediate_size,
        }
    }

    /// From Hugging Face names: matrices get their scales, single experts become stacks.
    fn rules(&self) -> Rules {
        let rules = Rules::new().scale_blocks("{m*}.weight_scale_inv", "{m}.weight", FP8_BLOCK);
        let names = [("w1", "gate_proj"), ("w2", "down_proj"), ("w3", "up_proj")];
        names.into_iter().fold(rules, |rules, (from, to)| {
            rules.stack(
                &format!("model.layers.{{l#}}.block_sparse_moe.experts.{{e#}}.{from}.weight"),
                "e",
                *self.num_local_experts,
                &format!("model.layers.{{l}}.block_sparse_moe.switch_mlp.{to}.weight"),
            )
        })
    }

    fn attention(&self, config: &ModelConfig) -> Result<AttentionOptions> {
        let shape = self.shape();
        let rope = RopeOptions {
            dims: *self.rotary_dim,
            base: self.rope_theta,
            traditional: false,
            scaling: None,
            max_position_embeddings: None,
        };
        Ok(AttentionOptions {
            qk_norm: self.use_qk_norm.then_some(QkNorm::Whole(shape.norm_eps)),
            rope: Some(Rope::from_config(config, rope)?),
            ..AttentionOptions::new(shape.hidden_size, shape.heads)
        })
    }

    fn moe(&self, scope: &Scope<'_>) -> Result<MoeBlock> {
        let experts = self.experts();
        let routing = Routing {
            score: Score::Sigmoid,
            choice: Choice::FirstOfDescending,
            selection_bias: Some(scope.take_float(BIAS, &[experts.num_experts])?),
            norm_topk_prob: true,
            norm_eps: SUM_EPS,
            casts: true,
            ..Routing::softmax(experts.top_k)
        };
        let options = experts.options(&self.shape(), routing);
        MoeBlock::load(scope, MoeOptions { gate_dtype: Some(Dtype::F32), ..options })
    }
}

impl Family for Config {
    const CONVERSION: Conversion = Conversion {
        precise: &["block_sparse_moe.gate"],
        own_dtype: &[BIAS],
        order: &[
            (
                "layers",
                &["self_attn", "block_sparse_moe", "input_layernorm", "post_attention_layernorm"],
            ),
            ("block_sparse_moe", &["gate", "switch_mlp", BIAS]),
        ],
    };

    fn shape(&self) -> Shape {
        Shape {
            hidden_size: *self.hidden_size,
            num_layers: *self.num_hidden_layers,
            intermediate_size: None,
            heads: Heads::new(
                self.hidden_size,
                self.num_attention_heads,
                Some(self.num_key_value_heads),
                self.head_dim,
            ),
            experts: Some(self.experts()),
            vocab_size: *self.vocab_size,
            max_position_embeddings: Some(*self.max_position_embeddings),
            norm_eps: self.rms_norm_eps.f32(),
            tied: self.tie_word_embeddings,
        }
    }

    fn load(&self, config: &ModelConfig, weights: &Weights) -> Result<Box<dyn Model>> {
        weights.rewrite(&self.rules())?;
        let shape = self.shape();
        let attention = self.attention(config)?;
        let names = LayerNames { feed_forward: "block_sparse_moe", ..LayerNames::default() };
        let options = LayerOptions { names, ..shape.layer() };
        let model = CausalLm::load(&weights.root(), &shape, |_, layer| {
            let attention = |scope: &Scope<'_>| Attention::load(scope, attention.clone());
            DecoderLayer::load(&layer, options, attention, |scope: &Scope<'_>| self.moe(scope))
        })?;
        Ok(Box::new(model))
    }
}
