# Metal kernels: the text of each <name>/*.metal, its quoted includes put in place, is compiled into the library as
# zmlx::metal_source("<name>/<file>"), for compilation while the program runs. Where Apple's shader compiler is there, all
# of them are also compiled ahead of time, into the file ZMLX_KERNELS_METALLIB, which programs look for.

function(zmlx_metal_kernels out)
  set(root ${CMAKE_CURRENT_SOURCE_DIR})
  file(GLOB kernels CONFIGURE_DEPENDS RELATIVE ${root} */*.metal)
  file(GLOB headers CONFIGURE_DEPENDS */*.h */*.metal)
  set(units)
  set(texts)
  foreach(kernel ${kernels})
    set(text ${CMAKE_CURRENT_BINARY_DIR}/${kernel}.inc)
    add_custom_command(
      OUTPUT ${text}
      COMMAND ${CMAKE_COMMAND} -DIN=${root}/${kernel} -DOUT=${text} "-DROOTS=${root};${ZMLX_MLX_INCLUDE}"
              -P ${root}/cmake/inline_includes.cmake
      DEPENDS ${headers} ${root}/cmake/inline_includes.cmake
      VERBATIM)
    list(APPEND texts ${text})
    string(APPEND units "    {\"${kernel}\",\n#include \"${text}\"\n    },\n")
  endforeach()
  file(CONFIGURE OUTPUT metal_sources.cpp @ONLY CONTENT [[
// Written by mlx-patch/overlay/cmake/metal.cmake.
#include "zmlx/metal_source.h"

#include <stdexcept>
#include <string>
#include <utility>

namespace zmlx {

std::string_view metal_source(std::string_view kernel) {
  // not constexpr: compilers give up counting letters
  static const std::pair<std::string_view, std::string_view> sources[] = {
    {"", ""},
@units@  };
  for (auto& [name, text] : sources) {
    if (name == kernel) {
      return text;
    }
  }
  throw std::invalid_argument("there is no Metal source " + std::string(kernel));
}

} // namespace zmlx
]])
  set(unit ${CMAKE_CURRENT_BINARY_DIR}/metal_sources.cpp)
  set_source_files_properties(${unit} PROPERTIES OBJECT_DEPENDS "${texts}")
  set(${out} ${unit} PARENT_SCOPE)

  find_program(XCRUN xcrun)
  if(NOT kernels OR NOT XCRUN)
    return()
  endif()
  # run, not only found: Xcode has a program of this name also without the Metal toolchain
  execute_process(COMMAND ${XCRUN} -sdk macosx metal --version RESULT_VARIABLE missing OUTPUT_QUIET ERROR_QUIET)
  if(missing)
    return()
  endif()
  set(oldest)
  if(CMAKE_OSX_DEPLOYMENT_TARGET)
    set(oldest -mmacosx-version-min=${CMAKE_OSX_DEPLOYMENT_TARGET})
  endif()
  set(objects)
  foreach(kernel ${kernels})
    set(object ${CMAKE_CURRENT_BINARY_DIR}/${kernel}.air)
    add_custom_command(
      OUTPUT ${object}
      COMMAND ${XCRUN} -sdk macosx metal -O3 -fno-fast-math ${oldest} -I${root} -I${ZMLX_MLX_INCLUDE}
              -c ${root}/${kernel} -o ${object}
      DEPENDS ${headers}
      VERBATIM)
    list(APPEND objects ${object})
  endforeach()
  set(library ${ZMLX_KERNELS_METALLIB})
  if(NOT library)
    set(library ${CMAKE_CURRENT_BINARY_DIR}/zmlx.metallib)
  endif()
  add_custom_command(
    OUTPUT ${library}
    COMMAND ${XCRUN} -sdk macosx metallib ${objects} -o ${library}
    DEPENDS ${objects}
    VERBATIM)
  add_custom_target(zmlx_metallib ALL DEPENDS ${library})
endfunction()
