use std::cell::RefCell;
use std::rc::Rc;

use mlx::Array;

/// Which experts a router chose in one forward pass.
#[derive(Debug, Clone)]
pub struct Routed {
    /// `[B, L, top_k]` u32.
    pub indices: Array,
    /// Their weights, `[B, L, top_k]`.
    pub weights: Array,
}

/// What a router chose, written down while somebody wants to know.
#[derive(Debug, Clone, Default)]
pub struct RoutingTrace {
    num_experts: i32,
    log: Option<Rc<RefCell<Vec<Routed>>>>,
}

impl RoutingTrace {
    /// Of a router that chooses among so many.
    pub fn new(num_experts: i32) -> Self {
        Self { num_experts, log: None }
    }

    /// How many experts there are to choose from.
    pub fn num_experts(&self) -> i32 {
        self.num_experts
    }

    /// Writes down into a log that the caller keeps a hand on, from now until [`RoutingTrace::end`].
    pub fn begin(&mut self) -> Rc<RefCell<Vec<Routed>>> {
        self.log.insert(Rc::default()).clone()
    }

    /// Writes nothing down any more.
    pub fn end(&mut self) {
        self.log = None;
    }

    pub(super) fn record(&self, indices: &Array, weights: &Array) {
        if let Some(log) = &self.log {
            log.borrow_mut().push(Routed { indices: indices.clone(), weights: weights.clone() });
        }
    }
}
