//! Requests to a Hub: timeouts, redirects, repetition, and what an answer means for the user.

use std::io::{self, Read};
use std::thread;
use std::time::Duration;

use serde_json::Value;
use ureq::http::{HeaderMap, Method, Request, Uri};
use ureq::{Agent, Body};

use super::HubOptions;
use super::url::{encode, join, same_origin};

/// Redirects followed in a row.
const MAX_REDIRECTS: usize = 10;
/// A pause that a server asks for is cut to this.
const MAX_RETRY_DELAY: Duration = Duration::from_secs(60);
/// The list of a repo's files is shorter than this.
const MAX_LIST_BYTES: u64 = 64 << 20;

/// Why a request led to nothing.
#[derive(Debug)]
pub(super) enum Failure {
    /// No answer, a broken one, or one that says "not now": later, or the cache, may help.
    Unreachable {
        reason: String,
        /// The pause that the server asks for; zero when it does not.
        pause: Duration,
        /// Whether asking again at once makes sense.
        may_pass: bool,
    },
    /// An answer: looking elsewhere would be wrong.
    Refused(String),
}

impl Failure {
    pub(super) fn passing(reason: impl Into<String>) -> Self {
        Self::Unreachable { reason: reason.into(), pause: Duration::ZERO, may_pass: true }
    }

    fn of(error: &ureq::Error) -> Self {
        let reason = match error {
            ureq::Error::BadUri(_) | ureq::Error::Http(_) | ureq::Error::InvalidProxyUrl => {
                return Self::Refused(format!("not a usable address: {error}"));
            }
            ureq::Error::HostNotFound => {
                let reason = "its name does not resolve".to_owned();
                return Self::Unreachable { reason, pause: Duration::ZERO, may_pass: false };
            }
            // Nobody listens there.
            ureq::Error::Io(error) if error.kind() == io::ErrorKind::ConnectionRefused => {
                let reason = error.to_string();
                return Self::Unreachable { reason, pause: Duration::ZERO, may_pass: false };
            }
            ureq::Error::Timeout(timeout) => format!("no answer in time: {timeout}"),
            other => other.to_string(),
        };
        Self::passing(reason)
    }

    /// For errors while a body arrives.
    pub(super) fn of_read(error: &io::Error) -> Self {
        let inner = error.get_ref().and_then(|inner| inner.downcast_ref::<ureq::Error>());
        inner.map_or_else(|| Self::passing(error.to_string()), Self::of)
    }
}

pub(super) type Outcome<T> = std::result::Result<T, Failure>;

/// An answer that is neither a redirect nor an error.
pub(super) struct Reply {
    pub(super) status: u16,
    pub(super) headers: HeaderMap,
    pub(super) body: Body,
}

/// What the Hub says about a file without sending it.
pub(super) struct FileInfo {
    pub(super) etag: String,
    pub(super) size: Option<u64>,
}

/// What a request is about, for messages.
#[derive(Clone, Copy)]
enum Subject<'a> {
    Repo,
    File(&'a str),
}

pub(super) struct Client<'a> {
    agent: Agent,
    model: &'a str,
    options: &'a HubOptions,
    endpoint: Uri,
}

impl<'a> Client<'a> {
    pub(super) fn new(model: &'a str, options: &'a HubOptions) -> Outcome<Self> {
        let connect = Some(options.connect_timeout);
        let read = Some(options.read_timeout);
        let agent = Agent::config_builder()
            .http_status_as_error(false)
            .max_redirects(0)
            .timeout_resolve(connect)
            .timeout_connect(connect)
            .timeout_send_request(read)
            .timeout_recv_response(read)
            .timeout_per_read(read)
            .timeout_per_write(read)
            // Bytes have to be the file's: sizes, ranges and hashes count them.
            .accept_encoding("identity")
            .user_agent(concat!("zmlx/", env!("CARGO_PKG_VERSION")))
            .build()
            .new_agent();
        let endpoint = options.endpoint.trim_end_matches('/').parse::<Uri>().ok();
        match endpoint.filter(|uri| uri.scheme().is_some() && uri.host().is_some()) {
            Some(endpoint) => Ok(Self { agent, model, options, endpoint }),
            None => Err(Failure::Refused(format!(
                "the Hub's address is `{}`; set HF_ENDPOINT to a URL such as https://huggingface.co",
                options.endpoint
            ))),
        }
    }

