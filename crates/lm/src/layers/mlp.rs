use mlx::Array;

use super::{Activation, Fusable, GluOptions, Linear, ModulePath, Site};
use crate::error::Result;
use crate::placement::Split;
use crate::weights::Scope;

/// What the three projections are called.
#[derive(Debug, Clone, Copy)]
pub struct MlpNames {
    /// The gate.
    pub gate: &'static str,
    /// What it weighs.
    pub up: &'static str,
    /// The way back to the residual stream.
    pub down: &'static str,
}

/// Those of LLaMA.
impl Default for MlpNames {
    fn default() -> Self {
        Self { gate: "gate_proj", up: "up_proj", down: "down_proj" }
    }
}

/// The dense feed-forward `down(silu(gate(x)) * up(x))` (arXiv:2002.05202); other activations likewise.
#[derive(Debug, Clone)]
pub struct Mlp {
    gate_proj: Linear,
    up_proj: Linear,
    down_proj: Linear,
    activation: Activation,
    names: MlpNames,
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
        Self::load_named(scope, hidden_size, intermediate_size, options, MlpNames::default())
    }

    /// The same with projections of other names.
    ///
    /// # Errors
    /// As [`Linear::load`].
    pub fn load_named(
        scope: &Scope<'_>,
        hidden_size: i32,
        intermediate_size: i32,
        options: GluOptions,
        names: MlpNames,
    ) -> Result<Self> {
        let GluOptions { bias, activation } = options;
        let load = |name: &str, split, in_dims, out_dims| {
            Linear::load_with(&scope.pp(name).split(split), in_dims, out_dims, bias)
        };
        Ok(Self {
            gate_proj: load(names.gate, Split::Outputs, hidden_size, intermediate_size)?,
            up_proj: load(names.up, Split::Outputs, hidden_size, intermediate_size)?,
            down_proj: load(names.down, Split::Inputs, intermediate_size, hidden_size)?,
            activation,
            names,
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
        self.gate_proj.sites(&at.pp(self.names.gate), sites);
        self.up_proj.sites(&at.pp(self.names.up), sites);
        self.down_proj.sites(&at.pp(self.names.down), sites);
    }
}
