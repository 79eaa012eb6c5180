//! What the Metal backends' host code launches, held against what the kernels say: names, instances, buffers, grid. The
//! host code runs on a stand-in for Metal (overlay/tests/metal); a kernel's side is its source, preprocessed.
#![cfg(all(feature = "custom-primitive", not(target_os = "macos")))]

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    path::{Path, PathBuf},
    process::Command,
    sync::OnceLock,
};

use serde_json::Value;

const CPP: &str = env!("ZMLX_SYS_CPP");

fn overlay() -> PathBuf {
    Path::new(zmlx_patch::ROOT).join("overlay")
}

/// One JSON object for each launch of the host code, made on the first call.
fn launches() -> &'static [Value] {
    static LAUNCHES: OnceLock<Vec<Value>> = OnceLock::new();
    LAUNCHES.get_or_init(run_host_code)
}

fn run_host_code() -> Vec<Value> {
    let mut build = Command::new(env!("ZMLX_SYS_CMAKE"));
    build.args(["--build", CPP, "--target", "metal_dispatch"]);
    // cargo's own make flags are not for CMake's make
    build.env_remove("MAKEFLAGS").env_remove("CARGO_MAKEFLAGS");
    let output = build.output().expect("cmake");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stdout));
    let output = Command::new(Path::new(CPP).join("overlay/tests/metal_dispatch")).output();
    let output = output.expect("metal_dispatch");
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{}: {said}", output.status);
    let text = String::from_utf8(output.stdout).expect("text");
    text.lines().map(|line| serde_json::from_str(line).expect(line)).collect()
}

/// The kernels that the `.metal` files of a folder have ahead of time: the template's arguments by host name.
fn instances(folder: &Path) -> BTreeMap<String, String> {
    let mut all = BTreeMap::new();
    for file in metal_files(folder) {
        let text = fs::read_to_string(&file).expect("kernel");
        // what stands below the guard; MLX's macro puts name and template side by side
        let Some((_, part)) = text.split_once("#ifndef ZMLX_NO_INSTANCES") else { continue };
        let part = part.rsplit_once("#endif").map_or(part, |(before, _)| before);
        let source = format!(
            "#define instantiate_kernel(name, ...) INSTANCE name : __VA_ARGS__ ;\n{part}\n"
        );
        let unit = tempfile::Builder::new().suffix(".cc").tempfile().expect("file");
        fs::write(unit.path(), source).expect("write");
        let mut cxx = Command::new(std::env::var("CXX").unwrap_or_else(|_| "c++".to_owned()));
        let output = cxx.args(["-E", "-P", "-x", "c++"]).arg(unit.path()).output().expect("c++");
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        let text = String::from_utf8(output.stdout).expect("text");
        for instance in text.split("INSTANCE").skip(1) {
            let (name, arguments) = instance.split_once(':').expect(instance);
            // "a" "b" is one literal
            let name: String = name.split('"').skip(1).step_by(2).collect();
            let arguments = arguments.split(';').next().unwrap_or_default();
            let mut arguments = arguments.split(',').map(str::trim);
            let template = arguments.next().unwrap_or_default().to_owned();
            let arguments: Vec<&str> = arguments.collect();
            let before = all.insert(name.clone(), format!("{template}<{}>", arguments.join(", ")));
            assert!(before.is_none(), "{name} is there twice");
        }
    }
    all
}

fn metal_files(folder: &Path) -> Vec<PathBuf> {
    let entries = fs::read_dir(folder).expect("folder").map(|entry| entry.expect("entry").path());
    let mut files: Vec<_> =
        entries.filter(|path| path.extension().is_some_and(|e| e == "metal")).collect();
    files.sort();
    files
}

