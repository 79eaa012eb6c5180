//! Builds MLX, the overlay and the bridge, and tells cargo how to link them.
//!
//! The work is done by `zmlx-patch`; here the environment is read and cargo is spoken to. See
//! `docs/building.md` for the variables.

#[path = "build/cpp.rs"]
mod cpp;
#[path = "build/environment.rs"]
mod environment;

use std::{
    error::Error,
    path::{Path, PathBuf},
    process::ExitCode,
};

use cpp::Compiled;
use environment::Environment;
use zmlx_patch::{
    Pin, Release, cache::Cache, native, native::Library, overlay, patches, prebuilt,
    prerequisites::Plan,
};

type Result<T> = std::result::Result<T, Box<dyn Error>>;

/// An MLX to compile against and to link.
struct Mlx {
    release: Release,
    mode: &'static str,
    source: String,
    include: PathBuf,
    root: PathBuf,
    patches: Vec<String>,
    backends: Vec<String>,
    link: Link,
}

enum Link {
    Static(Vec<Library>),
    Shared(PathBuf),
}

#[expect(clippy::print_stderr, reason = "cargo shows it, as it shows the output of a compiler")]
fn main() -> ExitCode {
    match build() {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error}");
            ExitCode::FAILURE
        }
    }
}

fn build() -> Result<()> {
    let environment = Environment::read()?;
    let fork = Path::new(zmlx_patch::ROOT);
    environment.watch(&fork.join("MLX_PIN"));
    environment.watch(&fork.join("patches"));

    let mlx = match &environment.prebuilt_dir {
        Some(dir) => use_prebuilt(&environment, dir)?,
        None => build_from_source(&environment, fork)?,
    };
    let overlay = environment.custom_primitive.then(|| fork.join("overlay"));
    let primitives = overlay.as_deref().map_or(Ok(Vec::new()), overlay::primitives)?;
    environment.watch(&fork.join("overlay"));
    for part in ["src", "build", "CMakeLists.txt"] {
        environment.watch(&environment.manifest_dir.join(part));
    }

    let compiled = cpp::compile(&environment, &mlx, overlay.as_deref())?;
    link_ours(&environment, &compiled)?;
    link(&environment, &mlx);
    tell_dependents(&mlx, &primitives);
    Ok(())
}

fn use_prebuilt(environment: &Environment, dir: &Path) -> Result<Mlx> {
    let pin = Pin::current();
    environment.require(Plan { source: false, ..environment.plan() })?;
    let found = prebuilt::accept(dir, pin, &environment.os, environment.allow_unverified)?;
    if environment.cuda.is_some() && !found.backends.iter().any(|b| b == "cuda") {
        let dir = dir.display();
        return Err(format!(
            "the `cuda` feature is on, but MLX_PREBUILT_DIR={dir} has no CUDA backend; name the \
             folder of the wheel `mlx[cuda13]`, or build without the feature"
        )
        .into());
    }
    environment.watch(&found.include.join("mlx/version.h"));
    Ok(Mlx {
        release: found.release,
        mode: "prebuilt",
        source: format!("MLX_PREBUILT_DIR={}", dir.display()),
        include: found.include,
        root: dir.to_owned(),
        patches: Vec::new(),
        backends: found.backends,
        link: Link::Shared(found.lib),
    })
}

fn build_from_source(environment: &Environment, fork: &Path) -> Result<Mlx> {
    let pin = Pin::current();
    environment.require(Plan { source: false, ..environment.plan() })?;
    let folder = fork.join("patches");
    let mut patches = patches::list(&folder)?;
    if environment.cuda.is_some() {
        patches.extend(patches::of_backend(&folder, "cuda")?);
    }
    let names = patches.iter().map(|p| p.name.trim_end_matches(".patch").to_owned()).collect();
    if let Some(dir) = &environment.source_dir {
        pin.objects.iter().for_each(|object| environment.watch(&dir.join(&object.path)));
    }
    let native = environment.native(patches);
    let cache = Cache::new(environment.cache_root.join("mlx"));
    let mut warn = |text: &str| println!("cargo:warning={}", text.replace('\n', " "));
    let built = native.build(pin, &cache, &mut warn)?;
    let source = std::fs::read_to_string(built.prefix.join(native::SOURCE_NOTE))?;

    let mut backends = vec!["cpu".to_owned()];
    backends.extend(native.metal.then(|| "metal".to_owned()));
    backends.extend(native.cuda.is_some().then(|| "cuda".to_owned()));
    let release = pin.release(&pin.version).ok_or("MLX_PIN does not list its own release")?;
    Ok(Mlx {
        release: release.clone(),
        mode: "source",
        source,
        include: built.prefix.join("include"),
        root: built.prefix,
        patches: names,
        backends,
        link: Link::Static(built.libraries),
    })
}

