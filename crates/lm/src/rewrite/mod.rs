//! How a checkpoint's weights become a model's: a list of rules over names and shapes.
//!
//! A model states its rules; they run on what the files' headers say, before anything is read, so that a checkpoint
//! which does not fit is refused at once, by file and tensor. Arrays follow lazily, when a layer takes them.
//!
//! ```
//! # use zmlx_lm::rewrite::{Op, Rules};
//! let rules = Rules::new()
//!     .drop("model.visual.{rest*}")
//!     .rename("model.language_model.{rest*}", "model.{rest}")
//!     .stack("model.layers.{l#}.mlp.experts.{e#}.{p}.weight", "e", 128, "model.layers.{l}.mlp.switch_mlp.{p}.weight")
//!     .map("model.layers.{l#}.conv1d.weight", &[Op::Swap(1, 2)]);
//! ```

mod pattern;
mod tensor;
#[cfg(test)]
mod tests;

use std::collections::BTreeMap;
use std::rc::Rc;

use mlx::Dtype;

pub use pattern::{Captures, Pattern};
pub use tensor::Op;
pub(crate) use tensor::{Packed, Tensor, infer};

use crate::checkpoint::Checkpoint;
use crate::error::{Error, Result};

/// A tensor that a rule may apply to.
#[derive(Debug, Clone, Copy)]
pub struct Match<'a> {
    /// Its name now, after the rules before.
    pub name: &'a str,
    /// Dimensions.
    pub shape: &'a [i32],
    /// Element type.
    pub dtype: Dtype,
    /// What the pattern's braces hold.
    pub captures: &'a Captures,
}

