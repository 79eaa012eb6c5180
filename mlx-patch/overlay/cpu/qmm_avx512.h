// What the AVX-512 translation units offer one another.

#pragma once

#include "cpu/qmm.h"

namespace zmlx::cpu {

// Transposed bf16 weights, exact, by AVX512_BF16; false, and nothing done, where denormals may occur.
bool exact_bf16_hardware(
    const QuantView& q,
    int64_t n0,
    int64_t n1,
    int m,
    const void* const* xs,
    void* const* ys,
    void* (*scratch)(int64_t bytes));

// The same of slices.
bool exact_bf16_hardware_slices(const Slice* slices, int count, void* (*scratch)(int64_t bytes));

// All weights, f32 accumulation in any order; the second takes bf16 by AVX512_BF16, the third many rows of it by AMX_BF16.
void fast_avx512(const QuantView& q, int64_t n0, int64_t n1, int m, const void* const* xs, void* const* ys);
void fast_avx512_bf16(const QuantView& q, int64_t n0, int64_t n1, int m, const void* const* xs, void* const* ys);
void fast_amx(const QuantView& q, int64_t n0, int64_t n1, int m, const void* const* xs, void* const* ys);

// Weights that are not transposed.
void plain_avx512(
    const QuantView& q,
    int64_t n0,
    int64_t n1,
    int m,
    const void* const* xs,
    void* const* ys,
    bool exact);

} // namespace zmlx::cpu
