//! Paths and addresses.

use std::path::PathBuf;

use super::{Raw, Wrong, optional_text, wrong};

/// An absolute path.
pub(in crate::config) fn path(raw: &Raw) -> Result<PathBuf, Wrong> {
    match optional_path(raw)? {
        Some(path) => Ok(path),
        None => wrong("is empty", "write an absolute path, or leave the key out for the default"),
    }
}

/// An absolute path, where the empty text means "none". Never repeats the text: people put the secret itself into
/// `secret_file`.
pub(in crate::config) fn optional_path(raw: &Raw) -> Result<Option<PathBuf>, Wrong> {
    let Some(path) = optional_text(raw)?.map(PathBuf::from) else { return Ok(None) };
    if path.is_absolute() {
        Ok(Some(path))
    } else {
        wrong("is no absolute path", "begin it with / ('~' and variables are not expanded)")
    }
}

/// The path of a socket, which the kernel limits.
pub(in crate::config) fn socket_path(raw: &Raw) -> Result<PathBuf, Wrong> {
    /// `sizeof(sun_path)` on Linux, without the final NUL.
    const LONGEST: usize = 107;
    let path = path(raw)?;
    if path.as_os_str().len() > LONGEST {
        return wrong(format!("is longer than the {LONGEST} bytes a socket's path may have"), "choose a shorter directory");
    }
    // By hand: a `Path` overlooks a slash or a dot at the end, the kernel does not.
    if matches!(path.to_string_lossy().rsplit('/').next(), None | Some("" | "." | "..")) {
        return wrong("is the path of a directory", "let it end with the name of the socket, for example /events.sock");
    }
    Ok(path)
}

/// An address to listen on.
pub(in crate::config) fn listen_address(raw: &Raw) -> Result<Option<std::net::SocketAddr>, Wrong> {
    match optional_text(raw)?.map(|text| text.parse::<std::net::SocketAddr>()) {
        None => Ok(None),
        Some(Ok(address)) if address.port() == 0 => wrong(
            format!("{} has no port of its own", raw.describe()),
            "write a port from 1 to 65535: 0 is another at each start",
        ),
        Some(Ok(address)) => Ok(Some(address)),
        Some(Err(_)) => {
            wrong(format!("{} is no address", raw.describe()), "write an IP address and a port, for example \"127.0.0.1:9464\"")
        }
    }
}

/// The base address of the Manager API.
pub(in crate::config) fn url(raw: &Raw) -> Result<Option<String>, Wrong> {
    http(raw, "write it like \"http://127.0.0.1:8080/toy\"; the secret goes into manager_api.secret_file")
}

/// The address of an HTTP proxy.
pub(in crate::config) fn proxy(raw: &Raw) -> Result<Option<String>, Wrong> {
    http(raw, "write it like \"http://127.0.0.1:3128\"; a proxy that wants a password is not supported")
}

/// An HTTP address without a trailing slash. Never repeats the text: it may hold a password.
fn http(raw: &Raw, example: &str) -> Result<Option<String>, Wrong> {
    let Some(text) = optional_text(raw)? else { return Ok(None) };
    let Ok(url) = reqwest::Url::parse(text.trim()) else {
        return wrong("is no address", example);
    };
    if !matches!(url.scheme(), "http" | "https") {
        return wrong("begins with neither http:// nor https://", example);
    }
    if !url.username().is_empty() || url.password().is_some() {
        return wrong("holds a user or a password", example);
    }
    if url.query().is_some() || url.fragment().is_some() {
        return wrong("holds a '?' or '#'", example);
    }
    if url.host_str().is_none_or(str::is_empty) {
        return wrong("names no host", example);
    }
    Ok(Some(url.as_str().trim_end_matches('/').to_owned()))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn text(text: &str) -> Raw {
        Raw::Text(text.to_owned())
    }

    #[test]
    fn an_address_is_refused_without_being_repeated() {
        for given in [
            "canary",
            "ftp://canary/toy",
            "http://canary@h/toy",
            "http://u:canary@h/toy",
            "http://h/toy?canary=1",
            "http://h/toy#canary",
            "http://",
            "https:///canary:x",
            "http://h:canary/toy",
            "h:8080/canary",
        ] {
            let Err(wrong) = url(&text(given)) else { panic!("{given} was taken") };
            assert!(!format!("{wrong:?}").contains("canary"), "{wrong:?}");
        }
    }

    #[test]
    fn a_socket_has_a_name() {
        for given in ["/", "//", "/run/x/events.sock/", "/run/x/.", "/run/x/.."] {
            let Err(wrong) = socket_path(&text(given)) else { panic!("{given} was taken") };
            assert!(wrong.message.contains("directory") && wrong.hint.contains("name of the socket"), "{wrong:?}");
        }
        for given in ["/events.sock", "/run/../x.sock", "/run/x/...", "/run/x/.events"] {
            assert!(socket_path(&text(given)).is_ok(), "{given}");
        }
    }

    #[test]
    fn an_address_to_listen_on_has_a_port() {
        for given in ["127.0.0.1:0", "[::1]:0"] {
            let Err(wrong) = listen_address(&text(given)) else { panic!("{given} was taken") };
            assert!(wrong.message.contains(given) && wrong.hint.contains("1 to 65535"), "{wrong:?}");
        }
        assert_eq!(listen_address(&text("[::1]:9464")).unwrap().unwrap().port(), 9464);
    }

    #[test]
    fn a_path_for_a_socket_must_fit_into_the_kernels_limit() {
        assert!(socket_path(&text(&format!("/{}", "x".repeat(106)))).is_ok());
        assert!(socket_path(&text(&format!("/{}", "x".repeat(107)))).is_err());
        for given in ["", "x", "~/x", "/a\nb", "/a\0b"] {
            assert!(socket_path(&text(given)).is_err(), "{given:?}");
        }
    }
}
