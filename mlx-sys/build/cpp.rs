//! Compiling our C++ with CMake (`mlx-sys/CMakeLists.txt`).

use std::{
    fs,
    path::{Path, PathBuf},
};

use zmlx_patch::{ObjectId, cmake, native::Library, object_id::tree_id};

use crate::{Link, Mlx, Result, environment::Environment};

/// Where the C++ was compiled.
pub(crate) struct Compiled {
    /// CMake's folder; `lib` in it has the libraries.
    pub(crate) folder: PathBuf,
    /// Names of the libraries, in linker order.
    pub(crate) libraries: Vec<&'static str>,
}

/// Compiles the bridge with the shim beside it and, unless it is `None`, the overlay.
pub(crate) fn compile(
    environment: &Environment,
    mlx: &Mlx,
    overlay: Option<&Path>,
) -> Result<Compiled> {
    let source = &environment.manifest_dir;
    let shim = source.join("src/shim");
    let bridge = cxx_build::bridge("src/bridge.rs");
    let mut sources: Vec<PathBuf> = bridge.get_files().map(Path::to_owned).collect();
    sources.extend(files_in(&shim, "cc")?);
    let generated = environment.out_dir.join("cxxbridge");
    // the shim takes what differs between versions of MLX from the overlay, also without primitives
    let versions = Path::new(zmlx_patch::ROOT).join("overlay");
    let include = [generated.join("include"), generated.join("crate"), shim, versions];

    // another compiler is another folder, since CMake looks at it only once; so is a checkout that was moved or copied with
    // its target folder, since CMake refuses to go on elsewhere
    let place = format!("{}\n{}", source.display(), environment.out_dir.display());
    let toolchain = format!("{place}\n{}", environment.toolchain()?);
    let id = ObjectId::of("toolchain", toolchain.as_bytes()).to_string();
    let folder = environment.out_dir.join(format!("cpp-{}", &id[..8]));
    fs::create_dir_all(&folder)?;
    let kernels = kernels_metallib(environment, mlx, overlay)?;
    let cmake = environment.cmake()?;
    let mut configure = cmake.configure(source, &folder);
    cmake::define(&mut configure, "CMAKE_CXX_COMPILER", &environment.cxx);
    cmake::define(&mut configure, "ZMLX_MLX_INCLUDE", &mlx.include);
    cmake::define(&mut configure, "ZMLX_OVERLAY", overlay.unwrap_or(Path::new("")));
    for (name, values) in [
        ("ZMLX_MLX_LIBRARIES", mlx_libraries(mlx)),
        ("ZMLX_BACKENDS", backends(environment, mlx)),
        ("ZMLX_DEFINITIONS", definitions(mlx, overlay.is_some(), kernels.as_deref())),
        ("ZMLX_BRIDGE_SOURCES", shown(&sources)),
        ("ZMLX_BRIDGE_INCLUDE", shown(&include)),
        ("ZMLX_LAUNCHER", vec![environment.launcher()?]),
    ] {
        configure.arg(format!("-D{name}={}", values.join(";")));
    }
    if let Some(macos) = &environment.macos {
        configure.arg(format!("-DCMAKE_OSX_DEPLOYMENT_TARGET={macos}"));
    }
    if let Some(kernels) = &kernels {
        cmake::define(&mut configure, "ZMLX_KERNELS_METALLIB", kernels);
    }
    if let Some(cuda) = &environment.cuda {
        let nvcc = environment.nvcc().ok_or("nvcc is not on the path")?;
        cmake::define(&mut configure, "CMAKE_CUDA_COMPILER", &nvcc);
        cmake::define(&mut configure, "CMAKE_CUDA_HOST_COMPILER", &environment.cxx);
        let architectures = cuda.architectures.as_deref().unwrap_or("native");
        configure.arg(format!("-DCMAKE_CUDA_ARCHITECTURES={architectures}"));
    }
    cmake::run(&mut configure, "configure our C++", &folder.join("configure.log"))?;

    let mut build = cmake.build(&folder, environment.jobs);
    let said = cmake::run(&mut build, "compile our C++", &folder.join("compile.log"))?;
    // what compilers say about MLX's headers is not for us to mend
    let ours = source.parent().unwrap_or(source).to_string_lossy();
    for line in said.lines().filter(|l| l.contains("warning:") && l.starts_with(&*ours)) {
        println!("cargo:warning={line}");
    }
    let mut libraries = vec!["zmlx_bridge"];
    libraries.extend(overlay.map(|_| "zmlx_overlay"));
    Ok(Compiled { folder, libraries })
}

