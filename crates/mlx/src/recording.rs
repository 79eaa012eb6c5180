//! Steps of decode that are recorded once and started again for every token, on CUDA.
//!
//! MLX adds every launch of a step to a CUDA graph by itself, which takes the CPU longer than the GPU needs to run it. A
//! recorded step is that graph kept: what changes from token to token (the last token, its position, keys, values, states)
//! lies in memory that the step itself writes, so that starting it again is the next step.
//!
//! ```no_run
//! # use mlx::{Array, Result, recording::{Recording, StepInput}};
//! # fn step(
//! #     (last, keys, values): (&Array, &Array, &Array),
//! #     qkv: impl Fn(&Array, &Array) -> Result<[Array; 3]>,
//! #     choose: impl Fn(&Array) -> Result<Array>,
//! # ) -> Result<()> {
//! // 300 tokens are held in buffers for 512; the vocabulary has 1,000
//! let input = StepInput::new(last, 1000, 300, 512)?;
//! let layer = input.kv(keys, values, 512)?;
//! let [q, k, v] = qkv(&input.token()?, &input.position()?)?;
//! let y = layer.attend([&q, &k, &v], 0.125, None)?;
//! let mut recording = Recording::record(input, &choose(&y)?, vec![layer], Vec::new())?;
//! let first = recording.token(0)?;
//! recording.launch()?;
//! let second = recording.token(1)?;
//! let (len, buffers) = (recording.len(), recording.finish().kv);
//! # Ok(())
//! # }
//! ```
//!
//! # Memory
//!
//! A recorded step writes in place, whoever holds an array. So everything that it writes is a copy that is made here, and is
//! handed out when the recording is over; what a model needs to build the step shares that memory and is not to be read on
//! the host in between. Reading moves an array's memory on CUDA, after which the recording is of no use.

use std::cell::{Cell, RefCell};
use std::fmt;
use std::rc::Rc;

use zmlx_sys::{UniquePtr, ffi};

use crate::bounds::Bounds;
use crate::primitives::{
    Carried, RecordedKeysValues, RecordedLatents, recorded_attention, recorded_latent_attention,
    recorded_step,
};
use crate::{Array, Dtype, Error, Result, eval, ops};

/// Most keys that stock's attention of one query adds in one order; with more it has another. A recording is of one of both.
pub const FEW_KEYS: i32 = 1024;

/// Elements of arrays of which one counts: MLX keeps arrays of up to 8 bytes in memory that the host shares.
const ELEMENTS: i32 = 4;

fn invalid(message: String) -> Error {
    Error::InvalidArgument { message: format!("[recorded_step] {message}") }
}

/// Memory of a step's own, which does not change hands.
#[derive(Debug)]
struct Inputs {
    token: Array,
    position: Array,
    /// What layers read of them, one node for all of them, and position + 1. Never computed but by the step that is recorded.
    token_now: Array,
    position_now: Array,
    length: Array,
    vocab_size: i32,
    len: i32,
    until: i32,
    recorded: Cell<bool>,
    /// Everything that the step writes, which is computed in one go before it is recorded.
    own: RefCell<Vec<Array>>,
    /// What is behind the tokens that are held, of the last buffer: most are alike.
    room: RefCell<Option<Array>>,
}

/// What a step that is going to be recorded reads: the last token and where it stands.
#[derive(Debug, Clone)]
pub struct StepInput(Rc<Inputs>);

