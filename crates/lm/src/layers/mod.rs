//! Layers: the ops that mlx-lm's modules run, in its order. Whether a weight is quantised is the layer's business.

mod activation;
mod attention;
mod decoder_layer;
mod embedding;
mod gated_delta;
mod grouped_experts;
mod head;
mod indexer;
mod linear;
mod mla;
mod mlp;
mod moe;
mod multi_linear;
mod norm;
mod query_scale;
mod recorded;
mod residual;
mod rope;
mod routing;
mod shared_kv;
mod short_conv;
mod site;
mod switch;
mod trace;
mod weight;

pub use activation::{Activation, GluOptions};
pub use attention::{Attention, AttentionNames, AttentionOptions, Heads, KvProjections, QkNorm};
pub use decoder_layer::{DecoderLayer, FeedForward, LayerNames, LayerOptions, Mixer};
pub use embedding::Embedding;
pub use gated_delta::{GatedDeltaNet, GatedDeltaOptions, GatedDeltaProjections};
pub use grouped_experts::GroupedExperts;
pub use head::{Head, logprobs};
pub use indexer::{Indexer, IndexerOptions};
pub use linear::Linear;
pub use mla::{Mla, MlaOptions};
pub use mlp::{Mlp, MlpNames};
pub use moe::{MoeBlock, MoeNames, MoeOptions, SharedExperts, SharedOptions};
pub use multi_linear::MultiLinear;
pub use norm::{LayerNorm, RmsNorm};
pub use query_scale::QueryScale;
pub use residual::{Residual, ResidualNorm};
pub use rope::{Factors, Rope, RopeOptions, RopeScaling};
pub use routing::{Choice, Groups, Routing, Score};
pub use shared_kv::SharedKeysValues;
pub use short_conv::{CausalConv, ShortConv};
pub use site::{Fusable, ModuleKind, ModulePath, Questions, Site};
pub use switch::{SwitchGlu, SwitchLinear};
pub use trace::{Routed, RoutingTrace};
pub use weight::Weight;

use mlx::primitives::Precision;

/// Which implementation a module's forward pass takes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Path {
    /// Stock MLX ops.
    #[default]
    Stock,
    /// The fused primitive of the pattern that set it.
    Fused(Fusion),
}

/// How a fused path runs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Fusion {
    /// Same bits as stock, or free order of additions.
    pub precision: Precision,
    /// Only where stock would not sort rows by expert, and for one row of dense projections; its kernels for sorted and for
    /// many rows may add in another order.
    pub decode_only: bool,
}

impl Path {
    /// The precision of the fused path where it applies to `entries` routing entries.
    fn fused_for(self, entries: usize) -> Option<Precision> {
        match self {
            Self::Fused(fusion) if !fusion.decode_only || entries < switch::SORT_FROM_ENTRIES => {
                Some(fusion.precision)
            }
            _ => None,
        }
    }
}
