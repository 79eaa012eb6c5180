//! What is known of an array's values before they are computed: the proof that indices fit.
//!
//! MLX does not compare indices with what they index (ADR 0010). Ops that make integers say between
//! which bounds they lie, ops that only move values pass the bounds on, and functions that index
//! look at the values themselves where nothing is known. Every rule here must hold for any input:
//! memory safety rests on it.

use std::ops::RangeInclusive;

use crate::{Array, Dtype, Element, Error, Result};

/// The least and the greatest value that an array of integers may hold; `lo <= hi`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Bounds {
    pub(crate) lo: i64,
    pub(crate) hi: i64,
}

/// Most elements that are looked at where their bounds only might be of use.
const CHEAP_ELEMENTS: usize = 1 << 16;

impl Bounds {
    /// Indices of an axis of `a`: `0..len`.
    pub(crate) fn of_axis(a: &Array, axis: i32) -> Option<Self> {
        let shape = a.shape();
        let i = if axis < 0 { i64::from(axis) + shape.len() as i64 } else { axis.into() };
        let len = *shape.get(usize::try_from(i).ok()?)?;
        (len > 0).then(|| Self { lo: 0, hi: i64::from(len) - 1 })
    }

    pub(crate) fn union(self, other: Self) -> Self {
        Self { lo: self.lo.min(other.lo), hi: self.hi.max(other.hi) }
    }

    /// These bounds if all of their values are values of `dtype`, so that nothing wraps.
    pub(crate) fn fitting(self, dtype: Dtype) -> Option<Self> {
        let (lo, hi) = match dtype {
            Dtype::Bool => (0, 1),
            Dtype::U8 => (0, u8::MAX.into()),
            Dtype::U16 => (0, u16::MAX.into()),
            Dtype::U32 => (0, u32::MAX.into()),
            Dtype::U64 => (0, i64::MAX),
            Dtype::I8 => (i8::MIN.into(), i8::MAX.into()),
            Dtype::I16 => (i16::MIN.into(), i16::MAX.into()),
            Dtype::I32 => (i32::MIN.into(), i32::MAX.into()),
            Dtype::I64 => (i64::MIN, i64::MAX),
            Dtype::F16 | Dtype::F32 | Dtype::F64 | Dtype::Bf16 | Dtype::C64 => return None,
        };
        (lo <= self.lo && self.hi <= hi).then_some(self)
    }

    /// All values of a small type, which may bound an index well enough.
    fn of_dtype(dtype: Dtype) -> Option<Self> {
        let (lo, hi) = match dtype {
            Dtype::Bool => (0, 1),
            Dtype::U8 => (0, u8::MAX.into()),
            Dtype::U16 => (0, u16::MAX.into()),
            Dtype::I8 => (i8::MIN.into(), i8::MAX.into()),
            Dtype::I16 => (i16::MIN.into(), i16::MAX.into()),
            _ => return None,
        };
        Some(Self { lo, hi })
    }

    /// Bounds of every sum of two.
    pub(crate) fn sum(self, other: Self) -> Option<Self> {
        Some(Self { lo: self.lo.checked_add(other.lo)?, hi: self.hi.checked_add(other.hi)? })
    }

    /// Bounds of every difference of two.
    pub(crate) fn difference(self, other: Self) -> Option<Self> {
        Some(Self { lo: self.lo.checked_sub(other.hi)?, hi: self.hi.checked_sub(other.lo)? })
    }

    /// Bounds of quotients; values that are negative, where rounding has two meanings, have none.
    pub(crate) fn quotient(self, divisor: Self) -> Option<Self> {
        (self.lo >= 0 && divisor.lo > 0)
            .then(|| Self { lo: self.lo / divisor.hi, hi: self.hi / divisor.lo })
    }

    /// Bounds of the larger of two.
    pub(crate) fn larger(self, other: Self) -> Self {
        Self { lo: self.lo.max(other.lo), hi: self.hi.max(other.hi) }
    }

    /// Bounds of the smaller of two.
    pub(crate) fn smaller(self, other: Self) -> Self {
        Self { lo: self.lo.min(other.lo), hi: self.hi.min(other.hi) }
    }
}

fn of_values<T: Element + TryInto<i64>>(values: &[T]) -> Option<Bounds> {
    let mut all = values.iter().map(|v| (*v).try_into().ok());
    let first = all.next()??;
    all.try_fold(Bounds { lo: first, hi: first }, |b, v| {
        v.map(|v| b.union(Bounds { lo: v, hi: v }))
    })
}

