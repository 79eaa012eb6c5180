mod server;

use std::collections::BTreeMap;
use std::fs;
use std::time::Instant;

use tempfile::TempDir;

use self::server::{COMMIT, Fault, Hub, Redirect, Shelf, sha256};
use super::*;

fn checkpoint() -> BTreeMap<String, Vec<u8>> {
    let weights: Vec<u8> = (0..100_000_u32).map(|i| (i % 251) as u8).collect();
    [
        ("config.json", b"{}".to_vec()),
        ("model.safetensors", weights),
        ("tokenizer.json", b"{ }".to_vec()),
        ("chat_template.jinja", b"{{ messages }}".to_vec()),
        ("additional_chat_templates/tool_use.jinja", b"{{ tools }}".to_vec()),
        ("additional_chat_templates/deeper/no.jinja", b"no".to_vec()),
        ("README.md", b"no".to_vec()),
        ("pytorch_model.bin", b"no".to_vec()),
        ("model.gguf", b"no".to_vec()),
        ("consolidated.safetensors", b"no".to_vec()),
        ("onnx/config.json", b"no".to_vec()),
        ("../../../../escape.json", b"no".to_vec()),
    ]
    .map(|(name, content)| (name.to_owned(), content))
    .into()
}

fn start() -> (Hub, TempDir) {
    let hub = Hub::start(Shelf { files: checkpoint(), ..Shelf::default() });
    (hub, tempfile::tempdir().expect("cache"))
}

fn fetch(hub: &Hub, cache: &TempDir) -> Result<PathBuf> {
    resolve("owner/name", &hub.options(cache), None)
}

fn weights(folder: &Path) -> Vec<u8> {
    fs::read(folder.join("model.safetensors")).expect("weights")
}

fn assert_whole(folder: &Path) {
    assert!(weights(folder) == checkpoint()["model.safetensors"], "weights differ");
}

/// All files below a folder, by path.
fn names(folder: &Path) -> Vec<String> {
    fn walk(folder: &Path, prefix: &str, into: &mut Vec<String>) {
        for entry in fs::read_dir(folder).expect("folder").flatten() {
            let name = format!("{prefix}{}", entry.file_name().to_str().expect("text"));
            if entry.path().is_dir() {
                walk(&entry.path(), &format!("{name}/"), into);
            } else {
                into.push(name);
            }
        }
    }
    let mut names = Vec::new();
    walk(folder, "", &mut names);
    names.sort();
    names
}

fn error_of(model: &str, options: &HubOptions) -> String {
    resolve(model, options, None).expect_err("no such model").to_string()
}

fn assert_mentions(message: &str, parts: &[&str]) {
    for part in parts {
        assert!(message.contains(part), "`{part}` is missing from: {message}");
    }
}

#[test]
fn resolve_of_a_folder_returns_it_and_connects_to_nothing() {
    let folder = tempfile::tempdir().expect("folder");
    let options =
        HubOptions { endpoint: "http://127.0.0.1:1".to_owned(), ..HubOptions::new(folder.path()) };
    let path = folder.path().to_str().expect("text");
    assert_eq!(resolve(path, &options, None).expect("resolves"), folder.path());
}

#[test]
fn resolve_downloads_only_what_a_checkpoint_needs_into_the_standard_layout() {
    let (hub, cache) = start();
    let mut seen = Vec::new();
    let mut listener = |progress: Progress| seen.push(progress);
    let folder =
        resolve("owner/name", &hub.options(&cache), Some(&mut listener)).expect("resolves");
    let repo = cache.path().join("models--owner--name");
    assert_eq!(folder, repo.join("snapshots").join(COMMIT));
    assert_eq!(
        names(&folder),
        [
            "additional_chat_templates/tool_use.jinja",
            "chat_template.jinja",
            "config.json",
            "model.safetensors",
            "tokenizer.json"
        ]
    );
    assert_eq!(fs::read_to_string(repo.join("refs/main")).expect("ref"), COMMIT);
    assert_whole(&folder);
    let etag = sha256(&checkpoint()["model.safetensors"]);
    assert_eq!(weights(&folder), fs::read(repo.join("blobs").join(&etag)).expect("blob"));
    let extra = folder.join("additional_chat_templates/tool_use.jinja");
    assert_eq!(fs::read_to_string(extra).expect("link holds"), "{{ tools }}");
    #[cfg(unix)]
    {
        let link = fs::read_link(folder.join("model.safetensors")).expect("link");
        assert_eq!(link, Path::new("../../blobs").join(&etag), "relative, as everybody links");
    }
    assert!(!names(cache.path()).iter().any(|name| name.ends_with(".incomplete")));
    let total_bytes = 100_000 + 2 + 3 + 14 + 11;
    assert_eq!(seen.last(), Some(&Progress { bytes: total_bytes, total_bytes }));
    assert!(seen.windows(2).all(|pair| pair[0].bytes <= pair[1].bytes));
}

