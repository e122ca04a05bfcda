//! Databases to test on: an SQLite file, and a real PostgreSQL that the test starts for itself and nobody else can reach.

use crate::process::Process;
use gnomon_brain::ca::{Ca, Lifetime};
use gnomon_brain::store::{Location, SqlStore};
use std::fs;
use std::os::unix::fs::{PermissionsExt, chown};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};
use tempfile::TempDir;
use url::Url;

/// Whom the server runs as where the test is root, as whom it does not: Debian's package makes that user.
const SERVER_USER: &str = "postgres";
/// With characters that mean something in an address.
const PASSWORD: &str = "p@ss/w?rd%41#";
/// How long a server may take to start on a busy machine.
const START_MAX: Duration = Duration::from_secs(60);

/// Makes two tests of each function: on SQLite, and on PostgreSQL where that is installed.
macro_rules! on_every_database {
    ($($test:ident),+ $(,)?) => {
        mod sqlite {
            $(#[tokio::test(flavor = "multi_thread")]
            async fn $test() {
                super::$test($crate::database::Database::sqlite()).await;
            })+
        }

        mod postgresql {
            $(#[tokio::test(flavor = "multi_thread")]
            async fn $test() {
                if let Some(database) = $crate::database::Database::postgresql() {
                    super::$test(database).await;
                }
            })+
        }
    };
}
pub(crate) use on_every_database;

/// A database of the test's own. It is gone when this is.
pub(crate) struct Database {
    location: Location,
    /// Ends before its directory goes.
    _server: Option<Process>,
    /// Gone last.
    dir: TempDir,
}

impl Database {
    pub(crate) fn sqlite() -> Self {
        let dir = tempfile::tempdir().unwrap();
        Self { location: Location::Sqlite(dir.path().join("db")), _server: None, dir }
    }

    /// `None`, and a word about it, where there is no PostgreSQL.
    pub(crate) fn postgresql() -> Option<Self> {
        Self::start(None)
    }

    /// The same with a certificate of an authority for `localhost`, reached on this port of 127.0.0.1 as well.
    pub(crate) fn postgresql_with_tls(authority: &Ca, port: u16) -> Option<Self> {
        Self::start(Some((authority, port)))
    }

    fn start(tls: Option<(&Ca, u16)>) -> Option<Self> {
        let Some(programs) = programs() else {
            eprintln!("SKIPPED: PostgreSQL is not installed; `cargo xtask setup --for test` installs it");
            return None;
        };
        let dir = tempfile::tempdir().unwrap();
        let data = dir.path().join("data");
        fs::create_dir(&data).unwrap();
        let server_user = rustix::process::geteuid().is_root().then_some(SERVER_USER);
        if server_user.is_some() {
            let (uid, gid) = ids(SERVER_USER);
            fs::set_permissions(dir.path(), fs::Permissions::from_mode(0o755)).unwrap();
            chown(dir.path(), Some(uid), Some(gid)).unwrap();
            chown(&data, Some(uid), Some(gid)).unwrap();
        }
        // Ends with the thread that starts it, which is the test's own: also when that is killed.
        let run = |program: &str| {
            let mut command = Command::new("setpriv");
            command.args(["--pdeathsig", "KILL"]).current_dir(dir.path()).stdout(Stdio::null());
            if let Some(user) = server_user {
                command.args(["--reuid", user, "--regid", user, "--clear-groups"]);
            }
            command.arg(programs.join(program));
            command
        };
        let password_file = dir.path().join("password");
        fs::write(&password_file, format!("{PASSWORD}\n")).unwrap();
        let made = run("initdb")
            .args([
                "--no-sync",
                "--locale=C",
                "--encoding=UTF8",
                "--auth=scram-sha-256",
                "--username=gnomon",
                "--pgdata",
            ])
            .arg(&data)
            .arg("--pwfile")
            .arg(&password_file)
            .status();
        assert!(made.unwrap().success(), "initdb failed");
        fs::set_permissions(&password_file, fs::Permissions::from_mode(0o600)).unwrap();
        let mut network = vec!["-c".to_owned(), "listen_addresses=".to_owned()];
        if let Some((authority, port)) = tls {
            let issued = authority.issue_brain("localhost", &[], Lifetime::BY_HAND).unwrap();
            issued.write(dir.path(), "server").unwrap();
            let files = ["server.pem", "server.key"].map(|name| dir.path().join(name));
            if server_user.is_some() {
                let (uid, gid) = ids(SERVER_USER);
                files.iter().for_each(|file| chown(file, Some(uid), Some(gid)).unwrap());
            }
            let [certificate, key] = files.map(|file| file.display().to_string());
            let settings = [
                "listen_addresses=127.0.0.1".to_owned(),
                format!("port={port}"),
                "ssl=on".to_owned(),
                format!("ssl_cert_file={certificate}"),
                format!("ssl_key_file={key}"),
            ];
            network = settings.into_iter().flat_map(|setting| ["-c".to_owned(), setting]).collect();
        }
        let server = run("postgres")
            .args(network)
            .arg("-D")
            .arg(&data)
            // A socket in a directory of the test's, and no network unless that is what is tested.
            .args(["-c", "fsync=on", "-c", "shared_buffers=16MB", "-c"])
            .arg(format!("unix_socket_directories={}", dir.path().display()))
            .stderr(fs::File::create(dir.path().join("log")).unwrap())
            .spawn()
            .unwrap();
        let server = Process(server);
        let deadline = Instant::now() + START_MAX;
        let status = data.join("postmaster.pid");
        // Its last line says that it takes connections.
        while !fs::read_to_string(&status)
            .is_ok_and(|text| text.lines().nth(7).is_some_and(|line| line.trim() == "ready"))
        {
            assert!(Instant::now() < deadline, "{}", fs::read_to_string(dir.path().join("log")).unwrap());
            std::thread::sleep(Duration::from_millis(10));
        }
        let mut url = Url::parse("postgres://gnomon@localhost/postgres").unwrap();
        url.query_pairs_mut().append_pair("host", dir.path().to_str().unwrap());
        if let Some((_, port)) = tls {
            url.set_port(Some(port)).unwrap();
        }
        Some(Self {
            location: Location::Postgres { url, password_file: Some(password_file) },
            _server: Some(server),
            dir,
        })
    }

