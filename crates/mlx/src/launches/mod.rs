//! How many kernels a graph launches on Metal, counted without a GPU.
//!
//! [`plan`] runs a function that builds a graph; nothing is evaluated. While it runs, MLX's fused operations make the
//! one node that they are on a GPU, also in a build for the CPU, where MLX makes ordinary operations of them. What
//! comes back counts the launches of such graphs: it walks the nodes in the order of evaluation, keeps for each the
//! layout that MLX gives it, and asks the rules in `metal.rs` how many kernels MLX encodes there.

mod layout;
mod metal;
#[cfg(test)]
mod tests;

use std::cell::RefCell;
use std::collections::{BTreeMap, BTreeSet, HashMap};

use zmlx_sys::ffi;

use crate::array::array_vec;
use crate::{Array, Result};
use layout::Layout;

/// What a graph launches under one name of a primitive.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Row {
    /// Calls of the primitive.
    pub calls: usize,
    /// Kernels that they launch; views launch none.
    pub launches: usize,
    /// It is a primitive of zmlx.
    pub fused: bool,
}

/// The launches of a graph.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Launches {
    /// By primitive, as MLX names it.
    pub rows: BTreeMap<String, Row>,
    /// Kernels that would not be launched if the elementwise operations of each [`compiled`] function were one, as
    /// they are in mlx-lm.
    pub saved_by_compiling: usize,
    /// Primitives without a rule, counted as one launch each.
    pub assumed: BTreeSet<String>,
}

impl Launches {
    /// All kernels.
    pub fn total(&self) -> usize {
        self.rows.values().map(|row| row.launches).sum()
    }

    /// All kernels, elementwise operations of compiled functions taken together.
    pub fn total_compiled(&self) -> usize {
        self.total() - self.saved_by_compiling
    }
}

/// The identities of what goes into a compiled function and of what comes out.
struct Compiled {
    inputs: Vec<usize>,
    outputs: Vec<usize>,
}

thread_local! {
    /// The compiled functions of the plan that is being made.
    static COMPILED: RefCell<Vec<Compiled>> = const { RefCell::new(Vec::new()) };
}

/// A plan: what was noted while graphs were built for counting.
pub struct Plan {
    compiled: Vec<Compiled>,
}

/// Ends planning, also when the function panics.
struct Planning {
    before: bool,
}

impl Planning {
    fn start() -> Self {
        COMPILED.with_borrow_mut(Vec::clear);
        Self { before: ffi::set_planning(true) }
    }
}

impl Drop for Planning {
    fn drop(&mut self) {
        ffi::set_planning(self.before);
    }
}

/// Runs `f`, which builds graphs that are not to be evaluated: evaluating one is an error.
pub fn plan<T>(f: impl FnOnce() -> T) -> (T, Plan) {
    let planning = Planning::start();
    let built = f();
    drop(planning);
    (built, Plan { compiled: COMPILED.take() })
}

/// Whether this thread is planning.
fn is_planning() -> bool {
    ffi::is_planning()
}

/// Says that mlx-lm wraps in `mx.compile` what `f` makes of `inputs`. The operations are run as they are; a plan notes
/// where they are.
pub fn compiled<const N: usize>(
    inputs: &[&Array],
    f: impl FnOnce() -> Result<[Array; N]>,
) -> Result<[Array; N]> {
    let outputs = f()?;
    if is_planning() {
        let id = |a: &Array| ffi::array_id(a.raw());
        let compiled = Compiled {
            inputs: inputs.iter().map(|a| id(a)).collect(),
            outputs: outputs.iter().map(id).collect(),
        };
        COMPILED.with_borrow_mut(|all| all.push(compiled));
    }
    Ok(outputs)
}

/// One array of the graph.
struct Node {
    primitive: String,
    /// It is one of zmlx.
    fused: bool,
    call: usize,
    id: usize,
    shape: Vec<i64>,
    item_size: u64,
    inputs: Vec<usize>,
    parameters: Vec<i64>,
}

