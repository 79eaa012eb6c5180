use mlx::{Array, Dtype, ops};

use super::{
    Fusable, GluOptions, Linear, Mlp, ModuleKind, ModulePath, Path, Routing, RoutingTrace, Site,
    SwitchGlu,
};
use crate::error::Result;
use crate::weights::{Role, Scope};

/// What the parts of a mixture of experts are called in checkpoints.
#[derive(Debug, Clone, Copy)]
pub struct MoeNames {
    /// The router.
    pub gate: &'static str,
    /// The stacks of experts.
    pub experts: &'static str,
    /// Experts that every token goes through.
    pub shared: &'static str,
    /// What weighs those.
    pub shared_gate: &'static str,
}

/// Those of Qwen.
impl Default for MoeNames {
    fn default() -> Self {
        Self {
            gate: "gate",
            experts: "switch_mlp",
            shared: "shared_expert",
            shared_gate: "shared_expert_gate",
        }
    }
}

/// What a mixture of experts is made of.
#[derive(Debug, Clone)]
pub struct MoeOptions {
    /// Width of the residual stream.
    pub hidden_size: i32,
    /// Number of experts.
    pub num_experts: i32,
    /// Inner width of one.
    pub intermediate_size: i32,
    /// What else the experts are made of.
    pub glu: GluOptions,
    /// The type that the router's product is computed in, where that is not the type of its input.
    pub gate_dtype: Option<Dtype>,
    /// From router logits to experts and weights.
    pub routing: Routing,
    /// Experts that every token goes through, where there are any.
    pub shared: Option<SharedOptions>,
    /// What the parts are called.
    pub names: MoeNames,
}

impl MoeOptions {
    /// Experts without biases, none of them shared, named as Qwen's.
    pub fn new(
        hidden_size: i32,
        num_experts: i32,
        intermediate_size: i32,
        routing: Routing,
    ) -> Self {
        Self {
            hidden_size,
            num_experts,
            intermediate_size,
            glu: GluOptions::default(),
            gate_dtype: None,
            routing,
            shared: None,
            names: MoeNames::default(),
        }
    }
}

/// What experts that every token goes through are made of.
#[derive(Debug, Clone, Copy)]
pub struct SharedOptions {
    /// Their inner width, all together.
    pub intermediate_size: i32,
    /// Whether a sigmoid weighs them for each token.
    pub gated: bool,
}

/// Experts that every token goes through.
#[derive(Debug, Clone)]
pub struct SharedExperts {
    /// The experts, as one.
    pub mlp: Mlp,
    /// Weighs them by a sigmoid for each token, `[1, D]`.
    pub gate: Option<Linear>,
}

impl SharedExperts {
    fn forward(&self, x: &Array) -> Result<Array> {
        let y = self.mlp.forward(x)?;
        match &self.gate {
            Some(gate) => Ok(ops::multiply(&ops::sigmoid(&gate.forward(x)?)?, &y)?),
            None => Ok(y),
        }
    }
}

/// A mixture of experts: router, experts, weighted sum, experts that all tokens share.
#[derive(Debug, Clone)]
pub struct MoeBlock {
    gate: Linear,
    routing: Routing,
    switch_mlp: SwitchGlu,
    shared: Option<SharedExperts>,
    router_path: Path,
    mlp_path: Path,
    combine_path: Path,
    names: MoeNames,
    trace: RoutingTrace,
}

impl MoeBlock {
    /// Takes the router, the experts and, if asked for, those that all tokens share.
    ///
    /// # Errors
    /// As [`Linear::load`], [`SwitchGlu::load`] and [`Mlp::load`].
    pub fn load(scope: &Scope<'_>, options: MoeOptions) -> Result<Self> {
        let MoeOptions { hidden_size, num_experts, glu, names, .. } = options;
        let gate = scope.pp(names.gate).role(Role::Router);
        let gate = Linear::load(&gate, hidden_size, num_experts)?;
        let gate = match options.gate_dtype {
            Some(dtype) => gate.in_type(dtype),
            None => gate,
        };
        let (experts, width) = (scope.pp(names.experts), options.intermediate_size);
        let experts = SwitchGlu::load_with(&experts, num_experts, hidden_size, width, glu)?;
        let block = Self::new(gate, options.routing, experts).with_names(names);
        let Some(SharedOptions { intermediate_size, gated }) = options.shared else {
            return Ok(block);
        };
        Ok(block.with_shared(SharedExperts {
            mlp: Mlp::load(&scope.pp(names.shared), hidden_size, intermediate_size)?,
            gate: match gated {
                true => Some(Linear::load(&scope.pp(names.shared_gate), hidden_size, 1)?),
                false => None,
            },
        }))
    }

