use mlx::Array;

use super::{Activation, Fusable, GluOptions, Linear, ModulePath, Site};
use crate::error::Result;
use crate::placement::Split;
use crate::weights::Scope;

/// The dense feed-forward `down(silu(gate(x)) * up(x))` (arXiv:2002.05202); other activations likewise.
#[derive(Debug, Clone)]
pub struct Mlp {
    gate_proj: Linear,
    up_proj: Linear,
    down_proj: Linear,
    activation: Activation,
}

impl Mlp {
    /// Takes the three projections; ranks share the inner width.
    ///
    /// # Errors
    /// As [`Linear::load`].
    pub fn load(scope: &Scope<'_>, hidden_size: i32, intermediate_size: i32) -> Result<Self> {
        Self::load_with(scope, hidden_size, intermediate_size, GluOptions::default())
    }

    /// The same with what `options` say.
    ///
    /// # Errors
    /// As [`Linear::load`].
    pub fn load_with(
        scope: &Scope<'_>,
        hidden_size: i32,
        intermediate_size: i32,
        options: GluOptions,
    ) -> Result<Self> {
        let GluOptions { bias, activation } = options;
        let load = |name: &str, split, in_dims, out_dims| {
            Linear::load_with(&scope.pp(name).split(split), in_dims, out_dims, bias)
        };
        Ok(Self {
            gate_proj: load("gate_proj", Split::Outputs, hidden_size, intermediate_size)?,
            up_proj: load("up_proj", Split::Outputs, hidden_size, intermediate_size)?,
            down_proj: load("down_proj", Split::Inputs, intermediate_size, hidden_size)?,
            activation,
        })
    }

    /// - `x`: `[.., D]`; returns the same shape.
    ///
    /// # Errors
    /// `Mlx`.
    pub fn forward(&self, x: &Array) -> Result<Array> {
        let (gate, up) = (self.gate_proj.forward(x)?, self.up_proj.forward(x)?);
        self.down_proj.forward(&self.activation.gated(&gate, &up)?)
    }
}

impl Fusable for Mlp {
    fn sites<'a>(&'a mut self, at: &ModulePath, sites: &mut Vec<Site<'a>>) {
        self.gate_proj.sites(&at.pp("gate_proj"), sites);
        self.up_proj.sites(&at.pp("up_proj"), sites);
        self.down_proj.sites(&at.pp("down_proj"), sites);
    }
}
