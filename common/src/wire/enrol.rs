//! Joining: how a host that has nothing but a token gets its first certificate.
//!
//! It is a second application protocol, [`ENROL_ALPN`], on the brain's endpoint. The agent demands that the brain's chain
//! leads to the CA that its [`Token`] pins, opens one stream, sends one [`EnrolRequest`] and reads one [`EnrolReply`]; each
//! is one frame of at most [`ENROL_BYTES_MAX`]. Nothing else is spoken there. The private key stays with the agent: what
//! travels is a certificate signing request (PKCS #10, RFC 2986), of which the brain takes the public key and nothing else.

use super::HostId;
use super::frame::{self, FrameError, PREFIX_BYTES};
use crate::time::Timestamp;
use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use core::fmt;
use serde::{Deserialize, Serialize};
use std::str::FromStr;
use std::string::{String, ToString};
use std::vec::Vec;

/// The application protocol of joining. Alone on the brain's endpoint, it asks for no client certificate.
pub const ENROL_ALPN: &[u8] = b"gnomon-enrol/1";

/// The largest payload of either side: a signing request or two certificates are about a kilobyte. Strangers may send this
/// much, so it is little.
pub const ENROL_BYTES_MAX: usize = 8 << 10;

/// What a token's text begins with, its format's version included.
const TOKEN_PREFIX: &str = "gnomon1.";

/// Longest text that is looked at as a token: that of the longest host name, and some.
const TOKEN_TEXT_BYTES_MAX: usize = 256;

/// The SHA-256 of a CA certificate's DER: which CA a token trusts.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct CaPin(pub [u8; 32]);

impl fmt::Display for CaPin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        hexadecimal(&self.0, f)
    }
}

/// A token's name: no secret, shown by `gnomon-brain token list`. Written as 16 hexadecimal digits.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct TokenId(pub [u8; 8]);

impl fmt::Display for TokenId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        hexadecimal(&self.0, f)
    }
}

/// Text that is not 16 hexadecimal digits.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("token id {0:?} is not 16 hexadecimal digits; `gnomon-brain token list` shows the ids")]
pub struct InvalidTokenId(pub String);

impl FromStr for TokenId {
    type Err = InvalidTokenId;

    fn from_str(text: &str) -> Result<Self, InvalidTokenId> {
        let invalid = || InvalidTokenId(text.to_string());
        if text.len() != 16 || !text.bytes().all(|digit| digit.is_ascii_hexdigit()) {
            return Err(invalid());
        }
        u64::from_str_radix(text, 16).map(|id| Self(id.to_be_bytes())).map_err(|_| invalid())
    }
}

fn hexadecimal(bytes: &[u8], f: &mut fmt::Formatter<'_>) -> fmt::Result {
    bytes.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
}

/// 128 random bits that prove that their bearer was given a token. The brain keeps only their hash.
#[derive(Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct TokenSecret(pub [u8; 16]);

impl fmt::Debug for TokenSecret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("TokenSecret(..)")
    }
}

/// What an operator carries from the brain to a new host: `gnomon1.` and one frame in base64url.
///
/// It lets its bearer speak for one host, once, for a limited time; and it tells the bearer which brain to believe.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Token {
    /// Which.
    pub id: TokenId,
    /// The CA that the brain's certificate must come from.
    pub ca: CaPin,
    /// Proof for the brain.
    pub secret: TokenSecret,
    /// The host that it is good for.
    pub host: HostId,
}

/// Text that is not a token.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum InvalidToken {
    /// It does not begin like one.
    #[error("this is no token: one begins with {TOKEN_PREFIX} and is printed by `gnomon-brain token create`")]
    Prefix,
    /// It begins like one and is damaged.
    #[error("the token is damaged ({0}): was it copied whole?")]
    Damaged(String),
}

impl fmt::Display for Token {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let bytes = frame::encode(self).map_err(|_| fmt::Error)?;
        write!(f, "{TOKEN_PREFIX}{}", URL_SAFE_NO_PAD.encode(bytes))
    }
}

impl FromStr for Token {
    type Err = InvalidToken;

    fn from_str(text: &str) -> Result<Self, InvalidToken> {
        let damaged = |why: &dyn fmt::Display| InvalidToken::Damaged(why.to_string());
        let body = text.trim().strip_prefix(TOKEN_PREFIX).ok_or(InvalidToken::Prefix)?;
        if body.len() > TOKEN_TEXT_BYTES_MAX {
            return Err(damaged(&"too long"));
        }
        let bytes = URL_SAFE_NO_PAD.decode(body).map_err(|error| damaged(&error))?;
        let (prefix, payload) = bytes.split_first_chunk::<PREFIX_BYTES>().ok_or_else(|| damaged(&"too short"))?;
        // The frame's length is what notices a token that was cut off.
        match frame::payload_len(*prefix) {
            Ok(length) if length == payload.len() => {}
            Ok(length) => {
                return Err(damaged(&FrameError::Malformed(std::format!("{} of {length} bytes", payload.len()))));
            }
            Err(error) => return Err(damaged(&error)),
        }
        frame::decode(payload).map_err(|error| damaged(&error))
    }
}

