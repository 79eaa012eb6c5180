//! What Gemma 4's layers are made of.

use mlx::{Array, ops};

use super::Config;
use crate::config::ModelConfig;
use crate::error::Result;
use crate::layers::{
    Activation, Attention, Embedding, Fusable, GluOptions, Linear, Mlp, ModulePath, MoeBlock,
    MoeNames, RmsNorm, Routing, Score, SharedKeysValues, Site, SwitchGlu,
};
use crate::models::family::Experts;
use crate::placement::Stage;
use crate::step::LayerRows;
use crate::weights::{Role, Scope};

/// Experts beside the dense feed-forward, which choose by the residual stream itself.
struct Moe {
    router_norm: RmsNorm,
    block: MoeBlock,
    pre_norm: RmsNorm,
    post_norm: RmsNorm,
    dense_post_norm: RmsNorm,
}

impl Moe {
    fn load(config: &Config, sizes: Experts, scope: &Scope<'_>) -> Result<Self> {
        let (dim, eps) = (*config.hidden_size, config.rms_norm_eps.f32());
        let Experts { num_experts, top_k, intermediate_size } = sizes;
        let norm = |name: &str| RmsNorm::load(&scope.pp(name), dim, eps);
        let router = scope.pp("router");
        // the scale of the norm has the root of the width folded in, rounded to its type
        let scale = router.take_float("scale", &[dim])?;
        let root = f64::from(dim).powf(-0.5) as f32;
        let scale = ops::multiply(&scale, &Array::scalar_like(root, &scale)?)?;
        let routing = Routing {
            score: Score::SoftmaxOfChosen { precise: false },
            expert_scale: Some(router.take_float("per_expert_scale", &[num_experts])?),
            ..Routing::softmax(top_k)
        };
        let names =
            MoeNames { gate: "router.proj", experts: "experts.switch_glu", ..MoeNames::default() };
        let gate = Linear::load(&scope.pp(names.gate).role(Role::Router), dim, num_experts)?;
        let experts = scope.pp(names.experts);
        let experts = SwitchGlu::load_with(&experts, num_experts, dim, intermediate_size, GEGLU)?;
        Ok(Self {
            router_norm: RmsNorm::new(scale, eps),
            block: MoeBlock::new(gate, routing, experts).with_names(names),
            pre_norm: norm("pre_feedforward_layernorm_2")?,
            post_norm: norm("post_feedforward_layernorm_2")?,
            dense_post_norm: norm("post_feedforward_layernorm_1")?,
        })
    }

    /// What the dense feed-forward gave, and the experts' part.
    fn forward(&self, h: &Array, dense: &Array) -> Result<Array> {
        let routed = self.router_norm.forward(h)?;
        let y = self.block.forward_routed(&routed, &self.pre_norm.forward(h)?)?;
        Ok(ops::add(&self.dense_post_norm.forward(dense)?, &self.post_norm.forward(&y)?)?)
    }
}

const GEGLU: GluOptions = GluOptions { bias: false, activation: Activation::GeluTanh };

/// What a layer does with the input that it has for itself.
struct PerLayerGate {
    gate: Linear,
    projection: Linear,
    norm: RmsNorm,
}

impl PerLayerGate {
    fn load(config: &Config, width: i32, scope: &Scope<'_>) -> Result<Self> {
        let (dim, eps) = (*config.hidden_size, config.rms_norm_eps.f32());
        Ok(Self {
            gate: Linear::load(&scope.pp("per_layer_input_gate"), dim, width)?,
            projection: Linear::load(&scope.pp("per_layer_projection"), width, dim)?,
            norm: RmsNorm::load(&scope.pp("post_per_layer_input_norm"), dim, eps)?,
        })
    }

    fn forward(&self, h: &Array, input: &Array) -> Result<Array> {
        let gate = ops::geglu(&self.gate.forward(h)?, input)?;
        Ok(ops::add(h, &self.norm.forward(&self.projection.forward(&gate)?)?)?)
    }
}

pub(super) struct DecoderLayer {
    input_layernorm: RmsNorm,
    self_attn: Attention,
    post_attention_layernorm: RmsNorm,
    pre_feedforward_layernorm: RmsNorm,
    mlp: Mlp,
    moe: Option<Moe>,
    post_feedforward_layernorm: RmsNorm,
    per_layer: Option<PerLayerGate>,
    layer_scalar: Array,
}

impl DecoderLayer {
    pub(super) fn load(
        config: &Config,
        model: &ModelConfig,
        layer: i32,
        scope: &Scope<'_>,
    ) -> Result<Self> {
        let (dim, eps) = (*config.hidden_size, config.rms_norm_eps.f32());
        let norm = |name: &str| RmsNorm::load(&scope.pp(name), dim, eps);
        let is_wide = config.use_double_wide_mlp && layer >= config.first_shared();
        let width = config.intermediate_size.saturating_mul(if is_wide { 2 } else { 1 });
        let per_layer = Some(*config.hidden_size_per_layer_input).filter(|width| *width > 0);
        Ok(Self {
            input_layernorm: norm("input_layernorm")?,
            self_attn: config.load_attention(layer, model, &scope.pp("self_attn"))?,
            post_attention_layernorm: norm("post_attention_layernorm")?,
            pre_feedforward_layernorm: norm("pre_feedforward_layernorm")?,
            mlp: Mlp::load_with(&scope.pp("mlp"), dim, width, GEGLU)?,
            moe: config.experts().map(|sizes| Moe::load(config, sizes, scope)).transpose()?,
            post_feedforward_layernorm: norm("post_feedforward_layernorm")?,
            per_layer: per_layer.map(|w| PerLayerGate::load(config, w, scope)).transpose()?,
            layer_scalar: scope.take_float("layer_scalar", &[1])?,
        })
    }