#[test]
fn resolve_a_second_time_downloads_nothing() {
    let (hub, cache) = start();
    let first = fetch(&hub, &cache).expect("resolves");
    let before = hub.requests().len();
    assert_eq!(first, fetch(&hub, &cache).expect("resolves"));
    let paths: Vec<_> = hub.requests()[before..].iter().map(|r| r.path.clone()).collect();
    assert_eq!(paths, ["/api/models/owner/name/revision/main"]);
    let by_commit = HubOptions { revision: COMMIT.to_owned(), ..hub.options(&cache) };
    assert_eq!(resolve("owner/name", &by_commit, None).expect("cached"), first);
    assert_eq!(hub.requests().len(), before + 1, "a commit never changes");
}

#[test]
fn resolve_downloads_several_files_at_once_and_repairs_a_broken_link() {
    let mut files = checkpoint();
    for i in 0..8 {
        files.insert(format!("model-{i}.safetensors"), vec![i; 1000]);
    }
    let hub = Hub::start(Shelf { files, ..Shelf::default() });
    let cache = tempfile::tempdir().expect("cache");
    let folder = fetch(&hub, &cache).expect("resolves");
    assert!(hub.with(|shelf| shelf.most_running) > 1, "one after another");
    let blob = fs::canonicalize(folder.join("model-3.safetensors")).expect("blob");
    fs::remove_file(blob).expect("remove");
    fetch(&hub, &cache).expect("resolves");
    assert_eq!(fs::read(folder.join("model-3.safetensors")).expect("file"), [3; 1000]);
}

#[test]
fn resolve_offline_uses_the_cache_and_says_what_is_missing() {
    let (hub, cache) = start();
    let offline = HubOptions { offline: true, ..hub.options(&cache) };
    let message = error_of("owner/name", &offline);
    assert_mentions(&message, &["owner/name", "offline", "HF_HUB_OFFLINE"]);
    assert!(hub.requests().is_empty());

    let folder = fetch(&hub, &cache).expect("resolves");
    assert_eq!(resolve("owner/name", &offline, None).expect("cached"), folder);
    let by_commit = HubOptions { revision: COMMIT.to_owned(), ..offline.clone() };
    assert_eq!(resolve("owner/name", &by_commit, None).expect("cached"), folder);
    let other = HubOptions { revision: "v2".to_owned(), ..offline.clone() };
    assert_mentions(&error_of("owner/name", &other), &["revision v2"]);

    for name in ["model.safetensors", "tokenizer.json", "config.json"] {
        fs::remove_file(folder.join(name)).expect("remove");
        assert_mentions(&error_of("owner/name", &offline), &["lacks", name]);
        fetch(&hub, &cache).expect("comes again");
    }
}

#[test]
fn resolve_offline_knows_that_a_repo_has_no_tokenizer() {
    let mut files = checkpoint();
    files.remove("tokenizer.json");
    let hub = Hub::start(Shelf { files, ..Shelf::default() });
    let cache = tempfile::tempdir().expect("cache");
    let folder = fetch(&hub, &cache).expect("resolves");
    let offline = HubOptions { offline: true, ..hub.options(&cache) };
    assert_eq!(resolve("owner/name", &offline, None).expect("cached"), folder);
}

