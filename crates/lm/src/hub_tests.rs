use std::collections::BTreeMap;
use std::io::{BufRead, BufReader, Write};
use std::net::{TcpListener, TcpStream};
use std::sync::{Arc, Mutex};
use std::thread;

use tempfile::TempDir;

use super::*;

const COMMIT: &str = "0123456789abcdef0123456789abcdef01234567";

/// What a pretended Hub holds and how it behaves.
#[derive(Default)]
struct Shelf {
    files: BTreeMap<String, Vec<u8>>,
    /// Answers requests without this token with status 401.
    token: Option<String>,
    /// Ignores `Range`, as simple mirrors do.
    no_ranges: bool,
    /// Answers everything with this status.
    status: Option<u16>,
    /// Cuts this many bytes off the end of files.
    cut: usize,
}

/// The endpoints that a download touches, on loopback, one thread per connection.
struct Hub {
    endpoint: String,
    shelf: Arc<Mutex<Shelf>>,
    requests: Arc<Mutex<Vec<String>>>,
}

impl Hub {
    fn start(shelf: Shelf) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").expect("loopback");
        let endpoint = format!("http://{}", listener.local_addr().expect("address"));
        let hub = Self { endpoint, shelf: Arc::new(Mutex::new(shelf)), requests: Arc::default() };
        let (shelf, requests) = (hub.shelf.clone(), hub.requests.clone());
        thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                let (shelf, requests) = (shelf.clone(), requests.clone());
                thread::spawn(move || serve(stream, &shelf, &requests));
            }
        });
        hub
    }

    fn requests(&self) -> Vec<String> {
        self.requests.lock().expect("lock").clone()
    }

    fn options(&self, cache: &TempDir) -> HubOptions {
        HubOptions { endpoint: self.endpoint.clone(), ..HubOptions::new(cache.path()) }
    }
}

fn serve(stream: TcpStream, shelf: &Mutex<Shelf>, requests: &Mutex<Vec<String>>) {
    let mut reader = BufReader::new(stream.try_clone().expect("clone"));
    loop {
        let mut lines = Vec::new();
        loop {
            let mut line = String::new();
            if reader.read_line(&mut line).unwrap_or(0) == 0 {
                return;
            }
            if line.trim().is_empty() {
                break;
            }
            lines.push(line.trim().to_owned());
        }
        let Some(path) = lines.first().and_then(|line| line.split(' ').nth(1)) else { return };
        let header = |name: &str| {
            lines.iter().skip(1).find_map(|line| {
                let (key, value) = line.split_once(':')?;
                key.eq_ignore_ascii_case(name).then(|| value.trim().to_owned())
            })
        };
        requests.lock().expect("lock").push(path.to_owned());
        let response = answer(
            &shelf.lock().expect("lock"),
            path,
            header("range").as_deref(),
            header("authorization").as_deref(),
        );
        if (&stream).write_all(&response).is_err() {
            return;
        }
    }
}

fn answer(shelf: &Shelf, path: &str, range: Option<&str>, authorization: Option<&str>) -> Vec<u8> {
    let respond = |status: &str, headers: &str, body: &[u8]| {
        let mut response = format!(
            "HTTP/1.1 {status}\r\nX-Repo-Commit: {COMMIT}\r\nContent-Length: {}\r\n{headers}\r\n",
            body.len()
        )
        .into_bytes();
        response.extend_from_slice(body);
        response
    };
    if let Some(status) = shelf.status {
        return respond(&format!("{status} Status"), "", b"");
    }
    let expected = shelf.token.as_ref().map(|token| format!("Bearer {token}"));
    if expected.as_deref().is_some_and(|expected| authorization != Some(expected)) {
        return respond("401 Unauthorized", "", b"");
    }
    if path == "/api/models/owner/name/revision/main" {
        let siblings: Vec<Value> =
            shelf.files.keys().map(|name| serde_json::json!({ "rfilename": name })).collect();
        let info = serde_json::json!({ "sha": COMMIT, "siblings": siblings });
        return respond(
            "200 OK",
            "Content-Type: application/json\r\n",
            info.to_string().as_bytes(),
        );
    }
    let Some(file) = path
        .strip_prefix("/owner/name/resolve/main/")
        .and_then(|name| Some((name, shelf.files.get(name)?)))
    else {
        return respond("404 Not Found", "", b"");
    };
    let (name, body) = file;
    let etag = format!("ETag: \"etag-{}\"\r\n", name.replace('.', "-"));
    let Some(range) = range.filter(|_| !shelf.no_ranges) else {
        return respond("200 OK", &etag, body);
    };
    let (from, to) = range.trim_start_matches("bytes=").split_once('-').expect("range");
    let from: usize = from.parse().expect("number");
    if from >= body.len() {
        return respond("416 Range Not Satisfiable", &etag, b"");
    }
    let to = to.parse().unwrap_or(body.len() - 1 - shelf.cut);
    let headers = format!("{etag}Content-Range: bytes {from}-{to}/{}\r\n", body.len());
    respond("206 Partial Content", &headers, &body[from..=to])
}

