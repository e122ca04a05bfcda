//! HTTP to the brain's API.

use super::Failure;
use crate::api::Problem;
use crate::https;
use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::Value;
use std::fs;
use std::path::Path;
use std::time::Duration;
use ureq::Agent;
use ureq::http::Response;

/// Where a brain listens unless told otherwise.
pub const URL_DEFAULT: &str = "http://127.0.0.1:7480";
/// Where its tokens are unless told otherwise.
pub const TOKEN_FILE_DEFAULT: &str = "/etc/gnomon/tokens";

/// How long a brain may take: its handlers give up before.
const TIMEOUT: Duration = Duration::from_secs(10);

/// A client with a token.
pub struct Client {
    agent: Agent,
    url: String,
    authorization: String,
}

impl Client {
    /// Reads the token; does not connect yet.
    pub fn new(url: String, token_file: &Path) -> Result<Self, Failure> {
        let no_token = |reason: String| Failure::NoToken { path: token_file.to_owned(), reason };
        let text = fs::read_to_string(token_file).map_err(|error| no_token(error.to_string()))?;
        // `NAME TOKEN` as in the brain's own file, or the token alone.
        let lines = text.lines().map(str::trim).filter(|line| !line.is_empty() && !line.starts_with('#'));
        let token = lines.filter_map(|line| line.split_whitespace().last()).next();
        let token = token.ok_or_else(|| no_token("it holds none".into()))?;
        Ok(Self {
            agent: https::agent(&url, TIMEOUT),
            url: url.trim_end_matches('/').to_owned(),
            authorization: format!("Bearer {token}"),
        })
    }

    /// GETs below `/api/v1`.
    pub fn get(&self, path: &str) -> Result<Value, Failure> {
        let request = self.agent.get(self.at(path)).header("authorization", &self.authorization);
        self.answer(request.call())
    }

    /// POSTs below `/api/v1`.
    pub fn post(&self, path: &str, body: &impl Serialize) -> Result<Value, Failure> {
        let request = self.agent.post(self.at(path)).header("authorization", &self.authorization);
        self.answer(request.send_json(body))
    }

    /// PUTs below `/api/v1`.
    pub fn put(&self, path: &str, body: &impl Serialize) -> Result<Value, Failure> {
        let request = self.agent.put(self.at(path)).header("authorization", &self.authorization);
        self.answer(request.send_json(body))
    }

    /// DELETEs below `/api/v1`.
    pub fn delete(&self, path: &str) -> Result<Value, Failure> {
        let request = self.agent.delete(self.at(path)).header("authorization", &self.authorization);
        self.answer(request.call())
    }

    fn at(&self, path: &str) -> String {
        format!("{}/api/v1/{path}", self.url)
    }

    fn answer(&self, answer: Result<Response<ureq::Body>, ureq::Error>) -> Result<Value, Failure> {
        let unreachable =
            |error: ureq::Error| Failure::Unreachable { url: self.url.clone(), reason: error.to_string() };
        let mut response = answer.map_err(|error| match error {
            ureq::Error::BadUri(uri) => Failure::Usage(format!("{uri}: not an address like {URL_DEFAULT}")),
            error => unreachable(error),
        })?;
        let status = response.status();
        let text = response.body_mut().read_to_string().map_err(unreachable)?;
        if status.is_success() {
            return serde_json::from_str(&text).map_err(|error| self.not_a_brain(&error.to_string()));
        }
        match serde_json::from_str::<Problem>(&text) {
            Ok(problem) if status.as_u16() == 401 => Err(Failure::Unauthorised(problem.detail)),
            Ok(problem) if status.as_u16() == 409 => Err(Failure::Conflict(problem.detail)),
            Ok(problem) => Err(Failure::Refused(problem.detail)),
            Err(_) => Err(self.not_a_brain(&format!("it answers {status}"))),
        }
    }

    fn not_a_brain(&self, reason: &str) -> Failure {
        Failure::Unreachable {
            url: self.url.clone(),
            reason: format!("what answers there is no brain of this release ({reason})"),
        }
    }
}

/// Reads the API's JSON into a type.
pub(super) fn typed<T: DeserializeOwned>(value: Value) -> Result<T, Failure> {
    serde_json::from_value(value)
        .map_err(|error| Failure::Refused(format!("the brain's answer is of another release: {error}")))
}

/// Makes one path segment of text that a person typed.
pub(super) fn segment(text: &str) -> String {
    text.bytes().fold(String::new(), |mut path, byte| {
        match byte {
            b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' | b'-' | b'.' | b'_' | b'~' => path.push(char::from(byte)),
            _ => path.push_str(&format!("%{byte:02X}")),
        }
        path
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_with_slashes_and_spaces_stays_one_segment() {
        assert_eq!(segment("db 1/prod"), "db%201%2Fprod");
        assert_eq!(segment("vm-1.x_y~z"), "vm-1.x_y~z");
    }
}