    /// The commit of the revision and the names of its files.
    pub(super) fn list(&self, retries: u32) -> Outcome<(String, Vec<String>)> {
        let revision = encode(&self.options.revision, false);
        let url = self.url(&format!("api/models/{}/revision/{revision}", self.model));
        let text = self.patiently(retries, || {
            let reply = self.get(&url, 0, Subject::Repo)?;
            let mut text = Vec::new();
            let mut body = reply.body.into_reader().take(MAX_LIST_BYTES);
            body.read_to_end(&mut text).map_err(|error| Failure::of_read(&error))?;
            Ok(text)
        })?;
        let strange = || {
            // Networks that want a login first answer everything with a page of their own.
            let reason = "it answers with something that is no list of files; \
                          does the network want a login, is HF_ENDPOINT a Hub?";
            Failure::Unreachable {
                reason: reason.to_owned(),
                pause: Duration::ZERO,
                may_pass: false,
            }
        };
        let info: Value = serde_json::from_slice(&text).map_err(|_| strange())?;
        let commit = info["sha"].as_str().ok_or_else(strange)?;
        let is_name = commit.len() <= 64 && commit.bytes().all(|b| b.is_ascii_alphanumeric());
        let files = info["siblings"].as_array().filter(|_| is_name && !commit.is_empty());
        let names = files.ok_or_else(strange)?.iter().filter_map(|f| f["rfilename"].as_str());
        Ok((commit.to_owned(), names.map(str::to_owned).collect()))
    }

    /// Size and etag of a file.
    pub(super) fn file_info(&self, commit: &str, name: &str) -> Outcome<FileInfo> {
        let url = self.file_url(commit, name);
        self.patiently(self.options.retries, || self.head(&url, name))
    }

    /// The file from byte `from` on; the answer may start earlier (status 200).
    pub(super) fn open(&self, commit: &str, name: &str, from: u64) -> Outcome<Reply> {
        self.get(&self.file_url(commit, name), from, Subject::File(name))
    }

    /// Repeats what fails for a reason that may pass.
    fn patiently<T>(&self, retries: u32, mut attempt: impl FnMut() -> Outcome<T>) -> Outcome<T> {
        let mut failures = 0;
        loop {
            match attempt() {
                Err(failure) if failures < retries => self.pause(failure, failures)?,
                outcome => return outcome,
            }
            failures += 1;
        }
    }

    /// Waits before the next attempt; hands the failure back when there is no point in one.
    pub(super) fn pause(&self, failure: Failure, failures: u32) -> Outcome<()> {
        let Failure::Unreachable { pause, may_pass: true, .. } = failure else {
            return Err(failure);
        };
        let own = self.options.retry_delay.saturating_mul(1 << failures.min(10));
        thread::sleep(own.max(pause).min(MAX_RETRY_DELAY));
        Ok(())
    }

    fn url(&self, path: &str) -> String {
        format!("{}/{path}", self.options.endpoint.trim_end_matches('/'))
    }

    fn file_url(&self, commit: &str, name: &str) -> String {
        self.url(&format!("{}/resolve/{commit}/{}", self.model, encode(name, true)))
    }

    fn get(&self, url: &str, from: u64, subject: Subject<'_>) -> Outcome<Reply> {
        let mut uri = self.parse(url)?;
        for _ in 0..=MAX_REDIRECTS {
            let reply = self.send(Method::GET, &uri, from)?;
            match self.redirect(&reply, &uri)? {
                Some(next) => uri = next,
                None if matches!(reply.status, 200 | 206 | 416) => return Ok(reply),
                None => return Err(self.refusal(&reply, subject)),
            }
        }
        Err(self.too_many_redirects(url))
    }

