//! Weights on their way from checkpoint to layers: taken by name, each shape checked, none left over.

use std::cell::RefCell;
use std::collections::HashMap;

use mlx::Array;
use mlx::quantization::{Mode, Quantization};

use crate::checkpoint::Checkpoint;
use crate::config::{self, QuantizationConfig};
use crate::error::{Error, Result};

/// A checkpoint's arrays, handed out one by one.
pub struct Weights {
    checkpoint: Checkpoint,
    quantization: Option<QuantizationConfig>,
    left: RefCell<HashMap<String, Array>>,
    taken: RefCell<Taken>,
}

/// What a model took from its checkpoint.
#[derive(Debug, Default)]
pub struct Taken {
    arrays: Vec<Array>,
    /// One per matrix or vector, scales and biases counted with what they scale.
    pub records: Vec<WeightRecord>,
}

impl Taken {
    /// Reads everything into memory.
    ///
    /// # Errors
    /// `Mlx`.
    pub fn read(&self) -> Result<()> {
        // One by one: a stack of experts then holds its parts only while it is made.
        for array in &self.arrays {
            array.eval()?;
        }
        Ok(())
    }
}

/// One weight of a model.
#[derive(Debug, Clone)]
pub struct WeightRecord {
    /// Path of its module.
    pub module: String,
    /// Numbers it stands for.
    pub parameters: u64,
    /// Bytes it takes.
    pub bytes: u64,
    /// How it is quantised; its dtype when it is not.
    pub format: String,
    /// Whether it is a stack with one matrix per expert.
    pub per_expert: bool,
}

impl Weights {
    /// Lazy arrays of every tensor in `checkpoint`.
    ///
    /// # Errors
    /// `Mlx`.
    pub fn new(checkpoint: Checkpoint, quantization: Option<QuantizationConfig>) -> Result<Self> {
        let left = RefCell::new(checkpoint.arrays()?);
        Ok(Self { checkpoint, quantization, left, taken: RefCell::default() })
    }

    /// The scope of full names.
    pub fn root(&self) -> Scope<'_> {
        Scope { weights: self, prefix: String::new() }
    }

    /// Names not taken yet, sorted.
    pub fn names(&self) -> Vec<String> {
        let mut names: Vec<_> = self.left.borrow().keys().cloned().collect();
        names.sort();
        names
    }

    /// Drops a weight that the model has no use for, if it is there.
    pub fn discard(&self, name: &str) {
        self.left.borrow_mut().remove(name);
    }

    /// Replaces the weights `sources` by their stack under `name`.
    ///
    /// # Errors
    /// `MissingWeight`; `Mlx` when the shapes differ.
    pub fn stack(&self, sources: &[String], name: &str) -> Result<()> {
        let parts = sources.iter().map(|source| self.remove(source)).collect::<Result<Vec<_>>>()?;
        let stacked = mlx::ops::stack(&parts, 0)?;
        self.left.borrow_mut().insert(name.to_owned(), stacked);
        Ok(())
    }

    /// Checks that nothing is left.
    ///
    /// # Errors
    /// `UnexpectedWeight`.
    pub fn finish(self) -> Result<Taken> {
        let names = self.names();
        if let Some(first) = names.first() {
            let path = self.checkpoint.file_of(first).to_owned();
            return Err(Error::UnexpectedWeight { names, path });
        }
        Ok(self.taken.take())
    }

    fn remove(&self, name: &str) -> Result<Array> {
        self.left.borrow_mut().remove(name).ok_or_else(|| Error::MissingWeight {
            name: name.to_owned(),
            path: self.checkpoint.dir().to_owned(),
        })
    }
}

/// A name prefix into [`Weights`], as each block of a model sees them.
#[derive(Clone)]
pub struct Scope<'a> {
    weights: &'a Weights,
    prefix: String,
}