    /// - `input`: `[B, L, P]`, this layer's own; `shared`: keys and values left or used
    pub(super) fn forward(
        &self,
        x: &Array,
        rows: LayerRows<'_, '_>,
        input: Option<&Array>,
        shared: Option<&mut SharedKeysValues>,
    ) -> Result<Array> {
        let r = self.self_attn.forward_sharing(&self.input_layernorm.forward(x)?, rows, shared)?;
        let h = ops::add(x, &self.post_attention_layernorm.forward(&r)?)?;
        let mut r = self.mlp.forward(&self.pre_feedforward_layernorm.forward(&h)?)?;
        if let Some(moe) = &self.moe {
            r = moe.forward(&h, &r)?;
        }
        let mut h = ops::add(&h, &self.post_feedforward_layernorm.forward(&r)?)?;
        if let (Some(per_layer), Some(input)) = (&self.per_layer, input) {
            h = per_layer.forward(&h, input)?;
        }
        Ok(ops::multiply(&h, &self.layer_scalar)?)
    }
}

impl Fusable for DecoderLayer {
    fn sites<'a>(&'a mut self, at: &ModulePath, sites: &mut Vec<Site<'a>>) {
        self.input_layernorm.sites(&at.pp("input_layernorm"), sites);
        self.self_attn.sites(&at.pp("self_attn"), sites);
        self.post_attention_layernorm.sites(&at.pp("post_attention_layernorm"), sites);
        self.pre_feedforward_layernorm.sites(&at.pp("pre_feedforward_layernorm"), sites);
        self.mlp.sites(&at.pp("mlp"), sites);
        if let Some(moe) = &mut self.moe {
            moe.dense_post_norm.sites(&at.pp("post_feedforward_layernorm_1"), sites);
            moe.router_norm.sites(&at.pp("router"), sites);
            moe.pre_norm.sites(&at.pp("pre_feedforward_layernorm_2"), sites);
            moe.block.sites(at, sites);
            moe.post_norm.sites(&at.pp("post_feedforward_layernorm_2"), sites);
        }
        self.post_feedforward_layernorm.sites(&at.pp("post_feedforward_layernorm"), sites);
        if let Some(per_layer) = &mut self.per_layer {
            per_layer.gate.sites(&at.pp("per_layer_input_gate"), sites);
            per_layer.projection.sites(&at.pp("per_layer_projection"), sites);
            per_layer.norm.sites(&at.pp("post_per_layer_input_norm"), sites);
        }
    }
}

/// Where the layers' own inputs come from: the token itself, and the embedding that all layers share.
pub(super) struct PerLayerInputs {
    embed_tokens: Embedding,
    projection: Linear,
    norm: RmsNorm,
    width: i32,
}

impl PerLayerInputs {
    pub(super) fn load(config: &Config, width: i32, scope: &Scope<'_>) -> Result<Self> {
        let (layers, dim) = (*config.num_hidden_layers, *config.hidden_size);
        let scope = |name: &str| scope.pp(name).at(Stage::First, layers);
        let vocab_size = *config.vocab_size_per_layer_input;
        let (embedding, all) = (scope("embed_tokens_per_layer"), layers.saturating_mul(width));
        let norm = scope("per_layer_projection_norm");
        Ok(Self {
            embed_tokens: Embedding::load(&embedding, vocab_size, all)?,
            projection: Linear::load(&scope("per_layer_model_projection"), dim, all)?,
            norm: RmsNorm::load(&norm, width, config.rms_norm_eps.f32())?,
            width,
        })
    }

    /// - `h`: `[B, L, D]`, the embedding; returns `[B, L, P]` for each layer.
    pub(super) fn forward(&self, tokens: &Array, h: &Array) -> Result<Vec<Array>> {
        let times =
            |x: &Array, factor: f64| ops::multiply(x, &Array::scalar_like(factor as f32, x)?);
        let split = |x: &Array| ops::unflatten(x, -1, &[-1, self.width]); // [B, L, layers, P]
        let own = times(&self.embed_tokens.forward(tokens)?, f64::from(self.width).sqrt())?;
        let shared = times(&self.projection.forward(h)?, f64::from(h.dim(-1)).powf(-0.5))?;
        let shared = self.norm.forward(&split(&shared)?)?;
        let both = times(&ops::add(&shared, &split(&own)?)?, 2.0_f64.powf(-0.5))?;
        let layer = |i| Ok(ops::squeeze(&ops::slice_axis(&both, 2, i, i + 1)?, &[2])?);
        (0..both.dim(2)).map(layer).collect()
    }
}

impl Fusable for PerLayerInputs {
    fn sites<'a>(&'a mut self, at: &ModulePath, sites: &mut Vec<Site<'a>>) {
        self.projection.sites(&at.pp("per_layer_model_projection"), sites);
        self.norm.sites(&at.pp("per_layer_projection_norm"), sites);
    }
}
