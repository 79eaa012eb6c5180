//! gpt-oss (arXiv:2508.10925): attention over a window and over everything in turns, with a learned sink for each head;
//! every feed-forward is a mixture of experts with biases and a clamped SwiGLU.
//!
//! Reference: mlx-lm 0.32.0, `models/gpt_oss.py`. Like it, this file has biases whatever `attention_bias` says, clamps at
//! 7 whatever `swiglu_limit` says, and does not look at `rope_scaling.truncate`.

use serde::Deserialize;
use serde_json::{Value, json};

use super::Model;
use super::causal::CausalLm;
use super::family::{Conversion, Experts, Family, LayerType, Shape, Windows};
use crate::config::{Fields, ModelConfig, Positive, Size, size, whole};
use crate::error::Result;
use crate::layers::{
    Activation, Attention, AttentionOptions, DecoderLayer, GluOptions, Heads, Linear, MoeBlock,
    MoeNames, Rope, RopeOptions, RopeScaling, Routing, Score, SwitchGlu,
};
use crate::rewrite::{Op, Output, Rules};
use crate::weights::{Role, Scope, Weights};

/// The fields of `config.json` that shape the model.
#[derive(Debug, Clone, Deserialize)]
#[expect(missing_docs, reason = "the names are those of config.json")]
pub struct Config {
    #[serde(default = "size::<2880>")]
    pub hidden_size: Size,
    #[serde(default = "size::<36>")]
    pub num_hidden_layers: Size,
    #[serde(default = "size::<2880>")]
    pub intermediate_size: Size,
    #[serde(default = "size::<64>")]
    pub num_attention_heads: Size,
    #[serde(default = "size::<8>")]
    pub num_key_value_heads: Size,
    #[serde(default = "size::<64>")]
    pub head_dim: Size,
    #[serde(default = "size::<128>")]
    pub num_local_experts: Size,
    #[serde(default = "size::<4>")]
    pub num_experts_per_tok: Size,
    #[serde(default = "size::<128>")]
    pub sliding_window: Size,
    /// Over a window and over everything in turns by default.
    pub layer_types: Option<Vec<LayerType>>,
    #[serde(default = "eps")]
    pub rms_norm_eps: Positive,
    #[serde(default = "whole::<150_000>")]
    pub rope_theta: Positive,
    pub rope_scaling: Option<RopeScaling>,
    #[serde(default = "size::<201_088>")]
    pub vocab_size: Size,
    pub max_position_embeddings: Option<Size>,
}

fn eps() -> Positive {
    const { Positive::constant(1e-5) }
}

const ACTIVATION: Activation = Activation::ClippedSwiglu { alpha: 1.702, limit: 7.0 };

impl Fields for Config {
    const UNUSED: &'static [&'static str] = &[
        "attention_bias",
        "experts_per_token",
        "hidden_act",
        "initial_context_length",
        "rope_scaling.truncate",
        "swiglu_alpha",
        "swiglu_limit",
    ];

    fn check(&self, config: &ModelConfig) -> Result<()> {
        let layers = *self.num_hidden_layers;
        self.windows().check(config, layers)?;
        if self.layer_types.is_none() && layers % 2 != 0 {
            let reason = format!("is missing, which {layers} layers need: they do not pair up");
            return Err(config.error("layer_types", reason));
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

    fn windows(&self) -> Windows<'_> {
        let layer_types = self.layer_types.as_deref();
        Windows { layer_types, sliding_window: Some(self.sliding_window) }
    }

    fn window(&self, layer: i32) -> Option<i32> {
        match &self.layer_types {
            Some(_) => self.windows().of(layer),
            None => (layer % 2 == 0).then_some(*self.sliding_window),
        }
    }

    fn rope(&self, config: &ModelConfig) -> Result<Rope> {
        let options = RopeOptions {
            dims: *self.head_dim,
            base: self.rope_theta,
            traditional: false,
            scaling: self.rope_scaling.as_ref().map(|scaling| ("rope_scaling", scaling)),
            max_position_embeddings: None,
        };
        Rope::from_config(config, options)
    }

    fn load_moe(&self, scope: &Scope<'_>) -> Result<MoeBlock> {
        let (dim, Experts { num_experts, top_k, intermediate_size }) =
            (*self.hidden_size, self.experts());
        let names = MoeNames { gate: "router", experts: "experts", ..MoeNames::default() };
        let router = scope.pp(names.gate).role(Role::Router);
        let router = Linear::load_with(&router, dim, num_experts, true)?;
        let routing =
            Routing { score: Score::SoftmaxOfChosen { precise: true }, ..Routing::softmax(top_k) };
        let experts = scope.pp(names.experts);
        let options = GluOptions { bias: true, activation: ACTIVATION };
        let experts = SwitchGlu::load_with(&experts, num_experts, dim, intermediate_size, options)?;
        Ok(MoeBlock::new(router, routing, experts).with_names(names))
    }
}

