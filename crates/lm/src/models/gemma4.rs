//! Gemma 4, the text part (model card google/gemma-4-26B-A4B): attention over a window and over everything in a fixed
//! pattern, norms around every block, and by size a mixture of experts beside the dense feed-forward, inputs of each
//! layer's own, and layers that use the keys and values of earlier ones.
//!
//! Reference: mlx-lm 0.32.0, `models/gemma4.py` and `models/gemma4_text.py`. Like it, this file takes the activation for
//! GELU's approximation with tanh, and does not look at `use_bidirectional_attention`.

mod layer;

use mlx::{Array, Dtype, ops};
use serde::Deserialize;
use serde_json::{Value, json};

use self::layer::{DecoderLayer, PerLayerInputs};
use super::Model;
use super::family::{Conversion, Experts, Family, LayerType, Shape, Windows};
use crate::cache::{Cache, KvCache, LayerCache, WindowCache};
use crate::config::{Count, Fields, ModelConfig, Positive, Size, count, size, whole, yes};
use crate::error::{Error, Result};
use crate::layers::{
    Attention, AttentionOptions, Embedding, Fusable, Head, Heads, KvProjections, ModulePath,
    QkNorm, RmsNorm, Rope, RopeOptions, RopeScaling, SharedKeysValues, Site,
};
use crate::placement::{Placement, Stage};
use crate::rewrite::Rules;
use crate::step::{Rows, Step};
use crate::weights::{Scope, Weights};

/// The fields of `config.json` that shape the model.
#[derive(Debug, Clone, Deserialize)]
#[expect(missing_docs, reason = "the names are those of config.json")]
pub struct Config {
    #[serde(default = "size::<1536>")]
    pub hidden_size: Size,
    #[serde(default = "size::<35>")]
    pub num_hidden_layers: Size,
    #[serde(default = "size::<6144>")]
    pub intermediate_size: Size,
    #[serde(default = "size::<8>")]
    pub num_attention_heads: Size,
    #[serde(default = "size::<1>")]
    pub num_key_value_heads: Size,
    #[serde(default = "size::<256>")]
    pub head_dim: Size,
    /// That of layers that see everything; `head_dim` where it is 0.
    #[serde(default = "global_head_dim")]
    pub global_head_dim: Option<Count>,
    /// That of layers that see everything, where `attention_k_eq_v`.
    pub num_global_key_value_heads: Option<Size>,
    /// Whether the keys of layers that see everything are their values too.
    #[serde(default)]
    pub attention_k_eq_v: bool,
    #[serde(default = "eps")]
    pub rms_norm_eps: Positive,
    #[serde(default = "size::<262_144>")]
    pub vocab_size: Size,
    pub max_position_embeddings: Option<Size>,
    #[serde(default = "size::<512>")]
    pub sliding_window: Size,
    /// Every `sliding_window_pattern`-th layer sees everything by default.
    pub layer_types: Option<Vec<LayerType>>,
    #[serde(default = "size::<5>")]
    pub sliding_window_pattern: Size,
    #[serde(default)]
    pub rope_parameters: RopeParameters,
    #[serde(default)]
    pub rope_traditional: bool,
    /// Keeps logits within this of zero; no limit where it is null.
    #[serde(default = "final_logit_softcapping")]
    pub final_logit_softcapping: Option<Positive>,
    #[serde(default = "yes")]
    pub tie_word_embeddings: bool,
    /// How many layers at the end use the keys and values of earlier ones.
    #[serde(default = "count::<20>")]
    pub num_kv_shared_layers: Count,
    /// Whether the feed-forwards of those are twice as wide.
    #[serde(default = "yes")]
    pub use_double_wide_mlp: bool,
    /// Width of the inputs that every layer has for itself; 0 where there are none.
    #[serde(default = "count::<256>")]
    pub hidden_size_per_layer_input: Count,
    #[serde(default = "size::<262_144>")]
    pub vocab_size_per_layer_input: Size,
    #[serde(default)]
    pub enable_moe_block: bool,
    pub num_experts: Option<Size>,
    pub top_k_experts: Option<Size>,
    pub moe_intermediate_size: Option<Size>,
}

/// The rotations of the two kinds of layers.
#[derive(Debug, Clone, Deserialize)]
#[expect(missing_docs, reason = "the names are those of config.json")]
pub struct RopeParameters {
    #[serde(default)]
    pub full_attention: RopeScaling,
    #[serde(default)]
    pub sliding_attention: RopeScaling,
}

impl Default for RopeParameters {
    fn default() -> Self {
        let full_attention = RopeScaling {
            rope_type: Some("proportional".to_owned()),
            partial_rotary_factor: Some(Positive::constant(0.25)),
            rope_theta: Some(whole::<1_000_000>()),
            ..RopeScaling::default()
        };
        Self { full_attention, sliding_attention: RopeScaling::default() }
    }
}

