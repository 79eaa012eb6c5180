//! Sites: the places in a model that a fused primitive could take over. The layer that owns the place states them.

use std::fmt::Display;

use mlx::primitives::Primitive;
use mlx::quantization::Quantization;

use super::{Path, Weight};

/// A layer with sites.
pub trait Fusable {
    /// Hands out this layer's sites, in order of execution. `at` is where the layer stands in the model.
    fn sites<'a>(&'a mut self, at: &ModulePath, sites: &mut Vec<Site<'a>>);
}

/// One place that a pattern can move onto its primitive.
#[derive(Debug)]
pub struct Site<'a> {
    /// Where it is.
    pub module: ModulePath,
    /// What kind of module it belongs to.
    pub kind: ModuleKind,
    /// The pattern that is about it, a row of [`PATTERNS`](crate::patterns::PATTERNS).
    pub pattern: &'static str,
    /// What would be asked of the primitive; or why there is nothing to ask.
    pub question: Result<Question, String>,
    /// Which implementation runs there.
    pub path: &'a mut Path,
}

/// What a site asks of a primitive.
#[derive(Debug, Clone, Copy)]
pub struct Question {
    /// The primitive.
    pub primitive: Primitive,
    /// How its weights are packed, where it has any.
    pub quantization: Option<Quantization>,
}

impl Question {
    /// About a primitive without packed weights.
    pub(super) fn dense(primitive: Primitive) -> Self {
        Self { primitive, quantization: None }
    }

    /// About a primitive with packed weights.
    pub(super) fn packed(primitive: Primitive, quantization: Quantization) -> Self {
        Self { primitive, quantization: Some(quantization) }
    }
}

/// What kind of module a site belongs to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ModuleKind {
    /// A mixture of experts.
    Moe,
    /// The projection from hidden state to experts.
    Router,
    /// A linear layer or an output projection.
    Linear,
    /// Attention without its projections.
    Attention,
    /// A norm of the residual stream.
    Norm,
    /// From logits to the likeliest token.
    Greedy,
}

/// Where a module stands in the model, spelled as its weights are.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct ModulePath {
    text: String,
    layer: Option<usize>,
}

impl ModulePath {
    /// One name deeper.
    pub fn pp(&self, name: impl Display) -> Self {
        let text = match self.text.as_str() {
            "" => name.to_string(),
            path => format!("{path}.{name}"),
        };
        Self { text, layer: self.layer }
    }

    /// Decoder layer `index` of the list that this path names.
    pub fn layer(&self, index: usize) -> Self {
        Self { layer: Some(index), ..self.pp(index) }
    }

    /// The path.
    pub fn as_str(&self) -> &str {
        &self.text
    }

    /// The decoder layer that it lies in.
    pub fn layer_index(&self) -> Option<usize> {
        self.layer
    }
}

/// How a weight is packed, or why a fused path has no use for it.
pub(super) fn packed(name: &str, weight: &Weight) -> Result<Quantization, String> {
    weight.quantized().map(|w| w.quantization).ok_or_else(|| format!("{name} is dense"))
}
