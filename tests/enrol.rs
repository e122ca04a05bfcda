//! Hosts join, renew their certificates and are shut out: the real programs over real QUIC on loopback. No VMs are needed.

#[path = "enrol/place.rs"]
mod place;

use std::fs;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use gnomon_common::wire::Token;
use gnomon_e2e::wait_for;
use place::{Brain, Host, PATIENCE};
use tempfile::TempDir;

/// Long enough for an agent to start on a busy machine, short enough to see it renewed twice.
const CERTIFICATE_LIFETIME_S: u64 = 12;

/// A directory that goes with the test.
struct Dir(TempDir);

impl Dir {
    fn new() -> Result<Self> {
        Ok(Self(tempfile::tempdir()?))
    }

    fn brain(&self, name: &str) -> Result<Brain> {
        Brain::start(&self.0.path().join(name), CERTIFICATE_LIFETIME_S)
    }

    fn host(&self, name: &str) -> Result<Host> {
        Host::new(self.0.path().join(name))
    }
}

#[test]
fn a_host_joins_renews_itself_is_shut_out_and_comes_back_only_by_a_new_token() -> Result<()> {
    let dir = Dir::new()?;
    let brain = dir.brain("brain")?;
    let (host, idle) = (&dir.host("h1")?, dir.host("h2")?);
    let token = brain.token("h1", "1h")?;
    let secret = token.parse::<Token>()?.secret.0;
    host.join_well(brain.address(), &token)?;
    ensure!(host.mode("agent.key")? == 0o600, "the key's mode is {:o}", host.mode("agent.key")?);
    ensure!(host.config().exists(), "no configuration was written");
    ensure!(!brain.database()?.windows(16).any(|bytes| bytes == secret), "the brain keeps the token's secret");
    idle.join_well(brain.address(), &brain.token("h2", "1h")?)?;
    let idle_since = Instant::now();

    // It runs, and goes on with ever new keys.
    let agent = host.run()?;
    wait_for("the host to connect", PATIENCE, || brain.has("h1"))?;
    let (mut key, mut certificate) = (host.text("agent.key")?, host.text("agent.pem")?);
    for renewal in 1..=2 {
        wait_for("a renewal", Duration::from_secs(CERTIFICATE_LIFETIME_S), || {
            Ok(host.text("agent.pem")? != certificate)
        })?;
        let next = host.text("agent.key")?;
        ensure!(next != key, "renewal {renewal} kept the key");
        (key, certificate) = (next, host.text("agent.pem")?);
    }
    wait_for("the host to connect with what it got last", PATIENCE, || brain.has("h1"))?;
    ensure!(brain.audited("renew", "")? >= 2, "renewals are not in the audit log");

    // Shut out: the connection that stands ends at once, and every later one is refused.
    let revoked = Instant::now();
    brain.command(&["host", "revoke", "h1"])?;
    wait_for("the host to be out", Duration::from_secs(2), || Ok(!brain.has("h1")?))?;
    ensure!(revoked.elapsed() < Duration::from_secs(2), "out after {:?}", revoked.elapsed());
    let heard = |times| move || Ok(host.log()?.matches("(Revoked): host h1 was revoked").count() >= times);
    wait_for("the agent to hear why", PATIENCE, heard(1))?;
    drop(agent);
    let agent = host.run()?;
    wait_for("the next agent to hear why", PATIENCE, heard(2))?;
    ensure!(host.log()?.contains("gnomon-brain token create --host h1"), "the agent's log does not say what to do");
    ensure!(brain.log()?.contains("host h1 was revoked"), "the brain's log does not say why");
    ensure!(!brain.has("h1")?, "a revoked host is connected");
    let refusals = brain.audited("refuse_host", "revoked")?;
    ensure!(refusals == 1, "{refusals} audit lines about one revoked host");
    ensure!(brain.audited("revoke_host", "")? == 1, "the operator is not in the audit log");

    // A new token, and it is back; what it had before is not.
    drop(agent);
    host.join_well(brain.address(), &brain.token("h1", "1h")?)?;
    let _agent = host.run()?;
    wait_for("the host to come back", PATIENCE, || brain.has("h1"))?;

    // A host that was off until its certificate ended.
    let life = Duration::from_secs(CERTIFICATE_LIFETIME_S + 1);
    thread::sleep(life.saturating_sub(idle_since.elapsed()));
    let _late = idle.run()?;
    wait_for("the agent to say that its certificate has ended", PATIENCE, || {
        let log = idle.log()?;
        Ok(log.contains("it has expired") && log.contains("gnomon-agent join"))
    })?;
    wait_for("the brain to say so", PATIENCE, || {
        Ok(brain.log()?.contains("claims=\"h2\" error=invalid peer certificate: certificate expired"))
    })?;
    Ok(())
}

