//! What the machine itself must notice, on kernels of a few lines; and what it must not.

use metal_bench::{Contract, Error, Launch, Machine, Order, Outcome, Result};

use crate::{compiler, kernels};

const KERNELS: &str = r"
#include <metal_stdlib>
using namespace metal;

kernel void add(
    device const float* a [[buffer(0)]],
    device const float* b [[buffer(1)]],
    device float* c [[buffer(2)]],
    uint i [[thread_position_in_grid]]) {
  c[i] = a[i] + b[i];
}

// The sum of a row over several simdgroups. What is left out says which step is missing.
template <bool zero, bool first_barrier, bool second_barrier, int flags>
[[kernel]] void sum_row(
    const device float* x,
    device float* y,
    constant uint& n,
    uint row [[threadgroup_position_in_grid]],
    uint lid [[thread_position_in_threadgroup]],
    uint size [[threads_per_threadgroup]],
    uint lane [[thread_index_in_simdgroup]],
    uint simd [[simdgroup_index_in_threadgroup]]) {
  threadgroup float sums[32];
  float sum = 0;
  for (uint i = lid; i < n; i += size) {
    sum += x[row * n + i];
  }
  sum = simd_sum(sum);
  if (zero && simd == 0) {
    sums[lane] = 0;
  }
  if (first_barrier) {
    threadgroup_barrier(mem_flags(flags));
  }
  if (lane == 0) {
    sums[simd] = sum;
  }
  if (second_barrier) {
    threadgroup_barrier(mem_flags::mem_threadgroup);
  }
  if (simd == 0) {
    sum = simd_sum(sums[lane]);
    if (lane == 0) {
      y[row] = sum;
    }
  }
}
#define instance(name, ...) \
  template [[host_name(name)]] [[kernel]] decltype(sum_row<__VA_ARGS__>) sum_row<__VA_ARGS__>;
instance('sum_row', true, true, true, 2)
instance('sum_row_uninitialised', false, true, true, 2)
instance('sum_row_first_race', true, false, true, 2)
instance('sum_row_second_race', true, true, false, 2)
instance('sum_row_wrong_flags', true, true, true, 1)

// One fault for each `which`; `n` is the number of bytes of `in`.
kernel void fault(
    const device uchar* in,
    device uchar* out,
    constant int& which,
    constant int& n,
    threadgroup int* scratch [[threadgroup(0)]],
    uint lid [[thread_position_in_threadgroup]],
    uint group [[threadgroup_position_in_grid]],
    uint lane [[thread_index_in_simdgroup]],
    uint simd [[simdgroup_index_in_threadgroup]]) {
  threadgroup int two[2];
  int table[4] = {1, 2, 3, 4};
  switch (which) {
    case 0: out[lid] = in[lid + n]; break;
    case 1: out[lid] = in[-1 - int(lid)]; break;
    case 2: ((device uchar*)in)[lid] = 1; break;
    case 3: out[lid] = out[lid] + 1; break;
    case 4: out[0] = uchar(lid); break;
    case 5: out[0] = 7; break;
    case 6: out[lid] = uchar(*(const device ushort*)(in + 1)); break;
    case 7: if (lid < 5) { out[lid] = uchar(simd_sum(1)); } break;
    case 8: if (simd == 0) { threadgroup_barrier(mem_flags::mem_none); } break;
    case 9: out[lid] = uchar(lane % 2 ? simd_sum(1) : simd_max(1)); break;
    case 10: two[lid % 3] = 1; break;
    case 11: out[lid] = uchar(table[n - 4 + lane % 5]); break;
    case 12: out[lid] = uchar(simd_shuffle(int(lane), ushort(32 + lane))); break;
    case 13: while (n > 0) { out[lid] = 1; } break;
    case 14: scratch[lid] = 1; break;
    case 15: if (group == 1) { out[0] = 1; } else { out[1 + lid] = out[0]; } break;
    case 16: two[0] = 1; simdgroup_barrier(mem_flags::mem_threadgroup); break;
    case 17: out[lid] = uchar(1 << (n + int(lane))); break;
    case 18: out[lid] = uchar(n / int(lane)); break;
    case 19: for (uint i = 0; i <= simd; i++) { threadgroup_barrier(mem_flags::mem_none); } break;
  }
}

// Values of classes, handed to functions and back: every read and write of a buffer has to be seen.
half4 twice(half4 x, int times) {
  for (int i = 0; i < times; i++) {
    x = x + x;
  }
  return x;
}
half once(half x, half y, int times) {
  for (int i = 0; i < times; i++) {
    x = x * y;
  }
  return x;
}
kernel void by_value(
    const device half* a,
    device half* b,
    const device half4* c,
    device half4* d,
    constant int& times,
    uint i [[thread_position_in_grid]]) {
  b[i] = once(a[i], a[i], times);
  b[i + 32] = once(a[i + 32], a[i], times + 1);
  b[i + 64] = simd_sum(a[i]);
  d[i] = twice(c[i], times);
  d[i + 32] = twice(c[i + 32], times + 1);
}
";

fn machine() -> Machine {
    let text = KERNELS.replace('\'', "\"");
    let text = compiler().read_text(&text, &[]).unwrap();
    kernels::build(Contract::Off, &[text], |_| true).start()
}

