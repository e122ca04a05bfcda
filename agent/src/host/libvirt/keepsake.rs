//! What goes with a VM to another host: how to undo what Gnomon did to it, in the metadata of its running domain. The persistent definition is not
//! touched.

use super::devices::children;
use super::{Hypervisor, HypervisorError};
use gnomon_common::wire::VmId;
use roxmltree::Document;
use virt::sys;

const NAMESPACE: &str = "urn:gnomon:undo:1";
const PREFIX: &str = "gnomon-undo";

/// Reads a domain's XML.
pub(super) fn parse(xml: &str) -> Option<String> {
    let document = Document::parse(xml).ok()?;
    let metadata = children(document.root_element(), "metadata").next()?;
    let kept = metadata.children().find(|child| child.tag_name().namespace() == Some(NAMESPACE))?;
    kept.text().map(str::to_owned)
}

/// An element with this text.
fn element(text: &str) -> String {
    let text = text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;");
    format!("<undo>{text}</undo>")
}

impl Hypervisor {
    /// Puts a text into the metadata of the running domain, or takes it out. Blocks.
    pub fn keep(&self, vm: VmId, text: Option<&str>) -> Result<(), HypervisorError> {
        let (kind, element) = (sys::VIR_DOMAIN_METADATA_ELEMENT.cast_signed(), text.map(element));
        let flags = sys::VIR_DOMAIN_AFFECT_LIVE;
        let set = self.domain(vm)?.set_metadata(kind, element.as_deref(), Some(PREFIX), Some(NAMESPACE), flags);
        set.map_err(|e| HypervisorError::call("change the metadata", &e))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn what_is_put_in_is_read_again(text in "[ -~]{1,80}") {
            let inside = element(&text).replace("undo>", "u:undo>").replace("<u:undo>", &format!("<u:undo xmlns:u='{NAMESPACE}'>"));
            let xml = format!("<domain><metadata><x xmlns='urn:y'/>{inside}</metadata></domain>");
            prop_assert_eq!(parse(&xml), Some(text));
        }
    }

    #[test]
    fn others_metadata_is_none_of_it() {
        assert_eq!(parse("<domain><metadata><undo xmlns='urn:other'>x</undo></metadata></domain>"), None);
        assert_eq!(parse("<domain/>"), None);
    }
}
