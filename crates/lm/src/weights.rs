//! Weights on their way from checkpoint to layers: taken by name, each shape checked, none left over.

use std::cell::RefCell;
use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::rc::Rc;

use mlx::quantization::{Mode, Quantization, QuantizedWeight};
use mlx::{Array, Dtype, ops};

use crate::checkpoint::Checkpoint;
use crate::error::{Error, Result};
use crate::placement::{Placement, Split, Stage};
use crate::quantization::{QuantizationConfig, why_left};
use crate::rewrite::{Packed, Rules, Table, Tensor, infer};

/// A checkpoint's tensors, handed out one by one.
pub struct Weights {
    source: Source,
    quantization: Option<QuantizationConfig>,
    placement: Placement,
    left: RefCell<Table>,
    taken: RefCell<Taken>,
}

enum Source {
    Files {
        checkpoint: Checkpoint,
        /// Lazy arrays of the files that something was taken from.
        opened: RefCell<HashMap<PathBuf, HashMap<String, Array>>>,
    },
    /// As `Files`, but what is taken are placeholders; [`Taken::planned`] says of which tensors.
    Plan(Checkpoint),
    /// Whatever is asked for exists, dense and of this type.
    Recorder(Dtype),
}

/// What a model took from its checkpoint.
#[derive(Debug, Default)]
pub struct Taken {
    arrays: Vec<Array>,
    /// In the order in which they were taken, scales and biases counted with what they scale.
    pub records: Vec<WeightRecord>,
    /// The tensors behind placeholders, in the same order.
    pub(crate) planned: Vec<Planned>,
}

/// A weight that a model would take.
#[derive(Debug)]
pub(crate) enum Planned {
    /// Never quantised.
    Float { name: String, tensor: Rc<Tensor> },
    /// A dense matrix, or a stack of them, which may be quantised.
    Matrix { module: String, tensor: Rc<Tensor> },
    /// A packed one.
    Packed { module: String, packed: Packed },
}

impl Taken {
    /// Reads everything into memory.
    ///
    /// - `on_progress`: told after each tensor how many bytes are there, and how many there will be
    ///
    /// # Errors
    /// `Mlx`.
    pub fn read(&self, on_progress: &mut dyn FnMut(u64, u64)) -> Result<()> {
        let total = self.arrays.iter().map(|array| array.nbytes() as u64).sum();
        let mut bytes = 0;
        // One by one: a stack of experts then holds its parts only while it is made.
        for array in &self.arrays {
            array.eval()?;
            bytes += array.nbytes() as u64;
            on_progress(bytes, total);
        }
        Ok(())
    }
}

/// What a weight does in its model.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Role {
    /// A linear layer's.
    Matrix,
    /// A table with one row per token id.
    Embedding,
    /// What scores experts.
    Router,
    /// A stack with one matrix, or one bias, per expert.
    Experts,
    /// The scale of a norm.
    Norm,
    /// Anything else: a bias, a sink, a decay.
    Other,
}

/// One weight of a model.
#[derive(Debug, Clone)]
pub struct WeightRecord {
    /// Path of its module.
    pub module: String,
    /// Its name in the module, such as `weight`.
    pub name: String,
    /// Shape of the dense form of what is held here.
    pub shape: Vec<i32>,
    /// What it does.
    pub role: Role,
    /// Whether it is a matrix, or a stack of them, that may be packed.
    pub is_matrix: bool,
    /// Numbers it stands for.
    pub parameters: u64,
    /// Bytes it takes.
    pub bytes: u64,
    /// How it is quantised; its dtype when it is not.
    pub format: String,
}

impl Weights {
    /// The tensors of `checkpoint`, of which the model takes what `placement` says.
    ///
    /// # Errors
    /// `Argument` when the placement contradicts itself.
    pub fn new(
        checkpoint: Checkpoint,
        quantization: Option<QuantizationConfig>,
        placement: Placement,
    ) -> Result<Self> {
        placement.check()?;
        let left = RefCell::new(Table::of(&checkpoint));
        let source = Source::Files { checkpoint, opened: RefCell::default() };
        Ok(Self { source, quantization, placement, left, taken: RefCell::default() })
    }

