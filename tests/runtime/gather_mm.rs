//! Products with stacks of dense matrices, in the types that stock refuses on a CPU too.

use mlx::quantization::gather_mm;
use mlx::{Array, Device, Dtype, ops, random};

fn normal(shape: &[i32], seed: u64, dtype: Dtype) -> Array {
    let key = random::key(seed).unwrap();
    random::normal(shape, dtype, 0.0, 1.0, Some(&key)).unwrap()
}

fn indices(values: &[u32], shape: &[i32]) -> Array {
    Array::from_slice(values, shape).unwrap()
}

/// Each entry is the stock product of its two matrices, bit for bit.
#[test]
fn entries_are_stock_products_on_the_cpu() {
    if mlx::default_device() != Device::Cpu {
        return;
    }
    for dtype in [Dtype::F16, Dtype::Bf16] {
        // many entries, so that they take several pieces
        for (experts, tokens, top_k, n, k) in [(6, 5, 3, 33, 48), (3, 40, 8, 300, 512)] {
            let stack = normal(&[experts, n, k], 1, dtype);
            let x = normal(&[tokens, 1, 1, k], 2, dtype);
            let chosen: Vec<u32> = (0..tokens * top_k).map(|i| (i * 7 % experts) as u32).collect();
            let rhs = indices(&chosen, &[tokens, top_k]);
            let swapped = ops::swapaxes(&stack, -1, -2).unwrap();
            let got = gather_mm(&x, &swapped, None, Some(&rhs), false).unwrap();
            assert_eq!(got.shape(), [tokens, top_k, 1, n]);
            let got = got.reshape(&[tokens * top_k, n]).unwrap();
            for (entry, expert) in (0..).zip(&chosen) {
                let token = entry / top_k;
                let row =
                    ops::slice_axis(&x, 0, token, token + 1).unwrap().reshape(&[1, k]).unwrap();
                let expert = *expert as i32;
                let w = ops::slice_axis(&stack, 0, expert, expert + 1).unwrap();
                let w = w.reshape(&[n, k]).unwrap().transpose(&[1, 0]).unwrap();
                let expected = ops::matmul(&row, &w).unwrap();
                let got = ops::slice_axis(&got, 0, entry, entry + 1).unwrap();
                let same = got.to_bytes().unwrap() == expected.to_bytes().unwrap();
                assert!(same, "{dtype} entry {entry}");
            }
        }
    }
}

#[test]
fn either_side_may_be_picked_from() {
    for dtype in [Dtype::F16, Dtype::Bf16] {
        let a = normal(&[2, 2, 3, 8], 3, dtype);
        let b = normal(&[4, 8, 5], 4, dtype);
        let lhs = indices(&[3, 0, 1, 3, 2, 2], &[6]);
        let rhs = indices(&[0, 3, 3, 1, 2, 0], &[6]);
        let both = gather_mm(&a, &b, Some(&lhs), Some(&rhs), false).unwrap();
        assert_eq!(both.shape(), [6, 3, 5]);
        let rows = a.reshape(&[4, 3, 8]).unwrap();
        let expected =
            ops::matmul(&ops::take(&rows, &lhs, 0).unwrap(), &ops::take(&b, &rhs, 0).unwrap());
        assert!(ops::array_equal(&both, &expected.unwrap(), false).unwrap(), "{dtype}");
        // without one, all of that side in order
        let rest = indices(&[2, 0, 1, 3], &[2, 2]);
        let left = gather_mm(&a, &b, None, Some(&rest), false).unwrap();
        let expected = ops::matmul(&a, &ops::take(&b, &rest, 0).unwrap()).unwrap();
        assert!(ops::array_equal(&left, &expected, false).unwrap(), "{dtype}");
        let none = indices(&[], &[0]);
        assert_eq!(gather_mm(&a, &b, Some(&none), Some(&none), false).unwrap().shape(), [0, 3, 5]);
    }
}
