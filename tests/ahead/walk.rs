//! Brain and agent die in every state of a shadow: it goes on from where it was, and there is one of it at most.
//!
//! What an order needs is stopped before it is given, so that both die while it is carried out: libvirt, or the shadow's guest, which then follows no balloon
//! and is slow to end.

use super::*;

/// Where libvirt notes its own process, and that of the shadow's guest.
const LIBVIRT: &str = "/run/libvirtd.pid";
const GUEST: &str = "/run/libvirt/qemu/g1.shadow.pid";

/// A production on the first of three hosts. Only an operator's word makes a shadow.
struct Walk {
    stack: Stack,
}

impl Walk {
    fn new() -> Result<Self> {
        let mut settings = settings();
        let policy = &mut settings.policy.shadow;
        (policy.every_vm, policy.cool_down_ms) = (false, 5_000);
        let (stack, ..) = scene("walk", settings)?;
        wait_for("all hosts to have told", Duration::from_secs(60), || {
            let hosts = stack.api().get("/api/v1/hosts")?;
            let hosts = hosts.as_array().context("no list of hosts")?;
            Ok(hosts.iter().all(|host| host["outlook"].is_object()) && stack.api().get("/api/v1/vms/g1").is_ok())
        })?;
        Ok(Self { stack })
    }

    /// Stops a process of hosts, as noted there (`STOP`), or lets it go on, if it is still there (`CONT`).
    fn signal(&self, signal: &str, noted: &str, hosts: &[&str]) -> Result<()> {
        let script = format!("kill -{signal} \"$(cat {noted})\" || {{ [ {signal} = CONT ] && [ ! -e {noted} ]; }}");
        hosts.iter().try_for_each(|host| run(self.stack.lab.host(host)?, "sh", &["-uc", &script]).map(drop))
    }

    /// The only shadow that the brain knows of; null where there is none.
    fn view(&self) -> Result<Value> {
        let all = self.stack.api().get("/api/v1/shadows")?;
        ensure!(all.as_array().is_some_and(|all| all.len() <= 1), "there is more than one: {all}");
        Ok(all[0].clone())
    }

    /// Waits until the shadow is in a state; returns its host, if it has one.
    fn comes_to(&self, state: &str) -> Result<String> {
        wait_for(state, Duration::from_secs(60), || Ok(self.view()?["state"] == state))
            .with_context(|| told(&self.stack))?;
        Ok(self.view()?["host"].as_str().unwrap_or_default().to_owned())
    }

    /// Waits until an order that begins like this is on its way: the newest of all, and not answered.
    fn is_ordered(&self, order: &str) -> Result<()> {
        wait_for(order, Duration::from_secs(30), || {
            let commands = self.stack.api().get("/api/v1/commands?limit=1")?;
            let action = commands[0]["command"]["action"].to_string();
            Ok(action.contains(order) && commands[0]["outcome"].is_null())
        })
        .with_context(|| told(&self.stack))
    }

    /// The hosts that have files of the shadow, or its guest, whatever their libvirt is doing.
    fn holders(&self) -> Result<Vec<&'static str>> {
        let mut found = Vec::new();
        for name in HOSTS {
            let runs = run(self.stack.lab.host(name)?, "sh", &["-c", &format!("[ ! -e {GUEST} ] || cat {GUEST}")])?;
            if !runs.is_empty() || fs::read_dir(shadows_of(&self.stack, name)?)?.count() > 0 {
                found.push(name);
            }
        }
        Ok(found)
    }

    /// Kills brain and an agent while the shadow is in a state, does something, and starts both again: it is where it was, on no more than one host.
    fn dies_in(&mut self, state: &str, agent: &str, meanwhile: impl FnOnce(&Self) -> Result<()>) -> Result<()> {
        self.stack.kill_brain()?;
        self.stack.kill_agent(agent)?;
        let holders = self.holders()?;
        ensure!(holders.len() <= 1, "it is on {holders:?} at once");
        meanwhile(self)?;
        self.stack.start_brain()?;
        let view = self.view()?;
        ensure!(view["state"] == state, "it died {state}: {view}");
        self.stack.start_agent(agent)?;
        println!("{state}, had by {holders:?}: both are back");
        Ok(())
    }

    /// From which state to which it went, in order.
    fn path(&self) -> Result<Vec<String>> {
        let audit = self.stack.api().get("/api/v1/audit?limit=1000")?;
        let lines = audit.as_array().context("no list of lines")?.iter().rev();
        let steps = lines.filter(|line| line["verb"] == "shadow").filter_map(|line| {
            let (_, step) = line["detail"].as_str()?.split_once(": ")?;
            Some(step.split_once(':')?.0.to_owned())
        });
        Ok(steps.collect())
    }
}