    /// No checkpoint: a model that is loaded from this takes placeholders of zeros, which take no memory until they
    /// are evaluated, and [`finish`](Self::finish) tells which weights the model has.
    pub fn recorder(dtype: Dtype) -> Self {
        Self {
            source: Source::Recorder(dtype),
            quantization: None,
            placement: Placement::default(),
            left: RefCell::default(),
            taken: RefCell::default(),
        }
    }

    /// The tensors of `checkpoint`, of which nothing is read: a model that is loaded from this takes placeholders of
    /// zeros, and [`finish`](Self::finish) tells which tensors it would have taken.
    pub(crate) fn planner(
        checkpoint: Checkpoint,
        quantization: Option<QuantizationConfig>,
    ) -> Self {
        Self {
            left: RefCell::new(Table::of(&checkpoint)),
            source: Source::Plan(checkpoint),
            quantization,
            placement: Placement::default(),
            taken: RefCell::default(),
        }
    }

    /// Brings the checkpoint's names and shapes to the model's. Nothing is read.
    ///
    /// # Errors
    /// `Checkpoint`, `MissingWeight`; `Argument` for a rule that is malformed.
    pub fn rewrite(&self, rules: &Rules) -> Result<()> {
        match &self.source {
            Source::Files { checkpoint, .. } | Source::Plan(checkpoint) => {
                self.left.borrow_mut().rewrite(rules, checkpoint)
            }
            Source::Recorder(_) => Ok(()),
        }
    }

    /// The scope of full names.
    pub fn root(&self) -> Scope<'_> {
        Scope {
            weights: self,
            prefix: String::new(),
            is_held: true,
            role: None,
            split: Split::Whole,
        }
    }

    /// What part of the model is loaded.
    pub fn placement(&self) -> &Placement {
        &self.placement
    }

    /// Names not taken yet, sorted.
    pub fn names(&self) -> Vec<String> {
        self.left.borrow().tensors.keys().cloned().collect()
    }

    /// Whether a tensor of this name is there and not taken yet; with dimensions and dtype as `found` wants them.
    pub fn any(&self, found: impl Fn(&str, &[i32], Dtype) -> bool) -> bool {
        self.left.borrow().tensors.iter().any(|(name, t)| found(name, &t.shape, t.dtype))
    }

    /// Checks that nothing is left.
    ///
    /// # Errors
    /// `UnexpectedWeight`.
    pub fn finish(self) -> Result<Taken> {
        let names = self.names();
        if let Some(first) = names.first() {
            let path = self.file_of(&self.left.borrow().tensors[first].origin);
            if let Some(reason) = why_left(&names) {
                return Err(Error::checkpoint(path, reason));
            }
            return Err(Error::UnexpectedWeight { names, path });
        }
        Ok(self.taken.take())
    }

    /// The file that holds a tensor, else the folder.
    fn file_of(&self, origin: &str) -> PathBuf {
        match &self.source {
            Source::Files { checkpoint, .. } | Source::Plan(checkpoint) => {
                checkpoint.file_of(origin).to_owned()
            }
            Source::Recorder(_) => PathBuf::new(),
        }
    }

    /// The lazy array of a tensor as its file holds it. A file is opened when something in it is first taken.
    fn array_in_file(&self, name: &str) -> Result<Array> {
        let Source::Files { checkpoint, opened } = &self.source else {
            return Err(Error::MissingWeight { name: name.to_owned(), path: PathBuf::new() });
        };
        let path = checkpoint.file_of(name);
        let mut opened = opened.borrow_mut();
        if !opened.contains_key(path) {
            opened.insert(path.to_owned(), mlx::io::load_safetensors(path)?.arrays);
        }
        let array = opened.get_mut(path).and_then(|arrays| arrays.remove(name));
        array.ok_or_else(|| Error::MissingWeight { name: name.to_owned(), path: path.to_owned() })
    }

    fn remove(&self, name: &str, shape: &[i32]) -> Result<Rc<Tensor>> {
        if let Source::Recorder(dtype) = self.source {
            return Ok(Tensor::blank(name, shape, dtype));
        }
        let tensor = self.left.borrow_mut().tensors.remove(name);
        tensor
            .ok_or_else(|| Error::MissingWeight { name: name.to_owned(), path: self.file_of(name) })
    }
}

