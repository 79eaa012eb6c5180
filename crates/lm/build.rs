//! Lets tests find a prebuilt MLX at run time.

fn main() {
    println!("cargo:rerun-if-changed=build.rs");
    if let Ok(lib) = std::env::var("DEP_ZMLX_RPATH") {
        println!("cargo:rustc-link-arg=-Wl,-rpath,{lib}");
    }
}
