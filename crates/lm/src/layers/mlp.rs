use mlx::Array;
use mlx::primitives::{self, Ask, Glu, SwigluMlp};

use super::site::bias_types;
use super::{
    Activation, Fusable, Fusion, GluOptions, Linear, ModuleKind, ModulePath, Path, Questions, Site,
};
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
    path: Path,
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
            path: Path::Stock,
        })
    }

    /// - `x`: `[.., D]`; returns the same shape.
    ///
    /// # Errors
    /// `Mlx`.
    pub fn forward(&self, x: &Array) -> Result<Array> {
        let one_row = x.size() == x.dim(-1) as usize;
        let hidden = match (self.path, self.glu()) {
            (Path::Fused(Fusion { precision, decode_only }), Some(glu))
                if one_row || !decode_only =>
            {
                primitives::swiglu_mlp(x, glu, precision)?
            }
            _ => self.activation.gated(&self.gate_proj.forward(x)?, &self.up_proj.forward(x)?)?,
        };
        self.down_proj.forward(&hidden)
    }

    /// Both projections, where they are packed.
    fn glu(&self) -> Option<Glu<'_>> {
        let [gate, up] = [&self.gate_proj, &self.up_proj].map(|linear| linear.weight().quantized());
        let biases = self.gate_proj.bias().zip(self.up_proj.bias()).map(|(gate, up)| [gate, up]);
        Some(Glu { biases, activation: self.activation.asked(), ..Glu::new(gate?, up?) })
    }

    /// What the fused projections are asked; nothing where they are dense, which is stock's business.
    fn questions(&self) -> Option<Questions> {
        let Glu { gate, up, biases, activation } = self.glu()?;
        if gate.quantization != up.quantization {
            let (gate, up) = (gate.quantization, up.quantization);
            let reason =
                format!("gate_proj and up_proj are quantised differently: {gate} and {up}");
            return Some(Err(reason));
        }
        let question = |bias| -> Box<dyn Ask> {
            Box::new(SwigluMlp { bias, activation, ..SwigluMlp::of(gate) })
        };
        Some(Ok(bias_types(biases).into_iter().map(question).collect()))
    }
}

impl Fusable for Mlp {
    fn sites<'a>(&'a mut self, at: &ModulePath, sites: &mut Vec<Site<'a>>) {
        if let Some(questions) = self.questions() {
            let (module, kind, path) = (at.clone(), ModuleKind::Mlp, &mut self.path);
            sites.push(Site { module, kind, pattern: "swiglu_mlp", questions, path });
        }
        self.gate_proj.sites(&at.pp(self.names.gate), sites);
        self.up_proj.sites(&at.pp(self.names.up), sites);
        self.down_proj.sites(&at.pp(self.names.down), sites);
    }
}
