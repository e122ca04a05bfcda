//! Reading signing requests (PKCS #10) of agents.

use super::CaError;
use rcgen::{CertificateSigningRequestParams, PKCS_ECDSA_P256_SHA256, PublicKey, PublicKeyData};
use rustls_pki_types::CertificateSigningRequestDer;

/// Largest request that is looked at: one for a P-256 key and one name has about 300 bytes.
pub const REQUEST_BYTES_MAX: usize = 4 << 10;

/// The public key of a request whose signature proves that the sender has the private one. Everything else it asks for
/// (names, uses, extensions) is ignored: the brain knows whom it talks to.
pub(super) fn public_key(der: &[u8]) -> Result<PublicKey, CaError> {
    if der.len() > REQUEST_BYTES_MAX {
        return Err(CaError::Request(format!("{} bytes, more than {REQUEST_BYTES_MAX}", der.len())));
    }
    let request = CertificateSigningRequestParams::from_der(&CertificateSigningRequestDer::from(der))
        .map_err(|error| CaError::Request(error.to_string()))?;
    let key = request.public_key;
    if PublicKeyData::algorithm(&key) != &PKCS_ECDSA_P256_SHA256 {
        return Err(CaError::Request("its key is not ECDSA P-256".to_owned()));
    }
    Ok(key)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use rcgen::{CertificateParams, KeyPair, PKCS_ECDSA_P384_SHA384};

    fn request(key: &KeyPair) -> Vec<u8> {
        CertificateParams::new(vec!["h1".to_owned()]).unwrap().serialize_request(key).unwrap().der().to_vec()
    }

    #[test]
    fn a_request_gives_its_key_and_one_that_somebody_changed_gives_nothing() {
        let key = KeyPair::generate().unwrap();
        let good = request(&key);
        assert_eq!(public_key(&good).unwrap().der_bytes(), key.der_bytes());
        for position in 0..good.len() {
            let mut bad = good.clone();
            bad[position] ^= 1;
            if let Ok(read) = public_key(&bad) {
                // Nothing but an encoding's slack may pass, and never another key.
                assert_eq!(read.der_bytes(), key.der_bytes(), "byte {position}");
            }
        }
    }

    #[test]
    fn keys_of_another_kind_and_oversized_requests_are_refused() {
        let other = request(&KeyPair::generate_for(&PKCS_ECDSA_P384_SHA384).unwrap());
        assert!(public_key(&other).unwrap_err().to_string().contains("P-256"));
        assert!(public_key(&[0; REQUEST_BYTES_MAX + 1]).unwrap_err().to_string().contains("bytes"));
    }

    proptest! {
        #[test]
        fn garbage_is_refused_without_a_panic(bytes in proptest::collection::vec(any::<u8>(), 0..400)) {
            prop_assert!(public_key(&bytes).is_err());
        }
    }
}
