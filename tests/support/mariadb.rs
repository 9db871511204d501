//! A real MariaDB, started once per test run in a private directory and on a private port, with the table the Manager
//! API writes (column types: Manager API facts §1, §Limits; strict mode as MySQL 8 has it).
//!
//! Tests run in parallel, so every stand-in gets a database of its own in the one server.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::OnceLock;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use mysql::prelude::Queryable;
use mysql::{Opts, OptsBuilder, Pool, PoolConstraints, PoolOpts, PooledConn};

use super::eventually::{eventually, free_port};
use super::guard;

/// The running server.
pub struct MariaDb {
    port: u16,
}

/// Which of the two servers' table widths.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Columns {
    /// content VARCHAR(1024), session_id VARCHAR(100) NOT NULL.
    Fork,
    /// content TEXT, session_id VARCHAR(50).
    Upstream,
}

/// One stand-in's database.
pub struct Database {
    pool: Pool,
    name: String,
}

impl MariaDb {
    /// The one server of this test run; starts it at the first call.
    pub fn shared() -> &'static Self {
        static SERVER: OnceLock<MariaDb> = OnceLock::new();
        SERVER.get_or_init(Self::start)
    }

    fn start() -> Self {
        let root = tempfile::Builder::new().prefix("chat-historyd-mariadb-").tempdir().expect("a temporary directory").keep();
        guard::remove_at_end(&root);
        let data = root.join("data");
        std::fs::create_dir(root.join("tmp")).expect("a directory");
        let user = command_output(Command::new("id").arg("-un"));
        let install = Command::new(program("mariadb-install-db"))
            .arg("--no-defaults")
            .arg(format!("--user={user}"))
            .arg(format!("--datadir={}", data.display()))
            // A server that starts removes every temporary table in its tmpdir, also those of another test run's server.
            .arg(format!("--tmpdir={}", root.join("tmp").display()))
            .args(["--auth-root-authentication-method=normal", "--skip-test-db", "--innodb-log-file-size=16M"])
            .stdin(Stdio::null())
            .output()
            .expect("mariadb-install-db runs");
        assert!(
            install.status.success(),
            "mariadb-install-db: {}{}",
            String::from_utf8_lossy(&install.stdout),
            String::from_utf8_lossy(&install.stderr)
        );
        for _ in 0..3 {
            // Somebody else may take the port between our look and the server's bind.
            if let Some(server) = Self::launch(&root, &data, &user, free_port()) {
                return server;
            }
        }
        panic!("MariaDB does not start: {}", std::fs::read_to_string(root.join("log")).unwrap_or_default());
    }

    fn launch(root: &Path, data: &Path, user: &str, port: u16) -> Option<Self> {
        let log = std::fs::File::create(root.join("log")).expect("a log file");
        let mut child = Command::new(program("mariadbd"))
            .arg("--no-defaults")
            .arg(format!("--user={user}"))
            .arg(format!("--datadir={}", data.display()))
            .arg(format!("--tmpdir={}", root.join("tmp").display()))
            .arg(format!("--socket={}", root.join("my.sock").display()))
            .arg(format!("--pid-file={}", root.join("my.pid").display()))
            .args(["--bind-address=127.0.0.1", "--skip-networking=0", "--skip-log-bin", "--skip-name-resolve"])
            .arg(format!("--port={port}"))
            .args(["--max-allowed-packet=64M", "--max-connections=500", "--back-log=200"])
            .args(["--character-set-server=utf8mb4", "--collation-server=utf8mb4_general_ci", "--default-time-zone=+00:00"])
            .arg("--sql-mode=STRICT_TRANS_TABLES,NO_ZERO_IN_DATE,NO_ZERO_DATE,ERROR_FOR_DIVISION_BY_ZERO,NO_ENGINE_SUBSTITUTION")
            // The rows are the tests' evidence, not anybody's data: no syncs.
            .args(["--innodb-flush-log-at-trx-commit=0", "--innodb-log-file-size=16M", "--innodb-buffer-pool-size=64M"])
            .args(["--innodb-flush-method=nosync", "--performance-schema=OFF"])
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(log)
            .spawn()
            .expect("mariadbd starts");
        guard::kill_at_end(child.id());
        let ready = eventually(Duration::from_secs(60), "MariaDB answers", || {
            if child.try_wait().expect("its state").is_some() {
                return Some(false);
            }
            mysql::Conn::new(options(port, None)).ok().map(|_| true)
        });
        if !ready {
            guard::forget(child.id());
        }
        ready.then_some(Self { port })
    }

    /// A fresh database with the Manager API's tables.
    pub fn create_database(&self, columns: Columns) -> Database {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let name = format!("manager_api_{}", NEXT.fetch_add(1, Ordering::Relaxed));
        let mut conn = mysql::Conn::new(options(self.port, None)).expect("MariaDB answers");
        conn.query_drop(format!("CREATE DATABASE {name} CHARACTER SET utf8mb4 COLLATE utf8mb4_general_ci"))
            .expect("create database");
        conn.query_drop(format!("USE {name}")).expect("use");
        for statement in [
            "CREATE TABLE ai_agent (id VARCHAR(32) PRIMARY KEY, chat_history_conf TINYINT NOT NULL DEFAULT 1)",
            "CREATE TABLE ai_device (id BIGINT AUTO_INCREMENT PRIMARY KEY, mac_address VARCHAR(50), agent_id VARCHAR(32),
                last_connected_at DATETIME, INDEX (mac_address))",
            "CREATE TABLE ai_agent_chat_audio (id VARCHAR(32) PRIMARY KEY, audio LONGBLOB)",
        ] {
            conn.query_drop(statement).expect("create table");
        }
        conn.query_drop(history_table(columns)).expect("create table");
        let pool = Pool::new(options(self.port, Some(&name))).expect("MariaDB answers");
        Database { pool, name }
    }
}

