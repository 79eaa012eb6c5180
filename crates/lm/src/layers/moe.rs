use mlx::{Array, ops, primitives};

use super::{Fusable, Linear, Mlp, ModuleKind, ModulePath, Path, Routing, Site, SwitchGlu, Weight};
use crate::error::Result;

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
}

impl MoeBlock {
    /// A block on stock ops.
    pub fn new(gate: Linear, routing: Routing, switch_mlp: SwitchGlu) -> Self {
        let (router_path, mlp_path, combine_path) = Default::default();
        Self { gate, routing, switch_mlp, shared: None, router_path, mlp_path, combine_path }
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
        let logits = self.gate.forward(x)?; // [B, L, E]
        let (indices, scores) = match self.router_path {
            Path::Stock => self.routing.select(&logits)?,
            Path::Fused(_) => {
                let Routing { top_k, norm_topk_prob, .. } = self.routing;
                primitives::moe_router(&logits, top_k, norm_topk_prob, self.routing.scoring())?
            }
        };
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
        if mlp.is_none() && down.is_none() {
            return self.routing.combine(&experts.forward(x, indices)?, scores);
        }
        let hidden = match mlp {
            Some(precision) => experts.fused_hidden(x, indices, precision)?,
            None => experts.stock_hidden(x, indices)?,
        }; // [B, L, top_k, 1, N]
        if let (Some(precision), Weight::Quantized(w)) = (down, &experts.down_proj.weight) {
            return Ok(primitives::gather_qmm_combine(&hidden, w, indices, scores, precision)?);
        }
        let y = experts.down_proj.forward(&hidden, indices, false)?;
        self.routing.combine(&ops::squeeze(&y, &[-2])?, scores)
    }
}

impl Fusable for MoeBlock {
    fn sites<'a>(&'a mut self, at: &ModulePath, sites: &mut Vec<Site<'a>>) {
        let Self { gate, routing, switch_mlp, shared, router_path, mlp_path, combine_path } = self;
        gate.sites_as(ModuleKind::Router, &at.pp("gate"), sites);
        let mut push = |pattern, questions, path| {
            let kind = ModuleKind::Moe;
            sites.push(Site { module: at.clone(), kind, pattern, questions, path });
        };
        let top_k = routing.top_k;
        push("moe_router", routing.questions(switch_mlp.num_experts()), router_path);
        push("moe_mlp", switch_mlp.questions(top_k), mlp_path);
        push("moe_combine", switch_mlp.combine_questions(top_k), combine_path);
        if let Some(SharedExperts { mlp, gate }) = shared {
            mlp.sites(&at.pp("shared_expert"), sites);
            if let Some(gate) = gate {
                gate.sites(&at.pp("shared_expert_gate"), sites);
            }
        }
    }
}
