//! Builds MLX, the overlay and the bridge, and tells cargo how to link them.
//!
//! The work is done by `zmlx-patch`; here the environment is read and cargo is spoken to. See
//! `docs/building.md` for the variables.

#[path = "build/environment.rs"]
mod environment;
#[path = "build/objects.rs"]
mod objects;

use std::{
    error::Error,
    path::{Path, PathBuf},
    process::ExitCode,
};

use environment::Environment;
use objects::{Compilation, Objects, Store};
use zmlx_patch::{
    Pin, cache::Cache, native, native::Library, overlay::Overlay, patches, prebuilt,
    prerequisites::Plan,
};

type Result<T> = std::result::Result<T, Box<dyn Error>>;

/// An MLX to compile against and to link.
struct Mlx {
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
    let overlay_root = fork.join("overlay");
    let overlay = match environment.custom_primitive {
        true => Overlay::read(&overlay_root)?,
        false => Overlay::default(),
    };
    environment.watch(&overlay_root);
    environment.watch(&environment.manifest_dir.join("src"));
    environment.watch(&environment.manifest_dir.join("build"));

    compile_bridge(&environment, &mlx, &overlay_root)?;
    compile_overlay(&environment, &mlx, &overlay_root, &overlay)?;
    link(&environment, &mlx);
    tell_dependents(&mlx, &overlay);
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
    let patches = patches::list(&fork.join("patches"))?;
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
    Ok(Mlx {
        mode: "source",
        source,
        include: built.prefix.join("include"),
        root: built.prefix,
        patches: names,
        backends,
        link: Link::Static(built.libraries),
    })
}

/// The cxx bridge with the hand-written C++ beside it.
fn compile_bridge(environment: &Environment, mlx: &Mlx, overlay: &Path) -> Result<()> {
    let bridge = environment.manifest_dir.join("src/bridge.rs");
    if !bridge.exists() {
        return Ok(());
    }
    let shim = environment.manifest_dir.join("src/shim");
    let mut base = cxx_build::bridge("src/bridge.rs");
    environment.configure(&mut base);
    base.include(&shim).include(overlay).opt_level(2);
    declare(&mut base, environment, mlx);

    let generated_headers = environment.out_dir.join("cxxbridge/include");
    let store = store(environment, &[overlay.to_owned(), shim.clone(), generated_headers])?;
    let folder = environment.out_dir.join("bridge");
    let mut objects = Objects::new(&folder, environment.jobs, &store);
    let generated: Vec<PathBuf> = base.get_files().map(Path::to_owned).collect();
    for source in generated.into_iter().chain(files_in(&shim, "cc")?) {
        objects.add(Compilation::with(&base, source));
    }
    objects.archive("zmlx_bridge", &environment.cxx)?;
    Ok(())
}

/// The primitives: always optimised, and never contracted, since stock MLX rounds every product.
fn compile_overlay(
    environment: &Environment,
    mlx: &Mlx,
    root: &Path,
    overlay: &Overlay,
) -> Result<()> {
    let mut base = cc::Build::new();
    environment.configure(&mut base);
    base.include(root).opt_level(3).flag("-ffp-contract=off").warnings(true).extra_warnings(true);
    declare(&mut base, environment, mlx);

    let store = store(environment, &[root.to_owned()])?;
    let folder = environment.out_dir.join("overlay");
    let mut objects = Objects::new(&folder, environment.jobs, &store);
    for source in overlay.for_target(&environment.overlay_target(&mlx.backends)) {
        let path = root.join(&source.path);
        if path.extension().is_some_and(|e| e == "cu") {
            objects.add(environment.cuda_compilation(path, root, &mlx.include, &source.flags)?);
            continue;
        }
        let mut build = base.clone();
        for flag in &source.flags {
            build.flag(flag);
        }
        objects.add(Compilation::with(&build, path));
    }
    objects.archive("zmlx_overlay", &environment.cxx)?;
    Ok(())
}

/// Where compiled objects are shared between checkouts and profiles.
fn store(environment: &Environment, headers: &[PathBuf]) -> Result<Store> {
    let folder = environment.cache_root.join("objects");
    let checkout = environment.manifest_dir.parent().unwrap_or(&environment.manifest_dir);
    let places = [(environment.out_dir.clone(), "<out>"), (checkout.to_owned(), "<checkout>")];
    Store::new(folder, &environment.cxx, headers, places)
}

/// MLX's headers, and what the C++ has to know of this build.
fn declare(build: &mut cc::Build, environment: &Environment, mlx: &Mlx) {
    build.flag("-isystem").flag(mlx.include.to_string_lossy().as_ref());
    if environment.custom_primitive {
        build.define("ZMLX_CUSTOM_PRIMITIVE", "1");
    }
    if mlx.mode == "source" {
        build.define("ZMLX_MLX_PATCHED", "1");
    }
    let metallib = mlx.root.join("lib/mlx.metallib");
    if matches!(mlx.link, Link::Static(_)) && metallib.exists() {
        // MLX remembers the folder it was compiled in, which is gone
        build.define("ZMLX_METALLIB", format!("\"{}\"", metallib.display()).as_str());
    }
    for backend in &mlx.backends {
        build.define(&format!("ZMLX_BACKEND_{}", backend.to_uppercase()), "1");
    }
}

fn files_in(folder: &Path, extension: &str) -> Result<Vec<PathBuf>> {
    let mut files = Vec::new();
    for entry in std::fs::read_dir(folder)? {
        let path = entry?.path();
        if path.extension().is_some_and(|e| e == extension) {
            files.push(path);
        }
    }
    files.sort();
    Ok(files)
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
                for folder in environment.cuda_libraries() {
                    println!("cargo:rustc-link-search=native={}", folder.display());
                }
                // CMake leaves the runtime to the CUDA compiler, which does not link us
                println!("cargo:rustc-link-lib=static:-bundle=cudart_static");
                println!("cargo:rustc-link-lib=dylib=rt");
            }
            if mlx.backends.iter().any(|b| b == "metal") {
                println!("cargo:rustc-link-lib=framework=Foundation");
            }
        }
        Link::Shared(lib) => {
            println!("cargo:rustc-link-search=native={}", lib.display());
            println!("cargo:rustc-link-lib=dylib=mlx");
            // for this package's own tests; dependents get it as DEP_ZMLX_MLX_RPATH
            println!("cargo:rustc-link-arg=-Wl,-rpath,{}", lib.display());
        }
    }
}

/// `links` metadata for the build scripts of dependents, constants for our own `lib.rs`.
fn tell_dependents(mlx: &Mlx, overlay: &Overlay) {
    let pin = Pin::current();
    let facts = [
        ("mode", mlx.mode.to_owned()),
        ("pin", pin.commit.clone()),
        ("mlx_version", pin.version.clone()),
        ("source", mlx.source.clone()),
        ("backends", mlx.backends.join(",")),
        ("primitives", overlay.primitives.join(",")),
        ("patches", mlx.patches.join(",")),
    ];
    for (name, value) in &facts {
        println!("cargo:{name}={value}");
    }
    println!("cargo:root={}", mlx.root.display());
    println!("cargo:include={}", mlx.include.display());
    if let Link::Shared(lib) = &mlx.link {
        println!("cargo:rpath={}", lib.display());
    }
    for (name, value) in &facts {
        let name = if *name == "pin" { "MLX_PIN".to_owned() } else { name.to_uppercase() };
        println!("cargo:rustc-env=ZMLX_SYS_{name}={value}");
    }
}
