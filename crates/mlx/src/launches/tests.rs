use super::{Launches, Row, compiled, plan};
use crate::quantization::{Quantization, QuantizedWeight, gather_qmm, quantized_matmul};
use crate::{Array, Dtype, Result, fast, ops};

fn count(build: impl FnOnce() -> Result<Array>) -> Launches {
    let (built, plan) = plan(build);
    plan.count([&built.expect("graph")], []).expect("count")
}

fn total(build: impl FnOnce() -> Result<Array>) -> usize {
    count(build).total()
}

fn zeros(shape: &[i32]) -> Result<Array> {
    let a = ops::zeros(shape, Dtype::Bf16)?;
    a.eval()?;
    Ok(a)
}

#[test]
fn views_launch_nothing_and_kernels_one() {
    let x = zeros(&[2, 4, 8]).expect("x");
    assert_eq!(total(|| ops::transpose(&x, &[1, 0, 2])), 0);
    assert_eq!(total(|| ops::slice(&x, &[0, 1, 0], &[2, 3, 8])), 0);
    assert_eq!(total(|| ops::exp(&ops::expand_dims(&x, &[0])?)), 1);
    assert_eq!(total(|| ops::sum(&x, &[-1], false)), 1);
    assert_eq!(total(|| ops::concatenate(&[x.clone(), x.clone(), x.clone()], 0)), 3);
}

#[test]
fn reshape_launches_a_copy_where_elements_have_to_move() {
    let x = zeros(&[2, 4, 8]).expect("x");
    assert_eq!(total(|| x.reshape(&[8, 8])), 0);
    assert_eq!(total(|| ops::transpose(&x, &[1, 0, 2])?.reshape(&[4, 16])), 1);
    // one token: the axes that change places have one element
    let one = zeros(&[1, 4, 1, 8]).expect("one");
    assert_eq!(total(|| ops::transpose(&one, &[0, 2, 1, 3])?.reshape(&[1, 1, 32])), 0);
    // a slice of columns cannot be flattened, one of rows can
    assert_eq!(total(|| ops::slice(&x, &[0, 0, 0], &[2, 4, 4])?.reshape(&[32])), 1);
    assert_eq!(total(|| ops::slice(&x, &[1, 0, 0], &[2, 4, 8])?.reshape(&[32])), 0);
}

#[test]
fn buffer_that_somebody_else_needs_is_copied_before_it_is_written() {
    let (x, y) = (zeros(&[4, 8]).expect("x"), zeros(&[1, 8]).expect("y"));
    let write = |x: &Array| ops::slice_update(x, &y, &[0, 0], &[1, 8]);
    assert_eq!(total(|| write(&x)), 1);
    assert_eq!(total(|| ops::add(&write(&x)?, &x)), 3);
}

#[test]
fn fused_operations_of_mlx_are_one_node_on_a_gpu() {
    let x = zeros(&[1, 4, 1, 64]).expect("x");
    let (norm, bias) = (zeros(&[64]).expect("norm"), zeros(&[64]).expect("bias"));
    assert_eq!(total(|| fast::rms_norm(&x, Some(&norm), 1e-6)), 1);
    assert_eq!(total(|| fast::layer_norm(&x, Some(&norm), Some(&bias), 1e-6)), 1);
    let rope = |dims| fast::Rope { dims, traditional: false, base: 1e4, scale: 1.0, freqs: None };
    assert_eq!(total(|| fast::rope(&x, &rope(64), 3)), 1);
    // what is turned in part is copied before, into the input's buffer if that is free
    assert_eq!(total(|| fast::rope(&x, &rope(32), 3)), 1);
    assert_eq!(total(|| ops::add(&fast::rope(&x, &rope(32), 3)?, &x)), 3);
    let attend = |d: i32| {
        let q = zeros(&[1, 8, 1, d])?;
        let k = zeros(&[1, 2, 16, d])?;
        fast::scaled_dot_product_attention(&q, &k, &k, 1.0, fast::Mask::None, None)
    };
    assert_eq!(total(|| attend(64)), 1);
    // a width that Metal has no kernel for: ordinary operations
    let launches = count(|| attend(48));
    assert_eq!(launches.rows.get("ScaledDotProductAttention"), None);
    assert_eq!(launches.total(), 4, "{launches:?}");
}

#[test]
fn planned_graph_cannot_be_evaluated() {
    let x = zeros(&[1, 64]).expect("x");
    let (y, _) = plan(|| fast::rms_norm(&x, None, 1e-6));
    let error = y.expect("graph").eval().expect_err("refused").to_string();
    assert!(error.contains("made for counting its launches"), "{error}");
    // and afterwards all is as before
    fast::rms_norm(&x, None, 1e-6).and_then(|y| y.eval()).expect("evaluates");
}

