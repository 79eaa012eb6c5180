// From a matrix's mode and bits to constants.

#pragma once

#include <type_traits>

#include "cpu/qmm.h"

namespace zmlx::cpu {

namespace {

// f(mode, bits) with constants.
template <typename F>
auto with_codes(const QuantView& q, F f) {
#define ZMLX_CODES(mode, bits) f(std::integral_constant<Mode, mode>{}, std::integral_constant<int, bits>{})
  if (q.mode == Mode::Nvfp4) {
    return ZMLX_CODES(Mode::Nvfp4, 4);
  }
  if (q.mode == Mode::Mxfp4) {
    return ZMLX_CODES(Mode::Mxfp4, 4);
  }
  if (q.mode == Mode::Mxfp8) {
    return ZMLX_CODES(Mode::Mxfp8, 8);
  }
  switch (q.bits) {
    case 2:
      return ZMLX_CODES(Mode::Affine, 2);
    case 3:
      return ZMLX_CODES(Mode::Affine, 3);
    case 5:
      return ZMLX_CODES(Mode::Affine, 5);
    case 6:
      return ZMLX_CODES(Mode::Affine, 6);
    case 8:
      return ZMLX_CODES(Mode::Affine, 8);
    default:
      return ZMLX_CODES(Mode::Affine, 4);
  }
#undef ZMLX_CODES
}

} // namespace

} // namespace zmlx::cpu
