//! The way from a source to a verified, patched tree, on small trees in place of MLX.
#![cfg(unix)]
#![expect(clippy::unwrap_used, reason = "a test may stop where it stands")]

use std::{
    fs,
    os::unix::fs::{PermissionsExt, symlink},
    path::{Path, PathBuf},
    process::Command,
    time::{Duration, Instant},
};

use zmlx_patch::{
    Error, ObjectId, ObjectKind, Pin, PinnedObject,
    locate::{Places, locate},
    object_id::{blob_id, tree_id},
    patches::{self, Patch},
    verify,
};

const HEADER: &str = "#pragma once\nint one();\nint two();\nint three();\n";

/// A tree with everything that git could treat in a special way.
fn plant(root: &Path) {
    let write = |path: &str, text: &str| {
        let path = root.join(path);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, text).unwrap();
    };
    write("mlx/array.h", HEADER);
    write("mlx/array.cpp", "int one() {\r\n  return 1;\r\n}\r\n");
    write("mlx/a/b.txt", "$Id$\n");
    write("mlx/a.txt", "sorts before the folder a\n");
    write("mlx/lib/ignored.so", "ignored by the file below\n");
    write("mlx/.gitignore", "lib/\n*.so\n");
    write("mlx/.gitattributes", "* text=auto ident\n");
    write("mlx/run.sh", "#!/bin/sh\n");
    write("CMakeLists.txt", "project(mlx)\n");
    write("README.md", "not pinned\n");
    fs::create_dir_all(root.join("mlx/empty/deeper")).unwrap();
    fs::set_permissions(root.join("mlx/run.sh"), fs::Permissions::from_mode(0o755)).unwrap();
    symlink("array.h", root.join("mlx/link.h")).unwrap();
}

fn pin_of(root: &Path) -> Pin {
    let object = |kind, path: &str, id| PinnedObject { kind, path: path.to_owned(), id };
    let mut pin = Pin::current().clone();
    pin.objects = vec![
        object(ObjectKind::Tree, "mlx", tree_id(&root.join("mlx")).unwrap()),
        object(ObjectKind::Blob, "CMakeLists.txt", blob_id(&root.join("CMakeLists.txt")).unwrap()),
    ];
    pin
}

fn git(dir: &Path, arguments: &[&str]) -> String {
    let mut command = Command::new("git");
    command.args(["-c", "user.name=t", "-c", "user.email=t@example.org"]);
    let output = command.args(arguments).current_dir(dir).output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap().trim().to_owned()
}

fn commit_all(dir: &Path) -> String {
    git(dir, &["init", "--quiet"]);
    git(dir, &["-c", "core.autocrlf=false", "add", "--force", "--all", "."]);
    git(dir, &["commit", "--quiet", "--message", "all"]);
    git(dir, &["rev-parse", "HEAD"])
}

fn places() -> Places {
    Places { answer_within: Duration::from_secs(20), ..Places::default() }
}

/// Runs `locate`, and hands back the warnings as well.
fn try_locate(places: &Places, pin: &Pin, to: &Path) -> (Result<String, Error>, Vec<String>) {
    let mut warnings = Vec::new();
    let mut warn = |text: &str| warnings.push(text.to_owned());
    let found = locate(places, Path::new("git"), pin, to, &mut warn);
    (found, warnings)
}

#[test]
fn ids_equal_those_of_git_without_attributes() {
    let dir = tempfile::tempdir().unwrap();
    plant(dir.path());
    // git itself would rewrite line endings here
    fs::remove_file(dir.path().join("mlx/.gitattributes")).unwrap();
    commit_all(dir.path());
    assert_eq!(tree_id(&dir.path().join("mlx")).unwrap().to_string(), {
        git(dir.path(), &["rev-parse", "HEAD:mlx"])
    });
    assert_eq!(blob_id(&dir.path().join("CMakeLists.txt")).unwrap().to_string(), {
        git(dir.path(), &["rev-parse", "HEAD:CMakeLists.txt"])
    });
}

#[test]
fn ids_do_not_depend_on_the_repository_around() {
    let outer = tempfile::tempdir().unwrap();
    let inner = outer.path().join("vendor");
    plant(&inner);
    let pin = pin_of(&inner);
    git(outer.path(), &["init", "--quiet"]);
    git(outer.path(), &["config", "core.autocrlf", "true"]);
    fs::write(outer.path().join(".gitignore"), "*\n").unwrap();
    verify(&inner, &pin).unwrap();
}

#[test]
fn files_of_the_operating_system_do_not_count() {
    let dir = tempfile::tempdir().unwrap();
    plant(dir.path());
    let pin = pin_of(dir.path());
    fs::write(dir.path().join("mlx/.DS_Store"), "litter").unwrap();
    verify(dir.path(), &pin).unwrap();
}

