//! What is accepted, and what is refused with which words.

use super::*;
use proptest::prelude::*;

const MINIMAL: &str = "[host]\nname = \"h1\"\n[brain]\naddress = \"brain:9470\"\nca = \"ca.pem\"\ncertificate = \"h1.pem\"\nkey = \"/keys/h1.key\"\n";

fn parse(text: &str) -> Result<Config, ConfigError> {
    Config::parse(text, Path::new("/etc/gnomon/agent.toml"))
}

fn message(text: &str) -> String {
    parse(text).expect_err("the configuration was accepted").to_string()
}

#[test]
fn the_shipped_configuration_is_valid_and_spells_out_every_default() {
    let path = Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/../deploy/agent.toml"));
    let shipped = Config::load(path).unwrap();
    let minimal = parse(MINIMAL).unwrap();
    assert_eq!(shipped.probe.source, minimal.probe.source);
    assert_eq!(shipped.sample.window_ms, minimal.sample.window_ms);
    assert_eq!(shipped.sample.sample_ms, minimal.sample.sample_ms);
    assert_eq!(shipped.cost, minimal.cost);
    assert_eq!(shipped.spool.bytes_max, minimal.spool.bytes_max);
    assert_eq!(shipped.spool.age_max_s, minimal.spool.age_max_s);
    assert_eq!(shipped.guard.cpu_bounds(), minimal.guard.cpu_bounds());
    assert_eq!(shipped.guard.allowed(), minimal.guard.allowed());
    assert_eq!(shipped.away, minimal.away);
    assert_eq!(shipped.reconcile, minimal.reconcile);
    assert_eq!(shipped.migration, minimal.migration);
    assert_eq!(shipped.shadow, minimal.shadow);
    assert_eq!(shipped.host.zone, minimal.host.zone);
    assert_eq!(shipped.metrics.listen, minimal.metrics.listen);
    assert_eq!(shipped.host.libvirt_uri, minimal.host.libvirt_uri);
    assert_eq!(shipped.brain.server_name, minimal.brain.server_name);
    assert_eq!(shipped.state_dir, minimal.state_dir);
}

#[test]
fn relative_paths_are_taken_from_the_files_folder() {
    let config = parse(MINIMAL).unwrap();
    let identity = config.identity();
    assert_eq!(identity.ca, Path::new("/etc/gnomon/ca.pem"));
    assert_eq!(identity.key, Path::new("/keys/h1.key"));
}

#[test]
fn an_unknown_key_is_refused_with_its_line_and_the_nearest_known_key() {
    let text = format!("{MINIMAL}[guard]\ncpu_flor_cores = 1.0\n");
    assert_eq!(
        message(&text),
        "/etc/gnomon/agent.toml:9: unknown key `cpu_flor_cores`: did you mean `cpu_floor_cores`?"
    );
    let text = format!("{MINIMAL}[guard]\nzzz = 1.0\n");
    assert!(
        message(&text).contains("`zzz`, expected one of `means`, `cpu_floor_cores`, `cpu_ceiling_cores`"),
        "{}",
        message(&text)
    );
}

#[test]
fn a_brain_has_one_address_and_several_have_a_list() {
    assert_eq!(parse(MINIMAL).unwrap().brain.address.0, ["brain:9470"]);
    let several = MINIMAL.replace("\"brain:9470\"", "[\"a:9470\", \"[::1]:9470\"]");
    assert_eq!(parse(&several).unwrap().brain.address.0, ["a:9470", "[::1]:9470"]);
}

#[test]
fn a_missing_key_and_a_wrong_type_are_named() {
    assert!(message(&MINIMAL.replace("name = \"h1\"\n", "")).contains("missing field `name`"));
    assert!(message(&MINIMAL.replace("\"h1\"", "7")).contains(":2: invalid type"));
    assert!(message(&MINIMAL.replace("\"h1\"", "\"H 1\"")).contains(":2: host name"));
}

