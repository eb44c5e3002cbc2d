//! Where a store is, whom the agent trusts there, and how it says who it is. Secrets are in files,
//! which are read each time: whoever changes a token need not restart the agent.

use std::{
    fs::File,
    io::Read as _,
    path::{Path, PathBuf},
};

use anyhow::{Context as _, Result, bail, ensure};
use axum::http::HeaderValue;
use base64::{Engine as _, prelude::BASE64_STANDARD};
use reqwest::Url;

use super::settings::Store;

/// Most bytes of a file with a secret, or with certificates.
const FILE_MAX: u64 = 1 << 20;

/// What every store needs to know.
#[derive(Debug)]
pub(super) struct Access {
    /// Without credentials.
    pub(super) url: Url,
    proof: Proof,
    pub(super) tenant: Option<HeaderValue>,
    /// Certificate authorities, and a certificate with its key, as PEM.
    pub(super) authorities: Option<Vec<u8>>,
    pub(super) identity: Option<(Vec<u8>, Vec<u8>)>,
}

#[derive(Debug)]
enum Proof {
    None,
    Token(PathBuf),
    Basic { user: String, password: Password },
}

enum Password {
    Said(String),
    File(PathBuf),
}

// So that it is in no message.
impl std::fmt::Debug for Password {
    fn fmt(&self, out: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        out.write_str("…")
    }
}

impl Access {
    /// What the settings of a section say.
    ///
    /// # Errors
    /// When they contradict each other, or a file can't be read.
    pub(super) fn of(store: &Store) -> Result<Access> {
        let section = store.section;
        let mut url = address(&store.url, section)?;
        let secret = |flag: &str, path: &Path| {
            let said = || format!("which `--{section}-{flag}` names");
            secret(path).with_context(said)
        };
        let said = match (url.username(), &store.user) {
            ("", None) => None,
            ("", Some(user)) => Some(user.clone()),
            (_, Some(_)) => {
                bail!("the address of {section} has a user, and `--{section}-user` is one")
            }
            (user, None) => Some(decoded(user)),
        };
        let password = match (url.password(), &store.password_file) {
            (Some(_), Some(_)) => bail!(
                "the address of {section} has a password, and `--{section}-password-file` is one"
            ),
            (Some(password), None) => Some(Password::Said(decoded(password))),
            (None, Some(file)) => {
                secret("password-file", file)?;
                Some(Password::File(file.clone()))
            }
            (None, None) => None,
        };
        let proof = match (said, password, &store.token_file) {
            (None, None, None) => Proof::None,
            (None, None, Some(file)) => {
                secret("token-file", file)?;
                Proof::Token(file.clone())
            }
            (Some(user), password, None) => {
                let password = password.unwrap_or(Password::Said(String::new()));
                Proof::Basic { user, password }
            }
            (None, Some(_), _) => bail!("{section} has a password and no user: `--{section}-user`"),
            (Some(_), _, Some(_)) => bail!("{section} has a token and a user: choose one of them"),
        };
        // Neither fails: the address has a host.
        let _ = url.set_username("");
        let _ = url.set_password(None);
        let tenant = store.tenant.as_deref().map(HeaderValue::from_str);
        let tenant = tenant.transpose();
        let tenant =
            tenant.with_context(|| format!("`--{section}-tenant` is no text of a header"))?;
        let pem = |flag: &str, path: &Option<PathBuf>| -> Result<Option<Vec<u8>>> {
            let Some(path) = path else { return Ok(None) };
            let bytes = read(path).with_context(|| {
                format!(
                    "cannot read {}, which `--{section}-{flag}` names",
                    path.display()
                )
            })?;
            ensure!(
                String::from_utf8_lossy(&bytes).contains("-----BEGIN "),
                "{}, which `--{section}-{flag}` names, has nothing in the PEM format",
                path.display()
            );
            Ok(Some(bytes))
        };
        let identity = match (
            pem("cert-file", &store.cert_file)?,
            pem("key-file", &store.key_file)?,
        ) {
            (Some(certificate), Some(key)) => Some((certificate, key)),
            (None, None) => None,
            _ => bail!("`--{section}-cert-file` and `--{section}-key-file` go together"),
        };
        Ok(Access {
            url,
            proof,
            tenant,
            authorities: pem("ca-file", &store.ca_file)?,
            identity,
        })
    }

    /// The header `Authorization`, with the secret as it is now.
    ///
    /// # Errors
    /// When its file can't be read, or holds what can't be in a header.
    pub(super) fn authorization(&self) -> Result<Option<HeaderValue>> {
        let text = match &self.proof {
            Proof::None => return Ok(None),
            Proof::Token(file) => format!("Bearer {}", secret(file)?),
            Proof::Basic { user, password } => {
                let password = match password {
                    Password::Said(password) => password.clone(),
                    Password::File(file) => secret(file)?,
                };
                format!(
                    "Basic {}",
                    BASE64_STANDARD.encode(format!("{user}:{password}"))
                )
            }
        };
        let mut value = HeaderValue::try_from(text).context("the token is no text of a header")?;
        value.set_sensitive(true);
        Ok(Some(value))
    }
}