fn eps() -> Positive {
    const { Positive::constant(1e-6) }
}

fn global_head_dim() -> Option<Count> {
    Some(count::<512>())
}

fn final_logit_softcapping() -> Option<Positive> {
    Some(whole::<30>())
}

impl Fields for Config {
    const TOP_LEVEL: &'static [&'static str] = &["vocab_size"];
    const NULLS: &'static [&'static str] = &["final_logit_softcapping", "global_head_dim"];
    const UNUSED: &'static [&'static str] = &[
        "global_partial_rotary_factor",
        "hidden_activation",
        "partial_rotary_factor",
        "use_bidirectional_attention",
    ];

    fn check(&self, config: &ModelConfig) -> Result<()> {
        let layers = *self.num_hidden_layers;
        let layer_types = self.layer_types.as_deref();
        let windows = Windows { layer_types, sliding_window: Some(self.sliding_window) };
        windows.check(config, layers)?;
        let first_shared = self.first_shared();
        for kind in [LayerType::FullAttention, LayerType::SlidingAttention] {
            self.heads(kind).check(config)?;
            let is_kind = |i| self.layer_type(i) == kind;
            if !(0..first_shared).any(is_kind) && (first_shared.max(0)..layers).any(is_kind) {
                let reason = format!("leaves no layer of {kind:?} whose keys others could use");
                return Err(config.error("num_kv_shared_layers", reason));
            }
        }
        if !self.enable_moe_block {
            return Ok(());
        }
        match self.experts() {
            Some(experts) => experts.check(config, "top_k_experts", "num_experts"),
            None => {
                let reason = "asks for num_experts, top_k_experts and moe_intermediate_size";
                Err(config.error("enable_moe_block", reason))
            }
        }
    }
}

impl Config {
    fn layer_type(&self, layer: i32) -> LayerType {
        match &self.layer_types {
            Some(types) => types[layer as usize],
            None if (layer + 1) % *self.sliding_window_pattern == 0 => LayerType::FullAttention,
            None => LayerType::SlidingAttention,
        }
    }

    /// The first layer without keys and values of its own.
    fn first_shared(&self) -> i32 {
        *self.num_hidden_layers - *self.num_kv_shared_layers
    }

    /// The layer whose keys and values a layer uses: its own, or the last of its kind that has some.
    fn source(&self, layer: i32) -> i32 {
        let same = |j: &i32| self.layer_type(*j) == self.layer_type(layer);
        match self.first_shared() {
            first if layer < first => layer,
            first => (0..first).rev().find(same).unwrap_or(layer),
        }
    }

    fn heads(&self, kind: LayerType) -> Heads {
        let mut heads = Heads {
            num_heads: *self.num_attention_heads,
            num_kv_heads: *self.num_key_value_heads,
            head_dim: *self.head_dim,
        };
        if kind == LayerType::FullAttention {
            let global = self.global_head_dim.map_or(0, |dim| *dim);
            heads.head_dim = if global > 0 { global } else { heads.head_dim };
            let global = self.num_global_key_value_heads.filter(|_| self.attention_k_eq_v);
            heads.num_kv_heads = global.map_or(heads.num_kv_heads, |heads| *heads);
        }
        heads
    }

    fn experts(&self) -> Option<Experts> {
        Some(Experts {
            num_experts: *self.num_experts.filter(|_| self.enable_moe_block)?,
            top_k: *self.top_k_experts?,
            intermediate_size: *self.moe_intermediate_size?,
        })
    }

    fn rope(&self, kind: LayerType, config: &ModelConfig) -> Result<Rope> {
        let RopeParameters { full_attention, sliding_attention } = &self.rope_parameters;
        let (field, scaling) = match kind {
            LayerType::FullAttention => ("rope_parameters.full_attention", full_attention),
            LayerType::SlidingAttention => ("rope_parameters.sliding_attention", sliding_attention),
        };
        let options = RopeOptions {
            dims: self.heads(kind).head_dim,
            base: scaling.rope_theta.unwrap_or(whole::<10_000>()),
            traditional: self.rope_traditional,
            scaling: Some((field, scaling)),
            max_position_embeddings: self.max_position_embeddings,
        };
        Rope::from_config(config, options)
    }

