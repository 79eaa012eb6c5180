// Exact products of slices for AVX-512: blocks whose rows are of several matrices and meet several rows of x.
//
// Idea:    exact_avx512.h hides the latency of a sum behind 127 others. Where a launch has to be cut finer than 128
//          columns of one matrix, they are taken from several: a few columns of every expert, or of gate and up.
// Layout:  four slices of 32 columns, each with a vector of x of its own.
// Bound:   that of a whole block, and three more loads of x for each of its columns of weights.
// Limits:  one row of x for a slice; matrices that are alike.

#pragma once

#include "cpu/exact_avx512.h"

namespace zmlx::cpu {

namespace {

// Four pairs of outputs, each of a matrix and a row of x of its own.
template <typename S, bool affine>
void exact_slices(const Slice* slices, int count, const float* const* xs, UnpackChunk<S> unpack, WorkspaceOf<S>& ws) {
  BlockRows rows;
  const float* x[4];
  for (int p = 0; p < 4; p++) {
    const Slice& slice = slices[p < count ? p : count - 1];
    rows.add(slice.q, slice.n0, slice.n1, 1);
    x[p] = xs[p < count ? p : count - 1];
  }
  auto accumulate = [&](const typename S::Stored* w, int64_t k0, int n, float* sums) ZMLX_LAMBDA {
    Pair sum[4];
#pragma GCC unroll 4
    for (int p = 0; p < 4; p++) {
      sum[p] = {_mm512_load_ps(sums + p * 32), _mm512_load_ps(sums + p * 32 + 16)};
    }
    for (int k = 0; k < n; k++) {
#pragma GCC unroll 4
      for (int p = 0; p < 4; p++) {
        sum[p] = S::multiply_add(sum[p], _mm512_set1_ps(x[p][k0 + k]), S::load_weight(w + k * kBlock + p * 32));
      }
    }
#pragma GCC unroll 4
    for (int p = 0; p < 4; p++) {
      _mm512_store_ps(sums + p * 32, sum[p].a);
      _mm512_store_ps(sums + p * 32 + 16, sum[p].b);
    }
  };
  block_sums<S, affine>(slices[0].q, rows, 1, unpack, ws, accumulate);
  for (int p = 0; p < count; p++) {
    store_sums<S, affine>(ws.sums + p * 32, slices[p].n1 - slices[p].n0, static_cast<uint8_t*>(slices[p].y));
  }
}

// Slices of matrices that are alike, of at most 32 columns each.
template <typename S>
void exact_transposed_slices(const Slice* slices, int count, void* (*scratch)(int64_t bytes)) {
  const QuantView& q = slices[0].q;
  int64_t x_stride = (q.K + 15) / 16 * 16;
  auto memory = static_cast<uint8_t*>(
      scratch(sizeof(WorkspaceOf<S>) + 4 * x_stride * static_cast<int64_t>(sizeof(float))));
  auto& ws = *reinterpret_cast<WorkspaceOf<S>*>(memory);
  auto x = reinterpret_cast<float*>(memory + sizeof(WorkspaceOf<S>));
  auto run = q.mode == Mode::Affine ? exact_slices<S, true> : exact_slices<S, false>;
  auto unpack = unpacking_of<S>(q);
  for (; count > 0; slices += 4, count -= 4) {
    int here = count < 4 ? count : 4;
    const float* xs[4];
    for (int p = 0; p < here; p++) {
      if (p > 0 && slices[p].x == slices[p - 1].x) {
        xs[p] = xs[p - 1];
        continue;
      }
      expand_x<S::dtype>(1, &slices[p].x, q.K, x_stride, x + p * x_stride);
      xs[p] = x + p * x_stride;
    }
    run(slices, here, xs, unpack, ws);
  }
}

} // namespace

} // namespace zmlx::cpu
