//! Invariants of the repository that no compiler checks.

use std::{
    collections::{BTreeMap, BTreeSet},
    error::Error,
    fs,
    path::Path,
    process::Command,
};

use zmlx_patch::patches;

use crate::figures;

type Result<T> = std::result::Result<T, Box<dyn Error>>;

/// What `run` looked at and what it found.
pub(crate) struct Report {
    pub(crate) num_files: usize,
    pub(crate) problems: Vec<String>,
}

/// The tracked files: path from the root to content.
struct Tree {
    files: BTreeMap<String, Vec<u8>>,
}

impl Tree {
    fn read(root: &Path) -> Result<Tree> {
        let output = Command::new("git").args(["ls-files", "-z"]).current_dir(root).output()?;
        if !output.status.success() {
            return Err(format!("git ls-files: {}", output.status).into());
        }
        let mut files = BTreeMap::new();
        for path in String::from_utf8(output.stdout)?.split_terminator('\0') {
            // A file that is deleted but still in the index is on its way out.
            if let Ok(content) = fs::read(root.join(path)) {
                files.insert(path.to_owned(), content);
            }
        }
        Ok(Tree { files })
    }

    /// Text files under `prefix` whose names end in one of `endings`.
    fn texts<'a>(
        &'a self,
        prefix: &'a str,
        endings: &'a [&str],
    ) -> impl Iterator<Item = (&'a str, &'a str)> {
        self.files.iter().filter_map(move |(path, content)| {
            let wanted = path.starts_with(prefix) && endings.iter().any(|e| path.ends_with(e));
            let text = std::str::from_utf8(content).ok()?;
            wanted.then_some((path.as_str(), text))
        })
    }

    fn text(&self, path: &str) -> Option<&str> {
        std::str::from_utf8(self.files.get(path)?).ok()
    }

    fn has(&self, path: &str) -> bool {
        let path = path.trim_end_matches('/');
        let folder = format!("{path}/");
        self.files.contains_key(path) || self.files.keys().any(|f| f.starts_with(&folder))
    }
}

/// Checks the checkout at `root`.
pub(crate) fn run(root: &Path) -> Result<Report> {
    let tree = Tree::read(root)?;
    let mut problems = Vec::new();
    patch_headers(root, &tree, &mut problems)?;
    overlay_folders(&tree, &mut problems);
    module_tables(&tree, &mut problems);
    layers(&tree, &mut problems);
    sizes(&tree, &mut problems);
    machine_paths(&tree, &mut problems);
    documented_paths(&tree, &mut problems);
    changelog(&tree, &mut problems);
    figures::check(&tree.files, &mut problems);
    Ok(Report { num_files: tree.files.len(), problems })
}

/// A patch is named `NNNN-verb.patch`, without gaps, and says before its diff which commit of MLX it
/// is for, why it is there and what would make it unnecessary.
fn patch_headers(root: &Path, tree: &Tree, problems: &mut Vec<String>) -> Result<()> {
    let pin = tree.text("mlx-patch/MLX_PIN").unwrap_or_default();
    let commit = pin.lines().find_map(|l| l.strip_prefix("commit")).unwrap_or_default().trim();
    if commit.len() != 40 {
        problems.push("mlx-patch/MLX_PIN: no commit".to_owned());
    }
    let folder = root.join("mlx-patch/patches");
    let numbered = [patches::list(&folder)?, patches::of_backend(&folder, "cuda")?];
    for (index, patch) in numbered.iter().flat_map(|list| list.iter().enumerate()) {
        let name = &patch.name;
        let file = name.rsplit('/').next().unwrap_or_default();
        if !file.starts_with(&format!("{:04}-", index + 1)) {
            problems.push(format!("{name}: expected number {:04}", index + 1));
        }
        let header = patch.text.split("\ndiff --git").next().unwrap_or_default();
        for part in [commit, "Goes away when"] {
            if !header.contains(part) {
                problems.push(format!("{name}: its header lacks `{part}`"));
            }
        }
        if header.lines().filter(|l| !l.is_empty()).count() < 4 {
            problems.push(format!("{name}: its header does not say why"));
        }
    }
    Ok(())
}

