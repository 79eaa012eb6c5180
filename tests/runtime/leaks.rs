//! No handle outlives its owner.

use mlx::primitives::{Glu, Precision, Scoring};
use mlx::quantization::Quantization;
use mlx::{Dtype, live_arrays, memory, ops};

use crate::support::alone::alone;
use crate::support::bits::as_f32;
use crate::support::data::Rng;
use crate::support::route::route;

fn round(rng: &mut Rng) -> mlx::Result<()> {
    let q = Quantization::affine(32, 4);
    let w = rng.experts([2, 8, 64], q, Dtype::F32, true);
    let x = rng.array(&[2, 1, 64], Dtype::F32, 1.0);
    let rhs = rng.indices(&[2], 2);
    let y = mlx::primitives::gather_qmm_swiglu(
        &x,
        Glu::new(&w, &w),
        None,
        Some(&rhs),
        true,
        false,
        Precision::Exact,
    )?;
    let (indices, scores) = route(&y, 2, true, Scoring::Softmax)?;
    mlx::async_eval([&indices, &scores])?;
    as_f32(&scores);
    for part in ops::split(&y, &[3], -1)? {
        part.clone().freeze()?.thaw().eval()?;
    }
    // Refused calls must give back what they took.
    assert!(ops::reshape(&y, &[5]).is_err());
    assert!(ops::concatenate([&y, &x], 0).is_err());
    Ok(())
}

alone! {
    fn arrays_are_gone_after_their_last_use() {
        let mut rng = Rng::new(71);
        round(&mut rng).unwrap();
        mlx::synchronize().unwrap();
        let before = live_arrays();
        memory::clear_cache().unwrap();
        let bytes = memory::active_bytes().unwrap();
        for _ in 0..50 {
            round(&mut rng).unwrap();
        }
        mlx::synchronize().unwrap();
        assert_eq!(live_arrays(), before);
        assert_eq!(memory::active_bytes().unwrap(), bytes);
    }
}

alone! {
    fn freed_memory_is_seen_by_the_counters() {
        memory::clear_cache().unwrap();
        let before = memory::active_bytes().unwrap();
        let a = ops::add(
            &ops::zeros(&[1 << 20], Dtype::F32).unwrap(),
            &mlx::Array::scalar(1f32).unwrap(),
        ).unwrap();
        a.eval().unwrap();
        assert!(memory::active_bytes().unwrap() >= before + (4 << 20));
        assert!(memory::peak_bytes().unwrap() >= before + (4 << 20));
        drop(a);
        mlx::synchronize().unwrap();
        assert!(memory::active_bytes().unwrap() < before + (1 << 20));
        memory::clear_cache().unwrap();
        assert_eq!(memory::cache_bytes().unwrap(), 0);
    }
}