/// Our C++ and its standard library; tests build more targets in the folder.
fn link_ours(environment: &Environment, compiled: &Compiled) -> Result<()> {
    println!("cargo:rustc-link-search=native={}", compiled.folder.join("lib").display());
    for library in &compiled.libraries {
        println!("cargo:rustc-link-lib=static={library}");
    }
    let standard = if environment.os == "macos" { "c++" } else { "stdc++" };
    println!("cargo:rustc-link-lib=dylib={standard}");
    println!("cargo:rustc-env=ZMLX_SYS_CPP={}", compiled.folder.display());
    println!("cargo:rustc-env=ZMLX_SYS_CMAKE={}", environment.cmake()?.program.display());
    println!("cargo:rustc-env=ZMLX_SYS_LAUNCHER={}", environment.launcher()?);
    Ok(())
}

fn link(environment: &Environment, mlx: &Mlx) {
    match &mlx.link {
        Link::Static(libraries) => {
            println!("cargo:rustc-link-search=native={}", mlx.root.join("lib").display());
            // not bundled: the archive is large, and the cache outlives the target folder
            println!("cargo:rustc-link-lib=static:-bundle=mlx");
            for library in libraries {
                match library {
                    Library::Framework(name) => {
                        println!("cargo:rustc-link-lib=framework={name}");
                    }
                    Library::Named { name, folder } => {
                        if let Some(folder) = folder {
                            println!("cargo:rustc-link-search=native={}", folder.display());
                        }
                        println!("cargo:rustc-link-lib=dylib={name}");
                    }
                }
            }
            if mlx.backends.iter().any(|b| b == "cuda") {
                link_cuda_runtime(environment);
            }
        }
        Link::Shared(lib) => {
            println!("cargo:rustc-link-search=native={}", lib.display());
            println!("cargo:rustc-link-lib=dylib=mlx");
            // for this package's own tests; dependents get it as DEP_ZMLX_MLX_RPATH
            println!("cargo:rustc-link-arg=-Wl,-rpath,{}", lib.display());
            if environment.cuda.is_some() {
                link_cuda_runtime(environment);
            }
        }
    }
    if mlx.backends.iter().any(|b| b == "metal") {
        // what metal-cpp, which is all in headers, calls from our units
        for framework in ["Foundation", "Metal"] {
            println!("cargo:rustc-link-lib=framework={framework}");
        }
        println!("cargo:rustc-link-lib=dylib=objc");
    }
}

/// The runtime under the code for the GPU: CMake leaves it to the CUDA compiler, which does not link us.
fn link_cuda_runtime(environment: &Environment) {
    for folder in environment.cuda_libraries() {
        println!("cargo:rustc-link-search=native={}", folder.display());
    }
    println!("cargo:rustc-link-lib=static:-bundle=cudart_static");
    println!("cargo:rustc-link-lib=dylib=rt");
}

/// `links` metadata for the build scripts of dependents, constants for our own `lib.rs`.
fn tell_dependents(mlx: &Mlx, primitives: &[String]) {
    let pin = Pin::current();
    let facts = [
        ("mode", mlx.mode.to_owned()),
        ("pin", pin.commit.clone()),
        ("pinned_version", pin.version.clone()),
        ("mlx_version", mlx.release.version.clone()),
        ("mlx_lm_version", mlx.release.mlx_lm.clone()),
        ("source", mlx.source.clone()),
        ("backends", mlx.backends.join(",")),
        ("primitives", primitives.join(",")),
        ("patches", mlx.patches.join(",")),
    ];
    for (name, value) in &facts {
        println!("cargo:{name}={value}");
    }
    println!("cargo:root={}", mlx.root.display());
    println!("cargo:include={}", mlx.include.display());
    println!("cargo:rustc-env=ZMLX_SYS_INCLUDE={}", mlx.include.display());
    if let Link::Shared(lib) = &mlx.link {
        println!("cargo:rpath={}", lib.display());
    }
    for (name, value) in &facts {
        let name = if *name == "pin" { "MLX_PIN".to_owned() } else { name.to_uppercase() };
        println!("cargo:rustc-env=ZMLX_SYS_{name}={value}");
    }
}