#[test]
fn threads_of_a_ragged_grid_each_run_once() {
    let a: Vec<f32> = (0..77u8).map(f32::from).collect();
    let launch = Launch::of("add")
        .input(0, &a)
        .input(1, &a)
        .output(2, 4 * 77)
        .threads([77, 1, 1], [64, 1, 1]);
    let outcome = machine().launch(&launch).unwrap();
    assert_eq!(outcome.num_accesses, 3 * 77);
    let sums: Vec<f32> = a.iter().map(|a| a + a).collect();
    assert_eq!(outcome.only(), metal_bench::Bytes::bytes(&sums));
}

#[test]
fn values_of_classes_are_watched_on_their_way_through_functions() {
    let (a, c) = ([half::f16::ONE; 64], [half::f16::ONE; 256]);
    let launch = Launch::of("by_value")
        .input(0, a)
        .output(1, 2 * 96)
        .input(2, c)
        .output(3, 8 * 64)
        .input(4, 1i32)
        .threadgroups([1, 1, 1], [32, 1, 1]);
    let outcome = machine().launch(&launch).unwrap();
    assert_eq!(outcome.outputs[0].unwritten.len(), 0);
    assert_eq!(outcome.outputs[1].unwritten.len(), 0);
    for missing in [0, 2] {
        let mut few = launch.clone();
        few = if missing == 0 {
            few.input(0, [half::f16::ONE; 63])
        } else {
            few.input(2, [half::f16::ONE; 255])
        };
        assert_eq!(kind_of(&machine().launch(&few)), "bounds", "buffer {missing}");
    }
}

fn sum_row(kernel: &str, order: Order) -> Result<Outcome> {
    let x: Vec<f32> = (0..600u16).map(f32::from).collect();
    let launch = Launch::of(kernel)
        .input(0, &x)
        .output(1, 12)
        .input(2, 200u32)
        .threadgroups([3, 1, 1], [128, 1, 1])
        .order(order);
    machine().launch(&launch)
}

#[test]
fn reduction_over_simdgroups_gives_its_sum_in_every_order() {
    for order in Order::ALL {
        let sums = [19900.0f32, 59900.0, 99900.0];
        assert_eq!(sum_row("sum_row", order).unwrap().only(), metal_bench::Bytes::bytes(&sums));
    }
}

#[track_caller]
fn kind_of(result: &Result<Outcome>) -> String {
    match result {
        Err(Error::Fault { fault, .. }) => fault.kind.clone(),
        Err(other) => panic!("{other}"),
        Ok(outcome) => format!("none: {outcome:?}"),
    }
}

#[test]
fn reduction_with_a_step_left_out_is_caught() {
    for (kernel, kind) in [
        ("sum_row_uninitialised", "uninitialised"),
        ("sum_row_first_race", "race"),
        ("sum_row_second_race", "race"),
        ("sum_row_wrong_flags", "race"),
    ] {
        assert_eq!(kind_of(&sum_row(kernel, Order::Halves)), kind, "{kernel}");
    }
}

fn fault(which: i32) -> Launch {
    Launch::of("fault")
        .input(0, [3u8, 4, 5, 6].as_slice())
        .output(1, 128)
        .input(2, which)
        .input(3, 4i32)
        .threadgroup_memory(16)
        .threadgroups([2, 1, 1], [64, 1, 1])
}

#[test]
fn every_fault_is_named() {
    let mut machine = machine();
    for (which, kind) in [
        (0, "bounds"),
        (1, "bounds"),
        (2, "readonly"),
        (3, "uninitialised"),
        (4, "race"),
        (5, "race"),
        (6, "alignment"),
        (7, "divergence"),
        (8, "divergence"),
        (9, "divergence"),
        (10, "undefined"),
        (11, "undefined"),
        (12, "lane"),
        (14, "bounds"),
        (15, "uninitialised"),
        (16, "race"),
        (17, "undefined"),
        (18, "undefined"),
        (19, "divergence"),
    ] {
        assert_eq!(kind_of(&machine.launch(&fault(which))), kind, "fault {which}");
    }
    // and after all that it still works
    let outcome = machine.launch(&fault(99)).unwrap();
    assert_eq!(outcome.outputs[0].unwritten.len(), 128);
}

#[test]
fn equal_values_may_be_written_twice_where_that_is_allowed() {
    let mut machine = machine();
    let outcome = machine.launch(&fault(5).allow_equal_writes()).unwrap();
    assert_eq!(outcome.num_equal_writes, 127);
    assert_eq!(kind_of(&machine.launch(&fault(4).allow_equal_writes())), "race");
}

#[test]
fn fault_names_the_thread_and_the_line() {
    let error = machine().launch(&fault(0)).unwrap_err();
    let fault = error.fault().unwrap();
    let expected = "threadgroup (0, 0, 0), simdgroup 0, lane 0: a read of 1 bytes at byte 4 of \
                    buffer 0, which has 4";
    assert_eq!(fault.message, expected);
    if cfg!(target_os = "linux") {
        assert!(fault.place.contains(".metal:"), "{fault:?}");
    }
}