fn checkpoint() -> BTreeMap<String, Vec<u8>> {
    let weights: Vec<u8> = (0..100_000_u32).map(|i| i as u8).collect();
    [
        ("config.json", b"{}".to_vec()),
        ("model.safetensors", weights),
        ("tokenizer.json", b"{ }".to_vec()),
        ("chat_template.jinja", b"{{ messages }}".to_vec()),
        ("README.md", b"no".to_vec()),
        ("pytorch_model.bin", b"no".to_vec()),
        ("model.gguf", b"no".to_vec()),
        ("consolidated.safetensors", b"no".to_vec()),
        ("onnx/config.json", b"no".to_vec()),
    ]
    .map(|(name, content)| (name.to_owned(), content))
    .into()
}

fn names(folder: &Path) -> Vec<String> {
    let mut names: Vec<String> = fs::read_dir(folder)
        .expect("folder")
        .map(|entry| entry.expect("entry").file_name().into_string().expect("text"))
        .collect();
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
    let hub = Hub::start(Shelf { files: checkpoint(), ..Shelf::default() });
    let cache = tempfile::tempdir().expect("cache");
    let mut seen = Vec::new();
    let mut listener = |progress: Progress| seen.push(progress);
    let folder =
        resolve("owner/name", &hub.options(&cache), Some(&mut listener)).expect("resolves");
    let repo = cache.path().join("models--owner--name");
    assert_eq!(folder, repo.join("snapshots").join(COMMIT));
    assert_eq!(
        names(&folder),
        ["chat_template.jinja", "config.json", "model.safetensors", "tokenizer.json"]
    );
    assert_eq!(fs::read_to_string(repo.join("refs/main")).expect("ref"), COMMIT);
    let weights = fs::read(folder.join("model.safetensors")).expect("weights");
    assert_eq!(weights, checkpoint()["model.safetensors"]);
    let total_bytes = 100_000 + 2 + 3 + 14;
    assert_eq!(seen.last(), Some(&Progress { bytes: total_bytes, total_bytes }));
    assert!(seen.windows(2).all(|pair| pair[0].bytes <= pair[1].bytes));
}

#[test]
fn resolve_a_second_time_downloads_nothing() {
    let hub = Hub::start(Shelf { files: checkpoint(), ..Shelf::default() });
    let cache = tempfile::tempdir().expect("cache");
    let first = resolve("owner/name", &hub.options(&cache), None).expect("resolves");
    let before = hub.requests().len();
    let second = resolve("owner/name", &hub.options(&cache), None).expect("resolves");
    assert_eq!(first, second);
    assert_eq!(hub.requests()[before..], ["/api/models/owner/name/revision/main"]);
}

