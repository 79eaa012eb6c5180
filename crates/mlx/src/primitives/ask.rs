//! Asking whether a primitive runs fused.

use std::fmt::{self, Debug, Display, Formatter};

use zmlx_sys::ffi;

use super::Precision;
use crate::quantization::Quantization;
use crate::{Device, Dtype};

/// What a primitive is asked about: everything that is going to be run, by name.
///
/// The names are those that the primitive's folder in `mlx-patch/overlay/` lists; one that is
/// missing there or here is an error of [`supports`].
pub trait Ask: Debug {
    /// Name of the primitive.
    fn primitive(&self) -> &'static str;
    /// The op's arguments that are no arrays, and the sizes of those that are.
    fn parameters(&self) -> Parameters;
    /// Type of what it gets, where that is not the type of the activations around it.
    fn dtype(&self) -> Option<Dtype> {
        None
    }
}

/// The same question where what the primitive gets has a type of its own.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct InType<A> {
    /// The question.
    pub ask: A,
    /// The type.
    pub dtype: Dtype,
}

impl<A: Ask> Ask for InType<A> {
    fn primitive(&self) -> &'static str {
        self.ask.primitive()
    }

    fn parameters(&self) -> Parameters {
        self.ask.parameters()
    }

    fn dtype(&self) -> Option<Dtype> {
        Some(self.dtype)
    }
}

/// Where and how a primitive is going to run.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Setting {
    /// The device of the stream.
    pub device: Device,
    /// Type of the activations.
    pub dtype: Dtype,
    /// The bits of stock, or any order of additions.
    pub precision: Precision,
}

/// Values by name.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Parameters(Vec<(&'static str, Value)>);

/// A value of [`Parameters`].
#[derive(Debug, Clone, Copy, PartialEq)]
#[non_exhaustive]
pub enum Value {
    /// A count or a size.
    Integer(i64),
    /// A factor.
    Number(f64),
    /// Whether something is there.
    Flag(bool),
    /// One of several names.
    Text(&'static str),
}

impl Parameters {
    /// None yet.
    pub fn new() -> Self {
        Self::default()
    }

    /// These and one more.
    #[must_use]
    pub fn with(mut self, name: &'static str, value: impl Into<Value>) -> Self {
        self.0.push((name, value.into()));
        self
    }

    /// These and those of a quantization: `group_size`, `bits`, `mode`.
    #[must_use]
    pub fn quantization(self, q: Quantization) -> Self {
        self.with("group_size", q.group_size).with("bits", q.bits).with("mode", q.mode.name())
    }

    /// These and whether a projection has a bias, by the name of its type.
    #[must_use]
    pub(super) fn bias(self, bias: Option<Dtype>) -> Self {
        self.with("bias", bias.map_or("none", Dtype::name))
    }

    /// Names and values in the order in which they came.
    pub fn iter(&self) -> impl Iterator<Item = (&'static str, Value)> + '_ {
        self.0.iter().copied()
    }
}

impl Display for Parameters {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        for (i, (name, value)) in self.0.iter().enumerate() {
            let comma = if i == 0 { "" } else { ", " };
            write!(f, "{comma}{name} {value}")?;
        }
        Ok(())
    }
}

impl Display for Value {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        match self {
            Value::Integer(v) => write!(f, "{v}"),
            Value::Number(v) => write!(f, "{v}"),
            Value::Flag(v) => write!(f, "{v}"),
            Value::Text(v) => f.write_str(v),
        }
    }
}

impl From<i32> for Value {
    fn from(v: i32) -> Self {
        Value::Integer(v.into())
    }
}

impl From<f32> for Value {
    fn from(v: f32) -> Self {
        Value::Number(v.into())
    }
}

impl From<bool> for Value {
    fn from(v: bool) -> Self {
        Value::Flag(v)
    }
}

impl From<&'static str> for Value {
    fn from(v: &'static str) -> Self {
        Value::Text(v)
    }
}

/// Whether a primitive runs fused as asked.
///
/// # Errors
/// The reason why it does not, for people to read.
pub fn supports(ask: &dyn Ask, setting: &Setting) -> Result<(), String> {
    answer(ask, setting, false)
}

/// Whether a primitive would run fused as asked on a Mac, whatever this build is for; of `setting` the device does not
/// count.
///
/// # Errors
/// The reason why it would not, for people to read.
pub fn supports_on_metal(ask: &dyn Ask, setting: &Setting) -> Result<(), String> {
    answer(ask, &Setting { device: Device::Gpu, ..*setting }, true)
}

fn answer(ask: &dyn Ask, setting: &Setting, metal: bool) -> Result<(), String> {
    let parameters: Vec<ffi::Parameter> =
        ask.parameters().iter().map(|(name, value)| parameter(name, value)).collect();
    let support = ffi::fused_supports(
        ask.primitive(),
        setting.device.is_gpu(),
        metal,
        ask.dtype().unwrap_or(setting.dtype).id(),
        setting.precision == Precision::Fast,
        &parameters,
    );
    match support {
        Ok(s) if s.fused => Ok(()),
        Ok(s) => Err(s.reason),
        Err(e) => Err(crate::Error::from(e).to_string()),
    }
}

fn parameter(name: &'static str, value: Value) -> ffi::Parameter {
    let kind = match value {
        Value::Integer(_) => ffi::ParameterKind::Integer,
        Value::Number(_) => ffi::ParameterKind::Number,
        Value::Flag(_) => ffi::ParameterKind::Flag,
        Value::Text(_) => ffi::ParameterKind::Text,
    };
    ffi::Parameter {
        name: name.to_owned(),
        kind,
        integer: if let Value::Integer(v) = value { v } else { 0 },
        number: if let Value::Number(v) = value { v } else { 0.0 },
        flag: value == Value::Flag(true),
        text: if let Value::Text(v) = value { v.to_owned() } else { String::new() },
    }
}
