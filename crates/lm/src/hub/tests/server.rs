//! A pretended Hub on loopback: the endpoints that a download touches, and a second server for large files, as
//! the real one has. It can be told to misbehave.

use std::collections::BTreeMap;
use std::io::{BufRead, BufReader, Write};
use std::net::{TcpListener, TcpStream};
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::Duration;

use ring::digest;
use serde_json::{Value, json};
use tempfile::TempDir;

use crate::hub::HubOptions;

pub(super) const COMMIT: &str = "0123456789abcdef0123456789abcdef01234567";

/// Where requests for files are sent on to.
#[derive(Clone, Default)]
pub(super) enum Redirect {
    /// Large files to the other server, as the real Hub does.
    #[default]
    Store,
    /// Everything to itself, by a path.
    Path,
    /// To a fixed `Location`.
    To(String),
    /// Back to where it came from.
    Loop,
    /// A redirect without `Location`.
    Nowhere,
}

/// How an answer goes wrong.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Fault {
    /// This status, and what a real Hub says in `X-Error-Code`.
    Status(u16, &'static str),
    /// A status that asks for patience.
    RetryAfter(u16, u64),
    /// No answer, and the connection stays open.
    Silence,
    /// Half of the body, then nothing, and the connection stays open.
    Stall,
    /// All but this many bytes, then the connection closes.
    Cut(usize),
    /// One byte differs.
    Flip,
}

/// Applies to requests whose path contains `path`, the first `times` of them.
#[derive(Clone, Copy)]
pub(super) struct Rule {
    pub(super) path: &'static str,
    pub(super) times: usize,
    pub(super) fault: Fault,
}

#[derive(Clone, Debug)]
pub(super) struct Request {
    pub(super) method: String,
    pub(super) path: String,
    pub(super) range: Option<String>,
    pub(super) authorization: Option<String>,
    /// Whether it came to the server for large files.
    pub(super) at_store: bool,
}

/// What the pretended Hub holds and how it behaves.
#[derive(Default)]
pub(super) struct Shelf {
    pub(super) files: BTreeMap<String, Vec<u8>>,
    /// Answers requests without this token with status 401.
    pub(super) token: Option<String>,
    /// Ignores `Range`, as simple mirrors do.
    pub(super) no_ranges: bool,
    /// Sends no `ETag`.
    pub(super) no_etags: bool,
    pub(super) redirect: Redirect,
    pub(super) rules: Vec<Rule>,
    /// What it calls the commit.
    pub(super) commit: Option<String>,
    /// Answers the list of files with this text.
    pub(super) list: Option<String>,
    pub(super) requests: Vec<Request>,
    /// The address of the server for large files.
    pub(super) store: String,
    /// Downloads of files running now, and the most that ran at a time.
    pub(super) running: usize,
    pub(super) most_running: usize,
}

pub(super) struct Hub {
    pub(super) endpoint: String,
    shelf: Arc<Mutex<Shelf>>,
}

impl Hub {
    pub(super) fn start(mut shelf: Shelf) -> Self {
        let listen = || {
            let listener = TcpListener::bind("127.0.0.1:0").expect("loopback");
            let address = format!("http://{}", listener.local_addr().expect("address"));
            (listener, address)
        };
        let (hub, endpoint) = listen();
        let (store, store_address) = listen();
        shelf.store = store_address;
        let shelf = Arc::new(Mutex::new(shelf));
        for (listener, at_store) in [(hub, false), (store, true)] {
            let shelf = shelf.clone();
            thread::spawn(move || {
                for stream in listener.incoming().flatten() {
                    let shelf = shelf.clone();
                    thread::spawn(move || serve(stream, &shelf, at_store));
                }
            });
        }
        Self { endpoint, shelf }
    }

    pub(super) fn with<T>(&self, change: impl FnOnce(&mut Shelf) -> T) -> T {
        change(&mut self.shelf.lock().expect("lock"))
    }