#[test]
fn resolve_with_an_unreachable_hub_falls_back_on_a_complete_cache() {
    let (hub, cache) = start();
    let folder = fetch(&hub, &cache).expect("resolves");
    hub.fail("/api/", 1, Fault::Status(503, ""));
    assert_eq!(fetch(&hub, &cache).expect("cached"), folder);
    hub.with(|shelf| shelf.list = Some("<html>please log in</html>".to_owned()));
    assert_eq!(fetch(&hub, &cache).expect("cached"), folder);
    let nobody = HubOptions { endpoint: "http://127.0.0.1:1".to_owned(), ..hub.options(&cache) };
    assert_eq!(resolve("owner/name", &nobody, None).expect("cached"), folder);
    let message = error_of("other/name", &nobody);
    assert_mentions(&message, &["cannot be reached", "127.0.0.1:1", "HTTPS_PROXY"]);
    let new = tempfile::tempdir().expect("cache");
    assert_mentions(&error_of("owner/name", &hub.options(&new)), &["login", "HF_ENDPOINT"]);
}

#[test]
fn resolve_gives_up_on_a_hub_that_says_nothing() {
    let (hub, cache) = start();
    hub.fail("/api/", usize::MAX, Fault::Silence);
    let start = Instant::now();
    let message = error_of("owner/name", &hub.options(&cache));
    assert_mentions(&message, &["cannot be reached", "no answer in time"]);
    assert!(start.elapsed() < Duration::from_secs(15), "{:?}", start.elapsed());
    assert_eq!(hub.requests().len(), 3, "once and two repetitions");
}

#[test]
fn resolve_continues_a_file_that_stalls_or_is_cut_off() {
    for fault in [Fault::Stall, Fault::Cut(1), Fault::Cut(99_999)] {
        let (hub, cache) = start();
        hub.fail("/resolved/model", 1, fault);
        assert_whole(&fetch(&hub, &cache).expect("resolves"));
        let ranges: Vec<_> = hub.gets("/resolved/").into_iter().map(|r| r.range).collect();
        assert_eq!(ranges.len(), 2);
        assert!(ranges[1].is_some(), "continued, not begun again");
    }
}

#[test]
fn resolve_continues_what_an_earlier_run_left() {
    let (hub, cache) = start();
    hub.fail("/resolved/model", usize::MAX, Fault::Stall);
    let options = HubOptions { retries: 0, ..hub.options(&cache) };
    let message = error_of("owner/name", &options);
    assert_mentions(&message, &["model.safetensors", "no answer in time", "continues"]);
    hub.with(|shelf| shelf.rules.clear());
    let before = hub.gets("/resolved/").len();
    assert_whole(&fetch(&hub, &cache).expect("resolves"));
    assert_eq!(hub.gets("/resolved/")[before].range.as_deref(), Some("bytes=50000-"));
}

#[test]
fn resolve_replaces_a_part_that_is_of_another_file() {
    let (hub, cache) = start();
    let blobs = cache.path().join("models--owner--name/blobs");
    fs::create_dir_all(&blobs).expect("folder");
    let part = blobs.join(format!("{}.incomplete", sha256(&checkpoint()["model.safetensors"])));
    for content in [vec![7; 10], vec![7; 100_000], vec![7; 200_000]] {
        fs::write(&part, content).expect("write");
        let folder = fetch(&hub, &cache).expect("resolves");
        assert_whole(&folder);
        fs::remove_dir_all(folder).expect("remove");
        fs::remove_file(part.with_extension("")).expect("blob");
    }
}

#[test]
fn resolve_repeats_what_may_pass_and_stops_where_it_does_not() {
    for status in [429, 500, 502, 503] {
        let (hub, cache) = start();
        hub.fail("/", 2, Fault::RetryAfter(status, 0));
        assert_whole(&fetch(&hub, &cache).expect("resolves"));
    }
    let (hub, cache) = start();
    hub.fail("/api/", usize::MAX, Fault::Status(429, ""));
    assert_mentions(&error_of("owner/name", &hub.options(&cache)), &["429", "HF_TOKEN"]);
    assert_eq!(hub.requests().len(), 3);
    let (hub, cache) = start();
    hub.fail("/api/", 1, Fault::RetryAfter(503, 1));
    let start = Instant::now();
    fetch(&hub, &cache).expect("resolves");
    assert!(start.elapsed() >= Duration::from_secs(1), "the server asked for a second");
}

