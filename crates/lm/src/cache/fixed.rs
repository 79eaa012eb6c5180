use std::cell::RefCell;
use std::rc::{Rc, Weak};

use mlx::{Array, Dtype, ops};

use super::buffer::room;
use crate::error::{Error, Result};

/// A position as data, and what the layers of a step derive from it once for all of them.
#[derive(Debug)]
pub struct Clock {
    /// A scalar i32.
    position: Array,
    masks: RefCell<Vec<(MaskOf, Array)>>,
    next: RefCell<(i32, Weak<Clock>)>,
}

/// Queries, keys and window of a mask.
type MaskOf = (i32, i32, Option<i32>);

impl Clock {
    /// One that stands at `position`, a scalar i32.
    pub fn new(position: Array) -> Rc<Self> {
        let next = RefCell::new((0, Weak::new()));
        Rc::new(Self { position, masks: RefCell::default(), next })
    }

    /// A scalar i32.
    pub fn position(&self) -> &Array {
        &self.position
    }

    /// The clock `l` tokens later, the same one for all layers of a step.
    fn after(&self, l: i32) -> Result<Rc<Self>> {
        let (known, clock) = &*self.next.borrow();
        if let (true, Some(clock)) = (*known == l, clock.upgrade()) {
            return Ok(clock);
        }
        let clock = Self::new(ops::add(&self.position, &Array::scalar(l)?)?);
        Ok(clock)
    }

    fn remember(&self, l: i32, clock: &Rc<Self>) {
        *self.next.borrow_mut() = (l, Rc::downgrade(clock));
    }

    /// Query `i` of `l` sees key `j` of `capacity` when `j <= position + i < j + window`: `[l, capacity]` bool.
    fn mask(&self, l: i32, capacity: i32, window: Option<i32>) -> Result<Array> {
        let of = (l, capacity, window);
        if let Some((_, mask)) = self.masks.borrow().iter().find(|(known, _)| *known == of) {
            return Ok(mask.clone());
        }
        let keys = ops::arange(0.0, f64::from(capacity), 1.0, Dtype::I32)?;
        let queries = ops::arange(0.0, f64::from(l), 1.0, Dtype::I32)?;
        let queries = ops::expand_dims(&ops::add(&queries, &self.position)?, &[1])?;
        let mut mask = ops::greater_equal(&queries, &keys)?;
        if let Some(window) = window {
            let near = ops::less(&queries, &ops::add(&keys, &Array::scalar(window)?)?)?;
            mask = ops::logical_and(&mask, &near)?;
        }
        self.masks.borrow_mut().push((of, mask.clone()));
        Ok(mask)
    }
}

/// One layer's keys and values, `[B, H, capacity, D]`, whose position is data: the graph of a step is the same at every
/// position, so that one captured step serves all of them. Tokens that are not there yet are masked.
#[derive(Debug, Clone)]
pub struct FixedKvCache {
    pub(super) buffers: Option<(Array, Array)>,
    capacity: i32,
    clock: Rc<Clock>,
    /// Tokens held, as far as the host saw them coming.
    len: i32,
}

impl FixedKvCache {
    /// An empty one; the layers of a cache share `clock`.
    pub fn new(capacity: i32, clock: &Rc<Clock>) -> Self {
        Self { buffers: None, capacity, clock: clock.clone(), len: 0 }
    }

    /// Continues at `clock`, which stands at `len`, with these buffers: those of a captured step, for instance.
    pub fn from_parts(keys: Array, values: Array, clock: &Rc<Clock>, len: i32) -> Self {
        let capacity = keys.dim(2);
        Self { buffers: Some((keys, values)), capacity, clock: clock.clone(), len }
    }

    /// The buffers, `None` before the first token.
    pub fn buffers(&self) -> Option<&(Array, Array)> {
        self.buffers.as_ref()
    }

    /// Tokens held.
    pub fn len(&self) -> i32 {
        self.len
    }

    /// Whether no token is held.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Most tokens that it can hold.
    pub fn capacity(&self) -> i32 {
        self.capacity
    }

    /// Where the next token stands.
    pub fn clock(&self) -> &Clock {
        &self.clock
    }

    pub(super) fn mask(&self, l: i32, window: Option<i32>) -> Result<Array> {
        self.clock.mask(l, self.capacity, window)
    }

    /// Appends `keys` and `values`, `[B, H, L, D]`, and returns the buffers.
    ///
    /// # Errors
    /// `Argument` when they do not fit; `Mlx`.
    pub fn update(&mut self, keys: &Array, values: &Array) -> Result<(Array, Array)> {
        let l = keys.dim(2);
        if self.len + l > self.capacity {
            let reason = format!("{} tokens are held and {l} follow", self.len);
            return Err(Error::argument("cache capacity", self.capacity, reason));
        }
        let (k, v) = match self.buffers.take() {
            Some(held) => held,
            None => (room(keys, self.capacity)?, room(values, self.capacity)?),
        };
        let at = self.clock.position.reshape(&[1])?;
        let all = (
            ops::slice_update_dynamic(&k, keys, &at, &[2])?,
            ops::slice_update_dynamic(&v, values, &at, &[2])?,
        );
        self.buffers = Some(all.clone());
        let next = self.clock.after(l)?;
        self.clock.remember(l, &next);
        self.clock = next;
        self.len += l;
        Ok(all)
    }

    /// Forgets the last `n` tokens, or all where there are fewer; returns how many.
    pub(super) fn trim(&mut self, n: i32) -> Result<i32> {
        let n = n.clamp(0, self.len);
        if n > 0 {
            let next = self.clock.after(-n)?;
            self.clock.remember(-n, &next);
            self.clock = next;
            self.len -= n;
        }
        Ok(n)
    }
}
