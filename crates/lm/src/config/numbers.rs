//! Numbers of a configuration, in the range that they must have.

use std::fmt;
use std::ops::Deref;

use serde::de::{Deserialize, Deserializer, Error, Unexpected, Visitor};

/// A whole number within `1..=i32::MAX`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Size(i32);

/// A whole number within `0..=i32::MAX`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Default)]
pub struct Count(i32);

/// A number above zero that is finite, also as `f32`.
#[derive(Debug, Clone, Copy, PartialEq, PartialOrd)]
pub struct Positive(f64);

impl Size {
    /// For constants in source.
    ///
    /// # Panics
    /// Below 1; in a constant, when it is compiled.
    pub const fn constant(value: i32) -> Self {
        assert!(value >= 1, "a size is a whole number from 1");
        Self(value)
    }

    /// For defaults; `None` below 1.
    pub const fn new(value: i32) -> Option<Self> {
        if value < 1 { None } else { Some(Self(value)) }
    }
}

impl Count {
    /// For constants in source.
    ///
    /// # Panics
    /// Below 0; in a constant, when it is compiled.
    pub const fn constant(value: i32) -> Self {
        assert!(value >= 0, "a count is a whole number from 0");
        Self(value)
    }

    /// For defaults; `None` below 0.
    pub const fn new(value: i32) -> Option<Self> {
        if value < 0 { None } else { Some(Self(value)) }
    }
}

impl Positive {
    /// For constants in source.
    ///
    /// # Panics
    /// When it is not above zero and finite; in a constant, when it is compiled.
    pub const fn constant(value: f64) -> Self {
        let rounded = value as f32;
        assert!(rounded.is_finite() && rounded > 0.0, "a number above zero");
        Self(value)
    }

    /// For defaults; `None` where it is not above zero and finite.
    pub fn new(value: f64) -> Option<Self> {
        let rounded = value as f32;
        (rounded.is_finite() && rounded > 0.0).then_some(Self(value))
    }

    /// As a kernel takes it.
    pub fn f32(self) -> f32 {
        self.0 as f32
    }

    /// As it is in the file, for what Python computes with it.
    pub fn f64(self) -> f64 {
        self.0
    }
}

impl Deref for Size {
    type Target = i32;
    fn deref(&self) -> &i32 {
        &self.0
    }
}

impl Deref for Count {
    type Target = i32;
    fn deref(&self) -> &i32 {
        &self.0
    }
}

struct Whole {
    at_least: i32,
}

impl Visitor<'_> for Whole {
    type Value = i32;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "a whole number from {}", self.at_least)
    }

    fn visit_i64<E: Error>(self, value: i64) -> Result<i32, E> {
        i32::try_from(value)
            .ok()
            .filter(|n| *n >= self.at_least)
            .ok_or_else(|| E::invalid_value(Unexpected::Signed(value), &self))
    }

    fn visit_u64<E: Error>(self, value: u64) -> Result<i32, E> {
        i64::try_from(value)
            .map_err(|_| E::invalid_value(Unexpected::Unsigned(value), &self))
            .and_then(|value| self.visit_i64(value))
    }
}

struct AboveZero;

impl Visitor<'_> for AboveZero {
    type Value = Positive;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a number above zero")
    }

    fn visit_f64<E: Error>(self, value: f64) -> Result<Positive, E> {
        Positive::new(value).ok_or_else(|| E::invalid_value(Unexpected::Float(value), &self))
    }

    fn visit_i64<E: Error>(self, value: i64) -> Result<Positive, E> {
        self.visit_f64(value as f64)
    }

    fn visit_u64<E: Error>(self, value: u64) -> Result<Positive, E> {
        self.visit_f64(value as f64)
    }
}

impl<'de> Deserialize<'de> for Size {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_i64(Whole { at_least: 1 }).map(Self)
    }
}

impl<'de> Deserialize<'de> for Count {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_i64(Whole { at_least: 0 }).map(Self)
    }
}

impl<'de> Deserialize<'de> for Positive {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_f64(AboveZero)
    }
}

/// A number that is finite, also as `f32`.
#[derive(Debug, Clone, Copy, PartialEq, PartialOrd, Default)]
pub struct Finite(f64);

impl Finite {
    /// As it is in the file.
    pub fn f64(self) -> f64 {
        self.0
    }
}

struct AnyFinite;

impl Visitor<'_> for AnyFinite {
    type Value = Finite;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a number")
    }

    fn visit_f64<E: Error>(self, value: f64) -> Result<Finite, E> {
        if (value as f32).is_finite() {
            return Ok(Finite(value));
        }
        Err(E::invalid_value(Unexpected::Float(value), &self))
    }

    fn visit_i64<E: Error>(self, value: i64) -> Result<Finite, E> {
        self.visit_f64(value as f64)
    }

    fn visit_u64<E: Error>(self, value: u64) -> Result<Finite, E> {
        self.visit_f64(value as f64)
    }
}

impl<'de> Deserialize<'de> for Finite {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_f64(AnyFinite)
    }
}

/// For `#[serde(default = "size::<8>")]`.
pub fn size<const N: i32>() -> Size {
    const { Size::constant(N) }
}

/// For `#[serde(default = "count::<0>")]`.
pub fn count<const N: i32>() -> Count {
    const { Count::constant(N) }
}

/// For `#[serde(default = "whole::<10_000>")]`.
pub fn whole<const N: i32>() -> Positive {
    const { Positive::constant(N as f64) }
}

/// For `#[serde(default = "yes")]`.
pub fn yes() -> bool {
    true
}