/// Where our Metal kernels go that are compiled ahead of time: into the cache, which outlives the target folder, so that
/// a program that `cargo install` has put elsewhere finds them. Another overlay is another file.
fn kernels_metallib(
    environment: &Environment,
    mlx: &Mlx,
    overlay: Option<&Path>,
) -> Result<Option<PathBuf>> {
    let Some(overlay) = overlay.filter(|_| mlx.backends.iter().any(|b| b == "metal")) else {
        return Ok(None);
    };
    let ingredients =
        format!("{} {} {}", mlx.release.headers, tree_id(overlay)?, environment.toolchain()?);
    let id = ObjectId::of("kernels", ingredients.as_bytes()).to_string();
    let folder = environment.cache_root.join("metal").join(&id[..16]);
    fs::create_dir_all(&folder)?;
    Ok(Some(folder.join("zmlx.metallib")))
}

/// What there are kernels of ours for. A prebuilt MLX may have CUDA where there is no compiler for it.
fn backends(environment: &Environment, mlx: &Mlx) -> Vec<String> {
    let has_compiler = |backend: &str| backend != "cuda" || environment.cuda.is_some();
    mlx.backends.iter().filter(|backend| has_compiler(backend)).cloned().collect()
}

/// What the C++ has to know of this build.
fn definitions(mlx: &Mlx, custom_primitive: bool, kernels: Option<&Path>) -> Vec<String> {
    let mut all = Vec::new();
    if custom_primitive {
        all.push("ZMLX_CUSTOM_PRIMITIVE=1".to_owned());
    }
    all.extend(mlx.release.numeric().map(|v| format!("ZMLX_MLX_VERSION_NUMERIC={v}")));
    if mlx.mode == "source" {
        all.push("ZMLX_MLX_PATCHED=1".to_owned());
    }
    let metallib = mlx.root.join("lib/mlx.metallib");
    if matches!(mlx.link, Link::Static(_)) && metallib.exists() {
        // MLX remembers the folder it was compiled in, which is gone
        all.push(format!("ZMLX_METALLIB=\"{}\"", metallib.display()));
    }
    all.extend(kernels.map(|file| format!("ZMLX_KERNELS_METALLIB=\"{}\"", file.display())));
    for backend in &mlx.backends {
        all.push(format!("ZMLX_BACKEND_{}=1", backend.to_uppercase()));
    }
    all
}

/// What a program of CMake's own is linked with.
fn mlx_libraries(mlx: &Mlx) -> Vec<String> {
    match &mlx.link {
        Link::Static(libraries) => {
            let mut all = vec![mlx.root.join("lib/libmlx.a").display().to_string()];
            for library in libraries {
                match library {
                    Library::Framework(name) => all.push(format!("-framework {name}")),
                    Library::Named { name, folder } => {
                        all.extend(folder.as_ref().map(|f| format!("-L{}", f.display())));
                        all.push(name.clone());
                    }
                }
            }
            all
        }
        Link::Shared(lib) => {
            let lib = lib.display();
            vec![format!("-L{lib}"), format!("-Wl,-rpath,{lib}"), "mlx".to_owned()]
        }
    }
}

fn shown(paths: &[PathBuf]) -> Vec<String> {
    paths.iter().map(|p| p.display().to_string()).collect()
}

fn files_in(folder: &Path, extension: &str) -> Result<Vec<PathBuf>> {
    let mut files = Vec::new();
    for entry in fs::read_dir(folder)? {
        let path = entry?.path();
        if path.extension().is_some_and(|e| e == extension) {
            files.push(path);
        }
    }
    files.sort();
    Ok(files)
}
