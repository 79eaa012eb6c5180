//! Mixtral (arXiv:2401.04088): grouped-query attention, feed-forward by a mixture of experts whose weights are the
//! softmax over the chosen ones.
//!
//! Reference: mlx-lm 0.32.0, `models/mixtral.py`. Like it, this file does not apply `rope_scaling` and slides no
//! window.

use serde::Deserialize;

use super::Model;
use super::causal::CausalLm;
use super::family::{Conversion, Experts, Family, Shape};
use crate::config::{Fields, ModelConfig, Positive, Size, size, whole};
use crate::error::Result;
use crate::layers::{
    Attention, AttentionOptions, Choice, DecoderLayer, Heads, LayerNames, LayerOptions, MoeBlock,
    Rope, RopeOptions, Routing, Score,
};
use crate::rewrite::Rules;
use crate::weights::{Scope, Weights};

/// The fields of `config.json` that shape the model.
#[derive(Debug, Clone, Deserialize)]
#[expect(missing_docs, reason = "the names are those of config.json")]
pub struct Config {
    #[serde(default = "size::<4096>")]
    pub hidden_size: Size,
    #[serde(default = "size::<32>")]
    pub num_hidden_layers: Size,
    /// Inner width of an expert.
    #[serde(default = "size::<14_336>")]
    pub intermediate_size: Size,
    #[serde(default = "size::<32>")]
    pub num_attention_heads: Size,
    #[serde(default = "size::<8>")]
    pub num_key_value_heads: Size,
    #[serde(default = "size::<8>")]
    pub num_local_experts: Size,
    #[serde(default = "size::<2>")]
    pub num_experts_per_tok: Size,
    /// 1e-5 by default.
    pub rms_norm_eps: Option<Positive>,
    #[serde(default = "size::<32_000>")]
    pub vocab_size: Size,
    pub max_position_embeddings: Option<Size>,
    #[serde(default = "whole::<1_000_000>")]
    pub rope_theta: Positive,
    #[serde(default)]
    pub rope_traditional: bool,
    #[serde(default)]
    pub tie_word_embeddings: bool,
}

impl Fields for Config {
    const UNUSED: &'static [&'static str] =
        &["hidden_act", "router_jitter_noise", "sliding_window"];

    fn check(&self, config: &ModelConfig) -> Result<()> {
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

    /// From Hugging Face names: single experts become stacks.
    fn rules(&self) -> Rules {
        let names = [("w1", "gate_proj"), ("w2", "down_proj"), ("w3", "up_proj")];
        names.into_iter().fold(Rules::new(), |rules, (from, to)| {
            rules.stack(
                &format!(
                    "model.layers.{{l#}}.block_sparse_moe.experts.{{e#}}.{from}.{{part:weight|scales|biases}}"
                ),
                "e",
                *self.num_local_experts,
                &format!("model.layers.{{l}}.block_sparse_moe.switch_mlp.{to}.{{part}}"),
            )
        })
    }
}

impl Family for Config {
    const CONVERSION: Conversion = Conversion {
        order: &[(
            "layers",
            &["self_attn", "block_sparse_moe", "input_layernorm", "post_attention_layernorm"],
        )],
        ..Conversion::DEFAULT
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
                None,
            ),
            experts: Some(self.experts()),
            vocab_size: *self.vocab_size,
            max_position_embeddings: self.max_position_embeddings.map(|n| *n),
            norm_eps: self.rms_norm_eps.unwrap_or(const { Positive::constant(1e-5) }).f32(),
            tied: self.tie_word_embeddings,
        }
    }

    fn load(&self, config: &ModelConfig, weights: &Weights) -> Result<Box<dyn Model>> {
        weights.rewrite(&self.rules())?;
        let shape = self.shape();
        let rope = RopeOptions {
            dims: shape.heads.head_dim,
            base: self.rope_theta,
            traditional: self.rope_traditional,
            scaling: None,
            max_position_embeddings: self.max_position_embeddings,
        };
        let attention = AttentionOptions {
            rope: Some(Rope::from_config(config, rope)?),
            ..AttentionOptions::new(shape.hidden_size, shape.heads)
        };
        let experts = self.experts();
        let moe = experts.options(
            &shape,
            Routing {
                score: Score::SoftmaxOfChosen { precise: true },
                choice: Choice::FirstOfDescending,
                ..Routing::softmax(experts.top_k)
            },
        );
        let names = LayerNames { feed_forward: "block_sparse_moe", ..LayerNames::default() };
        let options = LayerOptions { names, ..shape.layer() };
        let model = CausalLm::load(&weights.root(), &shape, |_, layer| {
            let attention = |scope: &Scope<'_>| Attention::load(scope, attention.clone());
            let moe = |scope: &Scope<'_>| MoeBlock::load(scope, moe.clone());
            DecoderLayer::load(&layer, options, attention, moe)
        })?;
        Ok(Box::new(model))
    }
}