impl StepInput {
    /// The input of a step that follows `len` tokens.
    ///
    /// - `token`: the last token, `uint32`, one element; it and all that follow are below `vocab_size`
    /// - `until`: how many tokens the caches may come to hold; the recording ends there. Not beyond [`FEW_KEYS`] where `len`
    ///   is below, but for latents
    ///
    /// # Errors
    /// `InvalidArgument`.
    pub fn new(token: &Array, vocab_size: i32, len: i32, until: i32) -> Result<Self> {
        if token.dtype() != Dtype::U32 || token.size() != 1 {
            let (dtype, shape) = (token.dtype(), token.shape());
            return Err(invalid(format!("the token should be one uint32, got {dtype} {shape:?}")));
        }
        if len < 1 || until <= len || until == i32::MAX {
            return Err(invalid(format!("{len} tokens are held, and {until} is the most")));
        }
        let below = i64::from(vocab_size) - 1;
        token.require("recorded_step", "the token", 0..=below)?;
        let token = ops::full(&[ELEMENTS], &token.reshape(&[])?, Dtype::U32)?
            .within(Some(Bounds { lo: 0, hi: below }));
        let position = ops::full(&[ELEMENTS], &Array::scalar(len)?, Dtype::I32)?
            .within(Some(Bounds { lo: len.into(), hi: until.into() }));
        let own = RefCell::new(vec![token.clone(), position.clone()]);
        let first = |a: &Array| ops::slice_axis(a, 0, 0, 1);
        Ok(Self(Rc::new(Inputs {
            token_now: first(&token)?,
            position_now: first(&position)?.reshape(&[])?,
            length: first(&ops::add(&position, &Array::scalar(1)?)?)?,
            token,
            position,
            vocab_size,
            len,
            until,
            recorded: Cell::new(false),
            own,
            room: RefCell::default(),
        })))
    }

    /// The last token, `[1]`.
    ///
    /// # Errors
    /// `InvalidArgument` once the step is recorded.
    pub fn token(&self) -> Result<Array> {
        self.check_open()?;
        Ok(self.0.token_now.clone())
    }

    /// Where it stands, a scalar `int32`.
    ///
    /// # Errors
    /// `InvalidArgument` once the step is recorded.
    pub fn position(&self) -> Result<Array> {
        self.check_open()?;
        Ok(self.0.position_now.clone())
    }

    /// Tokens before the last one.
    pub fn held(&self) -> i32 {
        self.0.len
    }

    /// A layer's keys and values, copied into buffers for `capacity` tokens.
    ///
    /// - `keys`, `values`: `[1, H, T, D]`, of which the first `len` tokens count
    ///
    /// # Errors
    /// `InvalidArgument` when they do not fit.
    pub fn kv(&self, keys: &Array, values: &Array, capacity: i32) -> Result<RecordedKv> {
        self.check_open()?;
        let Inputs { len, until, .. } = *self.0;
        let fits = |a: &Array| matches!(a.shape(), [1, _, held, _] if *held >= len);
        if !fits(keys) || !fits(values) || capacity < until {
            let (keys, values) = (keys.shape(), values.shape());
            return Err(invalid(format!(
                "{len} tokens of keys {keys:?} and values {values:?} do not go into {capacity} that may become {until}"
            )));
        }
        self.kv_of([keys, values], len, capacity, None)
    }

    /// A layer's keys and values of the last tokens, copied into a ring.
    ///
    /// - `keys`, `values`: `[1, H, T, D]`, rows of the ring from its first one on; those that hold a token are among them
    ///
    /// # Errors
    /// As [`StepInput::kv`].
    pub fn window(&self, keys: &Array, values: &Array, ring: Ring) -> Result<RecordedKv> {
        self.check_open()?;
        let Ring { size, keep, index } = ring;
        let held = self.0.len.min(size);
        let fits = |a: &Array| matches!(a.shape(), [1, _, rows, _] if (held..=size).contains(rows));
        let is_sound = (0..size).contains(&keep) && (0..=size).contains(&index);
        if !is_sound || !fits(keys) || !fits(values) {
            let (keys, values) = (keys.shape(), values.shape());
            return Err(invalid(format!(
                "{held} tokens of keys {keys:?} and values {values:?} do not go into {ring:?}"
            )));
        }
        self.kv_of([keys, values], keys.dim(2).min(values.dim(2)), size, Some(ring))
    }

    /// The first `rows` of `held`, copied into buffers of `capacity`.
    fn kv_of(
        &self,
        held: [&Array; 2],
        rows: i32,
        capacity: i32,
        ring: Option<Ring>,
    ) -> Result<RecordedKv> {
        // joined, so that the memory is new
        let copy = |a: &Array| {
            let mut room = a.shape().to_vec();
            room[2] = capacity - rows;
            let room = self.room(&room, a.dtype())?;
            ops::concatenate(&[ops::slice_axis(a, 2, 0, rows)?, room], 2)
        };
        let [keys, values] = held;
        let (keys, values) = (copy(keys)?, copy(values)?);
        self.0.own.borrow_mut().extend([keys.clone(), values.clone()]);
        Ok(RecordedKv(Rc::new(Kv { input: self.clone(), keys, values, ring })))
    }