/// What a host that wants to join says.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct EnrolRequest {
    /// Which token it has.
    pub token: TokenId,
    /// The proof.
    pub secret: TokenSecret,
    /// Who it is, by its own configuration.
    pub host: HostId,
    /// Its certificate signing request (PKCS #10, DER), signed with the key that it made for this.
    pub request: Vec<u8>,
}

/// What the brain answers.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum EnrolReply {
    /// Welcome: from now on, connect with this.
    Issued {
        /// The host's certificate, PEM.
        certificate: String,
        /// The CA's certificate, PEM: the one that the token pins.
        ca: String,
    },
    /// The token does not let this host in.
    Refused {
        /// Why, for programs.
        code: EnrolRefusal,
        /// Why and what to do, for people.
        reason: String,
    },
}

/// Why a host may not join.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub enum EnrolRefusal {
    /// No such token, or not its secret: another brain's, an invented or a mistyped one.
    Foreign,
    /// Its time is over.
    Expired,
    /// It has let a host in already.
    Spent,
    /// An operator took it back.
    Revoked,
    /// It is good for another host.
    OtherHost,
    /// The request is none.
    Malformed,
    /// Too many join at once: try again.
    Busy,
    /// This brain issues no certificates.
    NoAuthority,
}

impl EnrolRefusal {
    /// One word: for logs and as a metric's label.
    pub fn word(self) -> &'static str {
        match self {
            Self::Foreign => "foreign",
            Self::Expired => "expired",
            Self::Spent => "spent",
            Self::Revoked => "revoked",
            Self::OtherHost => "other_host",
            Self::Malformed => "malformed",
            Self::Busy => "busy",
            Self::NoAuthority => "no_authority",
        }
    }
}

/// When a certificate's bearer asks for the next one: after two thirds of its life. The last third is there for retries, and
/// for a host that is away.
pub fn renewal_due(valid_from: Timestamp, valid_to: Timestamp) -> Timestamp {
    valid_from + valid_to.since(valid_from) * 2 / 3
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn token(host: &str) -> Token {
        let host = HostId::new(host).unwrap();
        Token { id: TokenId([1; 8]), ca: CaPin([2; 32]), secret: TokenSecret([0xa5; 16]), host }
    }

    #[test]
    fn a_token_survives_being_printed_and_read_even_with_the_longest_host_name() {
        for host in ["h", "host-1.rack2", &"x".repeat(63)] {
            let token = token(host);
            assert_eq!(std::format!(" {token}\n").parse(), Ok(token));
        }
    }

    #[test]
    fn a_token_that_was_cut_off_or_is_something_else_says_so() {
        let text = token("h1").to_string();
        for cut in 8..text.len() {
            let error = text[..cut].parse::<Token>().unwrap_err();
            assert!(matches!(error, InvalidToken::Damaged(_)), "{cut}: {error}");
        }
        assert_eq!("0123".parse::<Token>(), Err(InvalidToken::Prefix));
        assert!(std::format!("{text}{}", "A".repeat(300)).parse::<Token>().is_err());
    }

    #[test]
    fn debug_output_keeps_the_secret() {
        let shown = std::format!("{:?}", token("h1"));
        assert!(shown.contains("h1") && !shown.contains("165"), "{shown}");
    }

    #[test]
    fn token_ids_round_trip_as_text_and_signs_are_no_digits() {
        let id = TokenId([0, 1, 2, 3, 4, 5, 6, 0xff]);
        assert_eq!(id.to_string(), "00010203040506ff");
        assert_eq!("00010203040506FF".parse(), Ok(id));
        for bad in ["", "00010203040506f", "+0010203040506ff", "00010203040506fg"] {
            assert!(bad.parse::<TokenId>().is_err(), "{bad}");
        }
    }

    proptest! {
        #[test]
        fn no_text_makes_the_parser_panic(text in "\\PC*", body in "[A-Za-z0-9_-]{0,300}") {
            let _ = text.parse::<Token>();
            let _ = std::format!("{TOKEN_PREFIX}{body}").parse::<Token>();
        }

        #[test]
        fn garbage_is_no_request_and_no_reply_and_never_panics(bytes in proptest::collection::vec(any::<u8>(), 0..512)) {
            let _ = frame::decode::<EnrolRequest>(&bytes);
            let _ = frame::decode::<EnrolReply>(&bytes);
        }
    }
}
