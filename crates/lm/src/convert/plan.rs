//! What is written: every tensor of the result, and how it is made of the source's.

use std::collections::BTreeSet;
use std::ops::Range;
use std::rc::Rc;

use mlx::Dtype;
use mlx::quantization::{Mode, Quantization};
use serde_json::{Map, Value};

use super::recipe::{Choice, Chooser, object};
use super::{ConvertOptions, order};
use crate::error::{Error, Result};
use crate::models::family::Conversion;
use crate::rewrite::{Packed, Tensor};
use crate::shards::Entry;
use crate::weights::Planned;

/// How tensors of the result are made.
#[derive(Debug)]
pub(super) enum Work {
    /// A tensor of the source in a type.
    Cast { tensor: Rc<Tensor>, dtype: Dtype },
    /// A dense one in a type, packed: codes, scales and, for affine, biases.
    Quantize { tensor: Rc<Tensor>, dtype: Dtype, quantization: Quantization },
    /// What a packed one stands for.
    Dequantize { packed: Packed, dtype: Dtype },
}

/// Tensors of the result that are made together.
#[derive(Debug)]
pub(super) struct Item {
    pub(super) work: Work,
    /// Which of [`Plan::entries`] they are.
    pub(super) entries: Range<usize>,
}

/// A conversion before it runs.
#[derive(Debug, Default)]
pub(super) struct Plan {
    pub(super) entries: Vec<Entry>,
    pub(super) items: Vec<Item>,
    /// What `config.json` says about quantisation; `None` where nothing is packed.
    pub(super) quantization: Option<Map<String, Value>>,
    pub(super) num_parameters: u64,
}

impl Plan {
    /// - `quantization`: what the source's configuration says, in mlx-lm's spelling
    /// - `dtype`: the type of floating tensors; `None` keeps each one's own
    ///
    /// # Errors
    /// `Argument` for options that do not go with the model.
    pub(super) fn new(
        planned: Vec<Planned>,
        family: &Conversion,
        options: &ConvertOptions,
        quantization: Option<Map<String, Value>>,
        dtype: Option<Dtype>,
    ) -> Result<Self> {
        let planned = order::sorted(planned, family.order);
        let modules: Vec<&str> = planned.iter().filter_map(Planned::matrix).collect();
        let chooser = match &options.quantize {
            None => None,
            Some(_) if modules.is_empty() => {
                let reason = "nothing in it is dense and could be quantised";
                return Err(Error::argument("quantize", "set", reason));
            }
            Some(recipe) => Some(Chooser::new(recipe, family, &modules)?),
        };
        let was_quantized = quantization.is_some();
        let mut plan = Self { quantization, ..Self::default() };
        if let Some(chooser) = &chooser {
            plan.quantization.get_or_insert_with(|| fields(object(chooser.default)));
        }
        let cast = |name: &str, held: Dtype| match dtype {
            Some(dtype)
                if held.is_float() && !family.own_dtype.iter().any(|end| name.ends_with(end)) =>
            {
                dtype
            }
            _ => held,
        };
        let mut sizes = Sizes::default();
        for weight in planned {
            match weight {
                Planned::Float { name, tensor } => {
                    let dtype = cast(&name, tensor.dtype);
                    sizes.add(&name, size(&tensor.shape));
                    plan.cast(name, tensor, dtype);
                }
                Planned::Matrix { module, tensor } => {
                    let name = format!("{module}.weight");
                    sizes.add(&name, size(&tensor.shape));
                    let dtype = cast(&name, tensor.dtype);
                    let columns = tensor.shape.last().copied().unwrap_or(1);
                    let choice = match &chooser {
                        Some(chooser) => chooser.choose(&module, columns)?,
                        None => Choice { setting: None, entry: None },
                    };
                    plan.note(&module, &choice, was_quantized);
                    match choice.setting {
                        None => plan.cast(name, tensor, dtype),
                        Some(setting) => plan.quantize(&module, tensor, dtype, setting),
                    }
                }
                Planned::Packed { module, packed } => {
                    sizes.add(&format!("{module}.weight"), dense_size(&packed));
                    if options.dequantize {
                        plan.dequantize(&module, packed, &cast);
                        continue;
                    }
                    let Packed { weight, scales, biases, .. } = packed;
                    let parts =
                        [("weight", Some(weight)), ("scales", Some(scales)), ("biases", biases)];
                    for (part, tensor) in parts {
                        let Some(tensor) = tensor else { continue };
                        let name = format!("{module}.{part}");
                        let dtype = cast(&name, tensor.dtype);
                        plan.cast(name, tensor, dtype);
                    }
                }
            }
        }
        if options.dequantize {
            plan.quantization = None;
        }
        plan.num_parameters = sizes.total();
        Ok(plan)
    }

    /// Bytes of all tensors.
    pub(super) fn bytes(&self) -> u64 {
        self.entries.iter().map(Entry::bytes).sum()
    }

