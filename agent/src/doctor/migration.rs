//! Live migration: whether this host's libvirt can be reached where other hosts are told to reach it.

use super::Check;
use crate::config::Config;
use crate::host::libvirt::Hypervisor;
use std::time::Duration;
use tokio::time::timeout;

const SIGNAL: &str = "live migration";

/// How long the libvirt at the address may take to answer.
const ANSWER_MAX: Duration = Duration::from_secs(5);

pub(super) async fn examine(config: &Config) -> Check {
    let migration = &config.migration;
    if !migration.enabled {
        return Check::unavailable(SIGNAL, "[migration]", "switched off")
            .enable("enabled = true, and in uri where other hosts reach this one's libvirt: docs/migration.md");
    }
    let uri = migration.uri.clone();
    let asked = uri.clone();
    // As another host would, as far as one host can try that: name, port, certificate and login are the same.
    let opened = tokio::task::spawn_blocking(move || Hypervisor::open(&asked)?.version());
    let why = match timeout(ANSWER_MAX, opened).await {
        Ok(Ok(Ok(version))) => {
            return Check::ok(
                SIGNAL,
                uri,
                format!("{version}; whether a firewall lets other hosts through is not tried"),
            );
        }
        Ok(Ok(Err(error))) => error.to_string(),
        Ok(Err(error)) => error.to_string(),
        Err(_) => format!("does not answer within {} s", ANSWER_MAX.as_secs()),
    };
    Check::unavailable(SIGNAL, uri, why).enable(
        "let libvirt listen there (libvirtd-tls.socket) with certificates that both hosts trust: docs/migration.md",
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::doctor::State;
    use std::path::Path;

    fn config(migration: &str) -> Config {
        let text = format!("[host]\nname = \"h1\"\n[brain]\naddress = \"brain:1\"\n[migration]\n{migration}");
        Config::parse(&text, Path::new("/etc/gnomon/agent.toml")).unwrap()
    }

    #[tokio::test]
    async fn what_is_off_and_what_cannot_be_reached_is_told_with_a_way_out() {
        let off = examine(&config("")).await;
        assert_eq!((off.state, off.needed, off.why.as_str()), (State::Unavailable, false, "switched off"));
        // A port that nothing listens on.
        let deaf = examine(&config("enabled = true\nuri = \"qemu+tcp://127.0.0.1:1/system\"\n")).await;
        assert_eq!(deaf.state, State::Unavailable);
        assert!(deaf.why.contains("127.0.0.1") && deaf.enable.is_some(), "{deaf:?}");
    }
}