/// A folder of the overlay is either a primitive, with its definition and kernels for a CPU, or for CUDA where it has no
/// meaning on a CPU, or one of those that serve them all.
fn overlay_folders(tree: &Tree, problems: &mut Vec<String>) {
    const DIR: &str = "mlx-patch/overlay/";
    const SHARED: [&str; 6] = ["cmake", "cpu", "cuda", "metal", "tests", "zmlx"];
    let folders: BTreeSet<&str> =
        tree.files.keys().filter_map(|f| Some(f.strip_prefix(DIR)?.split_once('/')?.0)).collect();
    for folder in folders.into_iter().filter(|f| !SHARED.contains(f)) {
        let has = |file: &str| tree.has(&format!("{DIR}{folder}/{file}"));
        if !has("op.cpp") {
            problems.push(format!("{DIR}{folder}: a primitive without op.cpp"));
        }
        if !has("cpu.cpp") && !has("cuda.cu") {
            problems.push(format!("{DIR}{folder}: a primitive without cpu.cpp"));
        }
    }
}

/// Each of these folders is a list: a file in it without a row in the table is forgotten code.
fn module_tables(tree: &Tree, problems: &mut Vec<String>) {
    const TABLES: [(&str, &str); 4] = [
        ("crates/lm/src/models/", "crates/lm/src/models/mod.rs"),
        ("src/cli/", "src/cli/mod.rs"),
        ("tests/", "tests/main.rs"),
        ("tests/cli/", "tests/cli/mod.rs"),
    ];
    for (folder, table) in TABLES {
        for (path, _) in tree.texts(folder, &[".rs"]) {
            let module = path[folder.len()..].trim_end_matches(".rs");
            let own = path == table || ["mod", "main"].contains(&module);
            if own || module.contains('/') {
                continue;
            }
            let rows = tree.text(table).unwrap_or_default();
            if !rows.lines().any(|l| l.trim_end().ends_with(&format!("mod {module};"))) {
                problems.push(format!("{path}: no row in {table}"));
            }
        }
    }
}

/// `unsafe` in two crates only; libraries neither print nor read the environment; models do not
/// ask which backend runs.
fn layers(tree: &Tree, problems: &mut Vec<String>) {
    for (path, text) in tree.texts("", &[".rs"]) {
        const LIBRARIES: [&str; 6] = [
            "crates/mlx/src/",
            "crates/lm/src/",
            "crates/bench/src/",
            "crates/capsule/src/",
            "mlx-patch/src/",
            "mlx-sys/src/",
        ];
        let library =
            LIBRARIES.iter().any(|p| path.starts_with(p)) && !path.contains("/src/tests/");
        // tests call the few functions of mlx that are not safe, and say why they may
        let exempt = ["crates/mlx/", "mlx-sys/", "tests/"].iter().any(|p| path.starts_with(p));
        let mut bans: Vec<(&str, &str)> = Vec::new();
        if !exempt {
            bans.push((concat!("uns", "afe {"), "`unsafe` belongs in mlx-sys and crates/mlx"));
        }
        if library {
            bans.push((concat!("env::", "var"), "libraries do not read environment variables"));
            bans.push((concat!("print", "ln!("), "libraries do not print"));
            bans.push((concat!("process::", "exit"), "libraries do not exit"));
        }
        if path.starts_with("crates/lm/src/") {
            bans.push((concat!("cfg(", "feature"), "models do not ask what is compiled in"));
        }
        // Unit tests at the end of a file may do what they like.
        let code = text.split("#[cfg(test)]\nmod ").next().unwrap_or_default();
        for (number, line) in code.lines().enumerate() {
            for (ban, reason) in &bans {
                if line.contains(ban) && !line.trim_start().starts_with("//") {
                    problems.push(format!("{path}:{}: {reason}", number + 1));
                }
            }
        }
    }
}

/// Files that may be longer than the limit, each with its reason.
const LONG_FILES: [(&str, &str); 1] = [(
    "mlx-patch/overlay/cpu/step_impl.h",
    "one template over the vector type, included by a file for each instruction set",
)];