#[test]
fn resolve_takes_no_file_with_a_wrong_hash() {
    // A large file has a SHA-256, a small one git's id.
    for (path, name) in [("/resolved/model", "model.safetensors"), ("config", "config.json")] {
        let (hub, cache) = start();
        hub.fail(path, usize::MAX, Fault::Flip);
        let message = error_of("owner/name", &hub.options(&cache));
        assert_mentions(&message, &[name, "damaged", "hash"]);
        let is_left = |file: &String| file.contains("blobs/") && file.contains("incomplete");
        assert!(!names(cache.path()).iter().any(is_left), "damaged bytes are not continued");
        hub.with(|shelf| shelf.rules.clear());
        assert_whole(&fetch(&hub, &cache).expect("resolves"));
    }
    let (hub, cache) = start();
    hub.fail("/resolved/model", 1, Fault::Flip);
    assert_whole(&fetch(&hub, &cache).expect("comes again"));
}

#[test]
fn resolve_follows_redirects_by_path_and_to_another_host() {
    for redirect in [Redirect::Store, Redirect::Path] {
        let token = Some("secret".to_owned());
        let shelf =
            Shelf { files: checkpoint(), redirect, token: token.clone(), ..Shelf::default() };
        let hub = Hub::start(shelf);
        let cache = tempfile::tempdir().expect("cache");
        let options = HubOptions { token, ..hub.options(&cache) };
        assert_whole(&resolve("owner/name", &options, None).expect("resolves"));
        let (elsewhere, own): (Vec<_>, Vec<_>) =
            hub.requests().into_iter().partition(|r| r.at_store);
        assert!(own.iter().all(|r| r.authorization.as_deref() == Some("Bearer secret")));
        assert!(elsewhere.iter().all(|r| r.authorization.is_none()), "the token leaked");
    }
}

#[test]
fn resolve_refuses_odd_redirects() {
    for (redirect, part) in [
        (Redirect::Loop, "more than 10 times"),
        (Redirect::Nowhere, "no address"),
        (Redirect::To("ftp://127.0.0.1/x".to_owned()), "no address"),
        (Redirect::To("http://".to_owned()), "no address"),
        (Redirect::To("http://[::1".to_owned()), "no address"),
        (Redirect::To("http://127.0.0.1:99999/x".to_owned()), "address"),
        (Redirect::To("http://127.0.0.1:1/x".to_owned()), "cannot be reached"),
    ] {
        let hub = Hub::start(Shelf { files: checkpoint(), redirect, ..Shelf::default() });
        let cache = tempfile::tempdir().expect("cache");
        assert_mentions(&error_of("owner/name", &hub.options(&cache)), &[part]);
    }
}

#[test]
fn resolve_sends_the_token_and_explains_refusals() {
    let token = Some("secret".to_owned());
    let hub = Hub::start(Shelf { files: checkpoint(), token: token.clone(), ..Shelf::default() });
    let cache = tempfile::tempdir().expect("cache");
    assert_mentions(&error_of("owner/name", &hub.options(&cache)), &["HF_TOKEN", "private"]);
    let wrong = HubOptions { token: Some("wrong".to_owned()), ..hub.options(&cache) };
    assert_mentions(&error_of("owner/name", &wrong), &["does not accept the token"]);
    let broken = HubOptions { token: Some("line\nbreak".to_owned()), ..hub.options(&cache) };
    assert_mentions(&error_of("owner/name", &broken), &["HF_TOKEN", "stray characters"]);
    assert!(!format!("{wrong:?}").contains("wrong"), "the token is in {wrong:?}");
    let right = HubOptions { token, ..hub.options(&cache) };
    resolve("owner/name", &right, None).expect("resolves");
}