/// Bounds of values that are computed already or are computed now; none for an array that is empty,
/// not of integers, or beyond `i64`.
fn read(a: &Array) -> Result<Option<Bounds>> {
    Ok(match a.dtype() {
        Dtype::U8 => of_values(&a.to_vec::<u8>()?),
        Dtype::U16 => of_values(&a.to_vec::<u16>()?),
        Dtype::U32 => of_values(&a.to_vec::<u32>()?),
        Dtype::U64 => of_values(&a.to_vec::<u64>()?),
        Dtype::I8 => of_values(&a.to_vec::<i8>()?),
        Dtype::I16 => of_values(&a.to_vec::<i16>()?),
        Dtype::I32 => of_values(&a.to_vec::<i32>()?),
        Dtype::I64 => of_values(&a.to_vec::<i64>()?),
        _ => None,
    })
}

impl Array {
    /// Bounds of the values as far as they are known without computing anything.
    pub(crate) fn bounds(&self) -> Option<Bounds> {
        if let Some(known) = self.bounds.get() {
            return Some(known);
        }
        let dtype = self.dtype();
        if dtype.is_integer() && self.size() <= CHEAP_ELEMENTS && self.is_available() {
            self.bounds.set(read(self).ok().flatten());
        }
        self.bounds.get().or(Bounds::of_dtype(dtype))
    }

    /// The array, whose values are known to lie within `bounds`.
    pub(crate) fn within(self, bounds: Option<Bounds>) -> Self {
        self.bounds.set(bounds.and_then(|b| b.fitting(self.dtype())));
        self
    }

    /// Refuses indices outside of `lo..=hi`, computing them where their bounds are not known.
    ///
    /// # Errors
    /// [`Error::InvalidArgument`] when one is outside or they are not integers.
    pub(crate) fn require(&self, op: &str, what: &str, allowed: RangeInclusive<i64>) -> Result<()> {
        let inside = |b: Bounds| allowed.contains(&b.lo) && allowed.contains(&b.hi);
        if !self.dtype().is_integer() {
            let message = format!("[{op}] {what} must be integers, got {}", self.dtype());
            return Err(Error::InvalidArgument { message });
        }
        let known = self.bounds.get().or(Bounds::of_dtype(self.dtype()));
        if self.size() == 0 || known.is_some_and(inside) {
            return Ok(());
        }
        // Bounds may be wider than the values: only these decide.
        match read(self)? {
            Some(values) => {
                self.bounds.set(Some(values));
                if inside(values) {
                    return Ok(());
                }
                let Bounds { lo, hi } = values;
                let expected = match allowed.is_empty() {
                    true => "have nothing to choose from".to_owned(),
                    false => format!("must lie from {} to {}", allowed.start(), allowed.end()),
                };
                let message = format!("[{op}] {what} {expected}, got values from {lo} to {hi}");
                Err(Error::InvalidArgument { message })
            }
            None => {
                let message = format!("[{op}] {what} hold a value beyond 2^63");
                Err(Error::InvalidArgument { message })
            }
        }
    }

    /// Refuses indices that do not fit an axis of `len`; as in MLX, -1 is the last.
    pub(crate) fn require_index(&self, op: &str, len: i32) -> Result<()> {
        let len = i64::from(len);
        // An unsigned index never counts from the end, and is never negative.
        self.require(op, "indices", -len..=len - 1)
    }

    /// The same array, taken to hold integers within `values` only: indices that a traced function
    /// receives cannot be computed and looked at.
    ///
    /// # Safety
    /// Every value, whenever the graph runs, must lie within `values`; functions that index read and
    /// write outside of memory otherwise.
    pub unsafe fn assume_within(self, values: RangeInclusive<i64>) -> Self {
        let (lo, hi) = values.into_inner();
        self.within((lo <= hi).then_some(Bounds { lo, hi }))
    }

    /// Between which values this array of integers is known to lie, without computing it: what its
    /// making or an earlier look at the values proves. Functions that index ([`take`] and others)
    /// compute indices of which too little is known, and so wait for them.
    ///
    /// [`take`]: crate::ops::take
    pub fn known_within(&self) -> Option<RangeInclusive<i64>> {
        self.bounds().map(|b| b.lo..=b.hi)
    }
}
