//! Tells the bench where the headers of the linked MLX lie, and which release that is.

fn main() {
    println!("cargo:rerun-if-changed=build.rs");
    for (name, from) in
        [("INCLUDE", "DEP_ZMLX_MLX_INCLUDE"), ("VERSION", "DEP_ZMLX_MLX_MLX_VERSION")]
    {
        let value = std::env::var(from).unwrap_or_default();
        println!("cargo:rustc-env=METAL_BENCH_MLX_{name}={value}");
    }
}