    /// Follows redirects until size and etag are known. The Hub's own answer has both; where it sends the
    /// request on to a store of files, the store's etag is another thing.
    fn head(&self, url: &str, name: &str) -> Outcome<FileInfo> {
        let mut uri = self.parse(url)?;
        let (mut linked_etag, mut linked_size) = (None, None);
        for _ in 0..=MAX_REDIRECTS {
            let reply = self.send(Method::HEAD, &uri, 0)?;
            linked_etag = linked_etag.or_else(|| etag(&reply.headers, "x-linked-etag"));
            linked_size = linked_size.or_else(|| number(&reply.headers, "x-linked-size"));
            let next = self.redirect(&reply, &uri)?;
            if next.is_none() && reply.status != 200 {
                return Err(self.refusal(&reply, Subject::File(name)));
            }
            let last = next.is_none();
            let own = |header| last.then(|| etag(&reply.headers, header)).flatten();
            let size = linked_size
                .or_else(|| last.then(|| number(&reply.headers, "content-length")).flatten());
            match (linked_etag.clone().or_else(|| own("etag")), next) {
                (Some(etag), _) if last || size.is_some() => return Ok(FileInfo { etag, size }),
                (_, Some(next)) => uri = next,
                _ => {
                    return Err(Failure::Refused(format!(
                        "{} sends no usable ETag for {name}, so it is no Hub; check HF_ENDPOINT",
                        self.options.endpoint
                    )));
                }
            }
        }
        Err(self.too_many_redirects(url))
    }

    fn parse(&self, url: &str) -> Outcome<Uri> {
        url.parse().map_err(|_| Failure::Refused(format!("`{url}` is not a usable address")))
    }

    fn send(&self, method: Method, uri: &Uri, from: u64) -> Outcome<Reply> {
        let mut request = Request::builder().method(method).uri(uri.clone());
        if from > 0 {
            request = request.header("range", format!("bytes={from}-"));
        }
        // Nobody but the Hub gets the token, wherever it sends us.
        if let Some(token) = &self.options.token
            && same_origin(uri, &self.endpoint)
        {
            request = request.header("authorization", format!("Bearer {token}"));
        }
        let request = request.body(()).map_err(|_| {
            Failure::Refused(
                "the token cannot be sent; check HF_TOKEN for stray characters".to_owned(),
            )
        })?;
        let response = self.agent.run(request).map_err(|error| match Failure::of(&error) {
            Failure::Unreachable { reason, pause, may_pass }
                if !same_origin(uri, &self.endpoint) =>
            {
                let reason = format!("{}: {reason}", uri.host().unwrap_or_default());
                Failure::Unreachable { reason, pause, may_pass }
            }
            failure => failure,
        })?;
        let (parts, body) = response.into_parts();
        Ok(Reply { status: parts.status.as_u16(), headers: parts.headers, body })
    }

    /// Where the answer sends us on to, if it does.
    fn redirect(&self, reply: &Reply, from: &Uri) -> Outcome<Option<Uri>> {
        if !matches!(reply.status, 301 | 302 | 303 | 307 | 308) {
            return Ok(None);
        }
        let location = text(&reply.headers, "location").unwrap_or_default();
        let Some(next) = join(from, location) else {
            return Err(Failure::Refused(format!(
                "{} redirects to `{location}`, which is no address; check HF_ENDPOINT",
                from.host().unwrap_or_default()
            )));
        };
        if from.scheme_str() == Some("https") && next.scheme_str() == Some("http") {
            return Err(Failure::Refused(format!(
                "{} redirects to http, which anybody on the way can read and change",
                from.host().unwrap_or_default()
            )));
        }
        Ok(Some(next))
    }

    fn too_many_redirects(&self, url: &str) -> Failure {
        Failure::Refused(format!("{url} redirects more than {MAX_REDIRECTS} times"))
    }