/// A name prefix into [`Weights`], as each block of a model sees them.
#[derive(Clone)]
pub struct Scope<'a> {
    weights: &'a Weights,
    prefix: String,
    /// Whether this part of a pipeline reads the weights.
    is_held: bool,
    role: Option<Role>,
    split: Split,
}

impl<'a> Scope<'a> {
    /// The scope one name deeper.
    pub fn pp(&self, name: impl std::fmt::Display) -> Self {
        Self { prefix: self.full(name), role: None, split: Split::Whole, ..self.clone() }
    }

    /// This scope, for weights that do `role`. Holds for names taken here, not in deeper scopes.
    #[must_use]
    pub fn role(&self, role: Role) -> Self {
        Self { role: Some(self.role.unwrap_or(role)), ..self.clone() }
    }

    /// This scope, for a matrix that ranks share. Holds for names taken here, not in deeper scopes.
    #[must_use]
    pub fn split(&self, split: Split) -> Self {
        Self { split, ..self.clone() }
    }

    /// This scope, for weights that only some stages of a pipeline of `num_layers` read. The others may take them too;
    /// those arrays stay in their files.
    #[must_use]
    pub fn at(&self, stage: Stage, num_layers: i32) -> Self {
        let num_layers = usize::try_from(num_layers).unwrap_or(0);
        let range = self.weights.placement.layers.clone().unwrap_or(0..num_layers);
        let (first, last) = (range.start == 0, range.end >= num_layers);
        let is_held = match stage {
            Stage::First => first,
            Stage::Last => last,
            Stage::Ends => first || last,
        };
        Self { is_held, ..self.clone() }
    }

    /// `value` as it is for one rank: divided by their number.
    ///
    /// # Errors
    /// `Checkpoint` when it does not divide.
    pub fn per_rank(&self, what: &str, value: i32) -> Result<i32> {
        let size = self.weights.placement.size as i32;
        if value % size == 0 {
            return Ok(value / size);
        }
        let reason =
            format!("`{}` has {value} {what}, which {size} ranks cannot share", self.prefix);
        Err(Error::checkpoint(self.folder(), reason))
    }

    /// That ranks do not share the model, for parts that every rank would need the others for.
    ///
    /// # Errors
    /// `Checkpoint` when they do.
    pub fn not_shared(&self, what: &str) -> Result<()> {
        if self.weights.placement.size == 1 {
            return Ok(());
        }
        let reason = format!("`{}` has {what}, which ranks cannot share", self.prefix);
        Err(Error::checkpoint(self.folder(), reason))
    }

    /// Loads the layers `{scope}.0`, `{scope}.1`, .. that the placement holds; the others' weights are left out.
    ///
    /// # Errors
    /// `Argument` when the placement wants layers that there are not; those of `load`.
    pub fn layers<T>(
        &self,
        num_layers: i32,
        mut load: impl FnMut(i32, Scope<'a>) -> Result<T>,
    ) -> Result<Vec<T>> {
        let num_layers = usize::try_from(num_layers).unwrap_or(0);
        let held = self.weights.placement.layers_of(num_layers)?;
        let prefix = self.full("");
        self.weights.left.borrow_mut().tensors.retain(|name, _| {
            let number = name.strip_prefix(&prefix).and_then(|rest| rest.split('.').next());
            let number: Option<usize> = number.and_then(|number| number.parse().ok());
            number.is_none_or(|i| i >= num_layers || held.contains(&i))
        });
        held.map(|i| load(i as i32, self.pp(i))).collect()
    }

    /// What part of the model is loaded.
    pub fn placement(&self) -> &'a Placement {
        self.weights.placement()
    }

    /// [`Weights::rewrite`] by rules whose patterns and templates are names below this scope.
    ///
    /// # Errors
    /// As there.
    pub fn rewrite(&self, rules: Rules) -> Result<()> {
        self.weights.rewrite(&rules.below(&self.prefix))
    }

    /// The module path that this scope stands for.
    pub fn path(&self) -> &str {
        &self.prefix
    }