#[test]
fn a_useless_token_is_refused_with_the_reason_in_both_logs_and_one_audit_line() -> Result<()> {
    let dir = Dir::new()?;
    let (brain, other) = (dir.brain("brain")?, dir.brain("other")?);
    // What the host says, what the brain says, and what is in the audit log, once, and that nobody got in.
    let refused = |name: &str, host: &Host, token: &str, code: &str, words: &str| -> Result<()> {
        let lines = brain.audited("refuse_token", code)?;
        let said = host.join_in_vain(brain.address(), token)?;
        ensure!(said.contains(&format!("({code})")) && said.contains(words), "{name}: the host says {said}");
        let logged = format!("code=\"{code}\"");
        wait_for(&format!("the brain's log about the {name} token"), PATIENCE, || Ok(brain.log()?.contains(&logged)))?;
        wait_for(&format!("an audit line about the {name} token"), PATIENCE, || {
            Ok(brain.audited("refuse_token", code)? == lines + 1)
        })
    };
    let expired = brain.token("late", "1s")?;
    let expires = Instant::now() + Duration::from_secs(1);

    let used = brain.token("a", "1h")?;
    dir.host("a")?.join_well(brain.address(), &used)?;
    refused("re-used", &dir.host("b")?, &used, "spent", "only once")?;

    let mut forged: Token = brain.token("c", "1h")?.parse()?;
    forged.secret.0[0] ^= 1;
    refused("forged", &dir.host("c")?, &forged.to_string(), "foreign", "none of this brain's")?;
    // Another brain's CA: the host breaks off before it tells the secret.
    let foreign = other.token("c", "1h")?;
    refused("foreign", &dir.host("c")?, &foreign, "foreign", "not the one that made this token")?;

    // A token for one host, on another; the right host can still use it.
    let for_d = brain.token("d", "1h")?;
    let e = Host::configured(dir.0.path().join("e"), "e", brain.address())?;
    refused("other host's", &e, &for_d, "other_host", "good for host d")?;
    dir.host("d")?.join_well(brain.address(), &for_d)?;

    let withdrawn = brain.token("f", "1h")?;
    brain.command(&["token", "revoke", &withdrawn.parse::<Token>()?.id.to_string()])?;
    refused("withdrawn", &dir.host("f")?, &withdrawn, "revoked", "was revoked")?;
    thread::sleep(expires.saturating_duration_since(Instant::now()));
    refused("expired", &dir.host("late")?, &expired, "expired", "has expired")?;

    ensure!(brain.audited("enrol", "")? == 2, "somebody else got in");
    ensure!(brain.audited("refuse_token", "")? == 6, "six refusals, and not six lines: {}", brain.gnomon(&["audit"])?);
    let listed = brain.command(&["token", "list"])?;
    for state in ["used ", "revoked ", "expired ", "good for "] {
        ensure!(listed.contains(state), "no token is \"{state}\":\n{listed}");
    }
    Ok(())
}

#[test]
fn a_certificate_of_another_brain_is_refused_with_a_reason_on_both_sides() -> Result<()> {
    let dir = Dir::new()?;
    let (brain, other) = (dir.brain("brain")?, dir.brain("other")?);
    let (ours, theirs) = (dir.host("ours")?, dir.host("theirs")?);
    ours.join_well(brain.address(), &brain.token("h1", "1h")?)?;
    theirs.join_well(other.address(), &other.token("h1", "1h")?)?;
    // Their certificate and key, our CA and address: only the brain can object.
    for file in ["agent.pem", "agent.key"] {
        fs::copy(theirs.file(file), ours.file(file))?;
    }
    let _agent = ours.run()?;
    wait_for("the agent to say why", PATIENCE, || {
        Ok(ours.log()?.contains("does not accept this agent's certificate"))
    })?;
    ensure!(brain.log()?.contains("kind=\"certificate\""), "the brain's log does not say why:\n{}", brain.log()?);
    ensure!(!brain.has("h1")?, "a stranger was let in");
    Ok(())
}
