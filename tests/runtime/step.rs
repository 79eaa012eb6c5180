//! A decode step whose position is data: traced once, it serves every position.

use std::path::Path;
use std::rc::Rc;

use mlx::transforms::{Imported, export_function};
use mlx::{Array, Dtype, ops};
use zmlx::lm::cache::{Cache, Clock, FixedKvCache, LayerCache};
use zmlx::lm::{Model, Step, load};

use crate::support::alone::alone;

const PROMPT: &[u32] = &[3, 14, 15, 92, 6, 53, 58];

fn forward(model: &dyn Model, tokens: &[u32], cache: &mut Cache) -> Array {
    let tokens = Array::from_slice(tokens, &[1, tokens.len() as i32]).unwrap();
    model.forward(&Step::new(&tokens), &mut [cache]).unwrap()
}

fn likeliest(logits: &Array) -> u32 {
    let logits = logits.astype(Dtype::F32).unwrap();
    ops::argmax(&logits, -1, false).unwrap().item().unwrap()
}

alone! {
    // Alone, because MLX gives an imported graph the first stream it finds, whichever thread's it is.
    fn fixed_cache_has_one_graph_for_all_positions() {
        const CAPACITY: i32 = 32;
        let loaded = Rc::new(load(Path::new("models/demo")).unwrap());
        let model = loaded.model.as_ref();
        let vocab_size = model.vocab_size();
        let mut growing = model.make_cache();
        forward(model, &PROMPT[..6], &mut growing);
        let fixed = growing.fixed(CAPACITY).unwrap();
        let layers = fixed.layers.len();

        // inputs: token, position, keys and values of each layer; outputs: logits, then the same
        let traced = loaded.clone();
        let step = move |inputs: &[Array]| {
            // SAFETY: the calls below pass tokens of the vocabulary, and positions that leave room for one more.
            let (token, position) = unsafe {
                let token = inputs[0].clone().assume_within(0..=i64::from(vocab_size) - 1);
                (token, inputs[1].clone().assume_within(0..=i64::from(CAPACITY) - 1))
            };
            let clock = Clock::new(position);
            let layer = |pair: &[Array]| {
                LayerCache::Fixed(FixedKvCache::from_parts(pair[0].clone(), pair[1].clone(), &clock, 0))
            };
            let mut cache = Cache { layers: inputs[2..].chunks(2).map(layer).collect() };
            let logits = traced.model.forward(&Step::new(&token), &mut [&mut cache]);
            let mut outputs = vec![
                logits.map_err(|error| mlx::Error::InvalidArgument { message: error.to_string() })?,
            ];
            let LayerCache::Fixed(first) = &cache.layers[0] else { unreachable!("made above") };
            outputs.push(first.clock().position().clone());
            for layer in &cache.layers {
                let LayerCache::Fixed(layer) = layer else { unreachable!("made above") };
                outputs.extend(layer.buffers().into_iter().flat_map(|(k, v)| [k.clone(), v.clone()]));
            }
            Ok(outputs)
        };
        let mut state = vec![Array::scalar(6_i32).unwrap()];
        for layer in &fixed.layers {
            let LayerCache::Fixed(layer) = layer else { panic!("not fixed") };
            state.extend(layer.buffers().into_iter().flat_map(|(k, v)| [k.clone(), v.clone()]));
        }
        assert_eq!(state.len(), 1 + 2 * layers);
        let token = |id: u32| Array::from_slice(&[id], &[1, 1]).unwrap();
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("step.mlxfn");
        let inputs = |id, state: &[Array]| [vec![token(id)], state.to_vec()].concat();
        export_function(&file, step, &inputs(0, &state)).unwrap();

        // SAFETY: the file is the one that was written above.
        let graph = unsafe { Imported::open(&file) }.unwrap();
        let (mut a, mut b) = (PROMPT[6], PROMPT[6]);
        for position in 6..20 {
            a = likeliest(&forward(model, &[a], &mut growing));
            let mut outputs = graph.call(&inputs(b, &state)).unwrap();
            state = outputs.split_off(1);
            b = likeliest(&outputs[0]);
            assert_eq!(a, b, "at {position}");
            assert_eq!(state[0].item::<i32>().unwrap(), position + 1);
        }
    }
}