    /// What `config.json` has to say about a module.
    fn note(&mut self, module: &str, choice: &Choice, was_quantized: bool) {
        let Some(quantization) = &mut self.quantization else { return };
        let entry = match (&choice.entry, choice.setting) {
            (Some(entry), _) => entry.clone(),
            // beside what was packed already, each module is named
            (None, Some(setting)) if was_quantized => object(setting),
            _ => return,
        };
        quantization.insert(module.to_owned(), entry);
    }

    fn push(&mut self, work: Work, entries: impl IntoIterator<Item = Entry>) {
        let start = self.entries.len();
        self.entries.extend(entries);
        self.items.push(Item { work, entries: start..self.entries.len() });
    }

    fn cast(&mut self, name: String, tensor: Rc<Tensor>, dtype: Dtype) {
        let entry = Entry { name, dtype, shape: tensor.shape.clone() };
        self.push(Work::Cast { tensor, dtype }, [entry]);
    }

    fn quantize(
        &mut self,
        module: &str,
        tensor: Rc<Tensor>,
        dtype: Dtype,
        quantization: Quantization,
    ) {
        let Quantization { group_size, bits, mode } = quantization;
        let (columns, rows) = tensor.shape.split_last().unwrap_or((&0, &[]));
        let packed = (i64::from(*columns) * i64::from(bits) / 32) as i32;
        let (packed, groups) =
            ([rows, &[packed]].concat(), [rows, &[columns / group_size]].concat());
        let entry = |part: &str, dtype, shape: &[i32]| Entry {
            name: format!("{module}.{part}"),
            dtype,
            shape: shape.to_vec(),
        };
        let mut entries = vec![entry("weight", Dtype::U32, &packed)];
        if mode == Mode::Affine {
            entries.extend(["scales", "biases"].map(|part| entry(part, dtype, &groups)));
        } else {
            entries.push(entry("scales", Dtype::U8, &groups));
        }
        self.push(Work::Quantize { tensor, dtype, quantization }, entries);
    }

    fn dequantize(&mut self, module: &str, packed: Packed, cast: &dyn Fn(&str, Dtype) -> Dtype) {
        let affine = packed.quantization.mode == Mode::Affine;
        // mlx-lm casts before it unpacks: the floats are then those of the scales
        let scales = cast(&format!("{module}.scales"), packed.scales.dtype);
        let dtype = if affine { scales } else { Dtype::Bf16 };
        let (groups, rows) = packed.scales.shape.split_last().unwrap_or((&0, &[]));
        let shape = [rows, &[groups * packed.quantization.group_size]].concat();
        let entry = Entry { name: format!("{module}.weight"), dtype, shape };
        self.push(Work::Dequantize { packed, dtype: scales }, [entry]);
    }
}

impl Planned {
    /// The path of what it belongs to.
    pub(super) fn module(&self) -> &str {
        match self {
            Self::Float { name, .. } => name.rsplit_once('.').map_or("", |(module, _)| module),
            Self::Matrix { module, .. } | Self::Packed { module, .. } => module,
        }
    }

    /// Its name in its module.
    pub(super) fn name(&self) -> &str {
        match self {
            Self::Float { name, .. } => name.rsplit_once('.').map_or(name, |(_, name)| name),
            Self::Matrix { .. } | Self::Packed { .. } => "weight",
        }
    }

    /// The path of a dense matrix.
    fn matrix(&self) -> Option<&str> {
        if let Self::Matrix { module, .. } = self { Some(module) } else { None }
    }
}

fn fields(value: Value) -> Map<String, Value> {
    if let Value::Object(fields) = value { fields } else { Map::new() }
}

fn size(shape: &[i32]) -> u64 {
    shape.iter().map(|n| u64::from(n.unsigned_abs())).product()
}

fn dense_size(packed: &Packed) -> u64 {
    size(&packed.weight.shape) * 32 / packed.quantization.bits.unsigned_abs() as u64
}

/// Numbers that tensors stand for.
///
/// # Source
/// mlx-lm `utils.py` (`get_total_parameters`), which counts those of modules without modules in them.
#[derive(Default)]
struct Sizes {
    by_module: Vec<(String, u64)>,
}

impl Sizes {
    fn add(&mut self, name: &str, size: u64) {
        let module = name.rsplit_once('.').map_or("", |(module, _)| module);
        self.by_module.push((module.to_owned(), size));
    }

    fn total(&self) -> u64 {
        let mut outer = BTreeSet::new();
        for (module, _) in &self.by_module {
            let mut path = module.as_str();
            while let Some((parent, _)) = path.rsplit_once('.') {
                path = parent;
                outer.insert(parent);
            }
        }
        let inner = self.by_module.iter().filter(|(module, _)| !outer.contains(module.as_str()));
        inner.map(|(_, size)| size).sum()
    }
}

/// The number of bits that a parameter takes on average.
pub(super) fn bits_per_weight(plan: &Plan) -> f64 {
    plan.bytes() as f64 * 8.0 / plan.num_parameters.max(1) as f64
}