#[test]
fn a_shadow_goes_on_from_any_state_in_which_brain_and_agent_die_and_there_is_one_of_it() -> Result<()> {
    if skipped() {
        return Ok(());
    }
    let mut walk = Walk::new()?;
    let begun = Instant::now();
    let others = &HOSTS[1..];

    walk.signal("STOP", LIBVIRT, &["h1"])?;
    walk.stack.api().post("/api/v1/vms/g1/shadow", &json!({}))?;
    walk.comes_to("wanted")?;
    walk.is_ordered("describe")?;
    walk.dies_in("wanted", "h1", |walk| {
        walk.signal("CONT", LIBVIRT, &["h1"])?;
        walk.signal("STOP", LIBVIRT, others)
    })?;

    let home = walk.comes_to("placed")?;
    walk.is_ordered("copy")?;
    walk.dies_in("placed", &home, |walk| walk.signal("CONT", LIBVIRT, others))?;

    walk.comes_to("booting")?;
    ensure!(traces(&walk.stack)? == [home.as_str()], "{}", told(&walk.stack));
    walk.dies_in("booting", &home, |_| Ok(()))?;

    let view = paces(&walk.stack, Duration::from_secs(60))?;
    ensure!(view["host"] == json!(home) && traces(&walk.stack)? == [home.as_str()], "{view}");
    walk.dies_in("pacing", &home, |walk| {
        walk.signal("STOP", GUEST, &[&home])?;
        // Another size: less memory.
        let config = walk.stack.brain_dir().join("brain.toml");
        let text = fs::read_to_string(&config)?;
        let [has, less] = [128, 112].map(|mib| format!("memory_floor_bytes = {}", mib << 20));
        ensure!(text.matches(&has).count() == 1, "{text}");
        Ok(fs::write(&config, text.replace(&has, &less))?)
    })?;

    walk.comes_to("resizing")?;
    walk.is_ordered("resize")?;
    walk.dies_in("resizing", &home, |walk| walk.signal("CONT", GUEST, &[&home]))?;

    walk.comes_to("pacing")?;
    let memory = walk.stack.lab.host(&home)?.virsh(["dommemstat", "g1.shadow"])?;
    ensure!(memory.contains("actual 114688"), "{memory}");
    ensure!(traces(&walk.stack)? == [home.as_str()], "{}", told(&walk.stack));
    walk.signal("STOP", GUEST, &[&home])?;
    for host in others {
        walk.stack.api().post(&format!("/api/v1/hosts/{host}/drain"), &json!({}))?;
    }
    walk.comes_to("moving")?;
    walk.is_ordered("retire")?;
    walk.dies_in("moving", &home, |walk| walk.signal("CONT", GUEST, &[&home]))?;

    walk.comes_to("parked")?;
    ensure!(traces(&walk.stack)?.is_empty(), "{}", told(&walk.stack));
    walk.dies_in("parked", "h1", |walk| walk.signal("STOP", LIBVIRT, others))?;

    // It stops before the next order where an operator pauses its production.
    walk.stack.api().delete(&format!("/api/v1/hosts/{home}/drain"))?;
    ensure!(walk.comes_to("placed")? == home);
    walk.is_ordered("copy")?;
    let production = json!({ "scope": { "vm": "g1" } });
    walk.stack.api().post("/api/v1/pause", &production)?;
    walk.signal("CONT", LIBVIRT, others)?;
    walk.comes_to("copied")?;
    walk.signal("STOP", LIBVIRT, &[&home])?;
    walk.stack.api().post("/api/v1/resume", &production)?;
    walk.is_ordered("start")?;
    walk.dies_in("copied", &home, |walk| walk.signal("CONT", LIBVIRT, &[&home]))?;

    walk.comes_to("booting")?;
    ensure!(traces(&walk.stack)? == [home.as_str()], "{}", told(&walk.stack));
    walk.signal("STOP", GUEST, &[&home])?;
    walk.stack.api().delete("/api/v1/vms/g1/shadow")?;
    walk.comes_to("retiring")?;
    walk.is_ordered("retire")?;
    walk.dies_in("retiring", &home, |walk| walk.signal("CONT", GUEST, &[&home]))?;

    wait_for("it to be gone", Duration::from_secs(60), || Ok(walk.view()?.is_null()))
        .with_context(|| told(&walk.stack))?;
    ensure!(traces(&walk.stack)?.is_empty(), "{}", told(&walk.stack));
    println!("walked in {:.0} s", begun.elapsed().as_secs_f64());
    let first = "wanted placed copied booting pacing resizing pacing moving wanted parked";
    let second = "wanted placed copied booting retiring retired";
    let states: Vec<&str> = first.split(' ').chain(second.split(' ')).collect();
    let expected: Vec<String> = states.windows(2).map(|pair| format!("{} -> {}", pair[0], pair[1])).collect();
    ensure!(walk.path()? == expected, "{:?}", walk.path()?);
    Ok(())
}
