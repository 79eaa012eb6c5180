use mlx::Array;
use mlx::recording::{RecordedKv, StepInput};

use super::{GROW_STEP, Position, buffer};
use crate::cache::{KvCache, WindowCache};
use crate::error::Result;

/// One layer's keys and values while a step is recorded: in place, at a position that is data. It lives as long as the
/// step's graph is built, and a clone is the same memory.
#[derive(Debug, Clone)]
pub struct RecordedKvCache {
    kv: RecordedKv,
    input: StepInput,
}

impl RecordedKvCache {
    /// What `kv` holds, copied; `None` where it holds nothing.
    ///
    /// # Errors
    /// `Mlx`.
    pub(crate) fn of(kv: &KvCache, input: &StepInput, capacity: i32) -> Result<Option<Self>> {
        let Some((keys, values)) = &kv.buffers else { return Ok(None) };
        let kv = input.kv(keys, values, capacity)?;
        Ok(Some(Self { kv, input: input.clone() }))
    }

    /// What `window` holds, copied into a ring of its whole size; `None` where it holds nothing.
    ///
    /// # Errors
    /// `Mlx`.
    pub(crate) fn of_window(window: &WindowCache, input: &StepInput) -> Result<Option<Self>> {
        let Some(((keys, values), ring)) = window.ring()? else { return Ok(None) };
        let kv = input.window(&keys, &values, ring)?;
        Ok(Some(Self { kv, input: input.clone() }))
    }

    /// Whether what a token sees of its sequence is what is held: everything, or `window` tokens.
    pub(crate) fn is_seen_by(&self, window: Option<i32>) -> bool {
        window.is_none_or(|window| self.kv.ring().is_some_and(|ring| ring.size <= window))
    }

    /// The memory, for who records.
    pub(crate) fn kv(&self) -> &RecordedKv {
        &self.kv
    }

    /// Tokens held before the step.
    pub fn len(&self) -> i32 {
        self.input.held()
    }

    /// Whether no token is held: never.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Where the step's token stands.
    ///
    /// # Errors
    /// `Mlx` once the step is recorded.
    pub fn position(&self) -> Result<Position> {
        Ok(Position::Dynamic(self.input.position()?))
    }

    /// Attention of the step's token, which is appended.
    ///
    /// - `q`: `[1, H, 1, D]`; `k`, `v`: `[1, Hkv, 1, D]`; returns `[1, H, 1, D]`
    ///
    /// # Errors
    /// `Mlx`, also where there is no kernel.
    pub fn attend(&self, qkv: [&Array; 3], scale: f32, sinks: Option<&Array>) -> Result<Array> {
        Ok(self.kv.attend(qkv, scale, sinks)?)
    }
}

impl KvCache {
    /// One of buffers that hold `len` tokens: those of a recording that is over.
    pub(crate) fn from_buffers(buffers: (Array, Array), len: i32) -> Self {
        Self { buffers: Some(buffers), len, is_latent: false }
    }

    /// Tokens that there will be room for once there is another one.
    pub(crate) fn capacity_for_next(&self) -> i32 {
        match self.capacity() {
            held if self.len < held => held,
            _ => self.len + buffer::room_for(1, self.len),
        }
    }

    /// Sequences in the buffers; 0 without.
    pub(crate) fn num_rows(&self) -> i32 {
        self.buffers.as_ref().map_or(0, |(keys, _)| keys.dim(0))
    }
}

impl WindowCache {
    /// Sequences in the buffers; 0 without.
    pub(crate) fn num_rows(&self) -> i32 {
        self.buffers.as_ref().map_or(0, |(keys, _)| keys.dim(0))
    }

    /// Whether a window of so many tokens is always attended by stock's own kernels on CUDA: over more keys than this stock
    /// asks cuDNN, whose bits are not always the same (docs/adr/0014-stock-on-cuda.md).
    pub(crate) fn is_recorded(&self) -> bool {
        self.max_size() < GROW_STEP
    }
}

#[cfg(test)]
mod tests {
    use mlx::recording::Ring;
    use mlx::{Array, ops};

    use super::*;

    fn tokens(first: i32, n: i32) -> Array {
        let values: Vec<f32> = (first..first + n).map(|i| i as f32).collect();
        Array::from_slice(&values, &[1, 1, n, 1]).unwrap()
    }

    /// What a recorded step does to a ring, and what it sees.
    fn step(rows: &mut Vec<f32>, ring: Ring, token: i32) -> Vec<f32> {
        rows.resize(ring.size as usize, f32::NAN);
        rows[ring.after(1).index as usize - 1] = token as f32;
        rows[..(token + 1).min(ring.size) as usize].to_vec()
    }

    #[test]
    fn ring_is_what_the_window_goes_on_as() {
        for (max_size, keep) in [(8, 0), (8, 3), (5, 4), (1, 0), (300, 2)] {
            for (prompt, then) in
                [(1, 0), (3, 0), (3, 2), (5, 4), (8, 0), (8, 1), (12, 0), (20, 9), (290, 0)]
            {
                let mut window = WindowCache::new(max_size, keep);
                assert!(window.ring().unwrap().is_none());
                let update = |window: &mut WindowCache, first, n| {
                    let new = tokens(first, n);
                    window.update(&new, &new).unwrap().0.to_vec::<f32>().unwrap()
                };
                update(&mut window, 0, prompt);
                (prompt..prompt + then).for_each(|at| drop(update(&mut window, at, 1)));

                let ((keys, _), before) = window.ring().unwrap().unwrap();
                let mut rows = keys.to_vec::<f32>().unwrap();
                let first = prompt + then;
                for steps in 0..2 * max_size.min(20) {
                    let (at, ring) = (first + steps, before.after(steps));
                    let expected = update(&mut window, at, 1);
                    assert_eq!(
                        step(&mut rows, ring, at),
                        expected,
                        "{max_size} {keep} {prompt} {then} {at}"
                    );

                    // and back
                    let buffer = Array::from_slice(&rows, &[1, 1, max_size, 1]).unwrap();
                    let left = before.after(steps + 1);
                    let mut back = WindowCache::from_ring((buffer.clone(), buffer), left, at + 1);
                    let mut same = window.clone();
                    let both = [&mut back, &mut same].map(|window| update(window, at + 1, 1));
                    assert_eq!(
                        both[0], both[1],
                        "{max_size} {keep} {prompt} {then} {at}, continued"
                    );
                }
            }
        }
    }

    #[test]
    fn window_sees_no_more_than_it_holds() {
        let input = StepInput::new(&Array::from_slice(&[1_u32], &[1]).unwrap(), 10, 5, 20).unwrap();
        let mut window = WindowCache::new(4, 0);
        let five = tokens(0, 5);
        window.update(&five, &five).unwrap();
        let recorded = RecordedKvCache::of_window(&window, &input).unwrap().unwrap();
        for (asked, seen) in [(None, true), (Some(4), true), (Some(9), true), (Some(3), false)] {
            assert_eq!(recorded.is_seen_by(asked), seen, "{asked:?}");
        }
        let mut kv = KvCache::default();
        kv.update(&five, &five).unwrap();
        let recorded = RecordedKvCache::of(&kv, &input, 20).unwrap().unwrap();
        assert!(recorded.is_seen_by(None) && !recorded.is_seen_by(Some(100)));
        let one = ops::zeros(&[1, 1, 1, 1], mlx::Dtype::F32).unwrap();
        assert!(recorded.attend([&one; 3], 1.0, None).is_err());
    }
}
