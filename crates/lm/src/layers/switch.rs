use mlx::primitives::{self, Ask, GatherQmmCombine, GatherQmmSwiglu, Glu, Precision};
use mlx::quantization::{self, Mode};
use mlx::{Array, Device, Dtype, default_device, ops};

use super::site::{ask, bias_types, packed};
use super::{Activation, GluOptions, Questions, Weight};
use crate::cache::on_cuda;
use crate::error::Result;
use crate::placement::Split;
use crate::weights::{Role, Scope};

/// Routing entries (tokens × experts per token) from which rows are sorted by expert before the projections, so
/// that a GPU reads each expert once. mlx-lm's value; results do not depend on it where kernels add in one order.
pub(super) const SORT_FROM_ENTRIES: usize = 64;

/// One linear layer per expert.
#[derive(Debug, Clone)]
pub struct SwitchLinear {
    pub(crate) weight: Weight,
    /// `[E, N]`.
    bias: Option<Array>,
}

impl SwitchLinear {
    /// Takes `[num_experts, out_dims, in_dims]` weights.
    ///
    /// # Errors
    /// As [`Weight::load`].
    pub fn load(scope: &Scope<'_>, num_experts: i32, in_dims: i32, out_dims: i32) -> Result<Self> {
        Self::load_with(scope, num_experts, in_dims, out_dims, false)
    }

    /// Takes `[num_experts, out_dims, in_dims]` weights and, if `bias`, a bias of `[num_experts, out_dims]`.
    ///
    /// # Errors
    /// As [`Weight::load`].
    pub fn load_with(
        scope: &Scope<'_>,
        num_experts: i32,
        in_dims: i32,
        out_dims: i32,
        bias: bool,
    ) -> Result<Self> {
        let scope = scope.role(Role::Experts);
        let weight = Weight::load(&scope, &[num_experts, out_dims, in_dims])?;
        let bias =
            if bias { Some(scope.take_float("bias", &[num_experts, out_dims])?) } else { None };
        Ok(Self { weight, bias })
    }

    /// - `x`: `[.., 1, K]`, `indices`: `[..]` u32 of experts; returns `[.., 1, N]`.
    ///
    /// # Errors
    /// `Mlx`.
    pub fn forward(&self, x: &Array, indices: &Array, sorted_indices: bool) -> Result<Array> {
        let y = match &self.weight {
            Weight::Dense(w) => {
                let wt = ops::swapaxes(w, -1, -2)?;
                quantization::gather_mm(x, &wt, None, Some(indices), sorted_indices)?
            }
            Weight::Quantized(w) => {
                quantization::gather_qmm(x, w, None, Some(indices), true, sorted_indices)?
            }
        };
        match &self.bias {
            Some(bias) => {
                Ok(ops::add(&y, &ops::expand_dims(&ops::take(bias, indices, 0)?, &[-2])?)?)
            }
            None => Ok(y),
        }
    }

    /// Its weight.
    pub fn weight(&self) -> &Weight {
        &self.weight
    }
}

/// The experts' feed-forward, `down(silu(gate(x)) * up(x))` with each token's own experts; other activations likewise.
#[derive(Debug, Clone)]
pub struct SwitchGlu {
    pub(crate) gate_proj: SwitchLinear,
    pub(crate) up_proj: SwitchLinear,
    pub(crate) down_proj: SwitchLinear,
    activation: Activation,
}

impl SwitchGlu {
    /// Takes the three projections of all experts; ranks share their inner width.
    ///
    /// # Errors
    /// As [`Weight::load`].
    pub fn load(
        scope: &Scope<'_>,
        num_experts: i32,
        hidden_size: i32,
        intermediate_size: i32,
    ) -> Result<Self> {
        let options = GluOptions::default();
        Self::load_with(scope, num_experts, hidden_size, intermediate_size, options)
    }

    /// The same with what `options` say.
    ///
    /// # Errors
    /// As [`Weight::load`].
    pub fn load_with(
        scope: &Scope<'_>,
        num_experts: i32,
        hidden_size: i32,
        intermediate_size: i32,
        options: GluOptions,
    ) -> Result<Self> {
        let GluOptions { bias, activation } = options;
        let load = |name: &str, split, in_dims, out_dims| {
            let scope = scope.pp(name).split(split);
            SwitchLinear::load_with(&scope, num_experts, in_dims, out_dims, bias)
        };
        Ok(Self {
            gate_proj: load("gate_proj", Split::Outputs, hidden_size, intermediate_size)?,
            up_proj: load("up_proj", Split::Outputs, hidden_size, intermediate_size)?,
            down_proj: load("down_proj", Split::Inputs, intermediate_size, hidden_size)?,
            activation,
        })
    }

    /// - `x`: `[.., K]`, `indices`: `[.., top_k]` u32; returns `[.., top_k, K]`.
    ///
    /// # Errors
    /// `Mlx`.
    /// # Source
    /// mlx-lm `switch_layers.py` (`SwitchGLU`).
    pub fn forward(&self, x: &Array, indices: &Array) -> Result<Array> {
        let x = ops::expand_dims(x, &[-2, -3])?; // [.., 1, 1, K]
        if indices.size() < SORT_FROM_ENTRIES {
            let y = self.project(&x, indices, false)?; // [.., top_k, 1, K]
            return Ok(ops::squeeze(&y, &[-2])?);
        }
        let (x, sorted, inverse) = gather_sort(&x, indices)?;
        let y = self.project(&x, &sorted, true)?; // [entries, 1, K]
        let y = ops::take(&y, &inverse, 0)?;
        let shape = [indices.shape(), &y.shape()[1..]].concat();
        Ok(ops::squeeze(&ops::reshape(&y, &shape)?, &[-2])?)
    }