#[test]
fn tampered_source_names_both_ids() {
    let dir = tempfile::tempdir().unwrap();
    plant(dir.path());
    let pin = pin_of(dir.path());
    for (file, index) in [("mlx/lib/ignored.so", 0), ("CMakeLists.txt", 1)] {
        let path = dir.path().join(file);
        let before = fs::read(&path).unwrap();
        fs::write(&path, "tampered").unwrap();
        let error = verify(dir.path(), &pin).unwrap_err();
        let Error::ContentDiffers { expected, got, .. } = error else { panic!("{error}") };
        assert_eq!(expected, pin.objects[index].id);
        assert_ne!(expected, got);
        assert!(error.to_string().contains(&expected.to_string()));
        assert!(error.to_string().contains(&got.to_string()));
        fs::write(&path, before).unwrap();
    }
    verify(dir.path(), &pin).unwrap();
}

#[test]
fn lost_execute_bit_is_noticed() {
    let dir = tempfile::tempdir().unwrap();
    plant(dir.path());
    let pin = pin_of(dir.path());
    let script = dir.path().join("mlx/run.sh");
    fs::set_permissions(script, fs::Permissions::from_mode(0o644)).unwrap();
    assert!(matches!(verify(dir.path(), &pin), Err(Error::ContentDiffers { .. })));
}

#[test]
fn source_without_a_pinned_file_says_which() {
    let dir = tempfile::tempdir().unwrap();
    plant(dir.path());
    let pin = pin_of(dir.path());
    fs::remove_file(dir.path().join("CMakeLists.txt")).unwrap();
    let error = verify(dir.path(), &pin).unwrap_err();
    assert!(matches!(error, Error::ContentMissing { .. }));
    assert!(error.to_string().contains("CMakeLists.txt is not there"), "{error}");
}

#[test]
fn source_dir_is_copied_without_what_is_not_pinned() {
    let (dir, to) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    plant(dir.path());
    let pin = pin_of(dir.path());
    let to = to.path().join("mlx");
    let places = Places { source_dir: Some(dir.path().to_owned()), ..places() };
    let (found, warnings) = try_locate(&places, &pin, &to);
    assert_eq!(found.unwrap(), format!("MLX_SOURCE_DIR={}", dir.path().display()));
    assert_eq!(warnings, Vec::<String>::new());
    assert!(to.join("mlx/lib/ignored.so").exists() && !to.join("README.md").exists());
}

#[test]
fn tampered_source_dir_stops_unless_allowed() {
    let (dir, to) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    plant(dir.path());
    let pin = pin_of(dir.path());
    fs::write(dir.path().join("mlx/array.h"), "tampered").unwrap();
    let to = to.path().join("mlx");
    let places = Places { source_dir: Some(dir.path().to_owned()), ..places() };
    let (found, _) = try_locate(&places, &pin, &to);
    assert!(matches!(found, Err(Error::ContentDiffers { .. })));
    assert!(!to.exists());

    let places = Places { allow_unverified: true, ..places };
    let (found, warnings) = try_locate(&places, &pin, &to);
    found.unwrap();
    assert!(warnings[0].starts_with("building an MLX that is not the pinned one"));
}

#[test]
fn git_source_is_fetched_and_verified() {
    let (dir, to) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    plant(dir.path());
    fs::remove_file(dir.path().join("mlx/.gitattributes")).unwrap();
    let mut pin = pin_of(dir.path());
    pin.commit = commit_all(dir.path());
    pin.repository = format!("file://{}", dir.path().display());
    let (found, warnings) = try_locate(&places(), &pin, &to.path().join("mlx"));
    assert_eq!(found.unwrap(), format!("{} at {}", pin.repository, pin.commit));
    assert_eq!(warnings, Vec::<String>::new());
    verify(&to.path().join("mlx"), &pin).unwrap();
}

#[test]
fn git_source_with_other_content_gives_way_with_both_ids() {
    let (dir, to) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    plant(dir.path());
    let mut pin = pin_of(dir.path());
    fs::write(dir.path().join("mlx/array.h"), "tampered").unwrap();
    pin.commit = commit_all(dir.path());
    pin.repository = format!("file://{}", dir.path().display());
    let package = fake_package(to.path(), &pin);
    plant(&package.root);
    let places = Places { cargo: package.cargo, ..places() };
    let (found, warnings) = try_locate(&places, &pin, &to.path().join("mlx"));
    let name = &pin.package.name;
    assert_eq!(found.unwrap(), format!("{name} {} on crates.io", pin.package.version));
    let expected = pin.objects[0].id.to_string();
    assert!(warnings[0].contains("passing over the MLX from git"), "{warnings:?}");
    assert!(warnings[0].contains(&expected), "{warnings:?}");
}

#[test]
fn silent_git_host_gives_way_in_time() {
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let (dir, to) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    plant(dir.path());
    let mut pin = pin_of(dir.path());
    pin.repository = format!("http://{}/mlx", listener.local_addr().unwrap());
    let package = fake_package(to.path(), &pin);
    plant(&package.root);
    let answer_within = Duration::from_millis(300);
    let places = Places { cargo: package.cargo, answer_within, ..places() };
    let start = Instant::now();
    let (found, _) = try_locate(&places, &pin, &to.path().join("mlx"));
    found.unwrap();
    assert!(start.elapsed() < Duration::from_secs(10), "{:?}", start.elapsed());
}

