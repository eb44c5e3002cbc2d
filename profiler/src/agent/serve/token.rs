//! The secret that whoever asks must show: read from a file, and read again, for it may be replaced
//! while the agent runs, as Kubernetes does with those of a mounted secret.

use std::{
    fs::File,
    io::Read as _,
    path::{Path, PathBuf},
    sync::{Arc, PoisonError, RwLock},
    time::Duration,
};

use anyhow::{Context as _, Result, ensure};
use subtle::ConstantTimeEq as _;

use crate::talk::say;

/// Fewest characters of a token: it can be tried as often as somebody likes.
pub(super) const LEAST: usize = 16;

/// Most bytes of the file.
const MOST: u64 = 4096;

/// How often the file is read.
pub(super) const AGAIN: Duration = Duration::from_secs(5);

/// A token and where it is.
pub(super) struct Token {
    path: PathBuf,
    current: RwLock<Vec<u8>>,
}

impl Token {
    /// The token in this file, without the white space around it.
    ///
    /// # Errors
    /// When the file can't be read, or has no token that is long enough.
    pub(super) fn read(path: &Path) -> Result<Arc<Token>> {
        Ok(Arc::new(Token {
            path: path.to_owned(),
            current: RwLock::new(token_in(path)?),
        }))
    }

    /// Whether this is the token; takes as long for every token of its length.
    pub(super) fn is(&self, shown: &[u8]) -> bool {
        let current = self.current.read().unwrap_or_else(PoisonError::into_inner);
        current.as_slice().ct_eq(shown).into()
    }

    /// Follows the file for ever, reading it so often. While it has no token the last one stays.
    pub(super) async fn keep_current(self: Arc<Self>, again: Duration) {
        let mut was_told = false;
        loop {
            tokio::time::sleep(again).await;
            let path = self.path.clone();
            match tokio::task::spawn_blocking(move || token_in(&path)).await {
                Ok(Ok(token)) => {
                    *self.current.write().unwrap_or_else(PoisonError::into_inner) = token;
                    was_told = false;
                }
                Ok(Err(error)) if !was_told => {
                    say(format_args!("{error:#}; the last token stays good"));
                    was_told = true;
                }
                _ => {}
            }
        }
    }
}

fn token_in(path: &Path) -> Result<Vec<u8>> {
    let read = || {
        let mut text = Vec::new();
        File::open(path)?.take(MOST + 1).read_to_end(&mut text)?;
        std::io::Result::Ok(text)
    };
    let text = read().with_context(|| format!("cannot read the token in {}", path.display()))?;
    let token = text.trim_ascii();
    ensure!(
        text.len() as u64 <= MOST && token.iter().all(u8::is_ascii_graphic),
        "{} has no token: at most {MOST} characters, of ASCII and without white space",
        path.display()
    );
    ensure!(
        token.len() >= LEAST,
        "the token in {} has {} characters: at least {LEAST} are needed, as `openssl rand -hex 32` \
         makes them",
        path.display(),
        token.len()
    );
    Ok(token.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    const GOOD: &str = "0123456789abcdef";

    fn error(text: &[u8]) -> String {
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), text).unwrap();
        format!("{:#}", Token::read(file.path()).err().unwrap())
    }

    #[test]
    fn a_file_without_a_good_token_is_refused() {
        assert!(error(b"").contains("has 0 characters: at least 16"));
        assert!(error(b"0123456789abcde\n").contains("has 15 characters"));
        assert!(error(b"0123456789 abcdef").contains("without white space"));
        assert!(error(&[b'a'; 5000]).contains("at most 4096"));
        let missing = Token::read(Path::new("/nowhere/token")).err().unwrap();
        assert!(format!("{missing:#}").contains("cannot read the token in /nowhere/token"));
    }

    #[tokio::test]
    async fn a_token_that_is_replaced_is_the_new_one_and_a_broken_one_changes_nothing() {
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), format!(" {GOOD}\n")).unwrap();
        let token = Token::read(file.path()).unwrap();
        assert!(token.is(GOOD.as_bytes()));
        assert!(
            !token.is(b"0123456789abcdeX") && !token.is(b"") && !token.is(b"0123456789abcdef0")
        );

        let following = tokio::spawn(Arc::clone(&token).keep_current(Duration::from_millis(5)));
        std::fs::write(file.path(), "short").unwrap();
        tokio::time::sleep(Duration::from_millis(100)).await;
        assert!(token.is(GOOD.as_bytes()));
        std::fs::write(file.path(), "another-token-of-ours").unwrap();
        while !token.is(b"another-token-of-ours") {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        assert!(!token.is(GOOD.as_bytes()));
        following.abort();
    }
}
