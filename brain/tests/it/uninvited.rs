//! For stores that stand in for the real one where nobody joins and nobody is shut out.

/// Implements `Admissions` with no tokens, no certificates and no revocations.
macro_rules! nobody_joins {
    ($store:ty) => {
        impl gnomon_brain::store::Admissions for $store {
            fn token(
                &self,
                _: gnomon_common::wire::TokenId,
            ) -> gnomon_brain::store::Pending<'_, Option<gnomon_brain::store::StoredToken>> {
                Box::pin(async { Ok(None) })
            }

            fn enrol<'a>(
                &'a self,
                _: gnomon_common::wire::TokenId,
                _: &'a gnomon_brain::store::StoredCertificate,
                _: &'a gnomon_core::Audit,
            ) -> gnomon_brain::store::Pending<'a, bool> {
                Box::pin(async { Ok(false) })
            }

            fn renew<'a>(
                &'a self,
                _: &'a gnomon_brain::ca::Serial,
                _: &'a gnomon_brain::store::StoredCertificate,
                _: std::time::Duration,
                _: &'a gnomon_core::Audit,
            ) -> gnomon_brain::store::Pending<'a, gnomon_brain::store::Renewal> {
                Box::pin(async { Err(gnomon_brain::store::StoreError::Other("nobody joins here")) })
            }

            fn standing<'a>(
                &'a self,
                _: &'a gnomon_common::wire::HostId,
                _: &'a gnomon_brain::ca::Serial,
            ) -> gnomon_brain::store::Pending<'a, gnomon_brain::store::Standing> {
                Box::pin(async { Ok(gnomon_brain::store::Standing::default()) })
            }

            fn revocations(
                &self,
            ) -> gnomon_brain::store::Pending<
                '_,
                std::collections::BTreeMap<gnomon_common::wire::HostId, gnomon_common::time::Timestamp>,
            > {
                Box::pin(async { Ok(std::collections::BTreeMap::new()) })
            }

            fn turn_away<'a>(
                &'a self,
                _: &'a gnomon_common::wire::HostId,
                _: &'a gnomon_core::Audit,
            ) -> gnomon_brain::store::Pending<'a, bool> {
                Box::pin(async { Ok(false) })
            }
        }
    };
}

pub(crate) use nobody_joins;
