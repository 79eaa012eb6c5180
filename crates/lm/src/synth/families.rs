//! What can be imitated: one row per model, its configuration and its weights.

use serde_json::{Map, Value, json};

use super::Weight;

/// A model that [`super::synthesize`] can imitate.
pub(super) struct Family {
    /// As `--like` takes it.
    pub(super) name: &'static str,
    /// Decoder layers of the original.
    pub(super) num_layers: usize,
    /// `config.json`, but for the number of layers and the quantisation.
    pub(super) config: fn() -> Map<String, Value>,
    /// All weights of a model with this many layers.
    pub(super) weights: fn(usize) -> Vec<Weight>,
}

/// Every model there is.
pub(super) const FAMILIES: &[Family] = &[
    Family {
        name: "qwen3-30b-a3b",
        num_layers: 48,
        config: || QWEN3_30B_A3B.config(),
        weights: |layers| QWEN3_30B_A3B.weights(layers),
    },
    Family {
        name: "qwen3-moe-tiny",
        num_layers: 2,
        config: || QWEN3_MOE_TINY.config(),
        weights: |layers| QWEN3_MOE_TINY.weights(layers),
    },
];

/// The public configuration of Qwen/Qwen3-30B-A3B.
const QWEN3_30B_A3B: Qwen3Moe = Qwen3Moe {
    hidden: 2048,
    heads: 32,
    kv_heads: 4,
    head_dim: 128,
    experts: 128,
    top_k: 8,
    moe_intermediate: 768,
    intermediate: 6144,
    vocab: 151_936,
    bos: 151_643,
    eos: 151_645,
    max_positions: 40_960,
};

/// The same architecture in half a megabyte, for tests.
const QWEN3_MOE_TINY: Qwen3Moe = Qwen3Moe {
    hidden: 128,
    heads: 4,
    kv_heads: 2,
    head_dim: 32,
    experts: 16,
    top_k: 4,
    moe_intermediate: 64,
    intermediate: 256,
    vocab: 1024,
    bos: 1,
    eos: 2,
    max_positions: 4096,
};

struct Qwen3Moe {
    hidden: usize,
    heads: usize,
    kv_heads: usize,
    head_dim: usize,
    experts: usize,
    top_k: usize,
    moe_intermediate: usize,
    intermediate: usize,
    vocab: usize,
    bos: u32,
    eos: u32,
    max_positions: usize,
}

impl Qwen3Moe {
    fn config(&self) -> Map<String, Value> {
        let config = json!({
            "architectures": ["Qwen3MoeForCausalLM"],
            "attention_bias": false,
            "attention_dropout": 0.0,
            "bos_token_id": self.bos,
            "decoder_sparse_step": 1,
            "eos_token_id": self.eos,
            "head_dim": self.head_dim,
            "hidden_act": "silu",
            "hidden_size": self.hidden,
            "initializer_range": 0.02,
            "intermediate_size": self.intermediate,
            "max_position_embeddings": self.max_positions,
            "max_window_layers": 48,
            "mlp_only_layers": [],
            "model_type": "qwen3_moe",
            "moe_intermediate_size": self.moe_intermediate,
            "norm_topk_prob": true,
            "num_attention_heads": self.heads,
            "num_experts": self.experts,
            "num_experts_per_tok": self.top_k,
            "num_hidden_layers": 0,
            "num_key_value_heads": self.kv_heads,
            "output_router_logits": false,
            "rms_norm_eps": 1e-6,
            "rope_scaling": null,
            "rope_theta": 1_000_000.0,
            "router_aux_loss_coef": 0.001,
            "sliding_window": null,
            "tie_word_embeddings": false,
            "torch_dtype": "bfloat16",
            "use_cache": true,
            "use_sliding_window": false,
            "vocab_size": self.vocab,
        });
        match config {
            Value::Object(fields) => fields,
            _ => Map::new(),
        }
    }

    /// Embeddings have size 1. The `2 * layers` branches together add variance 3, so that the last position
    /// depends on its context and not on its own token alone. Logits have size 3.
    fn weights(&self, layers: usize) -> Vec<Weight> {
        /// Size of attention logits is the product of the two.
        const QUERY_NORM: f32 = 1.7;
        const KEY_NORM: f32 = 1.2;
        /// Large enough that the choice of experts is clear, small enough that all are chosen at times.
        const ROUTER: f32 = 2.0;
        const GATE: f32 = 1.5;
        /// Makes up for what SiLU (0.87) and the weighted mean over experts (0.55) take away.
        const DOWN: f32 = 2.1;
        const LOGITS: f32 = 3.0;
        let branch = (3.0 / (2.0 * layers as f32)).sqrt();

        let Self { hidden, heads, kv_heads, head_dim, experts, moe_intermediate, vocab, .. } =
            *self;
        let mut weights = vec![Weight::matrix("model.embed_tokens", &[vocab, hidden], 1.0)];
        for layer in 0..layers {
            let at = |name: &str| format!("model.layers.{layer}.{name}");
            let (up, down) =
                ([experts, moe_intermediate, hidden], [experts, hidden, moe_intermediate]);
            weights.extend([
                Weight::norm(at("input_layernorm"), hidden, 1.0),
                Weight::linear(at("self_attn.q_proj"), &[heads * head_dim, hidden], 1.0),
                Weight::linear(at("self_attn.k_proj"), &[kv_heads * head_dim, hidden], 1.0),
                Weight::linear(at("self_attn.v_proj"), &[kv_heads * head_dim, hidden], 1.0),
                Weight::linear(at("self_attn.o_proj"), &[hidden, heads * head_dim], branch),
                Weight::norm(at("self_attn.q_norm"), head_dim, QUERY_NORM),
                Weight::norm(at("self_attn.k_norm"), head_dim, KEY_NORM),
                Weight::norm(at("post_attention_layernorm"), hidden, 1.0),
                Weight::router(at("mlp.gate"), &[experts, hidden], ROUTER),
                Weight::linear(at("mlp.switch_mlp.gate_proj"), &up, GATE),
                Weight::linear(at("mlp.switch_mlp.up_proj"), &up, 1.0),
                Weight::linear(at("mlp.switch_mlp.down_proj"), &down, DOWN * branch),
            ]);
        }
        weights.push(Weight::norm("model.norm", hidden, 1.0));
        weights.push(Weight::linear("lm_head", &[vocab, hidden], LOGITS));
        weights
    }
}