fn address(text: &str, section: &str) -> Result<Url> {
    // The text itself may have a password in it.
    let url = Url::parse(text).with_context(|| {
        format!("`--{section}-url` is no address such as http://host:port or https://host")
    })?;
    ensure!(
        ["http", "https"].contains(&url.scheme()) && url.has_host(),
        "`--{section}-url` is no address that begins with http:// or https://, but {}:…",
        url.scheme()
    );
    Ok(url)
}

/// Undoes what an address does to special characters.
fn decoded(text: &str) -> String {
    let mut bytes = Vec::new();
    let mut rest = text.as_bytes();
    while let [first, after @ ..] = rest {
        let hex = after.get(..2).and_then(|hex| std::str::from_utf8(hex).ok());
        match hex.and_then(|hex| u8::from_str_radix(hex, 16).ok()) {
            Some(byte) if *first == b'%' => {
                bytes.push(byte);
                rest = &after[2..];
            }
            _ => {
                bytes.push(*first);
                rest = after;
            }
        }
    }
    String::from_utf8_lossy(&bytes).into_owned()
}

fn secret(path: &Path) -> Result<String> {
    let said = || format!("cannot read the secret in {}", path.display());
    let text = String::from_utf8(read(path).with_context(said)?).with_context(said)?;
    let text = text.trim();
    ensure!(!text.is_empty(), "{} is empty", path.display());
    Ok(text.to_owned())
}

fn read(path: &Path) -> Result<Vec<u8>> {
    let mut bytes = Vec::new();
    File::open(path)?.take(FILE_MAX).read_to_end(&mut bytes)?;
    Ok(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn store(url: &str) -> Store {
        Store {
            section: "parca",
            url: url.to_owned(),
            ..Store::default()
        }
    }

    fn header(store: &Store) -> String {
        let access = Access::of(store).unwrap();
        let header = access.authorization().unwrap().unwrap();
        header.to_str().unwrap().to_owned()
    }

    #[test]
    fn a_user_in_the_address_is_not_shown_and_shows_itself() {
        let store = store("https://a%40b:p%20w@store:7070/x");
        let access = Access::of(&store).unwrap();
        assert_eq!(access.url.as_str(), "https://store:7070/x");
        // `printf 'a@b:p w' | base64`
        assert_eq!(header(&store), "Basic YUBiOnAgdw==");
        assert!(!format!("{access:?}").contains("p w"));
    }

    #[test]
    fn a_token_is_read_again() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("token");
        std::fs::write(&file, "one\n").unwrap();
        let mut store = store("http://store");
        store.token_file = Some(file.clone());
        let access = Access::of(&store).unwrap();
        let token = || access.authorization().map(|header| header.unwrap());
        assert_eq!(token().unwrap(), "Bearer one");
        std::fs::write(&file, "two").unwrap();
        assert_eq!(token().unwrap(), "Bearer two");
        std::fs::write(&file, "").unwrap();
        assert!(token().unwrap_err().to_string().ends_with("token is empty"));
    }

    #[test]
    fn what_does_not_fit_together_is_said_at_once() {
        let error = |change: &dyn Fn(&mut Store)| {
            let mut store = store("http://store");
            change(&mut store);
            format!("{:#}", Access::of(&store).unwrap_err())
        };
        let wrong = error(&|store| store.url = "u:secret@host:1".to_owned());
        assert!(
            wrong.contains("--parca-url") && !wrong.contains("secret"),
            "{wrong}"
        );
        let no_host = error(&|store| store.url = "unix:/run/x".to_owned());
        assert!(no_host.ends_with("but unix:…"), "{no_host}");
        let absent = error(&|store| store.token_file = Some("/no/token".into()));
        assert!(
            absent.contains("--parca-token-file") && absent.contains("/no/token"),
            "{absent}"
        );
        let no_pem = error(&|store| store.ca_file = Some("/dev/null".into()));
        assert!(
            no_pem.contains("--parca-ca-file") && no_pem.contains("PEM"),
            "{no_pem}"
        );
        let both = error(&|store| {
            store.user = Some("u".to_owned());
            store.token_file = Some("/proc/self/comm".into());
        });
        assert!(both.contains("choose one"), "{both}");
        let alone = error(&|store| store.cert_file = Some("/no/cert".into()));
        assert!(alone.contains("/no/cert"), "{alone}");
        let tenant = error(&|store| store.tenant = Some("a\nb".to_owned()));
        assert!(tenant.contains("--parca-tenant"), "{tenant}");
    }
}