    /// Opens it as a brain does.
    pub(crate) async fn open(&self) -> SqlStore {
        SqlStore::open(&self.location).await.unwrap()
    }

    /// What a brain's configuration says of it, in place of `path = "brain.db"`.
    pub(crate) fn setting(&self) -> String {
        match &self.location {
            Location::Sqlite(path) => format!("path = {path:?}"),
            Location::Postgres { url, password_file } => {
                format!("url = {:?}\npassword_file = {:?}", url.as_str(), password_file.as_ref().unwrap())
            }
        }
    }

    pub(crate) fn location(&self) -> &Location {
        &self.location
    }

    /// Where PostgreSQL's socket is.
    pub(crate) fn socket_dir(&self) -> PathBuf {
        self.dir.path().to_owned()
    }

    pub(crate) fn is_sqlite(&self) -> bool {
        matches!(self.location, Location::Sqlite(_))
    }

    /// Changes it behind the store's back; returns how many rows that changed.
    pub(crate) async fn execute(&self, sql: &'static str) -> u64 {
        sqlx::query(sql).execute(&mut self.connect().await).await.unwrap().rows_affected()
    }

    /// A number in it, as somebody else reads it.
    pub(crate) async fn count(&self, sql: &'static str) -> i64 {
        sqlx::query_scalar(sql).fetch_one(&mut self.connect().await).await.unwrap()
    }

    /// Names in it, as somebody else reads them.
    pub(crate) async fn names(&self, sql: &'static str) -> Vec<String> {
        sqlx::query_scalar(sql).fetch_all(&mut self.connect().await).await.unwrap()
    }

    async fn connect(&self) -> sqlx::AnyConnection {
        use sqlx::Connection;
        sqlx::any::install_default_drivers();
        let url = match &self.location {
            Location::Sqlite(path) => format!("sqlite://{}", path.display()),
            Location::Postgres { url, .. } => {
                let mut url = url.clone();
                url.set_password(Some(&PASSWORD.replace('%', "%25"))).unwrap();
                url.to_string()
            }
        };
        sqlx::AnyConnection::connect(&url).await.unwrap()
    }
}

/// Where the newest server's programs are: on Debian in a directory by version, elsewhere on the path.
fn programs() -> Option<PathBuf> {
    let versions = fs::read_dir("/usr/lib/postgresql").into_iter().flatten().flatten();
    let newest = versions.max_by_key(|version| version.file_name().to_string_lossy().parse::<u32>().unwrap_or(0));
    let debian = newest.map(|version| version.path().join("bin"));
    let path = std::env::var_os("PATH").unwrap_or_default();
    debian.into_iter().chain(std::env::split_paths(&path)).find(|folder| is_there(folder))
}

fn is_there(folder: &Path) -> bool {
    ["initdb", "postgres"].iter().all(|program| folder.join(program).exists())
}

/// The numbers of a user and of its group.
fn ids(user: &str) -> (u32, u32) {
    let users = fs::read_to_string("/etc/passwd").unwrap();
    let entry = users.lines().find_map(|line| line.strip_prefix(user)?.strip_prefix(':')).expect("no such user");
    let mut numbers = entry.split(':').skip(1).map(|number| number.parse().unwrap());
    (numbers.next().unwrap(), numbers.next().unwrap())
}