fn sizes(tree: &Tree, problems: &mut Vec<String>) {
    const MAX_LINES: usize = 650;
    const MAX_BYTES: usize = 1 << 20;
    const MAX_DEMO_BYTES: usize = 16 << 20;
    let endings = [".rs", ".cpp", ".cc", ".h", ".cu", ".metal", ".py"];
    for (path, text) in tree.texts("", &endings) {
        let lines = text.lines().count();
        if lines > MAX_LINES && !LONG_FILES.iter().any(|(p, _)| *p == path) {
            problems.push(format!("{path}: {lines} lines, more than {MAX_LINES}"));
        }
    }
    let mut demo_bytes = 0;
    for (path, content) in &tree.files {
        if path.starts_with("models/demo/") {
            demo_bytes += content.len();
        } else if content.len() > MAX_BYTES {
            problems.push(format!("{path}: {} bytes, more than {MAX_BYTES}", content.len()));
        }
    }
    if demo_bytes > MAX_DEMO_BYTES {
        problems.push(format!("models/demo: {demo_bytes} bytes, more than {MAX_DEMO_BYTES}"));
    }
}

/// Nothing in the repository may name a place on the machine it was written on.
fn machine_paths(tree: &Tree, problems: &mut Vec<String>) {
    // without their slashes, so that this file passes its own check
    let roots = ["root", "home", "Users", "work", "tmp/w"].map(|name| format!("/{name}/"));
    for (path, content) in &tree.files {
        let Ok(text) = std::str::from_utf8(content) else { continue };
        if path.ends_with("tokenizer.json") {
            continue;
        }
        for (number, line) in text.lines().enumerate() {
            if roots.iter().any(|r| mentions(line, r))
                && !line.contains(concat!("/ho", "me/linuxbrew"))
            {
                problems.push(format!("{path}:{}: an absolute machine path", number + 1));
            }
        }
    }
}

/// Whether `line` holds `root` as the beginning of a path, not as the middle of one or of an address.
fn mentions(line: &str, root: &str) -> bool {
    line.match_indices(root).any(|(at, _)| {
        let before = line[..at].chars().next_back();
        !before.is_some_and(|c| c.is_alphanumeric() || "._-/}*)>~".contains(c))
    })
}

/// A path in backticks or a link in a document leads somewhere.
fn documented_paths(tree: &Tree, problems: &mut Vec<String>) {
    let tops: BTreeSet<&str> =
        tree.files.keys().filter_map(|f| Some(f.split_once('/')?.0)).collect();
    for (path, text) in tree.texts("", &[".md"]) {
        let folder = path.rsplit_once('/').map_or("", |(folder, _)| folder);
        for (number, line) in outside_fences(text) {
            let broken = quoted_paths(line, &tops)
                .filter(|p| !tree.has(p) && !tree.has(&join(folder, p)))
                .chain(links(line).filter(|l| !tree.has(&join(folder, l))));
            for target in broken {
                problems.push(format!("{path}:{number}: {target} is not there"));
            }
        }
    }
}

fn outside_fences(text: &str) -> impl Iterator<Item = (usize, &str)> {
    let mut inside = false;
    text.lines().enumerate().filter_map(move |(index, line)| {
        let fence = line.trim_start().starts_with("```");
        inside ^= fence;
        (!inside && !fence).then_some((index + 1, line))
    })
}

/// What stands in backticks and begins with a top folder; placeholders and globs are left alone.
fn quoted_paths<'a>(line: &'a str, tops: &BTreeSet<&str>) -> impl Iterator<Item = &'a str> {
    line.split('`').skip(1).step_by(2).filter_map(move |quoted| {
        let target = quoted.split_whitespace().next()?.trim_start_matches("./");
        let target = target.split(':').next()?;
        let top = target.split_once('/')?.0;
        let literal = !target.contains(['<', '>', '*', '{', '$', '[', '(']);
        let named = !target.contains("NNNN") && !target.contains("...");
        (tops.contains(top) && literal && named).then_some(target)
    })
}

/// Targets of markdown links that stay in the repository.
fn links(line: &str) -> impl Iterator<Item = &str> {
    line.split("](").skip(1).filter_map(|rest| {
        let target = rest.split([')', '#', ' ']).next()?;
        (!target.is_empty() && !target.contains("://") && !target.starts_with("mailto:"))
            .then_some(target)
    })
}

fn join(folder: &str, target: &str) -> String {
    let mut parts: Vec<&str> = folder.split('/').filter(|p| !p.is_empty()).collect();
    for part in target.split('/') {
        match part {
            "" | "." => {}
            ".." => {
                parts.pop();
            }
            _ => parts.push(part),
        }
    }
    parts.join("/")
}