impl Database {
    /// A connection with this database chosen and UTC as its time zone.
    ///
    /// # Errors
    /// When the server is gone.
    pub fn connection(&self) -> mysql::Result<PooledConn> {
        self.pool.get_conn()
    }

    /// Its name.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Widens the table in place, as an upgrade of the server does.
    pub fn alter(&self, columns: Columns) {
        let (content, session) = widths(columns);
        self.connection()
            .expect("MariaDB answers")
            .query_drop(format!("ALTER TABLE ai_agent_chat_history MODIFY content {content}, MODIFY session_id {session}"))
            .expect("alter table");
    }
}

const fn widths(columns: Columns) -> (&'static str, &'static str) {
    match columns {
        Columns::Fork => ("VARCHAR(1024)", "VARCHAR(100) NOT NULL"),
        Columns::Upstream => ("TEXT", "VARCHAR(50)"),
    }
}

fn history_table(columns: Columns) -> String {
    let (content, session) = widths(columns);
    format!(
        "CREATE TABLE ai_agent_chat_history (
            id BIGINT AUTO_INCREMENT NOT NULL PRIMARY KEY,
            mac_address VARCHAR(50),
            agent_id VARCHAR(32),
            session_id {session},
            chat_type TINYINT(3),
            content {content},
            audio_id VARCHAR(32),
            created_at DATETIME(3) DEFAULT CURRENT_TIMESTAMP(3) NOT NULL,
            updated_at DATETIME(3) DEFAULT CURRENT_TIMESTAMP(3) NOT NULL ON UPDATE CURRENT_TIMESTAMP(3),
            INDEX (mac_address), INDEX (session_id), INDEX (agent_id), INDEX (agent_id, session_id, created_at)
        ) ENGINE = InnoDB DEFAULT CHARSET = utf8mb4"
    )
}

fn options(port: u16, database: Option<&str>) -> Opts {
    let limits = PoolConstraints::new(1, 32).expect("one is less than thirty-two");
    OptsBuilder::new()
        .ip_or_hostname(Some("127.0.0.1"))
        .tcp_port(port)
        .user(Some("root"))
        .db_name(database)
        .prefer_socket(false)
        .init(vec!["SET time_zone = '+00:00'"])
        .pool_opts(PoolOpts::default().with_constraints(limits))
        .into()
}

fn program(name: &str) -> PathBuf {
    let path = std::env::var_os("PATH").unwrap_or_default();
    std::env::split_paths(&path)
        .chain(["/usr/sbin", "/usr/bin", "/usr/libexec"].map(PathBuf::from))
        .map(|directory| directory.join(name))
        .find(|candidate| candidate.is_file())
        .unwrap_or_else(|| {
            panic!("{name} is not installed: run tests/run, which installs it, or `apt-get install mariadb-server`")
        })
}

fn command_output(command: &mut Command) -> String {
    let output = command.output().expect("it runs");
    String::from_utf8_lossy(&output.stdout).trim().to_owned()
}