    fn load_attention(
        &self,
        layer: i32,
        config: &ModelConfig,
        scope: &Scope<'_>,
    ) -> Result<Attention> {
        let (kind, eps) = (self.layer_type(layer), self.rms_norm_eps.f32());
        let is_full = kind == LayerType::FullAttention;
        let options = AttentionOptions {
            qk_norm: Some(QkNorm::Heads(eps)),
            v_norm: Some(eps),
            scale: Some(1.0),
            rope: Some(self.rope(kind, config)?),
            window: (!is_full).then_some(*self.sliding_window),
            kv: match is_full && self.attention_k_eq_v {
                _ if layer >= self.first_shared() => KvProjections::None,
                true => KvProjections::Keys,
                false => KvProjections::Both,
            },
            ..AttentionOptions::new(*self.hidden_size, self.heads(kind))
        };
        Attention::load(scope, options)
    }
}

struct Gemma4 {
    embed_tokens: Embedding,
    per_layer_inputs: Option<PerLayerInputs>,
    layers: Vec<DecoderLayer>,
    norm: RmsNorm,
    head: Head,
    config: Config,
    placement: Placement,
    first_layer: usize,
    root: ModulePath,
}

impl Gemma4 {
    fn load(config: &Config, model: &ModelConfig, root: &Scope<'_>) -> Result<Self> {
        let Shape { hidden_size, num_layers, vocab_size, norm_eps, tied, .. } = config.shape();
        let scope = root.pp("model");
        let stage = if tied { Stage::Ends } else { Stage::First };
        let embed_tokens = scope.pp("embed_tokens").at(stage, num_layers);
        let norm = scope.pp("norm").at(Stage::Last, num_layers);
        let lm_head = root.pp("lm_head").at(Stage::Last, num_layers);
        let width = Some(*config.hidden_size_per_layer_input).filter(|width| *width > 0);
        let inputs = width.map(|width| PerLayerInputs::load(config, width, &scope)).transpose()?;
        let load = |i, layer: Scope<'_>| DecoderLayer::load(config, model, i, &layer);
        let head = Head::load(&lm_head, hidden_size, vocab_size, tied)?;
        Ok(Self {
            embed_tokens: Embedding::load(&embed_tokens, vocab_size, hidden_size)?,
            per_layer_inputs: inputs,
            layers: scope.pp("layers").layers(num_layers, load)?,
            norm: RmsNorm::load(&norm, hidden_size, norm_eps)?,
            head: head.with_softcap(config.final_logit_softcapping.map(Positive::f32)),
            config: config.clone(),
            placement: root.placement().clone(),
            first_layer: root.placement().layers_of(num_layers as usize)?.start,
            root: ModulePath::default().pp(root.path()),
        })
    }

    /// `[B, L, D]`, multiplied by the root of the width, which is rounded to its type.
    fn embed(&self, tokens: &Array) -> Result<Array> {
        let h = self.embed_tokens.forward(tokens)?;
        let scale = f64::from(h.dim(-1)).sqrt() as f32;
        Ok(ops::multiply(&h, &Array::scalar_like(scale, &h)?)?)
    }
}

impl Model for Gemma4 {
    fn forward(&self, step: &Step<'_>, caches: &mut [&mut Cache]) -> Result<Array> {
        if !self.placement.is_whole() {
            let reason = "a part of a model cannot run by itself";
            return Err(Error::argument("placement", format!("{:?}", self.placement), reason));
        }
        let mut rows = Rows::new(step, caches);
        let mut h = self.embed(step.tokens)?;
        let inputs = self.per_layer_inputs.as_ref().map(|inputs| inputs.forward(step.tokens, &h));
        let inputs = inputs.transpose()?;
        let [mut windowed, mut full] = [SharedKeysValues::default(), SharedKeysValues::default()];
        let shares = *self.config.num_kv_shared_layers > 0;
        for (i, layer) in self.layers.iter().enumerate() {
            let source = self.config.source(i as i32) as usize;
            let shared = match self.config.layer_type(i as i32) {
                LayerType::FullAttention => &mut full,
                LayerType::SlidingAttention => &mut windowed,
            };
            let input = inputs.as_ref().map(|inputs| &inputs[i]);
            h = layer.forward(&h, rows.layer(source), input, shares.then_some(shared))?;
        }
        let h = self.norm.forward(&step.wanted(&h)?)?;
        self.head.forward(&h, &self.embed_tokens)
    }

    fn make_cache(&self) -> Cache {
        let window = *self.config.sliding_window;
        let cache = |i| match self.config.layer_type(i) {
            LayerType::FullAttention => LayerCache::Kv(KvCache::default()),
            LayerType::SlidingAttention => LayerCache::Window(WindowCache::new(window, 0)),
        };
        let held = (self.first_layer..).take(self.layers.len()).map(|i| i as i32);
        Cache { layers: held.take_while(|i| *i < self.config.first_shared()).map(cache).collect() }
    }

    fn vocab_size(&self) -> u32 {
        self.config.vocab_size.unsigned_abs()
    }