#[test]
fn without_any_source_each_is_named_with_its_reason() {
    let to = tempfile::tempdir().unwrap();
    let mut pin = Pin::current().clone();
    pin.repository = format!("file://{}/nowhere", to.path().display());
    let places = Places { cargo: "/nonexistent/cargo".into(), ..places() };
    let (found, _) = try_locate(&places, &pin, &to.path().join("mlx"));
    let Err(Error::NoSource { tried, .. }) = found else { panic!("{found:?}") };
    assert!(tried[0].starts_with("git: ") && tried[1].starts_with("crates.io: cannot run cargo"));
}

#[test]
fn offline_git_is_not_asked() {
    let to = tempfile::tempdir().unwrap();
    let places = Places { offline: true, cargo: "/nonexistent/cargo".into(), ..places() };
    let (found, _) = try_locate(&places, Pin::current(), &to.path().join("mlx"));
    let Err(Error::NoSource { tried, .. }) = found else { panic!("{found:?}") };
    assert_eq!(tried[0], "git: offline");
}

struct FakePackage {
    cargo: PathBuf,
    root: PathBuf,
}

/// A program that answers as `cargo metadata` does.
fn fake_package(dir: &Path, pin: &Pin) -> FakePackage {
    let (cargo, package) = (dir.join("cargo"), dir.join("package"));
    let script = format!(
        "#!/bin/sh\nprintf '%s' '{{\"packages\":[{{\"name\":\"{}\",\"version\":\"{}\",\
         \"manifest_path\":\"{}\"}}]}}'\n",
        pin.package.name,
        pin.package.version,
        package.join("Cargo.toml").display()
    );
    fs::write(&cargo, script).unwrap();
    fs::set_permissions(&cargo, fs::Permissions::from_mode(0o755)).unwrap();
    FakePackage { cargo, root: package.join(&pin.package.folder) }
}

fn patch(dir: &Path, name: &str, from: &str, to: &str) -> Patch {
    let text = format!(
        "Why it is there.\n\n--- a/mlx/array.h\n+++ b/mlx/array.h\n@@ -1,4 +1,4 @@\n #pragma once\n \
         int one();\n-{from}\n+{to}\n int three();\n"
    );
    let path = dir.join(name);
    fs::write(&path, &text).unwrap();
    Patch { name: name.to_owned(), path, text }
}

fn id_of(root: &Path) -> ObjectId {
    tree_id(&root.join("mlx")).unwrap()
}

#[test]
fn patch_applied_twice_changes_once() {
    let (dir, tree) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    plant(tree.path());
    let patch = patch(dir.path(), "0001-a.patch", "int two();", "int two(int);");
    patches::apply(Path::new("git"), tree.path(), std::slice::from_ref(&patch)).unwrap();
    let header = fs::read_to_string(tree.path().join("mlx/array.h")).unwrap();
    assert!(header.contains("int two(int);"));
    let once = id_of(tree.path());
    patches::apply(Path::new("git"), tree.path(), &[patch]).unwrap();
    assert_eq!(id_of(tree.path()), once);
}

#[test]
fn patch_applies_inside_another_repository() {
    let (dir, outer) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    git(outer.path(), &["init", "--quiet"]);
    let tree = outer.path().join("target/mlx");
    plant(&tree);
    let before = id_of(&tree);
    let patch = patch(dir.path(), "0001-a.patch", "int two();", "int two(int);");
    patches::apply(Path::new("git"), &tree, &[patch]).unwrap();
    assert_ne!(id_of(&tree), before);
}

#[test]
fn patch_that_does_not_fit_stops_and_is_named() {
    let (dir, tree) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    plant(tree.path());
    let before = id_of(tree.path());
    let patch = patch(dir.path(), "0007-b.patch", "int too();", "int two(int);");
    let error = patches::apply(Path::new("git"), tree.path(), &[patch]).unwrap_err();
    assert!(error.to_string().starts_with("0007-b.patch does not apply to MLX: "), "{error}");
    assert_eq!(id_of(tree.path()), before);
}

#[test]
fn patches_of_this_checkout_state_pin_and_way_out() {
    let folder = Path::new(zmlx_patch::ROOT).join("patches");
    let (everywhere, cuda) =
        (patches::list(&folder).unwrap(), patches::of_backend(&folder, "cuda").unwrap());
    assert!(!everywhere.is_empty() && cuda.iter().all(|patch| patch.name.starts_with("cuda/")));
    for patch in everywhere.into_iter().chain(cuda) {
        let header = patch.text.split("diff --git").next().unwrap();
        let pin = Pin::current();
        assert!(header.starts_with(&format!("MLX {} ({})", pin.version, pin.commit)));
        assert!(header.contains("Goes away when"), "{}: when can it go?", patch.name);
    }
}