    fn full(&self, name: impl std::fmt::Display) -> String {
        if self.prefix.is_empty() { name.to_string() } else { format!("{}.{name}", self.prefix) }
    }

    fn folder(&self) -> &Path {
        match &self.weights.source {
            Source::Files { checkpoint, .. } | Source::Plan(checkpoint) => checkpoint.dir(),
            Source::Recorder(_) => Path::new(""),
        }
    }

    /// Whether the weight is in the checkpoint and not taken yet; never so for a recorder.
    pub fn has(&self, name: &str) -> bool {
        self.weights.left.borrow().tensors.contains_key(&self.full(name))
    }

    /// Takes a weight of exactly this shape and, with `accept`, dtype; of it this rank's share along `axis`.
    fn take_share(
        &self,
        name: &str,
        shape: &[i32],
        axis: Option<i32>,
        expected: &'static str,
        accept: impl Fn(Dtype) -> bool,
    ) -> Result<(Rc<Tensor>, Array)> {
        let full = self.full(name);
        let weights = self.weights;
        let tensor = weights.remove(&full, shape)?;
        if tensor.shape != shape {
            return Err(Error::WeightShape {
                path: weights.file_of(&tensor.origin),
                name: full,
                expected: shape.iter().map(|n| *n as usize).collect(),
                got: tensor.shape.iter().map(|n| *n as usize).collect(),
            });
        }
        if !accept(tensor.dtype) {
            return Err(Error::WeightDtype {
                path: weights.file_of(&tensor.origin),
                name: full,
                expected,
                got: tensor.dtype.to_string(),
            });
        }
        if let Source::Plan(_) = weights.source {
            let placeholder = ops::zeros(shape, tensor.dtype)?;
            return Ok((tensor, placeholder));
        }
        let mut array = tensor.array(&|name| weights.array_in_file(name))?;
        if let Some(axis) = axis.filter(|_| weights.placement.size > 1) {
            let what = match axis {
                -1 => "columns",
                -2 => "rows",
                _ => "matrices",
            };
            let share = self.per_rank(what, array.dim(axis))?;
            let start = share * weights.placement.rank as i32;
            array = ops::contiguous(&ops::slice_axis(&array, axis, start, start + share)?)?;
        }
        if self.is_held {
            weights.taken.borrow_mut().arrays.push(array.clone());
        }
        Ok((tensor, array))
    }

    fn plan(&self, planned: impl FnOnce() -> Planned) {
        if let Source::Plan(_) = self.weights.source {
            self.weights.taken.borrow_mut().planned.push(planned());
        }
    }

    /// Takes a weight of exactly this shape and a floating type. Where ranks share outputs, its last axis is theirs,
    /// as it is for a bias.
    ///
    /// # Errors
    /// `MissingWeight`, `WeightShape`, `WeightDtype`; `Checkpoint` when ranks cannot share it.
    pub fn take_float(&self, name: &str, shape: &[i32]) -> Result<Array> {
        let axis = (self.split == Split::Outputs).then_some(-1);
        let (tensor, array) =
            self.take_share(name, shape, axis, "a floating type", Dtype::is_float)?;
        self.plan(|| Planned::Float { name: self.full(name), tensor });
        let role = self.role.filter(|_| name == "weight").unwrap_or(Role::Other);
        self.record(name, array.shape(), role, false, array.nbytes(), array.dtype().to_string());
        Ok(array)
    }

    /// Takes a dense matrix, or a stack of them: `weight`, `[.., N, K]`.
    ///
    /// # Errors
    /// As [`take_float`](Self::take_float).
    pub(crate) fn take_dense(&self, shape: &[i32]) -> Result<Array> {
        let (tensor, array) =
            self.take_share("weight", shape, self.axis(), "a floating type", Dtype::is_float)?;
        self.plan(|| Planned::Matrix { module: self.prefix.clone(), tensor });
        let role = self.role.unwrap_or(Role::Matrix);
        self.record("weight", array.shape(), role, true, array.nbytes(), array.dtype().to_string());
        Ok(array)
    }