    /// Zeros.
    fn room(&self, shape: &[i32], dtype: Dtype) -> Result<Array> {
        let mut last = self.0.room.borrow_mut();
        match &*last {
            Some(room) if room.shape() == shape && room.dtype() == dtype => Ok(room.clone()),
            _ => Ok(last.insert(ops::zeros(shape, dtype)?).clone()),
        }
    }

    /// A copy of a recurrent layer's state.
    ///
    /// # Errors
    /// `InvalidArgument` for integers.
    pub fn state(&self, state: &Array) -> Result<RecordedState> {
        self.check_open()?;
        if !matches!(state.dtype(), Dtype::F16 | Dtype::Bf16 | Dtype::F32) {
            return Err(invalid(format!("a state of {} is not recorded", state.dtype())));
        }
        // a product, so that the memory is new; in rows, as it is written back
        let one = Array::scalar_like(1.0, state)?;
        let copy = ops::contiguous(&ops::multiply(state, &one)?)?;
        self.0.own.borrow_mut().push(copy.clone());
        Ok(RecordedState { input: self.clone(), before: copy })
    }

    fn check_open(&self) -> Result<()> {
        match self.0.recorded.get() {
            true => Err(invalid("the step is recorded already".to_owned())),
            false => Ok(()),
        }
    }

    fn check_own(&self, other: &Self) -> Result<()> {
        match Rc::ptr_eq(&self.0, &other.0) {
            true => Ok(()),
            false => Err(invalid("a layer's memory belongs to another step".to_owned())),
        }
    }
}

/// Where the tokens of a window stand in its buffers: one behind the other up to the end, then over those that came first.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Ring {
    /// Rows, and tokens that count.
    pub size: i32,
    /// First rows that are not written over.
    pub keep: i32,
    /// Row of the step's token; `size` where it starts over.
    pub index: i32,
}

impl Ring {
    /// The same after so many steps.
    pub fn after(self, steps: i32) -> Self {
        let (past, around) = (self.index + steps - self.size, self.size - self.keep);
        let index = match past {
            ..=0 => self.index + steps,
            // the last row is followed by `size`
            _ => self.keep + (past - 1) % around + 1,
        };
        Self { index, ..self }
    }
}

#[derive(Debug)]
struct Kv {
    input: StepInput,
    keys: Array,
    values: Array,
    ring: Option<Ring>,
}

/// A layer's keys and values of a step that is going to be recorded. A clone is the same memory.
#[derive(Debug, Clone)]
pub struct RecordedKv(Rc<Kv>);

impl RecordedKv {
    /// Attention of the step's token, which is appended, with the bits of stock's kernels for one query.
    ///
    /// - `q`: `[1, H, 1, D]`; `k`, `v`: `[1, Hkv, 1, D]`; `sinks`: `[H]`; returns `[1, H, 1, D]`
    ///
    /// # Errors
    /// `InvalidArgument`, also where there is no kernel; `Unsupported` without the feature.
    pub fn attend(
        &self,
        [q, k, v]: [&Array; 3],
        scale: f32,
        sinks: Option<&Array>,
    ) -> Result<Array> {
        let Kv { input, keys, values, ring } = &*self.0;
        input.check_open()?;
        let Inputs { len, until, .. } = *input.0;
        let most = ring.map_or(until, |ring| ring.size);
        if len < FEW_KEYS && FEW_KEYS < most.min(until) {
            return Err(invalid(format!("from {len} to {until} tokens attention is two kernels")));
        }
        let most = ring.map_or(i32::MAX, |ring| ring.size);
        let kv = RecordedKeysValues {
            token: [k, v],
            held: [keys, values],
            lengths: &input.0.length,
            many: input.held().min(most - 1) >= FEW_KEYS,
            ring: ring.map(|ring| [ring.keep, ring.index - input.held()]),
        };
        recorded_attention(q, &kv, sinks, scale)
    }

