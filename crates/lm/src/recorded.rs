//! Steps of decode that are recorded: when it pays, on which memory, and the way back to ordinary caches.

use std::fmt::Debug;

use mlx::Array;
use mlx::recording::{FEW_KEYS, Recording, Ring, StepInput};

use crate::cache::{Cache, KvCache, LayerCache, RecordedKvCache, StateCache, WindowCache};
use crate::error::{Error, Result};
use crate::models::Model;
use crate::step::Step;

/// Fewest steps that a recording is made for: making one copies the caches and takes as long as a few steps.
const FEWEST_STEPS: i32 = 16;

/// Makes recordings. Tests have one that needs no GPU.
pub(crate) trait Recorder: Debug {
    /// Takes the step after `token` `[1]` and records it, where that is possible and pays.
    ///
    /// - `cache`: of one sequence; copied, and left as it is
    /// - `most`: steps that are still wanted
    ///
    /// # Errors
    /// `Mlx`, `Argument`, when the step cannot be recorded for a reason that only building it shows.
    fn record(
        &self,
        model: &dyn Model,
        cache: &Cache,
        token: &Array,
        most: usize,
    ) -> Result<Option<Box<dyn RecordedSteps>>>;
}

/// A step that was taken, index 0, and may be taken again.
pub(crate) trait RecordedSteps: Debug {
    /// Starts the next one.
    fn launch(&mut self) -> Result<()>;

    /// Steps started.
    fn num_started(&self) -> u64;

    /// How many more may be started.
    fn room(&self) -> i32;

    /// The token of one of the last [`Recording::MOST_AHEAD`]; waits for it.
    fn token(&mut self, index: u64) -> Result<u32>;

    /// Ends it: the ordinary cache after all steps that were started.
    fn settle(&mut self) -> Result<Cache>;
}

/// What a recording would look like.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Plan {
    /// Tokens held before its first step.
    pub(crate) len: i32,
    /// Tokens held after its last one.
    pub(crate) until: i32,
    /// Tokens that buffers of every token have room for, as many as those of a growing cache would.
    pub(crate) capacity: i32,
}

impl Plan {
    /// One for a cache of which every layer can be recorded, where at least a few of the `most` steps that are still wanted
    /// have room.
    pub(crate) fn of(cache: &Cache, most: usize) -> Option<Self> {
        let (mut held, mut room) = (None, None);
        let same = |all: &mut Option<i32>, own| *all.get_or_insert(own) == own;
        for layer in &cache.layers {
            let fits = match layer {
                LayerCache::Kv(kv) if !kv.is_latent() && kv.num_rows() == 1 => {
                    same(&mut held, kv.len()) && same(&mut room, kv.capacity_for_next())
                }
                LayerCache::Window(window) if window.is_recorded() && window.num_rows() == 1 => {
                    same(&mut held, window.len())
                }
                LayerCache::State(state) => state.num_rows() == Some(1),
                _ => false,
            };
            if !fits {
                return None;
            }
        }
        let len = held.filter(|len| *len > 0)?;
        let most = i32::try_from(most).unwrap_or(i32::MAX);
        // windows have room for every token
        let capacity = room.unwrap_or(len.saturating_add(most).min(i32::MAX - 1));
        // with more keys attention adds in another order
        let until = if len < FEW_KEYS { capacity.min(FEW_KEYS) } else { capacity };
        let steps = (until - len).min(most);
        (steps >= FEWEST_STEPS).then_some(Self { len, until, capacity })
    }
}

/// Records what the device runs.
#[derive(Debug)]
pub(crate) struct OnDevice;

impl Recorder for OnDevice {
    fn record(
        &self,
        model: &dyn Model,
        cache: &Cache,
        token: &Array,
        most: usize,
    ) -> Result<Option<Box<dyn RecordedSteps>>> {
        if !model.head().is_recorded() {
            return Ok(None);
        }
        let Some(plan) = Plan::of(cache, most) else { return Ok(None) };
        Ok(Some(Box::new(OnDeviceSteps::record(model, cache, token, plan)?)))
    }
}

/// Layers of a cache that are recorded, to be made again of what a recording leaves.
#[derive(Debug, Clone, Copy)]
enum Part {
    Kv,
    /// As it was before the recorded step.
    Window(Ring),
    /// With so many arrays.
    State(usize),
}

#[derive(Debug)]
struct OnDeviceSteps {
    /// Until it is settled.
    recording: Option<Recording>,
    parts: Vec<Part>,
}

