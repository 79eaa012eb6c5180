//! How the overlay is compiled, on small folders in its place: nothing but a file makes a backend.

use std::{fs, path::Path, process::Command};

const REGISTRY: &str = "#pragma once
#include <optional>
#include <vector>
namespace zmlx {
struct Definition { const char* name; };
struct GpuBackend { const char* name; };
struct Row { Definition definition; std::optional<GpuBackend> gpu; };
const std::vector<Row>& table();
}
";

const SHOW: &str = "#include <cstdio>
#include <string>
#include \"zmlx/metal_source.h\"
#include \"zmlx/registry.h\"
int main() {
  for (auto& row : zmlx::table()) std::printf(\"%s %s\\n\", row.definition.name, row.gpu ? row.gpu->name : \"-\");
  std::printf(\"%s\", std::string(zmlx::metal_source(\"both/kernel.metal\")).c_str());
}
";

fn write(root: &Path, path: &str, text: &str) {
    let path = root.join(path);
    fs::create_dir_all(path.parent().expect("parent")).expect("folder");
    fs::write(path, text).expect("file");
}

fn copy_of_the_build(root: &Path) {
    let overlay = Path::new(env!("CARGO_MANIFEST_DIR")).join("overlay");
    let files = ["CMakeLists.txt", "cmake/metal.cmake", "cmake/inline_includes.cmake"];
    for file in files.into_iter().chain(["zmlx/metal_source.h"]) {
        write(root, file, &fs::read_to_string(overlay.join(file)).expect(file));
    }
}

fn cmake(arguments: &[&str]) {
    let mut cmake = Command::new("cmake");
    // cargo's own make flags are not for CMake's make
    let output = cmake.args(arguments).env_remove("MAKEFLAGS").env_remove("CARGO_MAKEFLAGS");
    let output = output.output().expect("cmake");
    let said = [output.stdout, output.stderr].concat();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&said));
}

#[test]
fn file_in_a_folder_is_a_backend_and_an_ending_chooses_the_instruction_set() {
    let dir = tempfile::tempdir().expect("tempdir");
    let root = dir.path();
    copy_of_the_build(root);
    write(root, "zmlx/registry.h", REGISTRY);
    write(root, "tests/registry.cpp", SHOW);
    for name in ["fast", "ops", "primitives"] {
        write(root, &format!("mlx/{name}.h"), "");
    }
    for name in ["both", "plain"] {
        let include = "#include \"zmlx/registry.h\"\nnamespace zmlx {\n";
        let op = format!("{include}Definition define_{name}() {{ return {{\"{name}\"}}; }}\n}}\n");
        write(root, &format!("{name}/op.cpp"), &op);
        write(root, &format!("{name}/cpu.cpp"), "");
    }
    let metal = "#include \"zmlx/registry.h\"\nnamespace zmlx {\nGpuBackend both_gpu() { return {\"metal\"}; }\n}\n";
    write(root, "both/metal.cpp", metal);
    // for the other backend: not compiled
    write(root, "both/cuda.cu", "#error\n");
    write(root, "plain/cuda.cu", "#error\n");
    write(root, "zmlx/common.h", "#pragma once\nconstant int lanes = 32; // [a; \"b\"]\n");
    let kernel = "#include <metal_stdlib>\n#include \"zmlx/common.h\"\n#include \"zmlx/common.h\"\n\
                  kernel void k() {}\n";
    write(root, "both/kernel.metal", kernel);
    let needs = |defined: &str| format!("#ifndef {defined}\n#error {defined}\n#endif\n");
    let wide = needs("__AVX512BF16__") + &needs("__AVX512VBMI__");
    write(root, "cpu/a_amx.cpp", &(wide.clone() + &needs("__AMX_TILE__") + &needs("__AMX_BF16__")));
    write(root, "cpu/a_avx512_dot.cpp", &(wide + "#ifdef __AMX_TILE__\n#error\n#endif\n"));
    write(
        root,
        "cpu/a_avx512_fast.cpp",
        &(needs("__AVX512BW__") + "#ifdef __AVX512BF16__\n#error\n#endif\n"),
    );
    write(root, "cpu/a_avx2.cpp", &(needs("__AVX2__") + "#ifdef __AVX512F__\n#error\n#endif\n"));
    write(root, "cpu/a_neon.cpp", &needs("__aarch64__"));

    let (source, build) = (root.display().to_string(), root.join("build").display().to_string());
    let include = format!("-DZMLX_MLX_INCLUDE={source}");
    let release = "-DCMAKE_BUILD_TYPE=Release";
    cmake(&["-S", &source, "-B", &build, release, &include, "-DZMLX_BACKENDS=cpu;metal"]);
    cmake(&["--build", &build, "--target", "overlay_tests"]);
    let shown = Command::new(root.join("build/tests/registry")).output().expect("registry");
    let shown = String::from_utf8_lossy(&shown.stdout).into_owned();
    let text =
        "#include <metal_stdlib>\nconstant int lanes = 32; // [a; \"b\"]\nkernel void k() {}\n";
    assert_eq!(shown, format!("both metal\nplain -\n{text}"));
}
