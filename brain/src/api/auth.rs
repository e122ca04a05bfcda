//! Bearer tokens (RFC 6750): who asks.

use super::{ApiState, Problem};
use crate::secret::{self, SecretError};
use axum::extract::{Request, State};
use axum::http::{StatusCode, header};
use axum::middleware::Next;
use axum::response::Response;
use std::path::{Path, PathBuf};
use subtle::{Choice, ConstantTimeEq};

/// Shorter tokens could be guessed.
const TOKEN_BYTES_MIN: usize = 32;
/// Whose token a new file gets.
const FIRST_NAME: &str = "operator";

/// The tokens that open the API, each with its owner's name.
#[derive(Debug, Default)]
pub struct Tokens(Vec<Token>);

struct Token {
    name: String,
    secret: String,
}

impl std::fmt::Debug for Token {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        // Never the secret.
        f.debug_struct("Token").field("name", &self.name).finish_non_exhaustive()
    }
}

/// Why a token file is not usable.
#[derive(Debug, thiserror::Error)]
pub enum TokensError {
    /// It cannot be read or made, or others may read it.
    #[error(transparent)]
    Secret(#[from] SecretError),
    /// A line is not `NAME TOKEN`.
    #[error("{path}:{line}: expected NAME TOKEN, the token of at least {TOKEN_BYTES_MIN} characters")]
    Line {
        /// Which file.
        path: PathBuf,
        /// Which line, from 1.
        line: usize,
    },
    /// No token at all: nobody could ever use the API.
    #[error("{0} has no token; delete it and a new one is made")]
    Empty(PathBuf),
}

impl Tokens {
    /// Reads a token file; makes one with a first token if there is none.
    pub fn open(path: &Path) -> Result<Self, TokensError> {
        if !path.exists() {
            Self::init(path)?;
            tracing::info!(path = %path.display(), "made a token file for the API");
        }
        Self::parse(&secret::read(path)?, path)
    }

    /// Makes a token file with one token; refuses to overwrite one.
    pub fn init(path: &Path) -> Result<(), TokensError> {
        let token = secret::token()?;
        let contents = format!(
            "# Who may use gnomon-brain's API: one NAME TOKEN per line. The name stands in the audit log.\n{FIRST_NAME} {token}\n"
        );
        Ok(secret::write_new(path, &contents)?)
    }

    /// Reads lines of `NAME TOKEN`; empty lines and those that start with `#` do not count.
    pub fn parse(text: &str, path: &Path) -> Result<Self, TokensError> {
        let mut tokens = Vec::new();
        for (index, line) in text.lines().enumerate() {
            let line = line.trim();
            if line.is_empty() || line.starts_with('#') {
                continue;
            }
            match line.split_whitespace().collect::<Vec<_>>()[..] {
                [name, secret] if secret.len() >= TOKEN_BYTES_MIN => {
                    tokens.push(Token { name: name.to_owned(), secret: secret.to_owned() });
                }
                _ => return Err(TokensError::Line { path: path.to_owned(), line: index + 1 }),
            }
        }
        if tokens.is_empty() { Err(TokensError::Empty(path.to_owned())) } else { Ok(Self(tokens)) }
    }

    /// The first token, for a client that was given the same file.
    pub fn first(&self) -> Option<&str> {
        self.0.first().map(|token| token.secret.as_str())
    }

    /// Whose token this is. Every token is compared in full, so that the time taken tells nothing of how near a guess
    /// came.
    fn owner(&self, shown: &str) -> Option<&str> {
        let mut owner = None;
        for token in &self.0 {
            // Slices of different length are unequal at once: the length of a token is no secret.
            let equal: Choice = token.secret.as_bytes().ct_eq(shown.as_bytes());
            if bool::from(equal) {
                owner = Some(token.name.as_str());
            }
        }
        owner
    }
}

/// The name of the token's owner, for handlers that write it into the audit log.
#[derive(Clone, Debug)]
pub(super) struct Actor(pub(super) String);

pub(super) async fn require_token(
    State(state): State<ApiState>,
    mut request: Request,
    next: Next,
) -> Result<Response, Problem> {
    let shown = request.headers().get(header::AUTHORIZATION).and_then(|value| value.to_str().ok());
    let Some(shown) = shown else {
        return Err(unauthorized("this needs a token: send `Authorization: Bearer TOKEN`"));
    };
    let token = shown.split_once(' ').filter(|(scheme, _)| scheme.eq_ignore_ascii_case("bearer"));
    let owner = token.and_then(|(_, token)| state.tokens.owner(token.trim()));
    let Some(owner) = owner else {
        state.telemetry.api.refused();
        return Err(unauthorized("this token is not known; tokens are in the brain's api.token_file"));
    };
    let actor = Actor(owner.to_owned());
    request.extensions_mut().insert(actor);
    Ok(next.run(request).await)
}

fn unauthorized(detail: &str) -> Problem {
    Problem::new(StatusCode::UNAUTHORIZED, detail)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_token_names_its_owner_and_nothing_else_does() {
        let (a, b) = ("a".repeat(32), "b".repeat(40));
        let tokens = Tokens::parse(&format!("# who\nann {a}\n\n  bob  {b}\n"), Path::new("t")).unwrap();
        assert_eq!(tokens.owner(&a), Some("ann"));
        assert_eq!(tokens.owner(&b), Some("bob"));
        for wrong in ["", "a", &a[1..], &format!("{a}a"), &b[..32]] {
            assert_eq!(tokens.owner(wrong), None, "{wrong}");
        }
    }

    #[test]
    fn a_short_token_or_a_third_word_is_refused_with_its_line() {
        for text in ["ann short", "ann", &format!("ann {} x", "a".repeat(32))] {
            let error = Tokens::parse(&format!("# c\n{text}\n"), Path::new("t")).unwrap_err();
            assert!(matches!(error, TokensError::Line { line: 2, .. }), "{error}");
        }
        assert!(matches!(Tokens::parse("# nobody\n", Path::new("t")), Err(TokensError::Empty(_))));
    }

    #[test]
    fn the_first_start_makes_a_file_that_the_second_start_reads() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("tokens");
        let made = Tokens::open(&path).unwrap();
        let read = Tokens::open(&path).unwrap();
        assert_eq!(made.first(), read.first());
        assert_eq!(read.owner(made.first().unwrap()), Some(FIRST_NAME));
        assert!(!format!("{read:?}").contains(made.first().unwrap()), "a secret in Debug output");
    }
}