type Condition = Box<dyn Fn(&Match<'_>) -> bool>;

/// What to make of a name: a template, and what happens to the tensor on the way.
pub type Output = (String, Vec<Op>);

enum Step {
    Keep(Vec<String>),
    Drop,
    /// One tensor becomes these.
    Become(Vec<Output>),
    /// `index` numbers the parts `0..count` of a stack.
    Stack {
        index: String,
        count: i32,
        to: String,
    },
    /// A matrix, dense or packed, of `in_dims` columns becomes these.
    Requantize {
        in_dims: i32,
        outputs: Vec<Output>,
    },
    /// A tensor and its scale become the tensor scaled.
    Scale {
        weight: String,
        blocks: Option<i32>,
    },
}

struct Rule {
    pattern: String,
    when: Option<Condition>,
    step: Step,
}

/// Rules, applied in order, each to all tensors that its pattern matches.
#[derive(Default)]
pub struct Rules {
    rules: Vec<Rule>,
}

impl Rules {
    /// None yet.
    pub fn new() -> Self {
        Self::default()
    }

    fn push(mut self, pattern: &str, when: Option<Condition>, step: Step) -> Self {
        self.rules.push(Rule { pattern: pattern.to_owned(), when, step });
        self
    }

    /// The same rules for names that begin with `prefix` and a dot; all of them where it is empty.
    #[must_use]
    pub fn below(mut self, prefix: &str) -> Self {
        if prefix.is_empty() {
            return self;
        }
        let deepen = |name: &mut String| *name = format!("{prefix}.{name}");
        for rule in &mut self.rules {
            deepen(&mut rule.pattern);
            match &mut rule.step {
                Step::Drop => {}
                // what is kept of all else is not theirs to say
                Step::Keep(patterns) => patterns.iter_mut().for_each(deepen),
                Step::Become(outputs) | Step::Requantize { outputs, .. } => {
                    outputs.iter_mut().for_each(|(name, _)| deepen(name));
                }
                Step::Stack { to, .. } => deepen(to),
                Step::Scale { weight, .. } => deepen(weight),
            }
        }
        self
    }

    /// Keeps what matches one of `patterns` and drops all else.
    pub fn keep(self, patterns: &[&str]) -> Self {
        let patterns = patterns.iter().map(|text| (*text).to_owned()).collect();
        self.push("{name*}", None, Step::Keep(patterns))
    }

    /// Drops tensors.
    pub fn drop(self, pattern: &str) -> Self {
        self.push(pattern, None, Step::Drop)
    }

    /// Drops tensors for which `when` holds.
    pub fn drop_if(self, pattern: &str, when: impl Fn(&Match<'_>) -> bool + 'static) -> Self {
        self.push(pattern, Some(Box::new(when)), Step::Drop)
    }

    /// Gives tensors the name that the template `to` makes of the pattern's parts.
    pub fn rename(self, pattern: &str, to: &str) -> Self {
        self.become_each(pattern, vec![(to.to_owned(), Vec::new())])
    }

    /// Changes tensors under their names.
    pub fn map(self, pattern: &str, ops: &[Op]) -> Self {
        self.become_each(pattern, vec![(pattern.to_owned(), ops.to_vec())])
    }

    /// Changes tensors for which `when` holds under their names.
    pub fn map_if(
        self,
        pattern: &str,
        ops: &[Op],
        when: impl Fn(&Match<'_>) -> bool + 'static,
    ) -> Self {
        let step = Step::Become(vec![(pattern.to_owned(), ops.to_vec())]);
        self.push(pattern, Some(Box::new(when)), step)
    }

    /// Replaces each tensor by several that are made of it.
    pub fn become_each(self, pattern: &str, outputs: Vec<Output>) -> Self {
        self.push(pattern, None, Step::Become(outputs))
    }

    /// Cuts tensors along `axis` into as many equal parts as there are names.
    pub fn split(self, pattern: &str, axis: i32, to: &[&str]) -> Self {
        let part = |index| Op::Part { axis, index, of: to.len() as i32 };
        self.each_to(pattern, to, part)
    }

    /// Takes tensors apart whose rows along `axis` take turns: the first of each round goes to the first name.
    pub fn deinterleave(self, pattern: &str, axis: i32, to: &[&str]) -> Self {
        let every = |start| Op::Every { axis, start, step: to.len() as i32 };
        self.each_to(pattern, to, every)
    }

    fn each_to(self, pattern: &str, to: &[&str], op: impl Fn(i32) -> Op) -> Self {
        let outputs = (0..).zip(to).map(|(i, name)| ((*name).to_owned(), vec![op(i)])).collect();
        self.become_each(pattern, outputs)
    }

    /// Stacks the tensors that differ in the number `index` alone, `0..count` of them, along a new first axis.
    pub fn stack(self, pattern: &str, index: &str, count: i32, to: &str) -> Self {
        self.push(pattern, None, Step::Stack { index: index.to_owned(), count, to: to.to_owned() })
    }

    /// Replaces matrices of `in_dims` columns by others made of their dense form; a packed one is unpacked first, and
    /// what it becomes is packed as it was. Pattern and templates name modules, without `.weight`.
    pub fn requantize(self, module: &str, in_dims: i32, outputs: Vec<Output>) -> Self {
        self.push(&format!("{module}.weight"), None, Step::Requantize { in_dims, outputs })
    }

    /// Multiplies the e4m3 codes of the tensor `weight` by a scale for each `block` × `block` of them; `pattern` is
    /// that of the scales. The result is bf16.
    pub fn scale_blocks(self, pattern: &str, weight: &str, block: i32) -> Self {
        self.push(pattern, None, Step::Scale { weight: weight.to_owned(), blocks: Some(block) })
    }

    /// Multiplies the tensor `weight` by its scale, a number or a vector; `pattern` is that of the scales.
    pub fn scale(self, pattern: &str, weight: &str) -> Self {
        self.push(pattern, None, Step::Scale { weight: weight.to_owned(), blocks: None })
    }
}

/// The tensors of a checkpoint by name, as far as rules have brought them.
#[derive(Debug, Default)]
pub(crate) struct Table {
    pub(crate) tensors: BTreeMap<String, Rc<Tensor>>,
}

impl Table {
    /// What the files hold.
    pub(crate) fn of(checkpoint: &Checkpoint) -> Self {
        let tensors = checkpoint.tensors().iter().map(|(name, info)| {
            let shape = info.shape.iter().map(|n| *n as i32).collect();
            (name.clone(), Tensor::in_file(name, shape, info.mlx_dtype()))
        });
        Self { tensors: tensors.collect() }
    }

    /// Applies rules in order.
    pub(crate) fn rewrite(&mut self, rules: &Rules, checkpoint: &Checkpoint) -> Result<()> {
        for rule in &rules.rules {
            self.apply(rule, checkpoint)?;
        }
        Ok(())
    }

    fn apply(&mut self, rule: &Rule, checkpoint: &Checkpoint) -> Result<()> {
        let pattern = Pattern::new(&rule.pattern)?;
        let matches: Vec<(String, Captures)> = self
            .tensors
            .iter()
            .filter_map(|(name, tensor)| {
                let captures = pattern.captures(name)?;
                let found =
                    Match { name, shape: &tensor.shape, dtype: tensor.dtype, captures: &captures };
                rule.when
                    .as_ref()
                    .is_none_or(|when| when(&found))
                    .then_some((name.clone(), captures))
            })
            .collect();
        let refused = |tensor: &Tensor, name: &str, reason: String| {
            Error::checkpoint(checkpoint.file_of(&tensor.origin), format!("`{name}` {reason}"))
        };
        match &rule.step {
            Step::Keep(patterns) => {
                let patterns =
                    patterns.iter().map(|text| Pattern::new(text)).collect::<Result<Vec<_>>>()?;
                self.tensors.retain(|name, _| patterns.iter().any(|p| p.captures(name).is_some()));
            }
            Step::Drop => {
                for (name, _) in matches {
                    self.tensors.remove(&name);
                }
            }
            Step::Become(outputs) => {
                // all of them are taken out first: a name may be given that another gives up
                let taken: Vec<_> = matches
                    .into_iter()
                    .filter_map(|(name, captures)| {
                        Some((self.tensors.remove(&name)?, name, captures))
                    })
                    .collect();
                for (tensor, name, captures) in taken {
                    for (to, ops) in outputs {
                        let made =
                            tensor.apply_all(ops).map_err(|why| refused(&tensor, &name, why))?;
                        self.insert(captures.fill(to)?, made, checkpoint)?;
                    }
                }
            }
            Step::Stack { index, count, to } => {
                self.stack(matches, index, *count, to, &rule.pattern, checkpoint)?;
            }
            Step::Requantize { in_dims, outputs } => {
                for (name, captures) in matches {
                    self.requantize(&name, &captures, *in_dims, outputs, checkpoint)?;
                }
            }
            Step::Scale { weight, blocks } => {
                for (name, captures) in matches {
                    let scaled = captures.fill(weight)?;
                    let (Some(scale), Some(tensor)) =
                        (self.tensors.remove(&name), self.tensors.remove(&scaled))
                    else {
                        let path = checkpoint.file_of(&name).to_owned();
                        return Err(Error::MissingWeight { name: scaled, path });
                    };
                    let made = match blocks {
                        Some(block) => Tensor::block_fp8(tensor.clone(), scale, *block),
                        None => Tensor::product(tensor.clone(), scale),
                    };
                    let made = made.map_err(|why| refused(&tensor, &scaled, why))?;
                    self.insert(scaled, made, checkpoint)?;
                }
            }
        }
        Ok(())
    }

    fn insert(&mut self, name: String, tensor: Rc<Tensor>, checkpoint: &Checkpoint) -> Result<()> {
        let Some(held) = self.tensors.get(&name) else {
            self.tensors.insert(name, tensor);
            return Ok(());
        };
        let reason = format!("`{}` and `{}` both become `{name}`", tensor.origin, held.origin);
        Err(Error::checkpoint(checkpoint.file_of(&tensor.origin), reason))
    }

    /// Work and memory are bounded by what the files hold, whatever `count` claims.
    fn stack(
        &mut self,
        matches: Vec<(String, Captures)>,
        index: &str,
        count: i32,
        to: &str,
        pattern: &str,
        checkpoint: &Checkpoint,
    ) -> Result<()> {
        let mut groups: BTreeMap<Captures, BTreeMap<u64, String>> = BTreeMap::new();
        for (name, captures) in matches {
            let number = captures.number(index);
            // beyond the count: left over, and named as such in the end
            if number < u64::try_from(count).unwrap_or(0) {
                groups.entry(captures.without(index)).or_default().insert(number, name);
            }
        }
        for (captures, parts) in groups {
            if let Some(missing) = (0..count as u64).find(|i| !parts.contains_key(i)) {
                let path = checkpoint.dir().to_owned();
                let name = captures.with(index, missing).fill(pattern)?;
                return Err(Error::MissingWeight { name, path });
            }
            let parts: Vec<_> =
                parts.values().filter_map(|name| self.tensors.remove(name)).collect();
            let first = parts.first().cloned();
            let stacked = Tensor::stack(parts).map_err(|why| {
                let origin = first.map(|part| part.origin.clone()).unwrap_or_default();
                Error::checkpoint(checkpoint.file_of(&origin), format!("`{origin}` {why}"))
            })?;
            self.insert(captures.fill(to)?, stacked, checkpoint)?;
        }
        Ok(())
    }

    fn requantize(
        &mut self,
        name: &str,
        captures: &Captures,
        in_dims: i32,
        outputs: &[Output],
        checkpoint: &Checkpoint,
    ) -> Result<()> {
        let module = name.strip_suffix(".weight").unwrap_or(name);
        let Some(weight) = self.tensors.remove(name) else { return Ok(()) };
        let origin = weight.origin.clone();
        let refused =
            |why| Error::checkpoint(checkpoint.file_of(&origin), format!("`{name}` {why}"));
        let scales = self.tensors.remove(&format!("{module}.scales"));
        let (dense, quantization) = match scales {
            None => (weight, None),
            Some(scales) => {
                let quantization = infer(&weight, &scales, in_dims).map_err(refused)?;
                let biases = self.tensors.remove(&format!("{module}.biases"));
                let packed = Packed { weight, scales, biases, quantization };
                let dense = Tensor::dequantize(packed, in_dims).map_err(refused)?;
                (dense, Some(quantization))
            }
        };
        if dense.shape.last() != Some(&in_dims) {
            let reason = format!("has shape {:?}, expected {in_dims} columns", dense.shape);
            return Err(refused(reason));
        }
        for (to, ops) in outputs {
            let to = captures.fill(to)?;
            let made = dense.apply_all(ops).map_err(refused)?;
            match quantization {
                None => self.insert(format!("{to}.weight"), made, checkpoint)?,
                Some(quantization) => {
                    for (part, tensor) in made.quantize(quantization).map_err(refused)? {
                        self.insert(format!("{to}.{part}"), tensor, checkpoint)?;
                    }
                }
            }
        }
        Ok(())
    }
}