/// The buffers of a kernel's template, and of these the ones that it writes to.
fn buffers(folder: &Path, template: &str) -> (BTreeSet<u64>, BTreeSet<u64>) {
    let texts =
        metal_files(folder).into_iter().map(|file| fs::read_to_string(file).expect("kernel"));
    let text = texts.collect::<Vec<_>>().join("\n");
    let head = format!("void {template}(");
    let (_, rest) = text.split_once(&head).unwrap_or_else(|| panic!("no template {template}"));
    let parameters = rest.split(") {").next().unwrap_or_default();
    let (mut all, mut written) = (BTreeSet::new(), BTreeSet::new());
    for parameter in parameters.split(",\n") {
        let Some((before, after)) = parameter.split_once("[[buffer(") else { continue };
        let index = after.split(')').next().and_then(|n| n.parse().ok()).expect(parameter);
        assert!(all.insert(index), "{template}: buffer {index} is there twice");
        if !before.contains("const ") && !before.contains("constant ") {
            written.insert(index);
        }
    }
    (all, written)
}

fn numbers(value: &Value) -> BTreeSet<u64> {
    value.as_array().expect("array").iter().map(|n| n.as_u64().expect("number")).collect()
}

#[test]
fn host_launches_what_the_kernels_are() {
    let launches = launches();
    let mut folders: BTreeMap<String, BTreeMap<String, String>> = BTreeMap::new();
    for launch in launches {
        let text = |key: &str| launch[key].as_str().expect(key);
        let (case, primitive, kernel) = (text("case"), text("primitive"), text("kernel"));
        let folder = overlay().join(primitive);
        let known = folders.entry(primitive.to_owned()).or_insert_with(|| instances(&folder));
        let instance = known.get(kernel);
        let instance = instance.unwrap_or_else(|| panic!("{case}: {kernel} is not in {primitive}"));
        // compiled at run time, it is the same template with the same arguments
        let expected = format!(
            "template [[host_name(\"{kernel}\")]] [[kernel]] decltype({instance}) {instance};"
        );
        assert_eq!(text("instance"), expected, "{case}");
        assert_eq!(launch["ascii"], true, "{case}: Metal reads source text as ASCII");

        let template = instance.split('<').next().unwrap_or_default();
        let (all, written) = buffers(&folder, template);
        let set: BTreeSet<u64> =
            ["inputs", "outputs", "bytes"].iter().flat_map(|key| numbers(&launch[*key])).collect();
        assert_eq!(set, all, "{case}: buffers of {template}");
        assert_eq!(numbers(&launch["outputs"]), written, "{case}: outputs of {template}");
        let threads: u64 = numbers_of(&launch["group"]).iter().product();
        assert!(
            threads.is_multiple_of(32) && threads <= 1024,
            "{case}: {threads} threads in a group"
        );
        assert!(numbers_of(&launch["grid"]).iter().all(|n| *n > 0), "{case}: an empty grid");
    }
    assert!(!launches.is_empty(), "no launch was made");
    println!("{} launches of {} primitives", launches.len(), folders.len());
}

fn numbers_of(value: &Value) -> Vec<u64> {
    value.as_array().expect("array").iter().map(|n| n.as_u64().expect("number")).collect()
}

/// Each backend has its kernels, its words on what they do not, and no kernel that nobody launches.
#[test]
fn folders_with_a_metal_backend_are_whole() {
    let launched: BTreeSet<String> = launches()
        .iter()
        .map(|launch| launch["kernel"].as_str().expect("kernel").to_owned())
        .collect();
    let folders =
        fs::read_dir(overlay()).expect("overlay").map(|entry| entry.expect("entry").path());
    let mut backends = 0;
    for folder in folders.filter(|folder| folder.join("op.cpp").exists()) {
        let name = folder.display();
        let has_host = folder.join("metal.cpp").exists();
        let kernels = metal_files(&folder);
        assert!(!has_host || !kernels.is_empty(), "{name} has a metal.cpp and no kernel");
        let op = fs::read_to_string(folder.join("op.cpp")).expect("op.cpp");
        let refuses = ["_on_metal};", "_on_metal,\n"].iter().any(|end| op.contains(end));
        assert_eq!(has_host, refuses, "{name}: metal.cpp and refuse_metal of op.cpp go together");
        if has_host {
            backends += 1;
            for kernel in instances(&folder).keys().filter(|kernel| !kernel.contains("_clamped_")) {
                assert!(launched.contains(kernel), "{name}: nothing launches {kernel}");
            }
        }
    }
    println!("{backends} primitives with a Metal backend");
}
