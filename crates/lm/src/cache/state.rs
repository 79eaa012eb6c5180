use mlx::Array;

/// What a recurrent layer remembers: arrays whose first axis is the rows, instead of keys and values.
///
/// # Source
/// mlx-lm `cache.py` (`ArraysCache`).
#[derive(Debug, Clone)]
pub struct StateCache {
    pub(super) arrays: Vec<Option<Array>>,
    pub(super) len: i32,
}

impl StateCache {
    /// Room for `num_arrays`.
    pub fn new(num_arrays: usize) -> Self {
        Self { arrays: vec![None; num_arrays], len: 0 }
    }

    /// One of arrays that cover `len` tokens.
    pub(crate) fn from_arrays(arrays: Vec<Array>, len: i32) -> Self {
        Self { arrays: arrays.into_iter().map(Some).collect(), len }
    }

    /// The arrays that are there.
    pub(crate) fn arrays(&self) -> impl Iterator<Item = &Array> {
        self.arrays.iter().flatten()
    }

    /// Rows of all arrays; `None` where one is missing or they differ.
    pub(crate) fn num_rows(&self) -> Option<i32> {
        let rows = |array: &Option<Array>| array.as_ref().map(|array| array.dim(0));
        let first = rows(self.arrays.first()?)?;
        self.arrays.iter().all(|array| rows(array) == Some(first)).then_some(first)
    }

    /// Array `index`, `None` before the first token.
    ///
    /// # Panics
    /// When there is no such array.
    pub fn get(&self, index: usize) -> Option<&Array> {
        self.arrays[index].as_ref()
    }

    /// Array `index`, which is no longer held: what is made of it may then take its place in memory.
    ///
    /// # Panics
    /// When there is no such array.
    pub fn take(&mut self, index: usize) -> Option<Array> {
        self.arrays[index].take()
    }

    /// Replaces array `index`.
    ///
    /// # Panics
    /// When there is no such array.
    pub fn set(&mut self, index: usize, array: Array) {
        self.arrays[index] = Some(array);
    }

    /// Says that the arrays now cover `l` tokens more.
    pub fn advance(&mut self, l: i32) {
        self.len += l;
    }

    /// Tokens seen.
    pub fn len(&self) -> i32 {
        self.len
    }

    /// Whether no token was seen.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    pub(super) fn clear(&mut self) {
        *self = Self::new(self.arrays.len());
    }
}