impl Node {
    fn size(&self) -> u64 {
        self.shape.iter().map(|n| *n as u64).product()
    }

    fn nbytes(&self) -> u64 {
        self.size() * self.item_size
    }

    fn is_given(&self) -> bool {
        self.primitive.is_empty()
    }
}

impl Plan {
    /// The launches of the graph that ends in `outputs`, once `given`, for instance the results of the step before, and
    /// all that they are made of have been evaluated.
    ///
    /// # Errors
    /// `Backend`.
    pub fn count<'a>(
        &self,
        outputs: impl IntoIterator<Item = &'a Array>,
        given: impl IntoIterator<Item = &'a Array>,
    ) -> Result<Launches> {
        let nodes = ffi::graph_nodes(&array_vec(outputs), &array_vec(given))?;
        let nodes: Vec<Node> = nodes.into_iter().map(Node::from).collect();
        let mut uses = vec![0_usize; nodes.len()];
        nodes.iter().flat_map(|node| &node.inputs).for_each(|i| uses[*i] += 1);

        let mut launches = Launches::default();
        let mut layouts: Vec<Layout> = Vec::with_capacity(nodes.len());
        for (i, node) in nodes.iter().enumerate() {
            if node.is_given() {
                layouts.push(Layout::row(&node.shape));
                continue;
            }
            let inputs: Vec<metal::Input<'_>> = (node.inputs.iter())
                .map(|j| metal::Input {
                    node: &nodes[*j],
                    layout: &layouts[*j],
                    last: uses[*j] == 1,
                })
                .collect();
            let step = metal::launch(node, &inputs);
            if node.call == i {
                let row = launches.rows.entry(node.primitive.clone()).or_default();
                row.calls += 1;
                row.launches += step.launches;
                row.fused = node.fused;
                if step.assumed {
                    launches.assumed.insert(node.primitive.clone());
                }
            }
            layouts.push(step.layout);
        }
        launches.saved_by_compiling =
            self.compiled.iter().map(|compiled| saved(compiled, &nodes)).sum();
        Ok(launches)
    }
}

/// Kernels less when each run of elementwise operations that hang together is one.
fn saved(compiled: &Compiled, nodes: &[Node]) -> usize {
    let at: HashMap<usize, usize> = nodes.iter().enumerate().map(|(i, n)| (n.id, i)).collect();
    let mut open: Vec<usize> =
        compiled.outputs.iter().filter_map(|id| at.get(id).copied()).collect();
    let mut members = BTreeSet::new();
    while let Some(i) = open.pop() {
        let node = &nodes[i];
        if !node.is_given() && !compiled.inputs.contains(&node.id) && members.insert(i) {
            open.extend(&node.inputs);
        }
    }
    // a part grows by the fusable members among the inputs of its own
    let fuses = |i: &usize| members.contains(i) && metal::is_fusable(&nodes[*i].primitive);
    let mut part: HashMap<usize, usize> = HashMap::new();
    let mut counted = 0;
    let mut parts = BTreeSet::new();
    for &i in members.iter().rev().filter(|i| fuses(i)) {
        let mine = *part.entry(i).or_insert(i);
        for j in nodes[i].inputs.iter().filter(|j| fuses(j)) {
            part.entry(*j).or_insert(mine);
        }
        if metal::is_elementwise(&nodes[i].primitive) {
            counted += 1;
            parts.insert(mine);
        }
    }
    counted - parts.len()
}

impl From<ffi::GraphNode> for Node {
    fn from(node: ffi::GraphNode) -> Self {
        Self {
            primitive: node.primitive,
            fused: node.fused,
            call: node.call as usize,
            id: node.id,
            shape: node.shape.into_iter().map(i64::from).collect(),
            item_size: u64::from(node.item_size),
            inputs: node.inputs.into_iter().map(|i| i as usize).collect(),
            parameters: node.parameters,
        }
    }
}
