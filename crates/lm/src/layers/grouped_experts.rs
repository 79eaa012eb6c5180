use super::{
    Choice, Groups, Linear, Mlp, MoeBlock, MoeNames, Routing, Score, SharedExperts, SwitchGlu,
};
use crate::config::ModelConfig;
use crate::error::Result;
use crate::weights::{Role, Scope};

/// A mixture of experts as DeepSeek-V3 has it (arXiv:2412.19437): sigmoid scores in `float32`, a bias and groups for the
/// choice alone, weights that are scaled, and experts that all tokens share.
#[derive(Debug, Clone, Copy)]
pub struct GroupedExperts {
    /// Routed experts.
    pub num_experts: i32,
    /// Of which each token goes through this many.
    pub top_k: i32,
    /// Inner width of one.
    pub intermediate_size: i32,
    /// Experts that all tokens go through, side by side in one; 0 without.
    pub num_shared: i32,
    /// Groups that are chosen first.
    pub groups: Groups,
    /// Whether the weights of a token's experts are scaled to sum to one, where it has several.
    pub norm_topk_prob: bool,
    /// Added to the sum that they are divided by.
    pub norm_eps: f32,
    /// What they are multiplied by in the end.
    pub scale: f32,
}

impl GroupedExperts {
    /// Whether experts and groups can be chosen as asked; `config` is named in errors.
    ///
    /// # Errors
    /// `Config`.
    pub fn check(&self, config: &ModelConfig) -> Result<()> {
        let Self { num_experts, top_k, groups: Groups { num_groups, top_k: kept }, .. } = *self;
        let refuse = |field: &str, reason: String| Err(config.error(field, reason));
        if !(1..=num_experts).contains(&top_k) {
            let reason = format!("is {top_k}, expected 1 to n_routed_experts ({num_experts})");
            return refuse("num_experts_per_tok", reason);
        }
        if num_experts % num_groups != 0 {
            let reason =
                format!("is {num_groups}, which does not divide n_routed_experts ({num_experts})");
            return refuse("n_group", reason);
        }
        if num_groups > 1 && num_experts / num_groups < 2 {
            let reason = format!("is {num_groups}, which leaves no two experts for each group");
            return refuse("n_group", reason);
        }
        if !(1..=num_groups).contains(&kept) {
            let reason = format!("is {kept}, expected 1 to n_group ({num_groups})");
            return refuse("topk_group", reason);
        }
        if self.intermediate_size.checked_mul(self.num_shared).is_none() {
            let reason = format!("is {}, too many of that width", self.num_shared);
            return refuse("n_shared_experts", reason);
        }
        Ok(())
    }

    /// Takes `gate`, which is never quantised, with its `e_score_correction_bias`, `switch_mlp` and, where there are any,
    /// `shared_experts`.
    ///
    /// # Errors
    /// As [`Linear::load`] and [`SwitchGlu::load`].
    /// # Source
    /// mlx-lm `deepseek_v3.py` (`MoEGate`, `DeepseekV3MoE`).
    pub fn load(&self, scope: &Scope<'_>, hidden_size: i32) -> Result<MoeBlock> {
        let Self { num_experts, top_k, intermediate_size, num_shared, groups, .. } = *self;
        let names = MoeNames { shared: "shared_experts", ..MoeNames::default() };
        let gate = scope.pp(names.gate).role(Role::Router);
        let projection = Linear::load_dense(&gate, hidden_size, num_experts)?;
        let routing = Routing {
            score: Score::Sigmoid,
            choice: Choice::FirstOfDescending,
            in_f32: true,
            selection_bias: Some(gate.take_float("e_score_correction_bias", &[num_experts])?),
            groups: (groups.num_groups > 1).then_some(groups),
            norm_topk_prob: self.norm_topk_prob && top_k > 1,
            norm_eps: self.norm_eps,
            scale: Some(self.scale),
            ..Routing::softmax(top_k)
        };
        let experts = scope.pp(names.experts);
        let block = MoeBlock::new(
            projection,
            routing,
            SwitchGlu::load(&experts, num_experts, hidden_size, intermediate_size)?,
        )
        .with_names(names);
        if num_shared == 0 {
            return Ok(block);
        }
        let shared = scope.pp(names.shared);
        let mlp = Mlp::load(&shared, hidden_size, intermediate_size * num_shared)?;
        Ok(block.with_shared(SharedExperts { mlp, gate: None }))
    }
}