#[test]
fn quantized_products_launch_one_kernel_and_copy_what_lies_apart() {
    let quantization = Quantization::affine(64, 4);
    let packed = |shape: &[i32]| {
        let w = QuantizedWeight::quantize(&zeros(shape)?, quantization)?;
        crate::eval([&w.w, &w.scales].into_iter().chain(&w.biases))?;
        Ok::<_, crate::Error>(w)
    };
    let w = packed(&[4, 128, 128]).expect("w");
    let x = zeros(&[1, 1, 1, 1, 128]).expect("x");
    let indices = Array::from_slice(&[0_u32, 3], &[1, 1, 2]).expect("indices");
    let gather = |x: &Array| gather_qmm(x, &w, None, Some(&indices), true, false);
    assert_eq!(count(|| gather(&x)).rows["GatherQMM"], Row { calls: 1, launches: 1, fused: false });
    let wide = zeros(&[1, 1, 1, 2, 256]).expect("wide");
    let half = || ops::slice(&wide, &[0, 0, 0, 0, 0], &[1, 1, 1, 2, 128]);
    assert_eq!(count(|| gather(&half()?)).rows["GatherQMM"].launches, 2);
    let w = packed(&[128, 128]).expect("w");
    assert_eq!(total(|| quantized_matmul(&x, &w, true)), 1);
}

#[test]
fn dequantize_is_one_node_on_a_gpu() {
    let w =
        zeros(&[8, 64]).and_then(|w| QuantizedWeight::quantize(&w, Quantization::affine(64, 4)));
    let w = w.expect("packed");
    crate::eval([&w.w, &w.scales].into_iter().chain(&w.biases)).expect("eval");
    let launches = count(|| w.dequantize());
    assert_eq!(launches.total(), 1, "{launches:?}");
    assert_eq!(launches.rows["Quantize"], Row { calls: 1, launches: 1, fused: false });
}

/// `expand_dims` gives the axes it adds a stride of one, which no matrix kernel takes for a row.
#[test]
fn row_with_added_axes_is_copied_for_a_matrix_kernel() {
    let w =
        zeros(&[64, 64]).and_then(|w| QuantizedWeight::quantize(&w, Quantization::affine(64, 4)));
    let w = w.expect("packed");
    crate::eval([&w.w, &w.scales].into_iter().chain(&w.biases)).expect("eval");
    let x = zeros(&[1, 64]).expect("x");
    let product =
        |x: Array| count(|| quantized_matmul(&x, &w, true)).rows["QuantizedMatmul"].launches;
    assert_eq!(product(x.clone()), 1);
    let added = ops::expand_dims(&x, &[-2]).expect("expand");
    assert_eq!(product(added), 2);
}

#[test]
fn elementwise_operations_of_a_compiled_function_are_one_kernel() {
    let (x, y) = (zeros(&[1, 64]).expect("x"), zeros(&[1, 64]).expect("y"));
    let launches = count(|| ops::swiglu(&ops::exp(&x)?, &y));
    assert_eq!((launches.total(), launches.total_compiled()), (4, 2));
    // two parts that a sort keeps apart stay two
    let launches = count(|| {
        let [y] = compiled(&[&x], || {
            let sorted = ops::sort(&ops::negative(&ops::exp(&x)?)?, -1)?;
            Ok([ops::negative(&ops::exp(&sorted)?)?])
        })?;
        Ok(y)
    });
    assert_eq!((launches.total(), launches.total_compiled()), (5, 3));
}

#[test]
fn long_rows_are_sorted_in_blocks_that_are_merged() {
    assert_eq!(total(|| ops::argsort(&zeros(&[1, 128])?, -1)), 1);
    assert_eq!(total(|| ops::argsort(&zeros(&[1, 4096])?, -1)), 4);
}

#[test]
fn outputs_of_one_call_are_counted_once() {
    let x = zeros(&[4, 8]).expect("x");
    let (parts, plan) = plan(|| ops::split(&x, &[1, 2], 0));
    let parts = parts.expect("split");
    let row = plan.count(&parts, []).expect("count").rows["Split"];
    assert_eq!(row, Row { calls: 1, launches: 0, fused: false });
}

#[test]
fn given_arrays_and_what_they_are_made_of_launch_nothing() {
    let x = zeros(&[4, 8]).expect("x");
    let (built, plan) = plan(|| {
        let weight = ops::exp(&x)?;
        Ok::<_, crate::Error>((ops::negative(&weight)?, ops::abs(&weight)?))
    });
    let (y, given) = built.expect("graph");
    assert_eq!(plan.count([&y], [&given]).expect("count").total(), 1);
}

#[test]
fn numbers_beside_an_array_launch_nothing() {
    let x = zeros(&[1, 64]).expect("x");
    assert_eq!(total(|| ops::multiply(&x, &Array::scalar_like(0.5, &x)?)), 1);
}