impl Scope<'_> {
    /// The scope one name deeper.
    pub fn pp(&self, name: impl std::fmt::Display) -> Self {
        Self { weights: self.weights, prefix: self.full(name) }
    }

    /// The module path that this scope stands for.
    pub fn path(&self) -> &str {
        &self.prefix
    }

    fn full(&self, name: impl std::fmt::Display) -> String {
        if self.prefix.is_empty() { name.to_string() } else { format!("{}.{name}", self.prefix) }
    }

    /// Whether the weight is in the checkpoint and not taken yet.
    pub fn has(&self, name: &str) -> bool {
        self.weights.left.borrow().contains_key(&self.full(name))
    }

    /// Takes a weight of exactly this shape.
    ///
    /// # Errors
    /// `MissingWeight`, `WeightShape`.
    pub fn take(&self, name: &str, shape: &[i32]) -> Result<Array> {
        let full = self.full(name);
        let array = self.weights.remove(&full)?;
        if array.shape() != shape {
            return Err(Error::WeightShape {
                path: self.weights.checkpoint.file_of(&full).to_owned(),
                name: full,
                expected: shape.iter().map(|n| *n as usize).collect(),
                got: array.shape().iter().map(|n| *n as usize).collect(),
            });
        }
        self.weights.taken.borrow_mut().arrays.push(array.clone());
        Ok(array)
    }

    /// As [`take`](Self::take), for a weight of floating type.
    ///
    /// # Errors
    /// Also `WeightDtype`.
    pub fn take_float(&self, name: &str, shape: &[i32]) -> Result<Array> {
        let array = self.take(name, shape)?;
        if array.dtype().is_float() {
            return Ok(array);
        }
        Err(self.dtype_error(name, "a floating type", &array))
    }

    /// Notes what the arrays taken in this scope amount to.
    pub(crate) fn record(&self, parameters: u64, bytes: u64, format: String, per_expert: bool) {
        let record =
            WeightRecord { module: self.prefix.clone(), parameters, bytes, format, per_expert };
        self.weights.taken.borrow_mut().records.push(record);
    }

    pub(crate) fn dtype_error(&self, name: &str, expected: &'static str, array: &Array) -> Error {
        let name = self.full(name);
        Error::WeightDtype {
            path: self.weights.checkpoint.file_of(&name).to_owned(),
            name,
            expected,
            got: array.dtype().to_string(),
        }
    }

    /// How the module at this scope is quantised, as mlx-lm decides it: its own entry in config.json, else what
    /// the shapes of its packed weight and scales imply, else not at all. `in_dims` is the dense width.
    ///
    /// # Errors
    /// `Checkpoint` when the shapes imply a setting that MLX lacks.
    pub fn quantization(&self, in_dims: i32) -> Result<Option<Quantization>> {
        let Some(config) = &self.weights.quantization else { return Ok(None) };
        if let Some(own) = config.overrides.get(&self.prefix) {
            return Ok(*own);
        }
        let left = self.weights.left.borrow();
        let (Some(scales), Some(weight)) =
            (left.get(&self.full("scales")), left.get(&self.full("weight")))
        else {
            return Ok(None);
        };
        let last = |array: &Array| array.shape().last().copied().unwrap_or(1).max(1);
        let group_size = in_dims / last(scales);
        let bits = (i64::from(last(weight)) * 32 / i64::from(in_dims)) as i32;
        let mode = if scales.dtype() != mlx::Dtype::U8 {
            Mode::Affine
        } else if (bits, group_size) == (4, 16) {
            Mode::Nvfp4
        } else if bits == 8 {
            Mode::Mxfp8
        } else {
            Mode::Mxfp4
        };
        let setting = Quantization { group_size, bits, mode };
        if config::is_valid(setting) {
            return Ok(Some(setting));
        }
        let path = self.weights.checkpoint.file_of(&self.full("weight"));
        let reason = format!(
            "`{}` has a packed weight {:?} and scales {:?} ({}) for {in_dims} inputs: {bits} bits in groups of \
             {group_size} is no quantization that MLX has",
            self.prefix,
            weight.shape(),
            scales.shape(),
            scales.dtype(),
        );
        Err(Error::checkpoint(path, reason))
    }
}
