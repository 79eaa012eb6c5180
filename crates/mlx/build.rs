//! Lets tests find a prebuilt MLX at run time, and tells dependents where it lies.

fn main() {
    println!("cargo:rerun-if-changed=build.rs");
    if let Ok(lib) = std::env::var("DEP_ZMLX_MLX_RPATH") {
        println!("cargo:rustc-link-arg=-Wl,-rpath,{lib}");
        println!("cargo:rpath={lib}");
    }
}