    fn activation_dtype(&self) -> Result<Dtype> {
        let h = self.embed(&Array::from_slice(&[0_u32], &[1, 1])?)?;
        Ok(self.norm.forward(&h)?.dtype())
    }

    fn head(&self) -> &Head {
        &self.head
    }

    fn sites<'a>(&'a mut self, sites: &mut Vec<Site<'a>>) {
        let cache = self.make_cache();
        let model = self.root.pp("model");
        if let Some(inputs) = &mut self.per_layer_inputs {
            inputs.sites(&model, sites);
        }
        for (i, layer) in self.layers.iter_mut().enumerate() {
            layer.sites(&model.pp("layers").layer(self.first_layer + i), sites);
        }
        self.norm.sites(&model.pp("norm"), sites);
        let embedding = (&model.pp("embed_tokens"), &mut self.embed_tokens);
        self.head.sites_with(&self.root.pp("lm_head"), embedding, &cache, sites);
    }
}

impl Family for Config {
    const CONVERSION: Conversion = Conversion {
        precise: &["router.proj"],
        order: &[
            ("model", &["embed_tokens", "layers", "norm", "embed_tokens_per_layer"]),
            (
                "layers",
                &[
                    "self_attn",
                    "mlp",
                    "input_layernorm",
                    "post_attention_layernorm",
                    "pre_feedforward_layernorm",
                    "post_feedforward_layernorm",
                    "router",
                    "experts",
                    "post_feedforward_layernorm_1",
                    "post_feedforward_layernorm_2",
                    "pre_feedforward_layernorm_2",
                    "per_layer_input_gate",
                    "per_layer_projection",
                    "post_per_layer_input_norm",
                    "layer_scalar",
                ],
            ),
            ("mlp", &["gate_proj", "down_proj", "up_proj"]),
        ],
        ..Conversion::DEFAULT
    };

    fn shape(&self) -> Shape {
        Shape {
            hidden_size: *self.hidden_size,
            num_layers: *self.num_hidden_layers,
            intermediate_size: Some(*self.intermediate_size),
            heads: Heads {
                num_heads: *self.num_attention_heads,
                num_kv_heads: *self.num_key_value_heads,
                head_dim: *self.head_dim,
            },
            experts: self.experts(),
            vocab_size: *self.vocab_size,
            max_position_embeddings: self.max_position_embeddings.map(|n| *n),
            norm_eps: self.rms_norm_eps.f32(),
            tied: self.tie_word_embeddings,
        }
    }

    fn facts(&self) -> Vec<(&'static str, Value)> {
        vec![
            ("sliding_window", json!(*self.sliding_window)),
            ("num_kv_shared_layers", json!(*self.num_kv_shared_layers)),
            ("hidden_size_per_layer_input", json!(*self.hidden_size_per_layer_input)),
        ]
    }

    fn load(&self, config: &ModelConfig, weights: &Weights) -> Result<Box<dyn Model>> {
        // the text model alone, or what a model of more than text wraps
        let prefix = if config.model_type == "gemma4_text" { "" } else { "language_model." };
        weights.rewrite(&rules(prefix, self.first_shared()))?;
        let root = match prefix {
            "" => weights.root(),
            _ => weights.root().pp("language_model"),
        };
        Ok(Box::new(Gemma4::load(self, config, &root)?))
    }
}

/// From Hugging Face names: the text part alone, without what layers that share keys and values do not use.
fn rules(prefix: &str, first_shared: i32) -> Rules {
    const OTHERS: &str =
        "vision_tower|multi_modal_projector|audio_tower|embed_audio|embed_vision|vision_embedder";
    const CLIPS: &str = "input_max|input_min|output_max|output_min";
    let layer = |name: &str| format!("{prefix}model.layers.{{l#}}.{name}");
    let mut rules = Rules::new();
    if !prefix.is_empty() {
        rules = rules
            .drop(&format!("{{part:{OTHERS}}}{{rest*}}"))
            .drop(&format!("model.{{part:{OTHERS}}}{{rest*}}"))
            .rename("model.language_model.{rest*}", "language_model.model.{rest}");
    }
    let halves = ["gate_proj", "up_proj"].map(|p| layer(&format!("experts.switch_glu.{p}.weight")));
    rules
        .drop(&format!("{{before*}}{{name:{CLIPS}}}{{rest*}}"))
        .drop("{before*}self_attn.rotary_emb{rest*}")
        .drop_if(&layer("self_attn.{p:k_proj|v_proj|k_norm}{rest*}"), move |tensor| {
            tensor.captures.number("l") >= first_shared.unsigned_abs().into()
        })
        .split(&layer("experts.gate_up_proj"), -2, &halves.each_ref().map(String::as_str))
        .rename(&layer("experts.down_proj"), &layer("experts.switch_glu.down_proj.weight"))
}