impl OnDeviceSteps {
    fn record(model: &dyn Model, cache: &Cache, token: &Array, plan: Plan) -> Result<Self> {
        let Plan { len, until, capacity } = plan;
        let input = StepInput::new(token, model.vocab_size() as i32, len, until)?;
        let mut states = Vec::new();
        let mut layers = Vec::with_capacity(cache.layers.len());
        for layer in &cache.layers {
            layers.push(match layer {
                LayerCache::Kv(kv) => LayerCache::Recorded(
                    RecordedKvCache::of(kv, &input, capacity)?.ok_or_else(unexpected)?,
                ),
                LayerCache::Window(window) => LayerCache::Recorded(
                    RecordedKvCache::of_window(window, &input)?.ok_or_else(unexpected)?,
                ),
                LayerCache::State(state) => {
                    let of = |array: &Array| Ok(input.state(array)?);
                    let own = state.arrays().map(of).collect::<Result<Vec<_>>>()?;
                    let arrays = own.iter().map(|state| state.before().clone()).collect();
                    states.extend(own);
                    LayerCache::State(StateCache::from_arrays(arrays, state.len()))
                }
                _ => return Err(unexpected()),
            });
        }
        let mut cache = Cache { layers };
        let tokens = input.token()?.reshape(&[1, 1])?;
        let logits = model.forward(&Step::new(&tokens), &mut [&mut cache])?; // [1, 1, V]
        let chosen = model.head().greedy(&logits.reshape(&[1, logits.dim(-1)])?)?;

        let (mut parts, mut kv, mut after) = (Vec::new(), Vec::new(), Vec::new());
        for layer in cache.layers {
            match layer {
                LayerCache::Recorded(layer) => {
                    parts.push(layer.kv().ring().map_or(Part::Kv, Part::Window));
                    kv.push(layer.kv().clone());
                }
                LayerCache::State(state) => {
                    let arrays: Vec<_> = state.arrays().cloned().collect();
                    parts.push(Part::State(arrays.len()));
                    after.extend(arrays);
                }
                _ => return Err(unexpected()),
            }
        }
        if states.len() != after.len() {
            return Err(unexpected());
        }
        let states = states.into_iter().zip(after).collect();
        let recording = Some(Recording::record(input, &chosen, kv, states)?);
        Ok(Self { recording, parts })
    }

    fn recording(&mut self) -> Result<&mut Recording> {
        self.recording.as_mut().ok_or_else(settled)
    }
}

impl RecordedSteps for OnDeviceSteps {
    fn launch(&mut self) -> Result<()> {
        Ok(self.recording()?.launch()?)
    }

    fn num_started(&self) -> u64 {
        self.recording.as_ref().map_or(0, Recording::num_started)
    }

    fn room(&self) -> i32 {
        self.recording.as_ref().map_or(0, Recording::room)
    }

    fn token(&mut self, index: u64) -> Result<u32> {
        Ok(self.recording()?.token(index)?)
    }

    fn settle(&mut self) -> Result<Cache> {
        let recording = self.recording.take().ok_or_else(settled)?;
        let len = recording.len();
        let steps = recording.num_started() as i32; // as many as `len` counts
        let finished = recording.finish();
        restored(&self.parts, finished.kv, finished.states, [len, steps])
    }
}

/// An ordinary cache of `parts`, from the buffers and the states of all its layers in order, which hold `len` tokens after
/// `steps`.
fn restored(
    parts: &[Part],
    kv: Vec<(Array, Array)>,
    states: Vec<Array>,
    [len, steps]: [i32; 2],
) -> Result<Cache> {
    let (mut kv, mut states) = (kv.into_iter(), states.into_iter());
    let layer = |part: &Part| match *part {
        Part::Kv => {
            let buffers = kv.next().ok_or_else(unexpected)?;
            Ok(LayerCache::Kv(KvCache::from_buffers(buffers, len)))
        }
        Part::Window(ring) => {
            let buffers = kv.next().ok_or_else(unexpected)?;
            Ok(LayerCache::Window(WindowCache::from_ring(buffers, ring.after(steps), len)))
        }
        Part::State(num_arrays) => {
            let arrays = states.by_ref().take(num_arrays).collect();
            Ok(LayerCache::State(StateCache::from_arrays(arrays, len)))
        }
    };
    Ok(Cache { layers: parts.iter().map(layer).collect::<Result<_>>()? })
}

fn unexpected() -> Error {
    Error::argument("layer cache", "of another kind", "a recorded step cannot hold it")
}

fn settled() -> Error {
    Error::argument("recorded step", "that has ended", "it cannot be started again")
}

#[cfg(test)]
mod tests {
    use mlx::{Dtype, ops};

    use super::*;
    use crate::cache::{GROW_STEP, WindowCache};

    fn kv(len: i32) -> LayerCache {
        let mut kv = KvCache::default();
        let tokens = ops::zeros(&[1, 2, len, 4], Dtype::F32).unwrap();
        kv.update(&tokens, &tokens).unwrap();
        LayerCache::Kv(kv)
    }

    /// A window that was handed a prompt, and then `len` tokens in all.
    fn window(max_size: i32, prompt: i32, len: i32) -> LayerCache {
        let mut window = WindowCache::new(max_size, 0);
        let mut update = |n: i32| {
            let tokens = ops::zeros(&[1, 2, n, 4], Dtype::F32).unwrap();
            window.update(&tokens, &tokens).unwrap();
        };
        update(prompt);
        (prompt..len).for_each(|_| update(1));
        LayerCache::Window(window)
    }

    fn state() -> LayerCache {
        let array = ops::zeros(&[1, 3, 4], Dtype::F32).unwrap();
        LayerCache::State(StateCache::from_arrays(vec![array], 1))
    }