    /// What a status that is no success means, and what to do.
    fn refusal(&self, reply: &Reply, subject: Subject<'_>) -> Failure {
        let HubOptions { endpoint, revision, token, .. } = self.options;
        let model = self.model;
        let code = text(&reply.headers, "x-error-code").unwrap_or_default();
        let has_token = token.is_some();
        Failure::Refused(match (reply.status, code) {
            (401 | 403, "GatedRepo") if has_token => format!(
                "the repo is gated and the account of HF_TOKEN has no access; \
                 accept its terms at {endpoint}/{model} with that account"
            ),
            (401 | 403, "GatedRepo") => format!(
                "the repo is gated; accept its terms at {endpoint}/{model}, \
                 then set HF_TOKEN to a token of that account"
            ),
            (401, "RepoNotFound") if has_token => self.no_repo(),
            (401, _) if has_token => {
                format!("{endpoint} does not accept the token; check HF_TOKEN")
            }
            (401, _) => format!(
                "no such folder, and {endpoint} has no such public repo; \
                 check the spelling, or set HF_TOKEN if it is private"
            ),
            (403, _) => format!(
                "{endpoint} refuses access; accept the model's terms at {endpoint}/{model}, \
                 then set HF_TOKEN to a token that may read it"
            ),
            (404, "RevisionNotFound") => self.no_revision(),
            (404, "RepoNotFound") => self.no_repo(),
            (404 | 410, _) => match subject {
                Subject::File(name) => {
                    format!(
                        "{name} is listed in revision {revision} but cannot be downloaded (404)"
                    )
                }
                Subject::Repo => self.missing(),
            },
            (408 | 425 | 429 | 500..=599, _) => {
                let seconds = number(&reply.headers, "retry-after").unwrap_or(0);
                let hint = if reply.status == 429 && !has_token {
                    ", too many requests; HF_TOKEN raises the limit"
                } else {
                    ""
                };
                return Failure::Unreachable {
                    reason: format!("status {}{hint}", reply.status),
                    pause: Duration::from_secs(seconds),
                    may_pass: true,
                };
            }
            (status, _) => format!("{endpoint} answers with status {status}; check HF_ENDPOINT"),
        })
    }

    fn no_repo(&self) -> String {
        format!(
            "no such folder, and {} has no such repo; check the spelling",
            self.options.endpoint
        )
    }

    fn no_revision(&self) -> String {
        format!(
            "{} has the repo but no branch, tag or commit `{}`; check --revision",
            self.options.endpoint, self.options.revision
        )
    }

    /// Tells a missing repo from a missing revision where the server does not.
    fn missing(&self) -> String {
        let url = self.url(&format!("api/models/{}", self.model));
        let found = self.parse(&url).and_then(|uri| self.send(Method::HEAD, &uri, 0));
        if found.is_ok_and(|reply| reply.status < 400) {
            self.no_revision()
        } else {
            self.no_repo()
        }
    }
}

fn text<'h>(headers: &'h HeaderMap, name: &str) -> Option<&'h str> {
    headers.get(name)?.to_str().ok()
}

fn number(headers: &HeaderMap, name: &str) -> Option<u64> {
    text(headers, name)?.trim().parse().ok()
}

/// An etag that can name a file.
fn etag(headers: &HeaderMap, name: &str) -> Option<String> {
    let raw = text(headers, name)?.trim();
    let etag = raw.strip_prefix("W/").unwrap_or(raw).trim_matches('"');
    let is_name = !etag.is_empty()
        && etag.len() <= 128
        && !etag.starts_with('.')
        && etag.bytes().all(|b| b.is_ascii_alphanumeric() || b"-_.".contains(&b));
    is_name.then(|| etag.to_owned())
}

/// Of `Content-Range: bytes FROM-TO/TOTAL`: where it begins, and the size of the whole if that is known.
pub(super) fn content_range(headers: &HeaderMap) -> Option<(u64, Option<u64>)> {
    let range = text(headers, "content-range")?.strip_prefix("bytes ")?;
    let (span, total) = range.split_once('/')?;
    let (from, _) = span.split_once('-')?;
    Some((from.trim().parse().ok()?, total.trim().parse().ok()))
}

pub(super) fn content_length(headers: &HeaderMap) -> Option<u64> {
    number(headers, "content-length")
}