    /// A block on stock ops.
    pub fn new(gate: Linear, routing: Routing, switch_mlp: SwitchGlu) -> Self {
        let (router_path, mlp_path, combine_path) = Default::default();
        let trace = RoutingTrace::new(switch_mlp.num_experts());
        Self {
            gate,
            routing,
            switch_mlp,
            shared: None,
            router_path,
            mlp_path,
            combine_path,
            names: MoeNames::default(),
            trace,
        }
    }

    /// The same with its parts called otherwise.
    pub fn with_names(self, names: MoeNames) -> Self {
        Self { names, ..self }
    }

    /// The same with experts that all tokens share.
    pub fn with_shared(self, shared: SharedExperts) -> Self {
        Self { shared: Some(shared), ..self }
    }

    /// - `x`: `[B, L, D]`; returns the same shape.
    ///
    /// # Errors
    /// `Mlx`.
    pub fn forward(&self, x: &Array) -> Result<Array> {
        self.forward_routed(x, x)
    }

    /// The same where something else than what the experts get decides which of them do.
    ///
    /// - `routed`: `[B, L, D]`, for the router
    ///
    /// # Errors
    /// `Mlx`.
    pub fn forward_routed(&self, routed: &Array, x: &Array) -> Result<Array> {
        let logits = self.gate.forward(routed)?; // [B, L, E]
        let (indices, scores) = match self.router_path {
            Path::Stock => self.routing.select(&logits, x.dtype())?,
            Path::Fused(_) => self.routing.select_fused(&logits, x.dtype())?,
        };
        self.trace.record(&indices, &scores);
        let y = self.experts(x, &indices, &scores)?;
        match &self.shared {
            Some(shared) => Ok(ops::add(&y, &shared.forward(x)?)?),
            None => Ok(y),
        }
    }

    /// The one place where a fused block departs from stock. Rows then stay in token order: the fused kernels
    /// visit experts in the order they like.
    fn experts(&self, x: &Array, indices: &Array, scores: &Array) -> Result<Array> {
        let experts = &self.switch_mlp;
        let entries = indices.size();
        let (mlp, down) = (self.mlp_path.fused_for(entries), self.combine_path.fused_for(entries));
        if (mlp.is_none() && down.is_none()) || experts.wants_sorted(entries, x.dtype()) {
            return self.routing.combine(&experts.forward(x, indices)?, scores);
        }
        let hidden = match mlp {
            Some(precision) => experts.fused_hidden(x, indices, precision)?,
            None => experts.stock_hidden(x, indices)?,
        }; // [B, L, top_k, 1, N]
        if let Some(precision) = down
            && let Some(y) = experts.fused_combine(&hidden, indices, scores, precision)?
        {
            return Ok(y);
        }
        let y = experts.down_proj.forward(&hidden, indices, false)?;
        self.routing.combine(&ops::squeeze(&y, &[-2])?, scores)
    }
}

impl Fusable for MoeBlock {
    fn sites<'a>(&'a mut self, at: &ModulePath, sites: &mut Vec<Site<'a>>) {
        let Self { gate, routing, switch_mlp, shared, names, .. } = self;
        let Self { router_path, mlp_path, combine_path, trace, .. } = self;
        let (top_k, logits_dtype) = (routing.top_k, gate.dtype());
        gate.sites_as(ModuleKind::Router, &at.pp(names.gate), sites);
        let mut push = |pattern, questions, path, trace| {
            let kind = ModuleKind::Moe;
            sites.push(Site { module: at.clone(), kind, pattern, questions, path, trace });
        };
        let questions = routing.questions(switch_mlp.num_experts(), logits_dtype);
        push("moe_router", questions, router_path, Some(trace));
        push("moe_mlp", switch_mlp.questions(top_k), mlp_path, None);
        push("moe_combine", switch_mlp.combine_questions(top_k), combine_path, None);
        if let Some(SharedExperts { mlp, gate }) = shared {
            mlp.sites(&at.pp(names.shared), sites);
            if let Some(gate) = gate {
                gate.sites(&at.pp(names.shared_gate), sites);
            }
        }
    }
}