    /// The same where keys are latents, `[1, 1, T, R]`, and values rotated keys, `[1, 1, T, P]`, with the bits of products that
    /// stock makes by its kernel for a matrix and a vector.
    ///
    /// - `q`: `[1, H, 1, R]` and, rotated, `[1, H, 1, P]`; `token`: `[1, 1, 1, R]` and `[1, 1, 1, P]`; returns `[1, H, 1, R]`
    ///
    /// # Errors
    /// `InvalidArgument`, also where there is no kernel; `Unsupported` without the feature.
    pub fn attend_latents(&self, q: [&Array; 2], token: [&Array; 2], scale: f32) -> Result<Array> {
        let Kv { input, keys, values, .. } = &*self.0;
        input.check_open()?;
        let kv = RecordedLatents { token, held: [keys, values], lengths: &input.0.length };
        recorded_latent_attention(q, &kv, scale)
    }

    /// Tokens that there is room for.
    pub fn capacity(&self) -> i32 {
        self.0.keys.dim(2)
    }

    /// Where they stand, in a window.
    pub fn ring(&self) -> Option<Ring> {
        self.0.ring
    }
}

/// A recurrent layer's state of a step that is going to be recorded.
#[derive(Debug)]
pub struct RecordedState {
    input: StepInput,
    before: Array,
}

impl RecordedState {
    /// The state that the step finds.
    pub fn before(&self) -> &Array {
        &self.before
    }
}

/// What a recording leaves: arrays like any other.
#[derive(Debug, Default)]
pub struct Finished {
    /// Buffers of keys and values, of which the first [`Recording::len`] tokens count or, in a window, as its
    /// [`Ring::after`] as many steps says; in the order in which they came.
    pub kv: Vec<(Array, Array)>,
    /// States, likewise.
    pub states: Vec<Array>,
}

/// A step that was taken once and is started again for every token. It belongs to the thread that recorded it.
pub struct Recording {
    // first, so that it has stopped before its memory goes
    raw: UniquePtr<ffi::Recording>,
    input: StepInput,
    kv: Vec<RecordedKv>,
    states: Vec<Array>,
}

impl Recording {
    /// How many steps may be started before the oldest of them is read.
    pub const MOST_AHEAD: u64 = 8;

    /// Takes the step that computes `chosen`, and keeps it. Index 0 is that step.
    ///
    /// - `chosen`: the token that the step chooses, `uint32` `[1]`, not computed, known to be below the vocabulary's size
    /// - `kv`: of all layers with keys and values
    /// - `states`: of all recurrent layers, each with what the step leaves in its place
    ///
    /// # Errors
    /// `InvalidArgument`, also where steps cannot be recorded; `Backend` when the step holds something that is not known
    /// here, or CUDA refuses, or computing what it begins with fails; `Unsupported` without the feature. Nothing outside of the
    /// recording's memory has changed then.
    pub fn record(
        input: StepInput,
        chosen: &Array,
        kv: Vec<RecordedKv>,
        states: Vec<(RecordedState, Array)>,
    ) -> Result<Self> {
        input.check_open()?;
        kv.iter().try_for_each(|kv| input.check_own(&kv.0.input))?;
        states.iter().try_for_each(|(state, _)| input.check_own(&state.input))?;
        let Inputs { token, position, vocab_size, .. } = &*input.0;
        let below = i64::from(*vocab_size) - 1;
        let known = chosen.bounds.get();
        if !known.is_some_and(|known| known.lo >= 0 && known.hi <= below) {
            return Err(invalid(format!("what is chosen is not known to lie from 0 to {below}")));
        }
        input.0.recorded.set(true);
        eval(&*input.0.own.take())?;
        input.0.room.take();
        let raw = recorded_step(Carried {
            inputs: [token, position],
            chosen,
            states: [
                states.iter().map(|(state, _)| &state.before).collect(),
                states.iter().map(|(_, after)| after).collect(),
            ],
        })?;
        let states = states.into_iter().map(|(state, _)| state.before).collect();
        Ok(Self { raw, input, kv, states })
    }

    /// Starts the next step.
    ///
    /// # Errors
    /// `InvalidArgument` when there is no room for another token, `Backend`.
    pub fn launch(&mut self) -> Result<()> {
        if self.len() >= self.input.0.until {
            return Err(invalid(format!("the recording ends at {} tokens", self.len())));
        }
        Ok(ffi::recording_launch(self.raw.pin_mut())?)
    }