#[test]
fn resolve_offline_uses_the_cache_and_says_what_is_missing() {
    let hub = Hub::start(Shelf { files: checkpoint(), ..Shelf::default() });
    let cache = tempfile::tempdir().expect("cache");
    let offline = HubOptions { offline: true, ..hub.options(&cache) };
    let message = error_of("owner/name", &offline);
    assert_mentions(&message, &["owner/name", "offline", "HF_HUB_OFFLINE"]);
    assert!(hub.requests().is_empty());

    let folder = resolve("owner/name", &hub.options(&cache), None).expect("resolves");
    assert_eq!(resolve("owner/name", &offline, None).expect("cached"), folder);
    let by_commit = HubOptions { revision: COMMIT.to_owned(), ..offline.clone() };
    assert_eq!(resolve("owner/name", &by_commit, None).expect("cached"), folder);
    let other = HubOptions { revision: "v2".to_owned(), ..offline.clone() };
    assert_mentions(&error_of("owner/name", &other), &["revision v2"]);

    fs::remove_file(folder.join("model.safetensors")).expect("remove");
    assert_mentions(&error_of("owner/name", &offline), &["lacks model.safetensors"]);
}

#[test]
fn resolve_with_an_unreachable_hub_falls_back_on_a_complete_cache() {
    let hub = Hub::start(Shelf { files: checkpoint(), ..Shelf::default() });
    let cache = tempfile::tempdir().expect("cache");
    let folder = resolve("owner/name", &hub.options(&cache), None).expect("resolves");
    hub.shelf.lock().expect("lock").status = Some(503);
    assert_eq!(resolve("owner/name", &hub.options(&cache), None).expect("cached"), folder);
    let nobody = HubOptions { endpoint: "http://127.0.0.1:1".to_owned(), ..hub.options(&cache) };
    assert_eq!(resolve("owner/name", &nobody, None).expect("cached"), folder);
    assert_mentions(&error_of("other/name", &nobody), &["cannot be reached", "127.0.0.1:1"]);
}

#[test]
fn resolve_sends_the_token_and_explains_refusals() {
    let token = Some("secret".to_owned());
    let hub = Hub::start(Shelf { files: checkpoint(), token: token.clone(), ..Shelf::default() });
    let cache = tempfile::tempdir().expect("cache");
    assert_mentions(&error_of("owner/name", &hub.options(&cache)), &["HF_TOKEN", "private"]);
    let wrong = HubOptions { token: Some("wrong".to_owned()), ..hub.options(&cache) };
    assert_mentions(&error_of("owner/name", &wrong), &["does not accept the token"]);
    let right = HubOptions { token, ..hub.options(&cache) };
    resolve("owner/name", &right, None).expect("resolves");
    hub.shelf.lock().expect("lock").status = Some(403);
    assert_mentions(&error_of("owner/name", &right), &["refuses access"]);
}

#[test]
fn resolve_of_an_unknown_repo_or_name_says_what_was_tried() {
    let hub = Hub::start(Shelf::default());
    let cache = tempfile::tempdir().expect("cache");
    let options = hub.options(&cache);
    assert_mentions(&error_of("owner/other", &options), &["no such folder", &hub.endpoint, "main"]);
    for model in ["nowhere", "a/b/c", "../up", "/tmp/not/there", "a /b", ""] {
        assert_mentions(&error_of(model, &options), &["no such folder"]);
    }
    let file = cache.path().join("file");
    fs::write(&file, "x").expect("write");
    assert_mentions(&error_of(file.to_str().expect("text"), &options), &["is a file"]);
}

#[test]
fn resolve_from_a_server_without_ranges_works() {
    let hub = Hub::start(Shelf { files: checkpoint(), no_ranges: true, ..Shelf::default() });
    let cache = tempfile::tempdir().expect("cache");
    let folder = resolve("owner/name", &hub.options(&cache), None).expect("resolves");
    let weights = fs::read(folder.join("model.safetensors")).expect("weights");
    assert_eq!(weights, checkpoint()["model.safetensors"]);
}

#[test]
fn resolve_keeps_no_file_that_was_cut_off() {
    let hub = Hub::start(Shelf { files: checkpoint(), cut: 1, ..Shelf::default() });
    let cache = tempfile::tempdir().expect("cache");
    assert_mentions(&error_of("owner/name", &hub.options(&cache)), &["were announced"]);
    hub.shelf.lock().expect("lock").cut = 0;
    let folder = resolve("owner/name", &hub.options(&cache), None).expect("resolves");
    assert_eq!(names(&folder).len(), 4);
}