impl Family for Config {
    const CONVERSION: Conversion = Conversion {
        precise: &["router"],
        order: &[
            ("model", &["embed_tokens", "norm", "layers"]),
            ("layers", &["self_attn", "mlp", "input_layernorm", "post_attention_layernorm"]),
            ("mlp", &["experts", "router"]),
        ],
        ..Conversion::DEFAULT
    };

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
            experts: Some(self.experts()),
            vocab_size: *self.vocab_size,
            max_position_embeddings: self.max_position_embeddings.map(|n| *n),
            norm_eps: self.rms_norm_eps.f32(),
            tied: false,
        }
    }

    fn facts(&self) -> Vec<(&'static str, Value)> {
        vec![("sliding_window", json!(*self.sliding_window))]
    }

    fn load(&self, config: &ModelConfig, weights: &Weights) -> Result<Box<dyn Model>> {
        weights.rewrite(&rules())?;
        let (shape, rope) = (self.shape(), self.rope(config)?);
        let model = CausalLm::load(&weights.root(), &shape, |i, layer| {
            let attention = AttentionOptions {
                qkv_bias: true,
                output_bias: true,
                sinks: true,
                rope: Some(rope.clone()),
                window: self.window(i),
                ..AttentionOptions::new(shape.hidden_size, shape.heads)
            };
            let attention = |scope: &Scope<'_>| Attention::load(scope, attention);
            DecoderLayer::load(&layer, shape.layer(), attention, |scope| self.load_moe(scope))
        })?;
        Ok(Box::new(model))
    }
}

/// From Hugging Face names: gate and up rows take turns in one tensor, packed weights come as bytes in blocks of 32.
fn rules() -> Rules {
    let from = |name: &str| format!("model.layers.{{l#}}.mlp.experts.{name}");
    let to = |name: &str| format!("model.layers.{{l}}.mlp.experts.{name}");
    let packed = [Op::View(mlx::Dtype::U32), Op::Flatten];
    let turns = |axis, before: &[Op], part: &str| -> Vec<Output> {
        let every = |start| [before, &[Op::Every { axis, start, step: 2 }]].concat();
        let output = |(start, proj)| (to(&format!("{proj}.{part}")), every(start));
        (0..).zip(["gate_proj", "up_proj"]).map(output).collect()
    };
    Rules::new()
        .become_each(&from("gate_up_proj_blocks"), turns(-2, &packed, "weight"))
        .become_each(&from("gate_up_proj_scales"), turns(-2, &[], "scales"))
        .become_each(&from("gate_up_proj_bias"), turns(-1, &[], "bias"))
        .become_each(&from("down_proj_blocks"), vec![(to("down_proj.weight"), packed.to_vec())])
        .rename(&from("down_proj_scales"), &to("down_proj.scales"))
        .rename(&from("down_proj_bias"), &to("down_proj.bias"))
}