    pub(super) fn fail(&self, path: &'static str, times: usize, fault: Fault) {
        self.with(|shelf| shelf.rules.push(Rule { path, times, fault }));
    }

    pub(super) fn requests(&self) -> Vec<Request> {
        self.with(|shelf| shelf.requests.clone())
    }

    /// Requests for contents whose path contains `name`.
    pub(super) fn gets(&self, name: &str) -> Vec<Request> {
        let is_one = |r: &Request| r.method == "GET" && r.path.contains(name);
        self.requests().into_iter().filter(is_one).collect()
    }

    /// Times that are short, yet longer than a busy machine takes.
    pub(super) fn options(&self, cache: &TempDir) -> HubOptions {
        HubOptions {
            endpoint: self.endpoint.clone(),
            connect_timeout: Duration::from_secs(5),
            read_timeout: Duration::from_secs(2),
            retry_delay: Duration::from_millis(1),
            retries: 2,
            ..HubOptions::new(cache.path())
        }
    }
}

fn serve(stream: TcpStream, shelf: &Mutex<Shelf>, at_store: bool) {
    let mut reader = BufReader::new(stream.try_clone().expect("clone"));
    while let Some(request) = read_request(&mut reader, at_store) {
        let is_file = request.method == "GET" && request.path.contains("/resolve");
        let (response, fault) = {
            let mut shelf = shelf.lock().expect("lock");
            shelf.requests.push(request.clone());
            if is_file {
                shelf.running += 1;
                shelf.most_running = shelf.most_running.max(shelf.running);
            }
            let fault = take_fault(&mut shelf.rules, &request.path);
            (answer(&shelf, &request, fault), fault)
        };
        if is_file {
            // Long enough that downloads at the same time meet.
            thread::sleep(Duration::from_millis(5));
            shelf.lock().expect("lock").running -= 1;
        }
        let body = response.windows(4).position(|w| w == b"\r\n\r\n").map_or(0, |at| at + 4);
        let length = match fault {
            Some(Fault::Silence) => 0,
            Some(Fault::Stall) => body + (response.len() - body) / 2,
            Some(Fault::Cut(bytes)) => response.len().saturating_sub(bytes).max(body),
            _ => response.len(),
        };
        if (&stream).write_all(&response[..length]).is_err() {
            return;
        }
        match fault {
            Some(Fault::Silence | Fault::Stall) => thread::sleep(Duration::from_secs(20)),
            Some(Fault::Cut(_)) => return,
            _ => {}
        }
    }
}

fn read_request(reader: &mut impl BufRead, at_store: bool) -> Option<Request> {
    let mut lines = Vec::new();
    loop {
        let mut line = String::new();
        if reader.read_line(&mut line).unwrap_or(0) == 0 {
            return None;
        }
        if line.trim().is_empty() {
            break;
        }
        lines.push(line.trim().to_owned());
    }
    let header = |name: &str| {
        lines.iter().skip(1).find_map(|line| {
            let (key, value) = line.split_once(':')?;
            key.eq_ignore_ascii_case(name).then(|| value.trim().to_owned())
        })
    };
    let mut words = lines.first()?.split(' ');
    Some(Request {
        method: words.next()?.to_owned(),
        path: words.next()?.to_owned(),
        range: header("range"),
        authorization: header("authorization"),
        at_store,
    })
}

fn take_fault(rules: &mut [Rule], path: &str) -> Option<Fault> {
    let rule = rules.iter_mut().find(|rule| rule.times > 0 && path.contains(rule.path))?;
    rule.times -= 1;
    Some(rule.fault)
}