/// The changelog opens with a section for what is not released yet, and something is in it.
fn changelog(tree: &Tree, problems: &mut Vec<String>) {
    let text = tree.text("CHANGELOG.md").unwrap_or_default();
    let section = text.split("\n## ").nth(1).unwrap_or_default();
    if !section.starts_with("Unreleased") || !section.contains("\n- ") {
        problems.push("CHANGELOG.md: its first section is not a filled `Unreleased`".to_owned());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tree(files: &[(&str, &str)]) -> Tree {
        let files = files.iter().map(|(p, t)| ((*p).to_owned(), t.as_bytes().to_vec()));
        Tree { files: files.collect() }
    }

    fn found(check: fn(&Tree, &mut Vec<String>), files: &[(&str, &str)]) -> Vec<String> {
        let mut problems = Vec::new();
        check(&tree(files), &mut problems);
        problems
    }

    #[test]
    fn module_without_row_is_reported() {
        let files = [
            ("src/cli/mod.rs", "mod a;\npub(crate) mod b;\n"),
            ("src/cli/a.rs", ""),
            ("src/cli/b.rs", ""),
        ];
        assert!(found(module_tables, &files).is_empty());
        let files = [("src/cli/mod.rs", "mod a;\n"), ("src/cli/a.rs", ""), ("src/cli/b.rs", "")];
        assert_eq!(found(module_tables, &files), ["src/cli/b.rs: no row in src/cli/mod.rs"]);
    }

    #[test]
    fn primitive_without_a_file_is_reported() {
        let op = ("mlx-patch/overlay/a/op.cpp", "");
        let shared = ("mlx-patch/overlay/zmlx/registry.h", "");
        let whole = [op, ("mlx-patch/overlay/a/cpu.cpp", ""), shared];
        assert!(found(overlay_folders, &whole).is_empty());
        let problem = "mlx-patch/overlay/a: a primitive without cpu.cpp";
        assert_eq!(found(overlay_folders, &[op, shared]), [problem]);
        let of_cuda = [op, ("mlx-patch/overlay/a/cuda.cu", ""), shared];
        assert!(found(overlay_folders, &of_cuda).is_empty());
    }

    #[test]
    fn print_in_library_is_reported_but_not_in_its_tests() {
        let line = concat!("print", "ln!(1);\n");
        let tested = format!("fn a() {{}}\n#[cfg(test)]\nmod tests {{\n{line}}}\n");
        assert!(found(layers, &[("crates/lm/src/a.rs", &tested)]).is_empty());
        assert_eq!(found(layers, &[("crates/lm/src/a.rs", line)]).len(), 1);
        assert!(found(layers, &[("src/main.rs", line)]).is_empty());
    }

    #[test]
    fn machine_path_is_reported_but_not_an_address() {
        let bad = concat!("see /ro", "ot/.cache\n");
        assert_eq!(found(machine_paths, &[("a.md", bad)]).len(), 1);
        let good = concat!("https://example.org/ho", "me/page and ~/ro", "ot/x\n");
        assert!(found(machine_paths, &[("a.md", good)]).is_empty());
    }

    #[test]
    fn documented_path_that_is_missing_is_reported() {
        let good =
            "`src/main.rs:12` [x](../src/main.rs#top) `src/<name>.rs` `a/b`\n```\n`src/no`\n```\n";
        let files = [("docs/a.md", good), ("src/main.rs", "")];
        assert!(found(documented_paths, &files).is_empty());
        let files = [("docs/a.md", "`src/gone.rs` [x](gone.md)\n"), ("src/main.rs", "")];
        assert_eq!(found(documented_paths, &files).len(), 2);
    }

    #[test]
    fn changelog_with_empty_unreleased_is_reported() {
        let good = "# Changelog\n\n## Unreleased\n\n- a thing\n\n## 0.1.0\n";
        assert!(found(changelog, &[("CHANGELOG.md", good)]).is_empty());
        let bad = "# Changelog\n\n## Unreleased\n\n## 0.1.0\n\n- a thing\n";
        assert_eq!(found(changelog, &[("CHANGELOG.md", bad)]).len(), 1);
    }
}
