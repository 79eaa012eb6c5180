//! Sites: the places in a model that a fused primitive could take over. The layer that owns the place states them.

use std::fmt::Display;

use mlx::primitives::Ask;
use mlx::quantization::QuantizedWeight;
use mlx::{Array, Dtype};

use super::{Path, RoutingTrace, Weight};

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
    /// What would be asked of the primitive, for each of its calls; or why there is nothing to ask.
    pub questions: Questions,
    /// Which implementation runs there.
    pub path: &'a mut Path,
    /// Where its choices can be written down, if it is a router's.
    pub trace: Option<&'a mut RoutingTrace>,
}

/// What a site asks of its primitive, or why it does not ask.
pub type Questions = Result<Vec<Box<dyn Ask>>, String>;

/// A single question.
pub(super) fn ask(question: impl Ask + 'static) -> Questions {
    Ok(vec![Box::new(question)])
}

/// What kind of module a site belongs to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ModuleKind {
    /// A mixture of experts.
    Moe,
    /// The projection from hidden state to experts.
    Router,
    /// A dense feed-forward up to its down projection.
    Mlp,
    /// A linear layer or an output projection.
    Linear,
    /// Where rows of a table are taken.
    Embedding,
    /// Attention without its projections.
    Attention,
    /// A convolution or a recurrence along the tokens, without its projections.
    Recurrence,
    /// A norm of the residual stream.
    Norm,
    /// From logits to the likeliest token.
    Greedy,
    /// A whole step of decode.
    Step,
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

/// The types that a question about two projections is asked with: those of their biases, or none.
pub(super) fn bias_types(biases: Option<[&Array; 2]>) -> Vec<Option<Dtype>> {
    let mut types = biases.map_or(vec![None], |biases| biases.map(|b| Some(b.dtype())).to_vec());
    types.dedup();
    types
}

/// A weight in packed form, or why a fused path has no use for it.
pub(super) fn packed<'a>(name: &str, weight: &'a Weight) -> Result<&'a QuantizedWeight, String> {
    weight.quantized().ok_or_else(|| format!("{name} is dense"))
}