#[test]
fn refusals_say_what_to_do() {
    let terms = "accept its terms at";
    for (path, status, code, has_token, parts) in [
        ("/api/", 403, "GatedRepo", true, &["gated", terms, "owner/name"][..]),
        ("/resolve", 401, "GatedRepo", false, &["gated", terms, "HF_TOKEN"]),
        ("/api/", 403, "", true, &["refuses access", "accept the model's terms"]),
        ("/api/", 401, "RepoNotFound", false, &["no such public repo", "HF_TOKEN"]),
        ("/api/", 404, "RepoNotFound", true, &["no such repo", "spelling"]),
        ("/api/", 404, "RevisionNotFound", false, &["no branch, tag or commit `main`"]),
        ("/resolve", 404, "EntryNotFound", false, &["is listed", "main"]),
        ("/api/", 418, "", false, &["418"]),
    ] {
        let (hub, cache) = start();
        hub.fail(path, usize::MAX, Fault::Status(status, code));
        let token = has_token.then(|| "secret".to_owned());
        let message = error_of("owner/name", &HubOptions { token, ..hub.options(&cache) });
        assert_mentions(&message, parts);
        assert!(!message.contains("cannot be reached"), "{message}");
    }
}

#[test]
fn resolve_tells_a_missing_repo_from_a_missing_revision() {
    let (hub, cache) = start();
    let options = hub.options(&cache);
    let message = error_of("owner/other", &options);
    assert_mentions(&message, &["no such folder", &hub.endpoint, "no such repo"]);
    let v2 = HubOptions { revision: "v2".to_owned(), ..options };
    assert_mentions(&error_of("owner/name", &v2), &["has the repo", "`v2`", "--revision"]);
}

#[test]
fn resolve_of_no_name_says_what_was_tried() {
    let (hub, cache) = start();
    let options = hub.options(&cache);
    for model in ["nowhere", "a/b/c", "../up", "/tmp/not/there", "a /b", ""] {
        assert_mentions(&error_of(model, &options), &["no such folder"]);
    }
    let file = cache.path().join("file");
    fs::write(&file, "x").expect("write");
    assert_mentions(&error_of(file.to_str().expect("text"), &options), &["is a file"]);
    for revision in ["", "../../up", "a//b", "a\nb"] {
        let options = HubOptions { revision: revision.to_owned(), ..options.clone() };
        assert_mentions(&error_of("owner/name", &options), &["no branch, tag or commit"]);
    }
    for endpoint in ["", "huggingface.co/", "https://"] {
        let options = HubOptions { endpoint: endpoint.to_owned(), ..options.clone() };
        assert_mentions(&error_of("owner/name", &options), &["HF_ENDPOINT"]);
    }
    assert!(hub.requests().is_empty());
}

#[test]
fn resolve_of_a_repo_that_is_no_checkpoint_downloads_nothing() {
    for lacking in ["model.safetensors", "config.json"] {
        let mut files = checkpoint();
        files.remove(lacking);
        let hub = Hub::start(Shelf { files, ..Shelf::default() });
        let cache = tempfile::tempdir().expect("cache");
        assert_mentions(&error_of("owner/name", &hub.options(&cache)), &["the repo has no"]);
        assert_eq!(hub.requests().len(), 1);
    }
}

#[test]
fn resolve_from_a_server_without_ranges_works() {
    let (hub, cache) = start();
    hub.with(|shelf| shelf.no_ranges = true);
    hub.fail("/resolved/model", 1, Fault::Cut(10));
    assert_whole(&fetch(&hub, &cache).expect("resolves"));
    // One that always stops at the same byte gets nowhere, and that has an end.
    let cache = tempfile::tempdir().expect("cache");
    hub.fail("/resolved/model", usize::MAX, Fault::Cut(10));
    assert_mentions(&error_of("owner/name", &hub.options(&cache)), &["cannot be reached"]);
}

#[test]
fn resolve_from_a_server_that_is_no_hub_is_refused() {
    let (hub, cache) = start();
    hub.with(|shelf| (shelf.no_etags, shelf.redirect) = (true, Redirect::Path));
    assert_mentions(&error_of("owner/name", &hub.options(&cache)), &["ETag", "HF_ENDPOINT"]);
    for commit in ["../../../outside", "", "a/b"] {
        let (hub, cache) = start();
        hub.with(|shelf| shelf.commit = Some(commit.to_owned()));
        assert_mentions(&error_of("owner/name", &hub.options(&cache)), &["no list of files"]);
    }
}