fn answer(shelf: &Shelf, request: &Request, fault: Option<Fault>) -> Vec<u8> {
    let respond = |status: &str, headers: &str, body: &[u8]| {
        let length = body.len();
        let head = format!("HTTP/1.1 {status}\r\nContent-Length: {length}\r\n{headers}\r\n");
        let body = if request.method == "HEAD" { &[] } else { body };
        [head.as_bytes(), body].concat()
    };
    match fault {
        Some(Fault::Status(status, code)) => {
            return respond(&format!("{status} S"), &format!("X-Error-Code: {code}\r\n"), b"");
        }
        Some(Fault::RetryAfter(status, seconds)) => {
            return respond(&format!("{status} S"), &format!("Retry-After: {seconds}\r\n"), b"");
        }
        _ => {}
    }
    let path = request.path.as_str();
    let expected = shelf.token.as_ref().map(|token| format!("Bearer {token}"));
    let is_let_in = request.at_store || expected.is_none() || expected == request.authorization;
    if !is_let_in {
        return respond("401 Unauthorized", "", b"");
    }
    let commit = shelf.commit.as_deref().unwrap_or(COMMIT);
    if path == "/api/models/owner/name" {
        return respond("200 OK", "", b"{}");
    }
    if path == "/api/models/owner/name/revision/main" {
        let siblings: Vec<Value> =
            shelf.files.keys().map(|name| json!({ "rfilename": name })).collect();
        let list = json!({ "sha": commit, "siblings": siblings }).to_string();
        return respond("200 OK", "", shelf.list.as_ref().unwrap_or(&list).as_bytes());
    }
    let (prefix, moved) = (format!("/owner/name/resolve/{commit}/"), "/resolved/");
    let name = path.strip_prefix(&prefix).or_else(|| path.strip_prefix(moved));
    let Some((name, content)) = name.and_then(|name| Some((name, shelf.files.get(name)?))) else {
        return respond("404 Not Found", "", b"");
    };
    let is_large = name.ends_with(".safetensors");
    let mut headers = format!("X-Repo-Commit: {commit}\r\n");
    if !request.at_store && !shelf.no_etags {
        let (key, hash) = match is_large {
            true => ("X-Linked-Etag", sha256(content)),
            false => ("ETag", git_id(content)),
        };
        headers += &format!("{key}: \"{hash}\"\r\n");
        if is_large {
            headers += &format!("X-Linked-Size: {}\r\nETag: \"of-the-link\"\r\n", content.len());
        }
    } else if request.at_store {
        headers += "ETag: \"of-the-store\"\r\n";
    }
    if !request.at_store && path.starts_with(&prefix) {
        let location = match &shelf.redirect {
            Redirect::Store if is_large => Some(format!("{}{moved}{name}", shelf.store)),
            Redirect::Store => None,
            Redirect::Path => Some(format!("{moved}{name}")),
            Redirect::To(location) => Some(location.clone()),
            Redirect::Loop => Some(path.to_owned()),
            Redirect::Nowhere => return respond("302 Found", "", b""),
        };
        if let Some(location) = location {
            return respond("302 Found", &format!("{headers}Location: {location}\r\n"), b"moved");
        }
    }
    let mut content = content.clone();
    if fault == Some(Fault::Flip)
        && let Some(byte) = content.last_mut()
    {
        *byte ^= 1;
    }
    let Some(range) = request.range.as_ref().filter(|_| !shelf.no_ranges) else {
        return respond("200 OK", &headers, &content);
    };
    let from = range.trim_start_matches("bytes=").trim_end_matches('-');
    let from: usize = from.parse().expect("an open range");
    let total = content.len();
    if from >= total {
        return respond("416 Range Not Satisfiable", &headers, b"");
    }
    headers += &format!("Content-Range: bytes {from}-{}/{total}\r\n", total - 1);
    respond("206 Partial Content", &headers, &content[from..])
}

fn hex(digest: &digest::Digest) -> String {
    digest.as_ref().iter().map(|byte| format!("{byte:02x}")).collect()
}

pub(super) fn sha256(content: &[u8]) -> String {
    hex(&digest::digest(&digest::SHA256, content))
}

fn git_id(content: &[u8]) -> String {
    let object = [format!("blob {}\0", content.len()).as_bytes(), content].concat();
    hex(&digest::digest(&digest::SHA1_FOR_LEGACY_USE_ONLY, &object))
}