    /// Steps started, the recorded one included.
    pub fn num_started(&self) -> u64 {
        ffi::recording_num_started(&self.raw)
    }

    /// Tokens that the caches hold after these steps.
    pub fn len(&self) -> i32 {
        // as many as there is room for at most
        self.input.held() + self.num_started() as i32
    }

    /// Whether no token is held: never.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Steps that may still be started.
    pub fn room(&self) -> i32 {
        self.input.0.until - self.len()
    }

    /// The token that step `index` chose; waits for it.
    ///
    /// # Errors
    /// `InvalidArgument` for a step that is not one of the last [`MOST_AHEAD`](Self::MOST_AHEAD) that were started;
    /// `Backend`.
    pub fn token(&mut self, index: u64) -> Result<u32> {
        Ok(ffi::recording_token(self.raw.pin_mut(), index)?)
    }

    /// Waits for the steps that were started, and hands out what they wrote.
    pub fn finish(self) -> Finished {
        let Self { raw, kv, states, .. } = self;
        drop(raw);
        let kv = kv.iter().map(|kv| (kv.0.keys.clone(), kv.0.values.clone())).collect();
        Finished { kv, states }
    }
}

impl fmt::Debug for Recording {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Recording").field("len", &self.len()).finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::primitives::{Precision, RecordedStep, Setting, supports};
    use crate::{Device, default_device};

    fn random(seed: u64, shape: &[i32]) -> Array {
        let key = crate::random::key(seed).unwrap();
        crate::random::normal(shape, Dtype::F32, 0.0, 1.0, Some(&key)).unwrap()
    }

    fn token(id: u32) -> Array {
        Array::from_slice(&[id], &[1]).unwrap()
    }

    fn bytes(a: &Array) -> Vec<u8> {
        a.to_bytes().unwrap()
    }

    #[test]
    fn copies_hold_what_was_held_and_room() {
        let input = StepInput::new(&token(7), 10, 5, 8).unwrap();
        assert_eq!(input.token().unwrap().to_vec::<u32>().unwrap(), [7]);
        assert_eq!(input.position().unwrap().item::<i32>().unwrap(), 5);
        assert_eq!(input.token().unwrap().known_within(), Some(0..=9));
        assert_eq!(input.position().unwrap().known_within(), Some(5..=8));
        let (keys, values) = (random(1, &[1, 2, 6, 4]), random(2, &[1, 2, 7, 4]));
        let kv = input.kv(&keys, &values, 16).unwrap();
        assert_eq!(kv.capacity(), 16);
        for (copy, original) in [(&kv.0.keys, &keys), (&kv.0.values, &values)] {
            let first = |a: &Array| bytes(&ops::slice_axis(a, 2, 0, 5).unwrap());
            assert_eq!(first(copy), first(original));
            let room = ops::slice_axis(copy, 2, 5, 16).unwrap();
            assert!(room.to_vec::<f32>().unwrap().iter().all(|x| *x == 0.0));
        }
        let swapped = ops::swapaxes(&random(3, &[1, 3, 4]), 1, 2).unwrap();
        let state = input.state(&swapped).unwrap();
        assert_eq!(bytes(state.before()), bytes(&swapped));
    }

    #[test]
    fn window_starts_over_behind_what_stays() {
        let ring = Ring { size: 4, keep: 1, index: 2 };
        let indices = (0..9).map(|steps| ring.after(steps).index).collect::<Vec<_>>();
        assert_eq!(indices, [2, 3, 4, 2, 3, 4, 2, 3, 4]);
        let full = Ring { size: 3, keep: 0, index: 3 };
        let indices = (0..6).map(|steps| full.after(steps).index).collect::<Vec<_>>();
        assert_eq!(indices, [3, 1, 2, 3, 1, 2]);

        let input = StepInput::new(&token(7), 10, 5, 100).unwrap();
        let (keys, values) = (random(1, &[1, 2, 4, 4]), random(2, &[1, 2, 4, 4]));
        let kv = input.window(&keys, &values, ring).unwrap();
        assert_eq!((kv.capacity(), kv.ring()), (4, Some(ring)));
        assert_eq!([bytes(&kv.0.keys), bytes(&kv.0.values)], [bytes(&keys), bytes(&values)]);
        // not full yet, with room for it
        let wide = Ring { size: 6, keep: 0, index: 5 };
        let five = random(3, &[1, 2, 5, 4]);
        let kv = input.window(&five, &five, wide).unwrap();
        assert_eq!(bytes(&ops::slice_axis(&kv.0.keys, 2, 0, 5).unwrap()), bytes(&five));
        assert_eq!(kv.capacity(), 6);
        for (held, ring) in [
            (&keys, wide),
            (&five, ring),
            (&keys, Ring { index: 5, ..ring }),
            (&keys, Ring { keep: 4, ..ring }),
        ] {
            let message = input.window(held, held, ring).unwrap_err().to_string();
            assert!(message.contains("do not go into Ring"), "{message}");
        }
    }

