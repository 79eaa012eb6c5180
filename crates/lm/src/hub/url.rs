//! The little of URLs that following redirects takes.

use ureq::http::Uri;

/// Scheme, host and port: what a token is meant for.
pub(super) fn same_origin(a: &Uri, b: &Uri) -> bool {
    let port = |uri: &Uri| uri.port_u16().or_else(|| default_port(uri));
    let host = |uri: &Uri| uri.host().map(str::to_ascii_lowercase);
    a.scheme() == b.scheme() && host(a) == host(b) && port(a) == port(b)
}

fn default_port(uri: &Uri) -> Option<u16> {
    match uri.scheme_str() {
        Some("http") => Some(80),
        Some("https") => Some(443),
        _ => None,
    }
}

/// Where `Location: location` leads from `base` (RFC 3986, section 5); `None` when that is no HTTP address.
pub(super) fn join(base: &Uri, location: &str) -> Option<Uri> {
    let location = location.split('#').next()?.trim();
    let scheme = base.scheme_str()?;
    let authority = base.authority()?.as_str();
    let absolute = if has_scheme(location) {
        location.to_owned()
    } else if location.starts_with("//") {
        format!("{scheme}:{location}")
    } else if location.starts_with('/') {
        format!("{scheme}://{authority}{location}")
    } else if location.is_empty() {
        return None;
    } else {
        let path = base.path();
        let folder = match location.starts_with('?') {
            true => path,
            false => path.rsplit_once('/').map_or("/", |(folder, _)| folder),
        };
        let slash = if location.starts_with('?') { "" } else { "/" };
        format!("{scheme}://{authority}{folder}{slash}{location}")
    };
    let uri: Uri = absolute.parse().ok()?;
    let is_http = matches!(uri.scheme_str(), Some("http" | "https"));
    let host = uri.host().filter(|host| is_http && !host.is_empty())?;
    // A port that is no number.
    let place = uri.authority()?.as_str().rsplit('@').next()?;
    (place == host || uri.port_u16().is_some()).then_some(uri)
}

/// Whether the text begins with `scheme:`.
fn has_scheme(location: &str) -> bool {
    location.split_once(':').is_some_and(|(scheme, _)| {
        !scheme.is_empty()
            && scheme.bytes().all(|b| b.is_ascii_alphanumeric() || b"+-.".contains(&b))
    })
}

/// Percent-encodes what has a meaning in URLs or none at all; slashes stay when `keep_slashes`.
pub(super) fn encode(text: &str, keep_slashes: bool) -> String {
    let mut out = String::with_capacity(text.len());
    for byte in text.bytes() {
        if byte.is_ascii_alphanumeric() || b"-_.~".contains(&byte) || (keep_slashes && byte == b'/')
        {
            out.push(char::from(byte));
        } else {
            out.push_str(&format!("%{byte:02X}"));
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    fn uri(text: &str) -> Uri {
        text.parse().expect("uri")
    }

    #[test]
    fn join_follows_every_form_of_location() {
        let base = uri("https://hub.test:8443/owner/name/resolve/main/a.json?x=1");
        for (location, expected) in [
            ("https://cdn.test/a?sig=b#frag", Some("https://cdn.test/a?sig=b")),
            ("HTTP://cdn.test/a", Some("http://cdn.test/a")),
            ("//cdn.test/a", Some("https://cdn.test/a")),
            ("/api/a.json", Some("https://hub.test:8443/api/a.json")),
            ("b.json", Some("https://hub.test:8443/owner/name/resolve/main/b.json")),
            ("?y=2", Some("https://hub.test:8443/owner/name/resolve/main/a.json?y=2")),
            ("ftp://cdn.test/a", None),
            ("file:///etc/passwd", None),
            ("http://", None),
            ("http://cdn.test:99999/a", None),
            ("http://[::1]:80/a", Some("http://[::1]:80/a")),
            ("https://a b/", None),
            ("", None),
            ("#only", None),
        ] {
            let joined = join(&base, location).map(|uri| uri.to_string());
            assert_eq!(joined.as_deref(), expected, "{location}");
        }
    }

    #[test]
    fn same_origin_compares_scheme_host_and_port() {
        let hub = uri("https://hub.test/a");
        assert!(same_origin(&hub, &uri("https://HUB.test:443/b")));
        for other in ["http://hub.test/a", "https://hub.test:444/a", "https://hub.test.evil/a"] {
            assert!(!same_origin(&hub, &uri(other)), "{other}");
        }
    }

    #[test]
    fn encode_leaves_only_plain_letters() {
        assert_eq!(encode("refs/pr/1", false), "refs%2Fpr%2F1");
        assert_eq!(encode("a b/c#?%é", true), "a%20b/c%23%3F%25%C3%A9");
    }
}