    fn plan(layers: Vec<LayerCache>, most: usize) -> Option<Plan> {
        Plan::of(&Cache { layers }, most)
    }

    /// The room that a growing cache has after one more token.
    fn grown(len: i32) -> i32 {
        let LayerCache::Kv(mut cache) = kv(len) else { unreachable!() };
        let token = ops::zeros(&[1, 2, 1, 4], Dtype::F32).unwrap();
        cache.update(&token, &token).unwrap();
        cache.capacity()
    }

    #[test]
    fn buffers_have_the_room_that_growing_ones_have() {
        assert_eq!(plan(vec![kv(256)], 1000).unwrap().capacity, 256 + GROW_STEP);
        for len in [1, 200, 238, 256, 300, 512, 700, 768] {
            let plan = plan(vec![kv(len), state(), kv(len)], 1000).unwrap();
            assert_eq!(plan.capacity, grown(len), "{len}");
            assert_eq!(plan, Plan { len, until: plan.capacity, capacity: plan.capacity });
        }
        // as many as a prompt left room for
        let mut long = KvCache::default();
        let tokens = ops::zeros(&[1, 2, 1000, 4], Dtype::F32).unwrap();
        long.update(&tokens, &tokens).unwrap();
        long.update(&tokens, &tokens).unwrap();
        long.trim(1000);
        let plan = |long: &KvCache| plan(vec![LayerCache::Kv(long.clone())], 9999).unwrap();
        assert_eq!(plan(&long), Plan { len: 1000, until: 1024, capacity: 2024 });
        let token = ops::zeros(&[1, 2, 24, 4], Dtype::F32).unwrap();
        long.update(&token, &token).unwrap();
        assert_eq!(plan(&long), Plan { len: 1024, until: 2024, capacity: 2024 });
    }

    #[test]
    fn windows_do_not_limit_a_recording() {
        let capacity = grown(300);
        for ring in [window(8, 300, 300), window(8, 5, 300), window(128, 299, 300)] {
            let both = plan(vec![ring.clone(), kv(300), ring.clone()], 1000).unwrap();
            assert_eq!(both, Plan { len: 300, until: capacity, capacity });
            let alone = plan(vec![ring.clone(), state()], 100).unwrap();
            assert_eq!(alone, Plan { len: 300, until: 400, capacity: 400 });
            let alone = plan(vec![ring], usize::MAX).unwrap();
            assert_eq!((alone.len, alone.until), (300, FEW_KEYS));
        }
        assert_eq!(plan(vec![window(8, 5, 20), kv(21)], 100), None);
        // stock attends these by cuDNN
        assert_eq!(plan(vec![window(256, 5, 20), kv(20)], 100), None);
    }

    #[test]
    fn few_steps_are_not_recorded() {
        for (len, most, pays) in [
            (10, 15, false),
            (10, 16, true),
            (240, 1000, true),
            (241, 1000, false),
            (255, 1000, false),
            (256, 1000, true),
            (496, 1000, true),
            (497, 1000, false),
            (1008, 1000, true),
            (1009, 1000, false),
            (1024, 1000, true),
        ] {
            assert_eq!(plan(vec![kv(len)], most).is_some(), pays, "{len} {most}");
        }
    }

    #[test]
    fn layers_of_other_kinds_are_not_recorded() {
        let others = [
            LayerCache::Kv(KvCache::default()),
            LayerCache::Kv(KvCache::of_latents()),
            LayerCache::Window(WindowCache::new(8, 0)),
            LayerCache::State(StateCache::new(1)),
            LayerCache::List(vec![kv(20)]),
            kv(21),
        ];
        for other in others {
            assert_eq!(plan(vec![kv(20), other.clone()], 100), None, "{other:?}");
        }
        let tokens = ops::zeros(&[2, 2, 20, 4], Dtype::F32).unwrap();
        let mut rows = KvCache::default();
        rows.update(&tokens, &tokens).unwrap();
        assert_eq!(plan(vec![LayerCache::Kv(rows)], 100), None);
        assert_eq!(plan(vec![state()], 100), None);
    }

    #[test]
    fn what_a_recording_leaves_is_an_ordinary_cache() {
        let array = |value: f32| Array::from_slice(&[value], &[1, 1, 1, 1]).unwrap();
        let ring = Ring { size: 1, keep: 0, index: 1 };
        let parts = [Part::State(2), Part::Kv, Part::State(1), Part::Window(ring)];
        let kv = vec![(array(1.0), array(2.0)), (array(3.0), array(4.0))];
        let states = vec![array(5.0), array(6.0), array(7.0)];
        let cache = restored(&parts, kv, states, [1, 1]).unwrap();
        let values: Vec<f32> = cache.arrays().map(|a| a.item().unwrap()).collect();
        assert_eq!(values, [5.0, 6.0, 1.0, 2.0, 7.0, 3.0, 4.0]);
        assert!(cache.layers.iter().all(|layer| layer.len() == 1));
        assert!(matches!(cache.layers[1], LayerCache::Kv(_)));
        assert!(matches!(cache.layers[3], LayerCache::Window(_)));
    }
}