    fn project(&self, x: &Array, indices: &Array, sorted: bool) -> Result<Array> {
        let up = self.up_proj.forward(x, indices, sorted)?;
        let gate = self.gate_proj.forward(x, indices, sorted)?;
        self.down_proj.forward(&self.activation.gated(&gate, &up)?, indices, sorted)
    }

    /// The hidden rows, such as `silu(gate(x)) * up(x)`, from one launch, `[.., top_k, 1, N]`; from stock ops where weights
    /// are dense.
    pub(super) fn fused_hidden(
        &self,
        x: &Array,
        indices: &Array,
        precision: Precision,
    ) -> Result<Array> {
        let (Weight::Quantized(gate), Weight::Quantized(up)) =
            (&self.gate_proj.weight, &self.up_proj.weight)
        else {
            return self.stock_hidden(x, indices);
        };
        let x = ops::expand_dims(x, &[-2, -3])?;
        let (biases, activation) = (self.glu_biases(), self.activation.asked());
        let glu = Glu { gate, up, biases, activation };
        let indices = Some(indices);
        Ok(primitives::gather_qmm_swiglu(&x, glu, None, indices, true, false, precision)?)
    }

    /// The down projection of hidden rows `[.., top_k, 1, N]` and their weighted sum from one launch, `[.., K]`; nothing
    /// where weights are dense.
    pub(super) fn fused_combine(
        &self,
        hidden: &Array,
        indices: &Array,
        scores: &Array,
        precision: Precision,
    ) -> Result<Option<Array>> {
        let Weight::Quantized(down) = &self.down_proj.weight else { return Ok(None) };
        let bias = self.down_proj.bias.as_ref();
        let y = primitives::gather_qmm_combine(hidden, down, bias, indices, scores, precision)?;
        Ok(Some(y))
    }

    /// What the fused down projection with its weighted sum is asked.
    pub(super) fn combine_questions(&self, top_k: i32) -> Questions {
        let down = packed("down_proj", &self.down_proj.weight)?;
        let bias = self.down_proj.bias.as_ref().map(Array::dtype);
        ask(GatherQmmCombine { bias, ..GatherQmmCombine::of(down, top_k) })
    }

    fn glu_biases(&self) -> Option<[&Array; 2]> {
        let biases = self.gate_proj.bias.as_ref().zip(self.up_proj.bias.as_ref());
        biases.map(|(gate, up)| [gate, up])
    }

    /// Whether so many routing entries are to be sorted by expert, patched or not: a GPU's kernels read each expert once then,
    /// where the fused ones do not see to that themselves.
    ///
    /// - `dtype`: of the rows
    pub(super) fn wants_sorted(&self, entries: usize, dtype: Dtype) -> bool {
        let groups_mxfp4 = dtype == Dtype::Bf16 && on_cuda();
        let is_grouped = |mode| mode == Mode::Affine || (mode == Mode::Mxfp4 && groups_mxfp4);
        let all_grouped =
            [&self.gate_proj, &self.up_proj, &self.down_proj].into_iter().all(|linear| {
                linear.weight.quantized().is_some_and(|w| is_grouped(w.quantization.mode))
            });
        entries >= SORT_FROM_ENTRIES && !all_grouped && default_device() == Device::Gpu
    }

    /// Number of experts.
    pub(super) fn num_experts(&self) -> i32 {
        match &self.gate_proj.weight {
            Weight::Dense(w) => w.dim(0),
            Weight::Quantized(q) => q.w.dim(0),
        }
    }

    /// What the fused gate and up projections are asked.
    pub(super) fn questions(&self, top_k: i32) -> Questions {
        let gate = packed("gate_proj", &self.gate_proj.weight)?;
        let up = packed("up_proj", &self.up_proj.weight)?;
        if gate.quantization == up.quantization {
            let activation = self.activation.asked();
            let question = |bias| -> Box<dyn Ask> {
                Box::new(GatherQmmSwiglu { bias, activation, ..GatherQmmSwiglu::of(gate, top_k) })
            };
            return Ok(bias_types(self.glu_biases()).into_iter().map(question).collect());
        }
        let (gate, up) = (gate.quantization, up.quantization);
        Err(format!("gate_proj and up_proj are quantised differently: {gate} and {up}"))
    }

    /// The hidden rows from stock ops, unsorted: `[.., top_k, 1, N]`.
    pub(super) fn stock_hidden(&self, x: &Array, indices: &Array) -> Result<Array> {
        let x = ops::expand_dims(x, &[-2, -3])?;
        let up = self.up_proj.forward(&x, indices, false)?;
        let gate = self.gate_proj.forward(&x, indices, false)?;
        self.activation.gated(&gate, &up)
    }
}

/// Rows repeated once per routing entry and sorted by expert, the sorted experts, and the way back.
fn gather_sort(x: &Array, indices: &Array) -> Result<(Array, Array, Array)> {
    let top_k = indices.dim(-1);
    let indices = ops::flatten(indices, 0, -1)?;
    let order = ops::argsort(&indices, -1)?;
    let inverse = ops::argsort(&order, -1)?;
    // [.., 1, 1, K] -> [tokens, 1, K]
    let rows = ops::reshape(x, &[-1, 1, x.dim(-1)])?;
    let token = ops::floor_divide(&order, &Array::scalar(top_k as u32)?)?;
    Ok((ops::take(&rows, &token, 0)?, ops::take(&indices, &order, 0)?, inverse))
}