    /// Takes a packed matrix, or a stack of them: `weight`, `scales` and, for affine, `biases`. `shape` is the dense
    /// one.
    ///
    /// # Errors
    /// As [`take_float`](Self::take_float).
    pub(crate) fn take_quantized(
        &self,
        shape: &[i32],
        quantization: Quantization,
    ) -> Result<QuantizedWeight> {
        let Quantization { group_size, bits, mode } = quantization;
        let (rows, in_dims) = shape.split_at(shape.len() - 1);
        let in_dims = in_dims[0];
        let is_whole = in_dims % group_size == 0 && i64::from(in_dims) * i64::from(bits) % 32 == 0;
        if !is_whole {
            let reason = format!(
                "`{}` has {in_dims} inputs, which do not divide into groups of {group_size} at {bits} bits",
                self.prefix
            );
            return Err(Error::checkpoint(self.folder(), reason));
        }
        if self.split == Split::Inputs {
            self.per_rank(&format!("groups of {group_size} inputs"), in_dims / group_size)?;
        }
        let packed = [rows, &[(i64::from(in_dims) * i64::from(bits) / 32) as i32]].concat();
        let groups = [rows, &[in_dims / group_size]].concat();
        let axis = self.axis();
        let (weight, w) =
            self.take_share("weight", &packed, axis, "uint32", |d| d == Dtype::U32)?;
        let (scales, biases) = if mode == Mode::Affine {
            let take =
                |name| self.take_share(name, &groups, axis, "a floating type", Dtype::is_float);
            (take("scales")?, Some(take("biases")?))
        } else {
            (self.take_share("scales", &groups, axis, "uint8", |d| d == Dtype::U8)?, None)
        };
        let (biases_tensor, biases) = biases.unzip();
        let (scales_tensor, scales) = scales;
        self.plan(|| Planned::Packed {
            module: self.prefix.clone(),
            packed: Packed { weight, scales: scales_tensor, biases: biases_tensor, quantization },
        });
        let mut held = w.shape().to_vec();
        if let Some(last) = held.last_mut() {
            *last = scales.dim(-1) * group_size;
        }
        let bytes = w.nbytes() + scales.nbytes() + biases.as_ref().map_or(0, Array::nbytes);
        let role = self.role.unwrap_or(Role::Matrix);
        self.record("weight", &held, role, true, bytes, quantization.to_string());
        Ok(QuantizedWeight { w, scales, biases, quantization })
    }

    /// The axis of a matrix along which ranks share it.
    fn axis(&self) -> Option<i32> {
        match self.split {
            Split::Whole => None,
            Split::Outputs => Some(-2),
            Split::Inputs => Some(-1),
            Split::Stack => Some(-3),
        }
    }

    fn record(
        &self,
        name: &str,
        shape: &[i32],
        role: Role,
        is_matrix: bool,
        bytes: usize,
        format: String,
    ) {
        if !self.is_held {
            return;
        }
        self.weights.taken.borrow_mut().records.push(WeightRecord {
            module: self.prefix.clone(),
            name: name.to_owned(),
            shape: shape.to_vec(),
            role,
            is_matrix,
            parameters: shape.iter().map(|n| *n as u64).product(),
            bytes: bytes as u64,
            format,
        });
    }

    /// How the module at this scope is quantised, as mlx-lm decides it: its own entry in config.json, else what
    /// the shapes of its packed weight and scales imply, else not at all. The default in config.json says only
    /// whether any module is. `in_dims` is the dense width.
    ///
    /// # Errors
    /// `Checkpoint` when the shapes imply a setting that MLX lacks.
    pub fn quantization(&self, in_dims: i32) -> Result<Option<Quantization>> {
        let Some(config) = &self.weights.quantization else { return Ok(None) };
        if let Some(own) = config.overrides.get(&self.prefix) {
            return Ok(*own);
        }
        let left = self.weights.left.borrow();
        let tensor = |name| left.tensors.get(&self.full(name));
        let (Some(scales), Some(weight)) = (tensor("scales"), tensor("weight")) else {
            return Ok(None);
        };
        infer(weight, scales, in_dims).map(Some).map_err(|reason| {
            let path = self.weights.file_of(&weight.origin);
            Error::checkpoint(path, format!("`{}` {reason}", self.prefix))
        })
    }
}