#[test]
fn values_that_make_no_sense_are_refused_by_key() {
    let cases = [
        ("[sample]\nsample_ms = 0", "sample.sample_ms"),
        ("[sample]\nsample_ms = 700", "sample.window_ms"),
        ("[probe]\nsource = \"ebpf\"", "\"ebpf\" is no source"),
        ("[cost]\nbudget_cores = -0.01", "cost.budget_cores"),
        ("[cost]\nbudget_per_busy_core = inf", "cost.budget_per_busy_core"),
        ("[spool]\nbytes_max = 1000", "spool.bytes_max"),
        ("[spool]\nage_max_s = 0", "spool.age_max_s"),
        ("[guard]\ncpu_floor_cores = 0.001", "guard.cpu_floor_cores"),
        ("[guard]\ncpu_floor_cores = nan", "guard.cpu_floor_cores"),
        ("[guard]\ncpu_ceiling_cores = 0.05", "guard.cpu_ceiling_cores"),
        ("[guard]\ncpu_ceiling_cores = inf", "guard.cpu_ceiling_cores"),
        ("[guard]\nmemory_shrink_step = 0.5", "guard.memory_shrink_step"),
        ("[guard]\nmeans = [\"ram\"]", "unknown variant `ram`"),
        ("[away]\nafter_s = 0", "away.after_s"),
        ("[away]\ngrowth_max = 1.0", "away.growth_max"),
        ("[away]\nheadroom = 0.9", "away.headroom"),
        ("[away]\ndrift_step = nan", "away.drift_step"),
        ("[away]\ndrift_interval_s = 0", "away.drift_interval_s"),
        ("[reconcile]\nreapply_max = 101", "reconcile.reapply_max"),
        ("[migration]\nenabled = true", "migration.uri"),
        ("[shadow]\nshare_max = 0", "shadow.share_max"),
        ("[shadow]\nshadow_max = 2", "did you mean `shadows_max`?"),
        ("[metrics]\nlisten = \"9479\"", "neither \"off\" nor"),
    ];
    for (section, expected) in cases {
        let message = message(&format!("{MINIMAL}{section}\n"));
        assert!(message.contains(expected), "{section:?} gave {message:?}");
    }
    for address in ["\"brain\"", "[\"a:1\", \"b\"]", "[]"] {
        let message = message(&MINIMAL.replace("\"brain:9470\"", address));
        assert!(message.contains("brain.address"), "{address} gave {message:?}");
    }
    assert!(message(&MINIMAL.replace("\"brain:9470\"", "7")).contains("expected \"HOST:PORT\" or a list of them"));
    let labelled = |labels: &str| MINIMAL.replace("[brain]", &format!("labels = {labels}\n[brain]"));
    let config = parse(&labelled("{ disk = \"nvme\", room = \"7\" }")).unwrap();
    assert_eq!(config.host.labels.to_string(), "disk=nvme,room=7");
    let told = message(&labelled("{ disk = \"fast disk\" }"));
    assert!(told.contains("a label's \"fast disk\" is not a word of 1 to 63"), "{told}");
    assert!(message(&MINIMAL.replace("[brain]", "zone = \"\"\n[brain]")).contains("host.zone"));
    assert!(message(&MINIMAL.replace("[brain]", "capacity_cores = 0\n[brain]")).contains("host.capacity_cores"));
}

proptest! {
    #[test]
    fn any_text_is_parsed_or_refused_without_a_panic(text in "\\PC*") {
        let _ = parse(&text);
    }

    #[test]
    fn accepted_bounds_are_always_ordered(floor in any::<f64>(), ceiling in any::<f64>()) {
        prop_assume!(floor.is_finite() && ceiling.is_finite());
        if let Ok(config) = parse(&format!("{MINIMAL}[guard]\ncpu_floor_cores = {floor:?}\ncpu_ceiling_cores = {ceiling:?}\n")) {
            let bounds = config.guard.cpu_bounds();
            prop_assert!(CPU_FLOOR_CORES_MIN <= bounds.floor_cores && bounds.floor_cores <= bounds.ceiling_cores);
        }
    }
}
