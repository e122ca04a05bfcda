//! The real `gnomon-brain` on a real PostgreSQL over the network: by TLS, and only with the server that its authority vouches for.

use crate::brain::Home;
use crate::database::Database;
use crate::failover::Brain;
use gnomon_brain::ca::Ca;
use gnomon_brain::store::Location;
use std::net::TcpListener;
use std::path::Path;
use std::process::Command;

/// A port of 127.0.0.1 that nobody uses just now.
fn free_port() -> u16 {
    TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port()
}

/// A brain's configuration that reaches the server under this name, and believes this authority.
fn home_on(database: &Database, host: &str, port: u16, authority: &Path) -> Home {
    let Location::Postgres { password_file: Some(password_file), .. } = database.location() else { panic!() };
    let url =
        format!("postgres://gnomon@{host}:{port}/postgres?sslmode=verify-full&sslrootcert={}", authority.display());
    let home = Home::new();
    home.write_config(|text| {
        text.replace("path = \"brain.db\"", &format!("url = {url:?}\npassword_file = {password_file:?}"))
    });
    home
}

/// What a brain says that does not start.
fn refusal(home: &Home) -> String {
    let mut brain = Command::new(env!("CARGO_BIN_EXE_gnomon-brain"));
    let output = brain.args(["run", "--config"]).arg(home.config_path()).output().unwrap();
    assert!(!output.status.success(), "it runs");
    String::from_utf8(output.stderr).unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_brain_leads_on_a_database_across_the_network_by_tls_and_believes_nobody_else() {
    let (ours, theirs) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let authority = Ca::init(ours.path()).unwrap();
    Ca::init(theirs.path()).unwrap();
    let port = free_port();
    let Some(database) = Database::postgresql_with_tls(&authority, port) else { return };
    let [ours, theirs] = [ours, theirs].map(|dir| (dir.path().join("ca.pem"), dir));

    let home = home_on(&database, "localhost", port, &ours.0);
    let brain = Brain::start(&home);
    brain.until_leader().await;
    let by_tls =
        "SELECT COUNT(*) FROM pg_stat_ssl JOIN pg_stat_activity USING (pid) WHERE ssl AND client_addr IS NOT NULL";
    let by_none =
        "SELECT COUNT(*) FROM pg_stat_ssl JOIN pg_stat_activity USING (pid) WHERE NOT ssl AND client_addr IS NOT NULL";
    assert!(database.count(by_tls).await > 0);
    assert_eq!(database.count(by_none).await, 0);

    let stranger = refusal(&home_on(&database, "localhost", port, &theirs.0));
    assert!(stranger.contains("cannot open the store"), "{stranger}");
    assert!(stranger.contains("invalid peer certificate"), "{stranger}");
    // The right authority, and another server's name.
    let misnamed = refusal(&home_on(&database, "127.0.0.1", port, &ours.0));
    assert!(misnamed.contains("cannot open the store") && misnamed.contains("not valid for"), "{misnamed}");
}