    #[test]
    fn what_does_not_fit_is_refused() {
        let refused = |result: Result<()>, part: &str| {
            let message = result.unwrap_err().to_string();
            assert!(message.contains(part) && message.contains("[recorded_step]"), "{message}");
        };
        let new = |token: &Array, vocab, len, until| StepInput::new(token, vocab, len, until);
        refused(new(&token(10), 10, 5, 8).map(drop), "from 0 to 9");
        refused(new(&token(1), 10, 0, 8).map(drop), "0 tokens are held");
        refused(new(&token(1), 10, 8, 8).map(drop), "8 is the most");
        let both = new(&token(1), 10, 1023, 1025).unwrap();
        let keys = random(1, &[1, 2, 1023, 4]);
        let both = both.kv(&keys, &keys, 1030).unwrap();
        let one = random(1, &[1, 2, 1, 4]);
        refused(both.attend([&one, &one, &one], 1.0, None).map(drop), "two kernels");
        refused(new(&Array::scalar(1).unwrap(), 10, 5, 8).map(drop), "one uint32");
        refused(new(&ops::zeros(&[2], Dtype::U32).unwrap(), 10, 5, 8).map(drop), "one uint32");
        let input = new(&token(1), 10, 5, 8).unwrap();
        let kv = |held, rows, capacity| {
            let keys = random(1, &[rows, 2, held, 4]);
            input.kv(&keys, &keys, capacity)
        };
        refused(kv(4, 1, 8).map(drop), "do not go into 8");
        refused(kv(5, 2, 8).map(drop), "do not go into 8");
        refused(kv(5, 1, 7).map(drop), "may become 8");
        refused(input.state(&token(1)).map(drop), "uint32");

        let chosen = ops::argmax(&random(1, &[1, 10]), -1, false).unwrap();
        let wide = ops::argmax(&random(1, &[1, 11]), -1, false).unwrap();
        let record = |chosen, kv| Recording::record(input.clone(), chosen, kv, Vec::new());
        refused(record(&wide, Vec::new()).map(drop), "from 0 to 9");
        let other = new(&token(1), 10, 5, 8).unwrap();
        let keys = random(1, &[1, 2, 5, 4]);
        let others = other.kv(&keys, &keys, 8).unwrap();
        refused(record(&chosen, vec![others]).map(drop), "another step");
    }

    #[test]
    fn device_that_records_nothing_says_so() {
        let device = default_device();
        let setting = Setting { device, dtype: Dtype::Bf16, precision: Precision::Exact };
        if device == Device::Gpu && supports(&RecordedStep, &setting).is_ok() {
            return;
        }
        let input = StepInput::new(&token(1), 10, 5, 8).unwrap();
        let keys = random(1, &[1, 2, 5, 64]);
        let kv = input.kv(&keys, &keys, 8).unwrap();
        let one = random(1, &[1, 2, 1, 64]);
        assert!(kv.attend([&one, &one, &one], 1.0, None).is_err());
        assert!(kv.attend_latents([&one, &one], [&one, &one], 1.0).is_err());
        let chosen = ops::argmax(&random(1, &[1, 10]), -1, false).unwrap();
        assert!(Recording::record(input.clone(), &chosen, vec![kv], Vec::new()).is_err());
        // once recorded, or tried to be, its memory is nobody's
        let message = input.token().unwrap_err().to_string();
        assert!(message.contains("recorded already"), "{message}");
    }
}
